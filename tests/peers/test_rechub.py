"""torch-rechub's layers and models, where they are the paper's, give what ours give under the same weights.

Its MLPs have batch norm behind every layer, gates included, and biases in gates; both are set to do nothing here.
"""

import pytest
import torch
from torch import nn

pytest.importorskip("torch_rechub", reason="torch-rechub is not installed here; `make test-peers` installs it")

from torch_rechub.basic import layers  # noqa: E402
from torch_rechub.basic.features import DenseFeature  # noqa: E402
from torch_rechub.models import multi_task  # noqa: E402
from torch_rechub.models.multi_task.aitm import AttentionLayer  # noqa: E402

from funnelrank.inputs import Inputs, Relation, Spec  # noqa: E402
from funnelrank.models.aitm import InformationTransfer  # noqa: E402
from funnelrank.models.autoint import InteractingLayer  # noqa: E402
from funnelrank.models.dcn_v2 import CrossNetwork  # noqa: E402
from funnelrank.models.fields import bi_interaction  # noqa: E402
from funnelrank.models.mlp import MLPBody, Towers  # noqa: E402
from funnelrank.models.mmoe import MixtureOfExperts  # noqa: E402
from funnelrank.models.ple import ProgressiveExtraction  # noqa: E402

W, H, K = 6, 4, 3        # widths of the input, of towers (whose root theirs takes in float32), of heads
CLOSE = {"atol": 1e-10, "rtol": 0}


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Given(nn.Module):
    """In place of its embedding, which would cast to float32."""

    def forward(self, x, features, squeeze_dim):
        return x


def peer(name, *args):
    torch.manual_seed(0)
    m = getattr(multi_task, name)([DenseFeature(f"n{i}") for i in range(W)], *args).double().eval()
    m.embedding = Given()
    for module in m.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 0.0
    return m


def silence_biases(gates):
    for gate in gates:
        nn.init.zeros_(gate.mlp[0].bias)


def linears(mlp):
    return [m for m in mlp.mlp if isinstance(m, nn.Linear)]


@torch.no_grad()
def copy(target, i, source):
    """Layers of an MLP of theirs, into network i of a stack of ours; None: into one that stands alone."""
    for mine, theirs in zip(target.layers, linears(source)):
        for key in ("weight", "bias"):
            tensor = getattr(mine["linear"], key)
            (tensor if i is None else tensor[i]).copy_(getattr(theirs, key))


@torch.no_grad()
def copy_towers(towers, theirs):
    for t, tower in enumerate(theirs):
        copy(towers.mlp, t, tower)
        towers.linear.weight[t].copy_(linears(tower)[-1].weight)
        towers.linear.bias[t].copy_(linears(tower)[-1].bias)


def copy_attention(attend, theirs):
    for mine, name in ((attend.h1, "v_layer"), (attend.h2, "q_layer"), (attend.h3, "k_layer")):
        mine.load_state_dict(getattr(theirs, name).state_dict())


def test_aitms_attention():
    theirs = AttentionLayer(H).double()
    part = InformationTransfer(Spec(flat=W, tasks=2, hidden=H, views=2, relations=(Relation(0, 1),))).double()
    copy_attention(part.attention["all"], theirs)
    u = draw(7, 2, H)
    torch.testing.assert_close(part.attention["all"](u.unbind(1)), theirs(u), **CLOSE)


def test_aitm():
    m = peer("AITM", 3, {"dims": [5, H]}, [{"dims": [K]}] * 3)
    spec = Spec(flat=W, tasks=3, hidden=H, views=3, relations=(Relation(0, 1), Relation(1, 2)))
    body, towers = MLPBody(spec, hidden=(5, H), per="task").double(), Towers(spec, hidden=(K,)).double()
    transfer = InformationTransfer(spec, share=False).double()
    for t in range(3):
        copy(body.mlp, t, m.bottoms[t])
    for t in (1, 2):
        copy(transfer.gates[f"{t - 1}_{t}"], None, m.info_gates[t - 1])
        copy_attention(transfer.attention[str(t)], m.aits[t - 1])
    copy_towers(towers, m.towers)
    x = Inputs(draw(7, W))
    torch.testing.assert_close(towers(transfer(body(x)), x).sigmoid(), m(x.flat), **CLOSE)


