"""HMoE's identities (Li et al., CIKM 2020), and its equations written again in float64."""

import pytest
import torch
from made import config, model
from plain import layer, mlp, wake

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Spec
from funnelrank.models.hmoe import ScenarioTowers
from funnelrank.models.mlp import Towers
from funnelrank.models.mmoe import MixtureOfExperts

S, T = 3, 2                                     # scenarios with a name: ids 2, 3, 4
P = S + 1                                       # places: 0 for rows without a name
SPEC = Spec(flat=6, tasks=T, scenarios=S + 2, hidden=4, views=P, views_per="scenario")


def rows(n=20, seed=0, scenarios=None):
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, S + 2, (n,), generator=g)
    scenario = drawn if scenarios is None else torch.tensor(scenarios)
    return Inputs(torch.randn(len(scenario), 6, generator=g, dtype=torch.float64), scenario=scenario)


def made(share=False, per="scenario", spec=SPEC):
    torch.manual_seed(0)
    body = MixtureOfExperts(spec, experts=3, hidden=(4,), per=per)
    return wake(body), wake(ScenarioTowers(spec, hidden=(5,), share=share))


@pytest.mark.parametrize("share, nameless", [(False, 0), (True, 500)])
@pytest.mark.parametrize("per", ["all", "task", "scenario"])
def test_it_is_the_papers_equations(share, nameless, per):
    spec = SPEC if per == "scenario" else Spec(flat=6, tasks=T, scenarios=S + 2, hidden=4)
    (body, heads), x = made(share, per, spec), rows()
    heads.nameless += nameless                          # rows that trained place 0
    out = heads(body(x), x)
    for b, (row, s) in enumerate(zip(x.flat, x.scenario.tolist())):
        experts = [mlp(body.experts, row, i) for i in range(3)]
        place = max(s - 1, 0)
        heard = layer(heads.weights, row, None if share else place)
        listen = heard.exp()                        # nobody listens to place 0 but itself, and not before it learned
        listen[0] *= 0 if place else nameless / (nameless + 1000)
        listen = listen / listen.sum()
        for t in range(T):
            scores = []
            for j in range(P):
                gate = torch.softmax(body.gates.weight[{"all": 0, "task": t, "scenario": j}[per]] @ row, 0)
                m = sum(g * e for g, e in zip(gate, experts))
                scores.append(layer(heads.heads, mlp(heads.towers, m, t * P + j), t * P + j))
            torch.testing.assert_close(out[b, t], (listen * torch.cat(scores)).sum(), atol=1e-10, rtol=0)


def test_a_row_trains_the_tower_and_the_gate_of_its_own_scenario_alone():
    (body, heads), x = made(), rows(scenarios=[3] * 8)
    heads(body(x), x).sum().backward()
    for p in (*heads.towers.parameters(), *heads.heads.parameters()):
        of = p.grad.unflatten(0, (T, P))
        assert (of[:, 2].flatten(1).abs().sum(1) > 0).all() and (of[:, [0, 1, 3]] == 0).all()
    for p in (body.gates.weight.grad, heads.weights.weight.grad):
        assert (p[[0, 1, 3]] == 0).all() and p[2].abs().sum() > 0


def test_rows_without_a_known_scenario_train_a_tower_of_their_own_that_nobody_else_hears():
    (body, heads), x = made(), rows(scenarios=[0, 1])
    heads.train()(body(x), x).sum().backward()
    assert heads.nameless == 2
    of = heads.heads.weight.grad.unflatten(0, (T, P))
    assert (of[:, 0] != 0).any() and (of[:, 1:] == 0).all()
    known = rows(scenarios=[2, 3, 4])
    before = heads(body(known), known)
    with torch.no_grad():
        heads.heads.bias.unflatten(0, (T, P))[:, 0] += 1
    assert torch.equal(heads(body(known), known), before)


@pytest.mark.parametrize("per", ["all", "scenario"])
def test_where_every_row_of_train_had_a_name_a_stranger_gets_the_mean_of_all_scores(per):
    torch.manual_seed(0)
    spec = SPEC if per == "scenario" else Spec(flat=6, tasks=T, scenarios=S + 2, hidden=4)
    body, heads = MixtureOfExperts(spec, experts=3, hidden=(4,), per=per), ScenarioTowers(spec, hidden=(5,))
    body.double()
    heads.double().train()
    named = rows(scenarios=[2, 3, 4])
    heads(body(named), named)
    x = rows(scenarios=[0, 1])
    told = []
    for s in (2, 3, 4):                                # each scenario's own score: it listens to nobody else
        with torch.no_grad():
            heads.weights.bias[s - 1] = torch.where(torch.arange(P) == s - 1, 1000.0, -1000.0)
        alone = Inputs(x.flat, scenario=torch.full((2,), s))
        told.append(heads.eval()(body(alone), alone))
    torch.testing.assert_close(heads(body(x), x), sum(told) / S, atol=1e-12, rtol=0)


def test_who_listens_to_itself_alone_has_towers_of_its_own():
    (body, heads), x = made(), rows(scenarios=[2, 3, 4, 3])
    with torch.no_grad():
        heads.weights.weight.zero_()
        heads.weights.bias.copy_(2000 * torch.eye(P) - 1000)
    h = body(x)
    towers = Towers(Spec(flat=6, tasks=T * P, hidden=4), hidden=(5,)).double()
    towers.mlp.load_state_dict(heads.towers.state_dict())
    towers.linear.load_state_dict(heads.heads.state_dict())
    every = towers(h.repeat(1, T, 1), x).unflatten(1, (T, P))
    torch.testing.assert_close(heads(h, x), every[torch.arange(4), :, x.scenario - 1], atol=1e-12, rtol=0)


def test_with_one_scenario_it_is_a_mixture_of_experts():
    spec = Spec(flat=6, tasks=T, scenarios=3, hidden=4)
    body, heads = made(spec=spec, per="all")
    towers = Towers(Spec(flat=6, tasks=2 * T, hidden=4), hidden=(5,)).double()
    towers.mlp.load_state_dict(heads.towers.state_dict())
    towers.linear.load_state_dict(heads.heads.state_dict())
    x = rows(scenarios=[2] * 5)
    mine = towers(body(x), x)[:, 1::2]                  # of each task the named scenario's, behind that of no name
    torch.testing.assert_close(heads(body(x), x), mine, atol=1e-12, rtol=0)


def test_what_a_scenario_listens_to_sums_to_one():
    (body, heads), x = made(), rows()
    with torch.no_grad():
        for p in (heads.towers.layers[0]["linear"].weight, heads.heads.weight):
            p.zero_()
        heads.heads.bias.fill_(0.7)
    torch.testing.assert_close(heads(body(x), x), torch.full((20, T), 0.7, dtype=torch.float64), atol=1e-12, rtol=0)


def test_views_per_scenario_are_read_by_nobody_else():
    experts = {"represent": {"name": "mmoe", "per": "scenario"}}
    for said in ({"name": "mmoe", **experts}, {"name": "aitm", **experts}):
        with pytest.raises(ConfigError, match="per: scenario gives a view for each scenario, which only 'hmoe'"):
            model(config(said))


def test_another_body_in_its_place_keeps_a_meaning_of_per_that_it_knows():
    assert config({"name": "hmoe", "represent": "mlp"}).model["represent"]["per"] == "all"
