"""How T losses become one gradient, against each paper's formula written out once more in float64."""

import copy
import json
import math

import pytest
import torch
from made import batch, config, model

from funnelrank.errors import ConfigError
from funnelrank.loss import plain_losses, task_losses
from funnelrank.settings import Train
from funnelrank.train.balance import balance_of, gradnorm_gradient, projected
from funnelrank.train.optim import Average, RowUpdates, dense_optimiser
from funnelrank.train.shared import Shared
from funnelrank.train.trainer import Trainer

NAMES = ("fixed", "equal", "uncertainty", "dwa", "gradnorm", "pcgrad", "metabalance")
LOOKING = NAMES[4:]
SAID = {"name": "mmoe", "represent": {"experts": 2, "hidden": [6]}, "predict": {"hidden": [4]}, "side": ["lr"]}
ROWS = batch(64, seed=3)


def double(said=SAID):
    """A model in float64, with weights that give tasks something to disagree on."""
    m = model(config(said, embedding={"width": 4, "engine": "torch"})).double()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return m.train()


def rows(seed=3, n=64):
    b = batch(n, seed=seed)
    b.numbers, b.labels, b.weight = b.numbers.double(), b.labels.double(), b.weight.double()
    return b


def losses_of(m, b):
    return task_losses(m.funnel, m(b), b.labels, b.weight)


def vectors(m, b):
    """Per task, the gradient of its loss alone as {block: dense tensor}; tables as large as they are."""
    found = []
    for t in range(3):
        one = copy.deepcopy(m)
        one.zero_grad()
        losses_of(one, b)[t].backward()
        g = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in one.named_parameters()
             if p.requires_grad}
        g |= {f"embedding.tables.{n}": torch.zeros_like(t.weight) for n, t in one.embedding.tables.items()}
        for row in one.embedding.take_gradients():
            name = next(n for n, t in one.embedding.tables.items() if t is row.table)
            g[f"embedding.tables.{name}"][row.rows] = row.grad
        found.append(g)
    return found


def left(m, gradients):
    """What a balance left, in the same form."""
    g = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in m.named_parameters() if p.requires_grad}
    for name, table in m.embedding.tables.items():
        g[f"embedding.tables.{name}"] = torch.zeros_like(table.weight)
    for row in gradients:
        name = next(n for n, t in m.embedding.tables.items() if t is row.table)
        g[f"embedding.tables.{name}"][row.rows] = row.grad
    return g


def step(m, b, balance, shared, weights=1.0, rest=None):
    balance.begin(b, shared)
    losses = weights * losses_of(m, b)
    return left(m, balance.backward(losses, torch.ones(3, dtype=torch.bool), rest, shared))


def made(m, **said):
    shared = Shared(m)
    return balance_of(Train(balance=said).balance, m, shared), shared


def flat(g, reach):
    """The shared numbers of a gradient, in one vector."""
    return torch.cat([v[(reach[n].expand_as(v))] for n, v in g.items()])


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-12, rtol=1e-9)


def blended(each, reach, weights, own=(1, 1, 1)):
    """sum_t w_t g_t where shared (weights: per task, or per block and task), sum_t own_t g_t elsewhere."""
    out = {}
    for n in each[0]:
        w = weights[n] if isinstance(weights, dict) else weights
        out[n] = torch.where(reach[n], sum(a * g[n] for a, g in zip(w, each)), sum(a * g[n] for a, g in zip(own, each)))
    return out


# ---- what is shared

def test_shared_is_what_more_than_one_loss_reaches():
    m = double({"name": "shared_bottom", "represent": {"hidden": [6]}, "predict": {"hidden": [4]}, "side": ["lr"]})
    shared = Shared(m)
    before, random = copy.deepcopy(m.state_dict()), torch.get_rng_state()
    shared.find(rows())
    reach = shared.reach
    assert reach["slots.represent.mlp.layers.0.linear.weight"].float().mean() > 0.9
    assert all(not reach[n].any() for n in reach if "predict" in n or "side" in n)
    assert reach["embedding.tables.width_4"].all() and not reach["embedding.tables.linear"].any()
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert not m.embedding.take_gradients() and all(p.grad is None for p in m.parameters())


