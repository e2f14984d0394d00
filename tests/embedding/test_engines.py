"""The native engine against the torch engine, its reference, over random work of every kind."""

import copy
from dataclasses import replace

import pytest
import torch
from work import Run, Work, backward, dense, directions, outputs

from funnelrank import kernels
from funnelrank.embedding.reference import one_stands_for_all
from funnelrank.errors import ConfigError
from funnelrank.settings import RowOptimiser
from funnelrank.train import optim
from funnelrank.train.optim import Average, RowUpdates, dense_parameters

needs_native = pytest.mark.skipif(kernels.library() is None, reason="the package was built without a C++ compiler")
OPTIMISERS = ("adagrad", "rowwise_adagrad", "adam", "ftrl", "sgd")
close = dict(atol=1e-6, rtol=1e-5)


@pytest.fixture(params=(1, 2))
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@needs_native
@pytest.mark.parametrize("seed", range(24))
def test_the_same_numbers_and_row_gradients(seed, threads):
    work = Work(seed, rows=(40, 1, 100, 200)[seed % 4], fields=seed % 5 == 0)
    batch, pair = work.batch(), [work.embedding(e) for e in ("native", "torch")]
    said = [e(batch) for e in pair]
    assert list(outputs(said[0])) == list(outputs(said[1]))
    for name, mine in outputs(said[0]).items():
        torch.testing.assert_close(mine, outputs(said[1])[name], **close)
        torch.testing.assert_close(mine, outputs(pair[0].eval()(batch))[name], atol=0, rtol=0)
    for history in said[0].histories:
        assert torch.equal(said[0].histories[history].offsets, said[1].histories[history].offsets)
    toward = directions(said[0])
    found = []
    for e, x in zip(pair, said):
        backward(x, toward)
        gradients = e.take_gradients()
        found.append(dense(gradients, e))
        assert all(torch.equal(g.old, g.table.weight[g.rows]) for g in gradients) and e.take_gradients() == []
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-5, rtol=1e-5)
        assert (found[0][name][pair[0].tables[name].pad] == 0).all()


@needs_native
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("average", (None, 0.9))
def test_rows_move_alike_in_both_engines_and_the_same_bits_inside_backward(name, average, threads, monkeypatch):
    monkeypatch.setattr(optim, "TOGETHER", 0)
    for seed in range(6):
        optimiser = {"name": name, "l2": (0, 0.01)[seed % 2], "l1": 0.003 * (name == "ftrl" and seed // 2 % 2)}
        ends = []
        for engine, *ways in (("torch", False, False), ("native", False, False), ("native", True, False),
                              ("native", False, True), ("native", True, True)):
            work, fused = Work(seed, rows=(40, 1, 70)[seed % 3]), ways[0]
            run = Run(work.embedding(engine), optimiser, average, *ways)
            for step in range(4):
                left = run.step(work.batch(), factor=(1, 0.5)[step % 2], seed=step)
                assert not (fused and left)
            ends.append(run.tensors())
        reference, apart, *others = ends
        for tensor in reference:
            torch.testing.assert_close(apart[tensor], reference[tensor], atol=4e-6, rtol=1e-5)
            assert all(torch.equal(apart[tensor], other[tensor]) for other in others), tensor


@needs_native
def test_rows_that_lie_together_are_what_they_were_and_come_apart(monkeypatch):
    monkeypatch.setattr(optim, "TOGETHER", 0)
    work = Work(3)
    run = Run(work.embedding("native"), {"name": "adam"}, 0.9)
    for _ in range(2):
        run.step(work.batch())
    before = run.tensors()
    run.updates.lay_together(run.average)
    table = next(iter(run.average.rows.values()))
    assert not table.is_contiguous()
    for name, tensor in run.tensors().items():
        assert torch.equal(tensor, before[name]), name
    run.average._swap()
    averaged = run.e(batch := work.batch()).flat.clone()         # read where they lie
    run.updates.lay_apart()
    assert all(t.weight.is_contiguous() for t in run.e.tables.values())
    assert torch.equal(run.e(batch).flat, averaged)


@needs_native
def test_results_do_not_depend_on_the_number_of_threads():
    for seed in range(8):
        ends = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            work = Work(seed, rows=150)
            run = Run(work.embedding("native"), {"name": "adam"}, 0.9, fused=bool(seed % 2))
            gradients = [run.step(work.batch(), seed=i) for i in range(3)]
            ends.append([*run.tensors().values(), *(t for gs in gradients for g in gs for t in (g.rows, g.grad))])
        torch.set_num_threads(1)
        for other in ends[1:]:
            assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


@needs_native
def test_results_do_not_depend_on_the_instruction_set():
    ends = []
    try:
        for level in range(3):
            kernels.library().rows_level(level)
            found = []
            for seed, name in enumerate(OPTIMISERS):
                work = Work(seed, widths=(16, 20), rows=60)
                run = Run(work.embedding("native"), {"name": name, "l2": 0.01}, 0.9, fused=True)
                for i in range(3):
                    run.step(work.batch(), seed=i)
                found += run.tensors().values()
            ends.append(found)
    finally:
        kernels.library().rows_level(2)
    assert all(torch.equal(a, b) for other in ends[1:] for a, b in zip(ends[0], other, strict=True))


@needs_native
def test_a_table_of_a_million_rows(threads):
    work = Work(3, rows=300, size=1_000_000, widths=(8,), weighted=True)
    batch, pair = work.batch(), [work.embedding(e) for e in ("native", "torch")]
    toward, found = None, []
    for e in pair:
        x = e(batch)
        toward = toward or directions(x)
        backward(x, toward)
        found.append({n: (g.rows[order], g.grad[order]) for n, g in zip(e.tables, e.take_gradients())
                      if len(order := g.rows.argsort()[(g.grad[g.rows.argsort()] != 0).any(1)])})
    for (rows, grads), (other_rows, other_grads) in zip(found[0].values(), found[1].values(), strict=True):
        assert torch.equal(rows, other_rows)
        torch.testing.assert_close(grads, other_grads, **close)


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "torch"])
def test_ids_outside_their_space_are_refused_by_name(engine):
    work = next(w for s in range(99) if len((w := Work(s)).layout.lists) > 1 and len(w.layout.ids) > 1)
    e, batch = work.embedding(engine), work.batch()
    for wrong in (-1, work.layout.size["f1"], 2**31 - 1, -2**31):
        ids = batch.ids.clone()
        ids[7, 1] = wrong
        with pytest.raises(IndexError, match=rf"feature 'f1', row 7 of the batch: id {wrong}; its space has \d+ ids"):
            e(replace(batch, ids=ids))
        row = int((batch.offsets[work.rows:2 * work.rows + 1].diff() > 0).nonzero()[0])
        values = batch.values.clone()
        values[batch.offsets[work.rows + row]] = wrong = max(wrong, -5) if wrong < 0 else 2**31 - 1
        with pytest.raises(IndexError, match=rf"feature 'h1', row {row} of the batch: id {wrong};"):
            e(replace(batch, values=values))
    e(batch)


