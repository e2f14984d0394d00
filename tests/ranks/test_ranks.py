"""Several processes train the model that one would: every plan, odd sizes, empty bags, ranks without a row."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import train

from funnelrank.embedding import sharded
from funnelrank.embedding.tables import draw, shared_out
from funnelrank.errors import ConfigError
from funnelrank.settings import Sharding
from funnelrank.tensors import load_tensors

needs_torchrec = pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason=(
    "torchrec is not installed here; make test-distributed runs this"))
ROWS = {"name": "adagrad", "lr": 0.05}
DENSE = {"optimiser": {"name": "sgd", "lr": 0.1}}
# lists pooled; a history that a part reads vector by vector, and a weight per id and task; statistics of all rows
BAGS = {"model": {"name": "aitm", "represent": {"hidden": [8, 6]}}}
SEQUENCES = {"model": {"name": "mmoe", "prepare": ["din"], "represent": {"experts": 2, "hidden": [8]}, "side": ["lr"]}}
NORMS = {"model": {"name": "mmoe", "represent": {"experts": 2, "hidden": [8], "norm": "batch", "activation": "dice"}}}
SCENARIOS = {"model": {"name": "star"}}
ROW_WISE, TABLE_WISE = {"row_wise_from": 0}, {"row_wise_from": 10**9, "below": "table_wise"}
MIXED, PARTLY = {"row_wise_from": 1000, "below": "table_wise"}, {"row_wise_from": 1000}      # of weights, 912 bytes


def case(out, model, plan=None, train=None, steps=200, rows=ROWS, **rest):
    embedding = {"width": 4, "optimiser": rows, "sharding": plan or {}}
    return {"out": str(out), "settings": {**model, "embedding": embedding}, "train": {**DENSE, **(train or {})},
            "steps": steps, **rest}


def together(ranks, *cases):
    """Runs the cases on so many processes, one after the other; their weights."""
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
                          str(Path(__file__).with_name("small_runs.py")), json.dumps(cases)],
                         env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert not run.returncode, run.stderr
    return [load_tensors(Path(c["out"])) if not c.get("until") else {} for c in cases]


def close(found, expected, within=1e-5):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=within, rtol=0, equal_nan=True,
                                   msg=lambda said, name=name: f"{name}: {said}")


def weights_of(tensors):
    return {name: t for name, t in tensors.items() if name != "losses"}       # events of the last part alone


def alone(**said):
    torch.set_num_threads(1)
    return train(**said)


def test_two_processes_that_hold_every_table_train_as_one_does(tmp_path):
    """One launch for all: batches with a row for one rank only, statistics of all rows, a balance that looks at each
    task's gradients, and a checkpoint that goes from one process to two and back."""
    said = [case(tmp_path / "bags", BAGS, train={"clip_norm": 0.3, "balance": {"name": "metabalance"}}, steps=20),
            case(tmp_path / "norms", NORMS, steps=15), case(tmp_path / "scenarios", SCENARIOS, steps=15)]
    part = [case(tmp_path / "parts", BAGS, train={"checkpoint_every": 10}, steps=30, until=until, resume=k > 0)
            for k, until in enumerate((10, 20, None))]
    alone(**part[0])
    *found, _ = together(2, *said, part[1])
    for weights, one in zip(found, said):
        close(weights, alone(**one | {"out": tmp_path / "one"}))
    close(weights_of(alone(**part[2])), weights_of(alone(**case(tmp_path / "one", BAGS, steps=30))))


@needs_torchrec
@pytest.mark.parametrize(("ranks", "model", "plans"), [
    (2, BAGS, [ROW_WISE, TABLE_WISE]), (2, SEQUENCES, [ROW_WISE, MIXED, PARTLY]), (3, BAGS, [ROW_WISE]),
    (3, SEQUENCES, [MIXED])])
def test_any_number_of_ranks_and_any_plan_train_as_one_process_does(ranks, model, plans, tmp_path):
    expected = alone(**case(tmp_path / "one", model))
    for found in together(ranks, *(case(tmp_path / f"{k}", model, plan) for k, plan in enumerate(plans))):
        close(found, expected)


@needs_torchrec
@pytest.mark.parametrize("train", [
    {"clip_norm": 0.3}, {"balance": {"name": "gradnorm"}}, {"balance": {"name": "pcgrad"}}, {"average": None},
    {"balance": {"name": "metabalance"}, "clip_norm": 0.3}, {"balance": {"name": "uncertainty"}}], ids=str)