@pytest.mark.parametrize("loss", ["focal", {"name": "pairwise", "alpha": 0}, {"name": "jrc", "alpha": 0}])
def test_what_is_shared_does_not_hang_on_which_loss_a_task_has(loss):
    said = {"name": "shared_bottom", "represent": {"hidden": [6]}, "predict": {"hidden": [4]}}
    plain, other = (model(config(said, tasks={t: dict(keys) for t in ("click", "cart", "buy")}))
                    for keys in ({}, {"loss": loss}))
    found = []
    for m in (plain, other):
        shared = Shared(m.train())
        shared.find(batch(64, seed=3))
        found.append({n: r for n, r in shared.reach.items() if "represent" in n})
    assert found[0].keys() == found[1].keys() and all(r.any() and torch.equal(r, found[1][n])
                                                      for n, r in found[0].items())


def test_what_is_shared_is_what_a_debiased_loss_reaches():
    """Read conditionally, a step's likelihood trains the towers before it; its debiased loss alone does not."""
    said = {"name": "single_task", "represent": {"hidden": [6]}, "reading": "conditional"}
    shared = lambda **more: Shared(double({**said, **more}))
    plain, alone = shared(), shared(debias={"name": "dr", "entire_space": 0})
    for found, reached in ((plain, True), (alone, False)):
        found.find(rows())
        assert any(r.any() for n, r in found.reach.items() if "represent" in n) == reached


def test_a_tower_that_later_tasks_read_is_shared_and_the_last_is_not():
    m = double({"name": "aitm", "represent": {"hidden": [6]}})
    shared = Shared(m)
    shared.find(rows())
    towers = shared.reach["slots.represent.mlp.layers.0.linear.weight"]                # [T, H, W]
    assert towers[0].any() and towers[1].any() and not towers[2].any()


# ---- the papers

def test_fixed_is_the_weighted_sum_and_the_calibrator():
    m, w = double(), torch.tensor([1.0, 2.0, 0.5])
    each = vectors(m, rows())
    same(step(m, rows(), *made(m, name="fixed"), weights=w), blended(each, made(m, name="fixed")[1].reach, [0] * 3, w))