@needs_native
def test_offsets_that_lead_outside_the_values_are_refused():
    work = Work(next(s for s in range(99) if len(Work(s).layout.lists) > 1))
    e, batch = work.embedding("native"), work.batch()
    for at, wrong in ((3, -1), (3, 10**9), (0, 5), (-1, len(batch.values) + 1)):
        offsets = batch.offsets.clone()
        offsets[at] = wrong
        with pytest.raises(IndexError, match="batch.offsets: they lead outside"):
            e(replace(batch, offsets=offsets))
    with pytest.raises(ValueError, match="do not fit together"):
        e(replace(batch, offsets=batch.offsets[:-1]))
    with pytest.raises(TypeError, match=r"batch.ids: torch.int64 of 2 axes; torch.int32 of 2 is needed"):
        e(replace(batch, ids=batch.ids.long()))


@needs_native
def test_training_goes_on_in_the_other_engine():
    """Weights, optimiser and averages of one engine continue in the other as if nothing had happened."""
    def run(engines):
        run = states = None
        for half, engine in enumerate(engines):
            work = Work(5, rows=50)
            run = Run(work.embedding(engine), {"name": "ftrl", "l1": 1e-3}, 0.9, fused=engine == "native")
            batches = [work.batch() for _ in range(4)]
            if states:
                weights, rows, seen, average, steps, log_decay = states
                assert set(run.e.state_dict()) == set(weights)
                run.e.load_state_dict(weights)
                run.updates.state, run.updates.step_count = rows, steps
                run.average.seen, run.average.rows = seen, average
                run.average.step_count, run.average.log_decay = steps, log_decay
            for i in range(2):
                run.step(batches[2 * half + i], seed=i)
            states = (run.e.state_dict(), run.updates.state, run.average.seen, run.average.rows,
                      run.updates.step_count, run.average.log_decay)
        return run.tensors()

    want = run(("torch", "torch"))
    for engines in (("native", "torch"), ("torch", "native"), ("native", "native")):
        for name, tensor in run(engines).items():
            torch.testing.assert_close(tensor, want[name], atol=2e-6, rtol=1e-5)


def test_one_occurrence_stands_for_all():
    index = torch.tensor([5, 3, 5, 9, 3, 3])
    rows, place = one_stands_for_all(index, torch.randint(99, (10,)), torch.tensor([0]))
    assert torch.equal(rows[place], index)
    assert sorted(rows[rows > 0].tolist()) == [3, 5, 9] and len(rows) == 6


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "torch"])
def test_gradients_of_two_backwards_add_up(engine):
    work = Work(2)
    e, first, second = work.embedding(engine), work.batch(), work.batch()
    found = []
    for batches in ((first,), (second,), (first, second)):
        for b in batches:
            x = e(b)
            backward(x, directions(x))
        found.append(dense(e.take_gradients(), e))
    for name in found[0]:
        torch.testing.assert_close(found[0][name] + found[1][name], found[2][name], **close)


