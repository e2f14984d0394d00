"""STAR's identities (arXiv 2101.11427), and its equations written again in float64."""

import pytest
import torch
from plain import mlp, wake
from torch import nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Spec
from funnelrank.models.mlp import LinearHeads, MLPBody
from funnelrank.models.star import AuxiliaryNetwork, PartitionedNorm, StarHeads, StarMLP
from funnelrank.nn.own import own_linear, owner

S = 5                                            # null, unseen, and three with a name
SPEC = Spec(flat=4, tasks=2, scenarios=S, hidden=3)


def rows(n=30, seed=0, scenarios=None):
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, S, (n,), generator=g)
    scenario = drawn if scenarios is None else torch.tensor(scenarios, dtype=torch.int64)
    return Inputs(torch.randn(len(scenario), 4, generator=g, dtype=torch.float64) * 2 + 1, scenario=scenario)


def made(part, **keys):
    torch.manual_seed(0)
    return part(SPEC, **keys).double()


def own_of(part, s, name):
    """A scenario's own parameter: what changes nothing where it has none."""
    return getattr(part, name)[s - 2] if s >= 2 else (
        torch.ones_like if name in ("own", "own_gain") else torch.zeros_like)(getattr(part, name)[0])


@pytest.mark.parametrize("per", ["all", "task"])
def test_body_heads_and_auxiliary_net_are_the_papers_equations(per):
    body, heads, aux = (wake(made(StarMLP, hidden=(5, 3), per=per)), wake(made(StarHeads)),
                        wake(made(AuxiliaryNetwork, width=2, hidden=(3,))))
    x = rows()
    h = body(x)
    out = heads(h, x) + aux(x)
    for b, (row, s) in enumerate(zip(x.flat, x.scenario.tolist())):
        for v, layers in enumerate(body.bodies):
            z = row
            for layer in layers:
                z = torch.relu((own_of(layer, s, "own") * layer.shared.weight) @ z + layer.shared.bias
                               + own_of(layer, s, "own_bias"))
            torch.testing.assert_close(h[b, v], z, atol=1e-10, rtol=0)
        for t in range(2):
            z = h[b, t if per == "task" else 0]
            main = ((own_of(heads, s, "own")[t] * heads.linear.weight[t, 0]) @ z + heads.linear.bias[t, 0]
                    + own_of(heads, s, "own_bias")[t])
            vector = aux.scenarios.weight[max(s - 1, 0)]
            if s < 2:                                   # what strangers learned, on top of the mean of the others
                vector = vector + aux.scenarios.weight[1:].mean(0)
            side = aux.head.weight[t] @ mlp(aux.mlp, torch.cat([vector, row])) + aux.head.bias[t]
            torch.testing.assert_close(out[b, t], main + side, atol=1e-10, rtol=0)


def test_partitioned_norm_is_the_papers_equation_scenario_by_scenario():
    norm, x = wake(made(PartitionedNorm, leave=())).train(), rows(60)
    y = norm(x).flat
    for s in range(2, S):
        z = x.flat[x.scenario == s]
        mu, var = z.mean(0), z.var(0, unbiased=False)
        expected = norm.gain * norm.own_gain[s - 2] * (z - mu) / (var + norm.eps).sqrt() + (
            norm.shift + norm.own_shift[s - 2])
        torch.testing.assert_close(y[x.scenario == s], expected, atol=1e-10, rtol=0)
    z = x.flat[x.scenario < 2]                   # without a name: statistics of all rows, shared gain and shift
    expected = norm.gain * (z - x.flat.mean(0)) / (x.flat.var(0, unbiased=False) + norm.eps).sqrt() + norm.shift
    torch.testing.assert_close(y[x.scenario < 2], expected, atol=1e-10, rtol=0)


def test_at_the_start_every_scenario_is_the_shared_network():
    body, heads, x = made(StarMLP, hidden=(5, 3)), made(StarHeads), rows(scenarios=[3] * 9)
    plain, linear = MLPBody(SPEC, hidden=(5, 3)).double(), LinearHeads(SPEC).double()
    with torch.no_grad():
        for mine, layer in zip(plain.mlp.layers, body.bodies[0]):
            mine["linear"].load_state_dict(layer.shared.state_dict())
        linear.load_state_dict(heads.linear.state_dict(prefix="linear."))
    assert torch.equal(body(x), plain(x))
    mixed = rows()
    torch.testing.assert_close(body(mixed), plain(mixed), atol=1e-12, rtol=0)
    torch.testing.assert_close(heads(body(mixed), mixed), linear(plain(mixed), mixed), atol=1e-12, rtol=0)


def test_with_one_scenario_it_is_a_network_behind_batch_normalisation():
    spec = Spec(flat=4, tasks=2, scenarios=3, hidden=3)
    norm, other = PartitionedNorm(spec, leave=()).double(), nn.BatchNorm1d(4).double()
    body, heads = StarMLP(spec, hidden=(5, 3)).double(), StarHeads(spec).double()
    plain, linear = MLPBody(spec, hidden=(5, 3)).double(), LinearHeads(spec).double()
    with torch.no_grad():
        for mine, layer in zip(plain.mlp.layers, body.bodies[0]):
            mine["linear"].load_state_dict(layer.shared.state_dict())
        linear.load_state_dict(heads.linear.state_dict(prefix="linear."))
    x = rows(20, scenarios=[2] * 20)
    z = Inputs(other(x.flat), scenario=x.scenario)
    torch.testing.assert_close(heads(body(norm(x)), norm(x)), linear(plain(z), z), atol=1e-12, rtol=0)