def test_uncertainty_moves_s_down_its_gradient_and_below_zero():
    m = double()
    balance, shared = made(m, name="uncertainty", lr=0.1)
    s = torch.tensor([0.3, -0.4, 1.0])
    balance.s.copy_(s)
    found = step(m, rows(), balance, shared)
    t = s.double().requires_grad_()
    each, losses = vectors(m, rows()), losses_of(m, rows()).detach()
    ((-t).exp() * losses + t / 2).sum().backward()
    for n, v in found.items():
        torch.testing.assert_close(v, sum(a * g[n] for a, g in zip((-s).exp(), each)), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(balance.s, (s - 0.1 * t.grad.sign()).float(), atol=1e-5, rtol=0)      # Adam's first step
    for _ in range(600):
        balance.adam.move(balance.s, 0.5 - (-balance.s).exp() * torch.tensor([0.15, 0.5, 2.0]),
                          torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(balance.s, torch.log(2 * torch.tensor([0.15, 0.5, 2.0])), atol=0.02, rtol=0)


def test_one_formula_of_uncertainty_is_the_papers_two():
    """Regression 1/(2 sigma^2) e^2 + log sigma, classes CE / sigma^2 + log sigma, of a loss that keeps the half."""
    s, e, ce = 0.7, 1.3, 0.4
    sigma = math.exp(s / 2)
    assert math.exp(-s) * (e**2 / 2) + s / 2 == pytest.approx(e**2 / (2 * sigma**2) + math.log(sigma))
    assert math.exp(-s) * ce + s / 2 == pytest.approx(ce / sigma**2 + math.log(sigma))


def test_dwa_weighs_by_the_softmax_of_loss_ratios():
    m = double()
    balance, shared = made(m, name="dwa", every=2, temperature=2.0)
    seen, said = [], torch.tensor([[4.0, 2.0, 1.0], [2.0, 2.0, 1.0], [1.0, 2.0, 1.0], [1.0, 2.0, 0.8], [9.0, 9.0, 9.0]])
    for losses in said:
        seen.append(balance.weights.tolist())
        balance.backward(losses.clone().requires_grad_(), torch.ones(3, dtype=torch.bool), None, shared)
    r = torch.tensor([1.0 / 3.0, 1.0, 0.9])                           # means of steps 3, 4 over means of steps 1, 2
    assert seen[:4] == [[1.0] * 3] * 4
    assert seen[4] == pytest.approx((3 * (r / 2).softmax(0)).tolist()) and sum(seen[4]) == pytest.approx(3)


def test_dwa_leaves_a_task_out_of_the_means_of_batches_without_its_labels():
    m = double()
    balance, shared = made(m, name="dwa", every=2)
    for losses, seen in (([4.0, 4.0, 4.0], [1, 1, 1]), ([0.0, 4.0, 4.0], [0, 1, 1]), ([4.0, 2.0, 4.0], [1, 1, 0]),
                         ([4.0, 2.0, 0.0], [1, 1, 0])):
        balance.backward(torch.tensor(losses, requires_grad=True), torch.tensor(seen, dtype=torch.bool), None, shared)
    r = torch.tensor([1.0, 0.5, 1.0])
    assert balance.weights.tolist() == pytest.approx((3 * (r / 2).softmax(0)).tolist())


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_is_the_papers_algorithm(alpha):
    m = double()
    balance, shared = made(m, name="gradnorm", alpha=alpha, lr=0.05)
    first = losses_of(m, rows()).detach()
    step(m, rows(), balance, shared)                                  # the first losses, and a first move
    w = balance.w.clone()
    m.zero_grad()
    now = rows(seed=9)
    each, losses = vectors(m, now), losses_of(m, now).detach()
    found = step(m, now, balance, shared)
    same(found, blended(each, shared.reach, w.double(), w.double()))            # w of before this step, everywhere

    v = w.double().requires_grad_()
    norm = torch.stack([flat(g, shared.reach).norm() for g in each])
    G, progress = v * norm, losses / first
    target = (G.mean() * (progress / progress.mean()) ** alpha).detach()
    (G - target).abs().sum().backward()
    torch.testing.assert_close(gradnorm_gradient(w.double(), norm, progress, torch.ones(3, dtype=torch.bool), alpha),
                               v.grad, atol=1e-10, rtol=1e-10)
    assert balance.w.sum().item() == pytest.approx(3, rel=1e-5) and not torch.equal(balance.w, w)


def test_gradnorm_raises_the_weight_of_a_task_that_is_behind():
    """The faulty target, one for all tasks, could not tell them apart."""
    w, norm, seen = torch.ones(3), torch.ones(3), torch.ones(3, dtype=torch.bool)
    g = gradnorm_gradient(w, norm, torch.tensor([1.0, 0.5, 0.25]), seen, 1.5)
    assert g[0] < 0 < g[2]
    assert (gradnorm_gradient(w, norm, torch.tensor([1.0, 0.5, 0.25]), seen, 0.0) == 0).all()
    assert gradnorm_gradient(w, norm, torch.tensor([9.0, 1.0, 0.5]), torch.tensor([False, True, True]), 1.5)[0] == 0


def test_pcgrad_takes_out_what_conflicts_in_the_order_drawn():
    m = double()
    balance, shared = made(m, name="pcgrad")
    b = rows()
    balance.begin(b, shared)
    torch.manual_seed(4)
    found = step(m, b, balance, shared)
    each = vectors(m, b)
    g = [flat(v, shared.reach) for v in each]
    torch.manual_seed(4)
    total, conflicts = torch.zeros_like(g[0]), 0
    for i in range(3):
        mine = g[i].clone()
        for j in torch.randperm(3).tolist():
            if j != i and mine @ g[j] < 0:
                mine -= (mine @ g[j]) / (g[j] @ g[j]) * g[j]
                conflicts += 1
        total += mine
    assert conflicts
    torch.testing.assert_close(flat(found, shared.reach), total, atol=1e-12, rtol=1e-8)
    own = blended(each, shared.reach, [0, 0, 0])
    for n, v in found.items():
        torch.testing.assert_close(v * ~shared.reach[n], own[n] * ~shared.reach[n], atol=1e-12, rtol=1e-9)


def test_pcgrad_of_two_opposite_gradients_is_nothing_and_of_friends_is_their_sum():
    c = projected(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), [[0, 1], [0, 1]])
    assert c.sum(0) @ torch.tensor([1.0, -1.0]) == 0
    assert torch.equal(projected(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), [[1, 0], [1, 0]]), torch.eye(2))