@needs_native
def test_an_output_without_a_gradient_counts_as_zero():
    work = next(w for s in range(99) if (w := Work(s, histories=True, linear=True)).embedding("native").histories)
    batch, pair = work.batch(), [work.embedding(e) for e in ("native", "torch")]
    for skip in ({"flat"}, {"linear"}):
        found = []
        for e in pair:
            x = e(batch)
            backward(x, directions(x), skip | {n for n in outputs(x) if n.startswith("values")})
            found.append(dense(e.take_gradients(), e))
        for name in found[0]:
            torch.testing.assert_close(found[0][name], found[1][name], **close)


@needs_native
def test_a_copy_is_an_engine_of_its_own():
    work = Work(1)
    e, batch = work.embedding("native"), work.batch()
    other = copy.deepcopy(e)
    x = other(batch)
    backward(x, directions(x))
    assert e.take_gradients() == []
    gradients = other.take_gradients()
    assert gradients and all(g.table in list(other.tables.values()) for g in gradients)


def test_numbers_that_learn_take_the_torch_engine():
    work = next(w for s in range(99) if (w := Work(s)).layout.numbers)
    e, batch = work.embedding("auto"), work.batch()
    batch.numbers.requires_grad_()
    e(batch).flat.sum().backward()
    assert (batch.numbers.grad == 1).all() and e.take_gradients()


def test_without_the_library_torch_does_the_work_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "_kernels.so")
    kernels.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no compiled kernels: the package was installed without a C\\+\\+"):
            e = Work(0).embedding("auto")
        assert not e.runs_native
        with pytest.raises(ConfigError, match="embedding.engine: the native engine was asked for, and is not there"):
            Work(0).embedding("native")
    finally:
        kernels.library.cache_clear()


# ---- compile and export

class Scorer(torch.nn.Module):
    """The smallest model of a work: one linear layer over flat, and all else that the embedding gives."""

    def __init__(self, embedding):
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.layer = embedding, torch.nn.Linear(embedding.flat_width, 1)

    def forward(self, batch):
        x = self.embedding(batch)
        return self.layer(x.flat).square().mean() + sum(v.square().mean() for v in list(outputs(x).values())[1:])


@needs_native
def test_a_compiled_training_step_is_the_eager_one():
    def train(compile):
        work = next(w for s in range(99) if (w := Work(s, histories=True, weighted=True)).embedding("torch").histories)
        m = Scorer(work.embedding("native"))
        call = torch.compile(m, backend="aot_eager", fullgraph=True) if compile else m
        updates, average = RowUpdates(m.embedding, RowOptimiser()), Average(m, m.embedding, 0.9)
        optimiser = torch.optim.SGD(dense_parameters(m), 0.1)
        for i in range(4):
            optimiser.zero_grad()
            loss = call(work.batch(30 + i))
            if i % 2:
                updates.fuse(1.0, average)
            loss.backward()
            gradients = m.embedding.take_gradients()
            assert bool(gradients) == (i % 2 == 0)
            optimiser.step()
            updates.apply(gradients)
            average.update(gradients)
        return m.state_dict() | average.rows

    eager, compiled = train(False), train(True)
    for name, tensor in eager.items():
        torch.testing.assert_close(compiled[name], tensor, **close)


class Flat(torch.nn.Module):
    """A batch's tensors instead of a Batch, as torch.export takes them."""

    def __init__(self, embedding, batch):
        super().__init__()
        self.embedding, self.batch = embedding, batch

    def forward(self, ids, numbers, values, offsets):
        x = self.embedding(replace(self.batch, ids=ids, numbers=numbers, values=values, offsets=offsets,
                                   scenario=ids[:, 0]))
        return list(outputs(x).values())


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "torch"])
def test_lookups_export_with_an_open_number_of_rows(engine):
    work = next(w for s in range(99) if len((w := Work(s, weighted=False)).layout.lists) > 1)
    e, K, B, n = work.embedding(engine).eval(), len(work.layout.lists), torch.export.Dim("B"), torch.export.Dim("n")
    tensors = lambda b: (b.ids, b.numbers, b.values, b.offsets)
    flat = Flat(e, work.batch())
    exported = torch.export.export(flat, tensors(work.batch()), dynamic_shapes=({0: B}, {0: B}, {0: n}, {0: K * B + 1}))
    for rows in (3, 90):
        other = tensors(work.batch(rows))
        for mine, want in zip(exported.module()(*other), flat(*other), strict=True):
            torch.testing.assert_close(mine, want, atol=0, rtol=0)
    if engine == "native":
        assert "torch.ops.funnelrank.embed.default" in exported.graph_module.code