def test_with_one_scenario_the_norm_is_batch_normalisation():
    norm = PartitionedNorm(Spec(flat=4, tasks=1, scenarios=3), leave=()).double()
    other = nn.BatchNorm1d(4, momentum=None).double()
    for seed in range(5):
        x = rows(20, seed, scenarios=[2] * 20)
        torch.testing.assert_close(norm(x).flat, other(x.flat), atol=1e-12, rtol=0)
    torch.testing.assert_close(norm.mean[1], other.running_mean, atol=1e-12, rtol=0)
    with torch.no_grad():
        norm.eval().var[1] = other.running_var       # ours also counts how far batches lie apart
    torch.testing.assert_close(norm(x).flat, other.eval()(x.flat), atol=1e-12, rtol=0)


def test_a_mixed_batch_is_each_scenario_by_itself():
    x, body, heads = rows(60), wake(made(StarMLP, hidden=(5, 3))), wake(made(StarHeads))
    aux = wake(made(AuxiliaryNetwork, width=2, hidden=(3,)))

    def whole(x):
        z = wake(made(PartitionedNorm, leave=())).train()(x)                # statistics of its own batch alone
        return heads(body(z), z) + aux(z)

    together = whole(x)
    for s in range(2, S):
        keep = x.scenario == s
        alone = Inputs(x.flat[keep], scenario=x.scenario[keep])
        torch.testing.assert_close(whole(alone), together[keep], atol=1e-10, rtol=0)


def test_a_scenario_with_one_row_or_none_is_harmless():
    norm = made(PartitionedNorm, leave=())
    first = rows(scenarios=[2] * 6 + [3])            # 3 has gathered nothing yet, 4 is not there
    y = norm(first).flat
    whole = (first.flat[6] - first.flat.mean(0)) / (first.flat.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(y[6], whole, atol=1e-12, rtol=0)
    assert norm.batches.flatten().tolist() == [1, 1, 0, 0] and torch.isfinite(y).all()
    norm(rows(seed=1, scenarios=[3] * 4 + [2] * 4))
    gathered = norm.mean[2].clone(), norm.var[2].clone()
    last = rows(seed=2, scenarios=[2] * 6 + [3])
    torch.testing.assert_close(norm(last).flat[6], (last.flat[6] - gathered[0]) / (gathered[1] + norm.eps).sqrt())
    assert torch.equal(norm.mean[2], gathered[0]) and torch.equal(norm.var[2], gathered[1])
    assert torch.isfinite(made(PartitionedNorm)(rows(scenarios=[4])).flat).all()
    assert norm(rows(scenarios=[])).flat.shape == (0, 4)


def test_an_unseen_scenario_gets_shared_parameters_and_everybodys_statistics():
    norm = wake(made(PartitionedNorm, leave=())).train()
    for seed in range(3):
        norm(rows(60, seed))
    norm.eval()
    x = rows(scenarios=[1])
    expected = norm.gain * (x.flat - norm.mean[0]) / (norm.var[0] + norm.eps).sqrt() + norm.shift
    torch.testing.assert_close(norm(x).flat, expected, atol=1e-12, rtol=0)


def test_gathered_statistics_follow_what_is_seen():
    norm = made(PartitionedNorm, leave=())
    for seed in range(400):
        norm(rows(40, seed))
    torch.testing.assert_close(norm.mean, torch.ones_like(norm.mean), atol=0.5, rtol=0)
    torch.testing.assert_close(norm.var, torch.full_like(norm.var, 4.0), atol=2.0, rtol=0)


def test_columns_that_name_the_scenario_are_left_alone_and_raw_is_kept():
    spec = Spec(flat=4, tasks=1, scenarios=S, columns={"scenario": (1, 2)})
    norm, x = PartitionedNorm(spec).double(), rows()
    y = norm(x)
    assert torch.equal(y.flat[:, 1:3], x.flat[:, 1:3]) and torch.equal(y.raw, x.flat)
    assert not torch.isclose(y.flat[:, 0], x.flat[:, 0]).any() and norm.spec.raw == 4


def test_fields_follow_flat():
    spec = Spec(flat=4, tasks=1, scenarios=S, fields=(2, 1), starts=(0, 3))
    x = rows()
    x.fields = torch.stack([x.flat[:, :1], x.flat[:, 3:]], 1)
    y = PartitionedNorm(spec).double()(x)
    assert torch.equal(y.fields, torch.stack([y.flat[:, :1], y.flat[:, 3:]], 1))


def test_rows_brought_together_by_scenario_get_the_layer_that_computing_all_gives():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    x, w, b, index = draw(20, 4), draw(6, 3, 4), draw(6, 3), owner(torch.randint(0, 6, (20,), generator=g))
    expected = torch.einsum("bi,boi->bo", x, w[index]) + b[index]
    torch.testing.assert_close(own_linear(x, w, b, index), expected, atol=1e-12, rtol=0)
    assert own_linear(x[:0], w, b, index[:0]).shape == (0, 3)


def test_without_scenarios_there_is_nothing_to_keep_apart():
    for part in (PartitionedNorm, StarMLP, StarHeads, AuxiliaryNetwork):
        with pytest.raises(ConfigError, match="set data.scenario"):
            part(Spec(flat=4, tasks=1, scenarios=2, hidden=3))