@pytest.mark.parametrize("relax", [0.0, 0.7, 1.0])
def test_metabalance_makes_gradients_as_long_as_the_targets(relax):
    m = double()
    balance, shared = made(m, name="metabalance", relax=relax, beta=0.9, target="cart")
    average = None
    for seed in (1, 2, 3):
        b = rows(seed=seed)
        each = vectors(m, b)
        found = step(m, b, balance, shared)
        norm = {k: torch.stack([(g[k] * shared.reach[k]).norm() for g in each]) for k in each[0]}
        average = norm if average is None else {k: 0.9 * average[k] + norm[k] for k in norm}     # the bias cancels
        weights = {k: [relax * v[1] / x + 1 - relax if x > 0 else 1.0 for x in v] for k, v in average.items()}
        same(found, blended(each, shared.reach, weights))
        m.zero_grad()
    if relax == 0:
        same(found, blended(each, shared.reach, [1, 1, 1]))


def test_metabalance_leaves_alone_what_the_target_does_not_reach():
    m = double({"name": "aitm", "represent": {"hidden": [6]}})
    balance, shared = made(m, name="metabalance", target="click")
    balance.begin(rows(), shared)
    each = vectors(m, rows())
    found = step(m, rows(), balance, shared)
    gate = next(n for n in found if "gates.1_2" in n)                 # from cart to buy: click is not there
    torch.testing.assert_close(found[gate], sum(g[gate] for g in each), atol=1e-12, rtol=1e-9)


# ---- in the loop

class Batches:
    """Three batches an epoch, the last without a label of the last task."""

    def __init__(self):
        self.all, self.at = [batch(32, seed=i) for i in range(3)], None
        self.all[2].labels[:, 2] = float("nan")

    def __len__(self):
        return 3

    def epoch(self, number):
        for i in range(self.at["batch"] if self.at and self.at["epoch"] == number else 0, 3):
            self.at = {"epoch": number, "batch": i + 1}
            yield self.all[i]

    def state(self):
        return dict(self.at)

    def restore(self, state):
        self.at = dict(state)


def train(folder, report=lambda e: None, resume=False, settings=None, **said):
    m = model(settings or config({"name": "aitm", "represent": {"hidden": [8], "dropout": 0.1}}))
    torch.manual_seed(1)
    trainer = Trainer(m, Train(epochs=3, log_every=1, checkpoint_every=2, **said), torch.ones(3), folder=folder,
                      report=report)
    trainer.run(Batches(), RowUpdates(m.embedding, config().embedding.optimiser), resume)
    return m.state_dict(), trainer


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_a_balance_goes_on_bit_by_bit_and_tells_its_weights(name, tmp_path):
    events, said = [], {"balance": {"name": name, **({"every": 2} if name == "dwa" else {})}}
    straight, one = train(tmp_path / "a", events.append, **said)
    json.dumps(events)
    told = [e["weights"] for e in events if e["event"] == "step" and "weights" in e]
    assert len(told) == (0 if name in ("fixed", "equal") else 9)
    assert all(set(w) == {"click", "cart", "buy"} for w in told)

    def stop(event):
        if event["event"] == "checkpoint" and event["step"] == 4:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", stop, **said)
    resumed, two = train(tmp_path / "b", resume=True, **said)
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    assert all(torch.equal(v, two.balance.state[k]) for k, v in one.balance.state.items())