def test_mmoe():
    m = peer("MMOE", ["classification"] * 2, 3, {"dims": [5, H]}, [{"dims": [K]}] * 2)
    silence_biases(m.gates)
    spec = Spec(flat=W, tasks=2, hidden=H, views=2)
    body, towers = MixtureOfExperts(spec, experts=3, hidden=(5, H)).double(), Towers(spec, hidden=(K,)).double()
    for n in range(3):
        copy(body.experts, n, m.experts[n])
    with torch.no_grad():
        for t in range(2):
            body.gates.weight[t].copy_(m.gates[t].mlp[0].weight)
    copy_towers(towers, m.towers)
    x = Inputs(draw(7, W))
    torch.testing.assert_close(towers(body(x), x).sigmoid(), m(x.flat), **CLOSE)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ple(levels):
    m = peer("PLE", ["classification"] * 2, levels, 2, 1, {"dims": [5, H]}, [{"dims": [K]}] * 2)
    spec = Spec(flat=W, tasks=2, hidden=H, views=2)
    body = ProgressiveExtraction(spec, levels=levels, own=2, shared=1, hidden=(5, H)).double()
    towers = Towers(spec, hidden=(K,)).double()
    for mine, theirs in zip(body.levels, m.cgc_layers):
        silence_biases([*theirs.gates_specific, *([theirs.gate_shared] if mine.common is not None else [])])
        for i, expert in enumerate(theirs.experts_specific):
            copy(mine.own, i, expert)
        copy(mine.shared, 0, theirs.experts_shared[0])
        with torch.no_grad():
            for t in range(2):
                mine.gate.weight[t].copy_(theirs.gates_specific[t].mlp[0].weight)
            if mine.common is not None:
                mine.common.weight.copy_(theirs.gate_shared.mlp[0].weight)
    copy_towers(towers, m.towers)
    x = Inputs(draw(7, W))
    torch.testing.assert_close(towers(body(x), x).sigmoid(), m(x.flat), **CLOSE)


def test_fms_pairs():
    v = draw(7, 5, 3)
    torch.testing.assert_close(bi_interaction(v), layers.FM(reduce_sum=False)(v), **CLOSE)
    torch.testing.assert_close(bi_interaction(v).sum(1, keepdim=True), layers.FM()(v), **CLOSE)


@pytest.mark.parametrize("experts", [None, 3])
def test_dcn_v2s_cross_layers(experts):
    keys = {} if experts is None else {"rank": 2, "experts": experts}
    part = CrossNetwork(Spec(flat=W, tasks=1), layers=2, hidden=(), **keys).double()
    theirs = (layers.CrossNetV2(W, 2) if experts is None else layers.CrossNetMix(W, 2, 2, experts)).double()
    with torch.no_grad():
        for i, mine in enumerate(part.cross):
            if experts is None:
                mine.full.weight[0].copy_(theirs.w[i].weight)
                mine.full.bias.zero_()           # theirs, outside of x_0 * (...) unlike the paper's, starts at 0 too
                continue
            mine.down.weight.copy_(theirs.v_list[i].transpose(1, 2))
            mine.up.weight.copy_(theirs.u_list[i])
            mine.middle.weight.copy_(theirs.c_list[i])
            mine.gate.weight[0].copy_(torch.cat([g.weight for g in theirs.gating]))
            nn.init.normal_(theirs.bias[i])
            mine.bias[0].copy_(theirs.bias[i].flatten())
    x = Inputs(draw(7, W))
    torch.testing.assert_close(part(x)[:, 0], theirs(x.flat).view(7, W), **CLOSE)


def test_autoints_layer():
    theirs = layers.InteractingLayer(4, num_heads=2).double()
    mine = InteractingLayer(4, heads=2, width=2, residual=True, n=1).double()
    with torch.no_grad():
        for layer, name in ((mine.query, "W_Q"), (mine.key, "W_K"), (mine.value, "W_V"), (mine.residual, "W_Res")):
            layer.weight[0].copy_(getattr(theirs, name).weight)
        mine.query.weight.mul_(theirs.scale)             # theirs divides by the square root of a head's width
    e = draw(7, 5, 4)
    torch.testing.assert_close(mine(e.unsqueeze(2))[:, :, 0], theirs(e), **CLOSE)
