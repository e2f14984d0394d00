"""FuxiCTR's layers give what ours give under the same weights: DIN's attention with Dice, FM's and PNN's products,
DCN-v2's cross layers; and its APG, which its package on PyPI does not hold: FUXICTR names a checkout of it.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("fuxictr", reason="FuxiCTR is not installed here; `make test-peers` installs it")

from fuxictr.pytorch.layers.attentions.target_attention import DIN_Attention  # noqa: E402
from fuxictr.pytorch.layers.interactions.cross_net import CrossNetMix, CrossNetV2  # noqa: E402
from fuxictr.pytorch.layers.interactions.inner_product import InnerProductInteraction  # noqa: E402

from funnelrank.inputs import History, Inputs, Spec  # noqa: E402
from funnelrank.models.apg import GeneratedLinear, GeneratedMLP  # noqa: E402
from funnelrank.models.dcn_v2 import CrossNetwork  # noqa: E402
from funnelrank.models.din import TargetAttention  # noqa: E402
from funnelrank.models.fields import bi_interaction  # noqa: E402
from funnelrank.models.pnn import ProductNetwork  # noqa: E402

W, D = 6, 4
CLOSE = {"atol": 1e-10, "rtol": 0}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("softmax", [False, True])
def test_dins_attention_with_dice(softmax):
    lengths = torch.tensor([2, 5, 3])
    theirs = DIN_Attention(D, [5, 3], "Dice", use_softmax=softmax).double().eval()
    mine = TargetAttention(Spec(flat=1, tasks=1, histories={"h": D}), hidden=(5, 3), softmax=softmax).double().eval()
    unit = mine.units["0"]
    linears = [m for m in theirs.attention_layer.mlp if isinstance(m, torch.nn.Linear)]
    dices = [m for m in theirs.attention_layer.mlp if hasattr(m, "alpha")]
    with torch.no_grad():
        v, e, d, p = linears[0].weight.split(D, 1)       # of [v, e, v - e, v * e]; ours reads [e, v, e - v, e * v]
        unit.first.weight.copy_(torch.cat([e, v, -d, p], 1))
        unit.first.bias.copy_(linears[0].bias)
        for layer, other in zip(unit.rest, linears[1:]):
            layer.load_state_dict(other.state_dict())
        for dice, other in zip(unit.dice, dices):
            torch.nn.init.normal_(other.alpha)
            other.bn.running_mean.normal_()
            other.bn.running_var.uniform_(0.5, 2)
            other.bn.eps = dice.norm.eps
            dice.alpha.copy_(other.alpha)
            dice.norm.load_state_dict(other.bn.state_dict())
    padded, target = draw(3, 5, D), draw(3, D, seed=1)
    mask = torch.arange(5) < lengths.unsqueeze(1)
    history = History(padded[mask], torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]), target)
    found = mine(Inputs(draw(3, 1), histories={"h": history})).flat[:, 1:]
    torch.testing.assert_close(found, theirs(target, padded, mask), **CLOSE)


def test_fms_pairs_and_pnns_inner_products():
    v = draw(7, 5, 3)
    torch.testing.assert_close(bi_interaction(v), InnerProductInteraction(5, "bi_interaction")(v), **CLOSE)
    part = ProductNetwork(Spec(flat=15, tasks=1, fields=(5, 3), embedded=5)).double()
    (products,) = part.products(v)
    torch.testing.assert_close(products, InnerProductInteraction(5, "inner_product")(v), **CLOSE)


@pytest.mark.parametrize("experts", [None, 3])
def test_dcn_v2s_cross_layers(experts):
    keys = {} if experts is None else {"rank": 2, "experts": experts}
    part = CrossNetwork(Spec(flat=W, tasks=1), layers=2, hidden=(), **keys).double()
    theirs = (CrossNetV2(W, 2) if experts is None else CrossNetMix(W, 2, 2, experts)).double()
    with torch.no_grad():
        for i, mine in enumerate(part.cross):
            if experts is None:
                mine.full.weight[0].copy_(theirs.cross_layers[i].weight)
                mine.full.bias[0].copy_(theirs.cross_layers[i].bias)
                continue
            mine.down.weight.copy_(theirs.V_list[i].transpose(1, 2))
            mine.up.weight.copy_(theirs.U_list[i])
            mine.middle.weight.copy_(theirs.C_list[i])
            mine.gate.weight[0].copy_(torch.cat([g.weight for g in theirs.gating]))
            torch.nn.init.normal_(theirs.bias[i])
            mine.bias[0].copy_(theirs.bias[i].flatten())
    x = Inputs(draw(7, W))
    torch.testing.assert_close(part(x)[:, 0], theirs(x.flat), **CLOSE)


@pytest.fixture(scope="module")
def apg():
    """FuxiCTR's APG.py, from a checkout."""
    checkout = os.environ.get("FUXICTR")
    if not checkout:
        pytest.skip("FuxiCTR's package on PyPI has no APG; set FUXICTR to a checkout of github.com/reczoo/FuxiCTR")
    spec = importlib.util.spec_from_file_location("fuxictr_apg", Path(checkout) / "model_zoo/APG/src/APG.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def copy_apg(mine: GeneratedLinear, theirs, rank: int) -> None:
    """Theirs multiplies rows from the right, h U S V, so ours has all of it transposed, S too."""
    right, left = ((theirs.U_l, theirs.U_r), (theirs.V_l, theirs.V_r)) if hasattr(theirs, "U_l") else (
        (theirs.U,), (theirs.V,))
    for factor, parts in ((mine.inner, right), (mine.outer, left)):
        for layer, part in zip((factor.right, factor.left), parts):
            layer.weight.copy_(part.T)
    *hidden, last = [m for m in theirs.hypernet.mlp if isinstance(m, torch.nn.Linear)]
    for layer, other in zip(mine.generator.layers, hidden):
        layer["linear"].load_state_dict(other.state_dict())
    turned = torch.arange(rank ** 2).view(rank, rank).T.flatten()
    mine.core.weight.copy_(last.weight[turned])
    mine.core.bias.copy_(last.bias[turned])
    torch.nn.init.normal_(theirs.bias)
    mine.bias.copy_(theirs.bias[0])


@pytest.mark.parametrize("mode", ["self-wise", "group-wise", "mix-wise"])
@pytest.mark.parametrize("middle", [None, 5])
@pytest.mark.parametrize("generator", [(), (4,)])
def test_apg(apg, mode, middle, generator):
    groups = {"self-wise": [], "group-wise": ["scenario"], "mix-wise": ["scenario", "user"]}[mode]
    spec = Spec(flat=W, tasks=2, groups={"scenario": 2, "user": 3})
    part = GeneratedMLP(spec, groups=groups, hidden=(5, 4), rank=3, middle=middle, generator=generator).double()
    condition = sum(spec.groups[g] for g in groups)
    theirs = apg.APG_MLP(W, [5, 4], condition_dim=condition, condition_mode=mode, rank_k=3, overparam_p=middle,
                         generate_bias=False, hypernet_config={"hidden_units": list(generator)}).double()
    for i, layer in enumerate(part.layers):
        copy_apg(layer, theirs.dense_layers[f"linear_{i + 1}"], 3)
    x = Inputs(draw(7, W), groups={"scenario": draw(7, 2, seed=1), "user": draw(7, 3, seed=2)})
    z = torch.cat([x.groups[g] for g in groups], 1) if groups else None
    torch.testing.assert_close(part(x)[:, 0], theirs(x.flat, z), **CLOSE)