def test_equal_and_fixed_are_the_plain_sum_to_the_bit(tmp_path):
    """The same steps written out: a sum of losses, one backward, rows moved within it."""
    settings = config()
    m, s = model(settings), Train()
    torch.manual_seed(1)
    updates, average, dense = RowUpdates(m.embedding, settings.embedding.optimiser), Average(
        m, m.embedding, s.average), dense_optimiser(m, s.optimiser)
    m.train()
    for b in [*Batches().epoch(0)] * 3:
        losses, pressed = plain_losses(m.funnel, m.outputs(b), b.labels, b.weight)
        loss = (torch.ones(3) * losses).sum() + m.calibrator * pressed
        dense.zero_grad()
        updates.fuse(1.0, average)
        loss.backward()
        gradients = m.embedding.take_gradients()
        dense.step()
        updates.apply(gradients)
        average.update(gradients)
    average.catch_up()
    average._swap()
    for name in ("equal", "fixed"):
        found, _ = train(tmp_path / name, settings=settings, balance={"name": name})
        assert all(torch.equal(found[k], v) for k, v in m.state_dict().items())


@pytest.mark.parametrize("name", LOOKING)
def test_both_engines_leave_the_same_gradients(name):
    found = []
    for engine in ("native", "torch"):
        m = model(config(SAID, embedding={"width": 4, "engine": engine})).train()
        torch.manual_seed(2)
        found.append(step(m, ROWS, *made(m, name=name)))
    for n, v in found[0].items():
        torch.testing.assert_close(v, found[1][n], atol=1e-6, rtol=1e-4)


def test_row_gradients_stay_rows(monkeypatch):
    """Nothing as large as a table is made, whichever tasks touch which rows."""
    m = model(config(SAID, embedding={"width": 4}))
    m.train()
    balance, shared = made(m, name="pcgrad")
    balance.begin(ROWS, shared)
    few = batch(8, seed=1)
    gradients = balance.backward(losses_of(m, few), torch.ones(3, dtype=torch.bool), None, shared)
    touched = {id(g.table): g for g in gradients}
    for name, table in m.embedding.tables.items():
        g = touched[id(table)]
        assert len(g.rows) == len(g.rows.unique()) == len(g.grad) < len(table.weight), name
        torch.testing.assert_close(g.old, table.weight[g.rows])


@pytest.mark.parametrize("edits, sentence", [
    ({"balance": "gradnrm"}, r"train.balance.name: found 'gradnrm'.*did you mean 'gradnorm'"),
    ({"balance": {"name": "pcgrad", "alpha": 1}}, r"train.balance.alpha: unknown key"),
    ({"balance": {"name": "gradnorm", "alpha": -1}}, r"train.balance.alpha: found -1; must be a number of at least 0"),
    ({"balance": {"alpha": 1}}, r"train.balance: `name` is missing"),
    ({"balance": {"name": "metabalance", "target": "bye"}}, r"train.balance.target: no task 'bye'.*'buy'"),
    ({"balance": "pcgrad", "compile": True}, r"train.compile: pcgrad goes backward"),
])
def test_what_cannot_be_balanced_is_refused(edits, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config(train=edits)


@pytest.mark.parametrize("tasks, name, sentence", [
    ({"click": {"weight": 2}, "buy": {"after": "click"}}, "equal", r"tasks.click.weight is 2; write fixed"),
    ({"click": {}}, "dwa", r"'click' is the only one"),
    ({"click": {"weight": 0}, "buy": {}}, "gradnorm", r"tasks.click.weight is 0"),
    ({"click": {}, "spend": {"kind": "ziln"}}, "uncertainty", r"that of task 'spend' \(a ziln\) need not"),
])
def test_a_balance_that_the_tasks_cannot_have_is_refused(tasks, name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config({"name": "shared_bottom"}, tasks, train={"balance": name})
