"""Row updates against torch's own optimisers on a dense table; averages against their definition."""

import pytest
import torch
from made import batch, config, model

from funnelrank.settings import RowOptimiser, Schedule
from funnelrank.train.optim import Average, RowUpdates, clip, dense_optimiser, dense_parameters, schedule_factor


def steps(m, n, updates, after=lambda g: None, rows=16):
    for i in range(n):
        m.train()
        m.zero_grad()
        m(batch(rows, seed=i)).logits.square().sum().backward()
        gradients = m.embedding.take_gradients()
        updates.apply(gradients)
        after(gradients)


@pytest.mark.parametrize("name, reference", [
    ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-8)),
    ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
])
def test_row_update_is_the_dense_optimiser_where_rows_are_touched(name, reference):
    m = model()
    updates = RowUpdates(m.embedding, RowOptimiser(name=name, lr=0.1))
    table = m.embedding.tables["width_4"]
    dense = torch.nn.Parameter(table.weight.detach().clone())
    optimiser = reference([dense])

    def mirror(gradients):
        dense.grad = torch.zeros_like(dense)
        for g in gradients:
            dense.grad[g.rows] = g.grad
        optimiser.step()

    steps(m, 5, updates, mirror)
    torch.testing.assert_close(table.weight, dense.detach(), atol=1e-6, rtol=1e-5)


def test_adam_is_torch_adam_when_every_step_touches_the_row():
    m = model()
    updates = RowUpdates(m.embedding, RowOptimiser(name="adam", lr=0.1))
    table = m.embedding.tables["width_4"]
    dense = torch.nn.Parameter(table.weight.detach().clone())
    optimiser, always = torch.optim.Adam([dense], lr=0.1), torch.ones(len(dense), dtype=torch.bool)

    def mirror(gradients):
        dense.grad = torch.zeros_like(dense)
        touched = torch.zeros(len(dense), dtype=torch.bool)
        for g in gradients:
            dense.grad[g.rows] = g.grad
            touched[g.rows] = True
        always.logical_and_(touched)
        optimiser.step()

    steps(m, 4, updates, mirror, rows=64)
    assert always.sum() > 10
    torch.testing.assert_close(table.weight[always], dense.detach()[always], atol=1e-5, rtol=1e-4)


def test_rowwise_adagrad_keeps_one_number_a_row():
    m = model()
    updates = RowUpdates(m.embedding, RowOptimiser(name="rowwise_adagrad"))
    steps(m, 2, updates)
    assert updates.state["width_4"]["sum"].shape == (76, 1)


def test_ftrl_without_l1_is_adagrad():
    ends = []
    for name in ("ftrl", "adagrad"):
        m = model()
        steps(m, 8, RowUpdates(m.embedding, RowOptimiser(name=name, lr=0.1)))
        ends.append(m.embedding.tables["width_4"].weight)
    torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-4)


def test_ftrl_is_the_closed_form_of_its_paper():
    """w = argmin sum_s g_s w + 1/2 sum_s sigma_s (w - w_s)^2 + l1 |w|, with sigma_1 + .. = sqrt(n_s) / lr."""
    m = model()
    lr, l1, table = 0.1, 0.002, m.embedding.tables["width_4"]
    w = table.weight.double()
    z, n = torch.zeros_like(w), torch.zeros_like(w)

    def mirror(gradients):
        for g in gradients:
            for row, x in zip(g.rows.tolist(), g.grad.double()):
                sigma = ((n[row] + x * x).sqrt() - n[row].sqrt()) / lr
                z[row] += x - sigma * w[row]
                n[row] += x * x
                solved = -z[row].sign() * (z[row].abs() - l1).clamp(min=0) * lr / n[row].sqrt()
                w[row] = torch.where(n[row] > 0, solved, w[row])

    steps(m, 6, RowUpdates(m.embedding, RowOptimiser(name="ftrl", lr=lr, l1=l1)), mirror)
    torch.testing.assert_close(table.weight.double(), w, atol=1e-5, rtol=1e-3)
    touched = n > 0
    assert 0 < (w[touched] == 0).sum() < touched.sum() and torch.equal(table.weight == 0, w == 0)