def test_what_looks_at_gradients_sees_those_of_all_ranks(train, tmp_path):
    expected = alone(**case(tmp_path / "one", SEQUENCES, train=train, steps=25))
    # early on Adagrad divides a small gradient by its own size, and with it what rounding did to it
    close(*together(2, case(tmp_path / "two", SEQUENCES, MIXED, train, steps=25)), expected, within=3e-5)


@needs_torchrec
@pytest.mark.parametrize("rows", [
    {"name": "adam", "lr": 0.01}, {"name": "ftrl", "lr": 0.05, "l1": 0.001}, {"name": "rowwise_adagrad", "lr": 0.05},
    {"name": "sgd", "lr": 0.05, "l2": 0.001}], ids=lambda rows: rows["name"])
def test_every_row_optimiser_moves_rows_that_lie_apart(rows, tmp_path):
    said = lambda name, plan: case(tmp_path / name, SEQUENCES, plan, steps=25, rows=rows)
    close(*together(2, said("two", MIXED)), alone(**said("one", None)))


@needs_torchrec
def test_features_read_their_own_vectors_whatever_the_plan(tmp_path):
    """Outputs at step 1 are those of one process: columns in another order would change the loss at once."""
    said = [case(tmp_path / f"{k}", SEQUENCES, plan, {"log_every": 1}, steps=1)
            for k, plan in enumerate((ROW_WISE, TABLE_WISE, MIXED, PARTLY))]
    expected = alone(**case(tmp_path / "one", SEQUENCES, train={"log_every": 1}, steps=1))["losses"]
    for found in together(3, *said):
        torch.testing.assert_close(found["losses"], expected, atol=1e-6, rtol=0)


def resumed(tmp_path, model, plan, counts):
    """A training that is stopped and goes on, each part on as many ranks as `counts` says."""
    out, each = tmp_path / "parts", 15
    for k, n in enumerate(counts):
        last = k + 1 == len(counts)
        said = case(out, model, plan, steps=each * len(counts), until=None if last else each * (k + 1), resume=k > 0)
        said["train"]["checkpoint_every"] = each
        found = alone(**said) if n == 1 else together(n, said)[0]
    return found


@needs_torchrec
@pytest.mark.parametrize("plan", [ROW_WISE, MIXED])
def test_a_checkpoint_goes_on_on_any_number_of_ranks(plan, tmp_path):
    expected = alone(**case(tmp_path / "one", SEQUENCES, steps=75))
    close(weights_of(resumed(tmp_path, SEQUENCES, plan, [1, 2, 3, 2, 1])), weights_of(expected))


def test_without_a_torchrec_that_works_the_sentence_names_the_pair(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec", None)                     # importing it is an ImportError
    with pytest.raises(ConfigError, match="torchrec 1.8.0 with fbgemm-gpu-cpu 1.8.0.*requirements-distributed.txt"):
        sharded._torchrec()


@pytest.mark.parametrize(("ranks", "sizes", "said", "expected"), [
    (2, {"a": 100, "b": 10}, {}, {"a": "replicated", "b": "replicated"}),
    (2, {"a": 100, "b": 10}, {"row_wise_from": 50}, {"a": "row_wise", "b": "replicated"}),
    (2, {"a": 100, "b": 10, "c": 9, "d": 2}, {"row_wise_from": 50, "below": "table_wise"},
     {"a": "row_wise", "b": 0, "c": 1, "d": 1})])
def test_large_tables_lie_row_by_row_and_small_ones_where_least_is(ranks, sizes, said, expected):
    assert shared_out(sizes, Sharding(**said), ranks) == expected


@pytest.mark.parametrize("rows", [3, 1000, 600_001])
def test_every_rank_draws_its_rows_of_the_table_that_one_process_draws(rows):
    torch.manual_seed(5)
    whole, after = torch.empty(rows, 7).normal_(0, 0.01), torch.rand(1)
    for first, end in ((0, rows // 3), (rows // 3, rows)):
        torch.manual_seed(5)
        part = torch.zeros(end - first, 7)
        draw(part, first, rows, 0.01)
        assert torch.equal(part, whole[first:end]) and torch.equal(torch.rand(1), after)