def test_l1_belongs_to_ftrl():
    with pytest.raises(ValueError, match="adagrad has no l1; ftrl has"):
        RowOptimiser(l1=0.1)


def test_rows_a_batch_does_not_touch_stay_as_they_are():
    m = model()
    before = m.embedding.tables["width_4"].weight.clone()
    seen = set()
    steps(m, 1, RowUpdates(m.embedding, RowOptimiser(l2=0.1)), lambda gs: seen.update(gs[0].rows.tolist()))
    after = m.embedding.tables["width_4"].weight
    moved = {i for i in range(len(before)) if not torch.equal(before[i], after[i])}
    assert moved and moved <= seen


def test_clip_bounds_the_norm_of_dense_and_rows_together():
    m = model()
    (m.train()(batch(64)).logits.square().sum() * 100).backward()
    gradients, dense = m.embedding.take_gradients(), dense_parameters(m)
    norm = lambda: torch.cat([p.grad.flatten() for p in dense] + [g.grad.flatten() for g in gradients]).norm()
    before, direction = norm(), dense[0].grad.clone()
    clip(dense, gradients, 1.0)
    assert norm().item() == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(dense[0].grad, direction / before)


def test_lazy_row_average_is_the_plain_average():
    m = model()
    average = Average(m, m.embedding, 0.9)
    table = m.embedding.tables["width_4"]
    plain, t = table.weight.double().clone(), 0

    def mirror(gradients):
        nonlocal plain, t
        average.update(gradients)
        d = min(0.9, (1 + t) / (10 + t))
        plain = d * plain + (1 - d) * table.weight.double()
        t += 1

    steps(m, 30, RowUpdates(m.embedding, RowOptimiser()), mirror, rows=3)
    with average.swapped_in():
        torch.testing.assert_close(table.weight.double(), plain, atol=1e-6, rtol=1e-5)


def test_swapping_in_the_average_and_out_again_changes_nothing():
    m = model()
    average = Average(m, m.embedding, 0.9)
    steps(m, 3, RowUpdates(m.embedding, RowOptimiser()), average.update)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    with average.swapped_in():
        assert any(not torch.equal(before[k], v) for k, v in m.state_dict().items())
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


def test_l2_reaches_weights_of_layers_and_nothing_else():
    said = {"name": "aitm", "represent": {"hidden": [16, 8], "norm": "layer"}}
    m = model(config(said))
    groups = dense_optimiser(m, config(train={"optimiser": {"l2": 0.1}}).train.optimiser).param_groups
    held = {id(p) for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    names = {n for n, p in m.named_parameters() if id(p) in held}
    assert names == {n for n, _ in m.named_parameters() if n.startswith("slots") and n.endswith("linear.weight")} | {
        f"slots.transfer.attention.all.h{i}.weight" for i in (1, 2, 3)}
    assert sum(len(g["params"]) for g in groups) == len(dense_parameters(m))


def test_schedules():
    warm = Schedule(name="constant", warmup=4)
    assert [schedule_factor(warm, s, None) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    line = Schedule(name="linear", final=0.1)
    assert schedule_factor(line, 0, 10) == 1 and schedule_factor(line, 9, 10) == pytest.approx(0.1)
    cosine = Schedule(name="cosine")
    assert schedule_factor(cosine, 5, 11) == pytest.approx(0.5)
    steps = Schedule(name="exponential", warmup=2, every=3, decay=0.5, final=0.2)
    assert [schedule_factor(steps, s, None) for s in range(12)] == [0.5, 1] + 3 * [1.0] + 3 * [0.5] + 3 * [0.25] + [0.2]
