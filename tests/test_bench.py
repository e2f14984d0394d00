"""`make bench` itself, without the peers: windows that take turns, what they add up to, and results that are kept."""

import json
import sys
import xml.etree.ElementTree
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))      # last: tests have a made.py of their own

import bench  # noqa: E402
import cells  # noqa: E402
import contest  # noqa: E402
import ours  # noqa: E402
import rows  # noqa: E402
import table  # noqa: E402
import windows  # noqa: E402
from cells import CELLS, Cell, Side  # noqa: E402
from windows import Failed, Plan  # noqa: E402

from funnelrank import flow  # noqa: E402

WORKER = f"""
import json, subprocess, sys, time
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from gate import Gate

said = json.loads(sys.argv[1])
gate = Gate()
print("chatter of a library")
assert said["name"] != "broken", "no such data"

def work():
    with open(said["diary"], "a") as file:
        file.write(said["name"])
    if said["name"] == "b":
        subprocess.run([sys.executable, "-S", "-c", "sum(range(2_000_000))"])
    else:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
    return 10

gate.passes(work)
"""


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder of benchmarks whose worker is the one above; makes cells of it."""
    (tmp_path / "ours.py").write_text(WORKER)
    monkeypatch.setattr(windows, "HERE", tmp_path)
    monkeypatch.setattr(windows, "FOLDER", tmp_path / "kept")
    side = lambda name: Side("ours", {"name": name, "diary": str(tmp_path / "diary")}, least=2)
    return lambda a="a", b="b": Cell("cell", "work", "b", "times", 2.0, None, side(a), side(b))


def test_two_workers_take_turns_and_children_count(workshop, tmp_path):
    found = windows.run(workshop(), Plan(windows=2, seconds=0.001))
    assert (tmp_path / "diary").read_text() == "aabb" * 3                   # a warm-up, then two windows of two units
    assert [len(w) for w in found.values()] == [2, 2]
    assert all(w["rows"] == 20 and w["units"] == 2 for ws in found.values() for w in ws)
    for a, b in zip(found["ours"], found["other"]):
        assert 0.03 < a["cpu"] < 0.3                                        # nothing of the wait for the other side
        assert b["cpu"] > 0.02                                              # which works in a process below it


def test_a_window_lasts_its_seconds(workshop):
    found = windows.run(workshop(b="a"), Plan(windows=1, seconds=0.1))
    assert 0.1 <= found["ours"][0]["cpu"] < 0.4 and found["ours"][0]["units"] >= 4


def test_a_worker_that_ends_says_why(workshop):
    with pytest.raises(Failed, match="(?s)ours ended with status 1.*no such data"):
        windows.run(workshop(b="broken"), Plan(1, 0.01))


def test_what_is_no_answer_is_said(workshop, tmp_path):
    (tmp_path / "ours.py").write_text("print('welcome to my package')")
    with pytest.raises(Failed, match="welcome to my package"):
        windows.run(workshop(), Plan(1, 0.01))


def window(rows, cpu=1.0, wall=2.0, **more):
    return {"rows": rows, "units": 2, "cpu": cpu, "wall": wall, **more}


def cell(kind, must, stretch=None):
    side = Side("ours", {})
    return Cell("name", "work", "other", kind, must, stretch, side, side)


@pytest.mark.parametrize("kind, must, stretch, value, reached, stretched", [
    ("times", 4.0, 5.0, (4.0, 2.0, 10.0), True, False),
    ("threads", 4.5, None, (4.0, 2.0, 10.0), False, None),
    ("slowdown", 0.25, 0.2, (0.25, 0.1, 0.5), True, False),
    ("rate", 39.0, 41.0, (40.0, 20.0, 50.0), True, False),
    ("seconds", 0.4, None, (0.5, 0.5, 0.5), False, None),
    ("scale", None, None, (40.0, 20.0, 50.0), None, None),
])
def test_medians_ratios_and_thresholds(kind, must, stretch, value, reached, stretched):
    found = {"ours": [window(20), window(40), window(50)], "other": [window(10), window(20), window(5)]}
    said = windows.summary(cell(kind, must, stretch), found)
    assert said["value"] == pytest.approx(value)
    assert (said["reached"], said["stretched"]) == (reached, stretched)
    assert said["sides"]["ours"][0] == (20 if kind == "threads" else 40)


def test_the_floor_uses_the_best_rates_of_any_window():
    probe = [window(1, flops=100.0, bytes=50.0, multiply_adds_per_row=30, bytes_per_row=20),
             window(1, flops=200.0, bytes=40.0, multiply_adds_per_row=30, bytes_per_row=20)]
    assert windows.floor_seconds(probe) == pytest.approx(60 / 200 + 20 / 50)
    said = windows.summary(cell("share", 0.6), {"ours": [window(1), window(0.5), window(2)], "other": probe})
    assert said["value"] == pytest.approx((0.7, 0.35, 1.4)) and said["reached"]


def test_results_are_kept_until_code_cell_or_plan_change(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "FOLDER", tmp_path)
    first = windows.place(CELLS[0], Plan(), "code")
    others = [windows.place(CELLS[1], Plan(), "code"), windows.place(CELLS[0], Plan(3, 8.0), "code"),
              windows.place(CELLS[0], Plan(), "newer code")]
    assert len({first, *others}) == 4 and first == windows.place(CELLS[0], Plan(), "code")
    windows.keep(first, {"cell": CELLS[0].name})
    windows.keep(others[0], {"cell": CELLS[1].name})
    windows.keep(others[2], {"cell": CELLS[0].name})
    assert windows.kept(first) is None and windows.kept(others[2]) and windows.kept(others[0])


def test_the_code_hash_sees_every_source(tmp_path):
    for name in ("benchmarks/a.py", "benchmarks/peers/requirements.txt", "src/b/c.py", "csrc/rows.cpp",
                 "constraints.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = windows.code_hash(tmp_path)
    for name in ("src/b/c.py", "csrc/rows.cpp", "benchmarks/peers/requirements.txt"):
        (tmp_path / name).write_text("2")
        assert windows.code_hash(tmp_path) != before
        before = windows.code_hash(tmp_path)


@pytest.fixture
def driven(tmp_path, monkeypatch):
    """main() with made-up windows; returns (call it, names of the cells that were run)."""
    calls = []

    def run(cell, plan):
        calls.append(cell.name)
        probe = {"flops": 1e9, "bytes": 1e9, "multiply_adds_per_row": 10, "bytes_per_row": 10}
        if cell.name in broken:
            raise Failed("out of memory")
        return {"ours": [window(300)] * 4, **({"other": [window(10, **probe)] * 4} if cell.other else {})}

    broken: set[str] = set()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "speed.md").write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(windows, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "PEERS", tmp_path)
    monkeypatch.setattr(bench, "run", run)

    def main(*arguments):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        return bench.main()
    return main, calls, broken


def test_a_stopped_run_goes_on_and_only_a_whole_one_is_written(driven, tmp_path, capsys):
    main, calls, broken = driven
    broken.add("loader")
    assert main() == 1 and len(calls) == len(CELLS)
    assert not (tmp_path / "docs" / "bench.json").exists() and "failed: loader" in capsys.readouterr().err
    broken.clear()
    assert main() == 0 and calls == ["loader"]
    said = json.loads((tmp_path / "docs" / "bench.json").read_text())
    assert [c["cell"] for c in said["cells"]] == [c.name for c in CELLS] and said["machine"]["cores"] >= 1
    page = (tmp_path / "docs" / "speed.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert page.count("| AITM SMALL, 1e7 ids, batch 4096 | torch-rechub 0.9.0 |") == 1
    xml.etree.ElementTree.parse(tmp_path / "docs" / "bench.svg")
    assert main("--fresh", "--only", "loader", "auc-sklearn") == 0 and calls == ["loader", "auc-sklearn"]


def test_minutes_leave_cells_for_another_call(driven, tmp_path, capsys):
    main, calls, _ = driven
    assert main("--only", "loader") == 0 and calls == ["loader"]
    assert main("--minutes", "0", "--only", "loader", "gauc", "--out", str(tmp_path / "docs")) == 0 and calls == []
    assert "left for another call: gauc" in capsys.readouterr().err
    page = (tmp_path / "docs" / "speed.md").read_text()
    assert "shuffled loader alone" in page and "4 windows of about 1 CPU seconds a side" in page


def test_quick_runs_fewer_cells_and_writes_nothing(driven, tmp_path, capsys):
    main, calls, _ = driven
    assert main("--quick") == 0 and 0 < len(calls) < len(CELLS) / 2
    assert not (tmp_path / "docs" / "bench.json").exists()
    out = capsys.readouterr().out
    assert "  30x (30x..30x)  " in out
    assert "stretch reached" in out and "not reached" in out


def test_cells_have_names_of_their_own_and_thresholds_of_the_right_side():
    assert len({c.name for c in CELLS}) == len(CELLS)
    for c in CELLS:
        assert (c.must is None) == (c.kind == "scale")
        if c.stretch:
            assert (c.stretch < c.must) == (c.kind in cells.AT_MOST)


def test_ratios_are_written_out():
    assert [table.said("times", x) for x in (3.456, 30, 1234.5)] == ["3.46x", "30x", "1,234x"]


@pytest.mark.parametrize("x, said", [(0.01234, "0.0123"), (4.56, "4.56"), (45.67, "45.7"), (456.7, "457"),
                                     (999.7, "1 k"), (45678, "45.7 k"), (2.5e6, "2.5 M")])
def test_three_digits(x, said):
    assert table.short(x) == said


# ---- the generated log, and our side of a cell

@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return rows.made(tmp_path_factory.mktemp("log"), 1000, rows=16_000)


def test_the_log_is_what_it_says(log):
    said, got = json.loads((log / "meta.json").read_text()), pq.read_table(sorted(log.glob("*.parquet"))).to_pandas()
    assert len(got) == 16_000 and set(said["fields"]) | set(said["lists"]) | set(said["numbers"]) < set(got)
    for name, size in said["fields"].items():
        assert got[name].between(1, size - 1).all()
    for name, of in said["lists"].items():
        sizes = got[name].map(len)
        assert sizes.max() <= of["most"] and sizes.mean() == pytest.approx(of["mean"], rel=0.05)
        assert np.concatenate(got[name]).max() < said["fields"][of["space"]]
    assert got.click.mean() == pytest.approx(0.16, abs=0.005) and got.buy.mean() == pytest.approx(0.016, abs=0.002)
    assert not (got.buy > got.click).any()
    assert got.groupby("f0").click.mean().std() > 0.1                       # ids say something


class ThreeBatches:
    """A gate that lets three batches through."""

    def batches(self, epochs, count):
        self.rows = 0
        for _, batch in zip(range(3), next(iter(epochs))):
            self.rows += count(batch)
            yield batch
        raise SystemExit


@pytest.mark.parametrize("model, norm", [("aitm", "batch"), ("mmoe", None), ("deepfm", "batch"), ("din", "batch")])
def test_our_side_trains_what_a_cell_says(model, norm, log, tmp_path, monkeypatch):
    monkeypatch.setattr(ours, "made", partial(rows.made, rows=16_000))
    monkeypatch.setattr(ours, "FOLDER", log.parent)
    monkeypatch.setattr(rows, "made", None)
    monkeypatch.setattr(flow, "Loader", flow.Loader)
    (log.parent / "data").mkdir(exist_ok=True)
    (log.parent / "data" / log.name).exists() or (log.parent / "data" / log.name).symlink_to(log)
    gate = ThreeBatches()
    with pytest.raises(SystemExit):
        ours.train(gate, {"model": model, "net": "small", "ids": 1000, "batch": 64, "norm": norm}, tmp_path)
    assert gate.rows == 3 * 64


def test_a_contest_shows_the_trial_that_valid_chose_and_keeps_the_rest_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "against", lambda base, cells: {("auto", "buy"): "+0.1 ± 0.05 *"})

    def cell(model, trial, seed, valid, auc):
        contest.write(tmp_path / "kuairand" / model / f"trial-{trial}" / f"seed-{seed}", {
            "key": "k", "valid": valid, "cpu_seconds": 3.0, "measured": "2026-11-28",
            "test": {"auc_buy": auc, "auc_mean": auc, "gauc_frozen_buy": None, "pcoc_buy": 1.0}})

    for seed, auc in enumerate((0.6, 0.8)):
        cell("auto", 1, seed, 0.72, auc)
    cell("auto", 0, 0, 0.71, 0.99)                   # better on test, and not chosen
    cell("shared_bottom", 0, 0, 0.70, 0.5)
    contest.write(tmp_path / "kuairand" / "aitm" / "trial-0" / "seed-0", {"key": "k", "refused": "no funnel"})
    page = tmp_path / "quality.md"
    page.write_text(f"# Before\n{contest.BEGIN}\nold\n{contest.END}\nafter\n")
    contest.write_page(tmp_path, page)
    text = page.read_text()
    assert text.startswith("# Before\n") and text.endswith("after\n") and "old" not in text
    assert "| auto | 2 | 0.7000 ± 0.1414 | +0.1 ± 0.05 * | 3 |\n| shared_bottom | 1 | 0.5000 | - | 3 |" in text
    assert "`aitm` does not apply: no funnel" in text
    assert contest.done(tmp_path / "kuairand" / "auto" / "trial-1" / "seed-0", "k")
    assert not contest.done(tmp_path / "kuairand" / "auto" / "trial-1" / "seed-0", "other")


def test_a_recipe_that_does_not_apply_to_a_log_is_written_otherwise_there_and_applies():
    for (log, model), otherwise in contest.OTHERWISE.items():
        example = contest.ROOT / "examples" / contest.LOGS[log][0]
        with pytest.raises(contest.ConfigError, match="--set model: "):
            contest.load_config(example, [f"model={model}"])
        assert contest.load_config(example, [f"model={otherwise}"]).settings.model["name"] == model


def test_every_contestant_has_its_trials_and_two_have_features_besides():
    assert {m: len(contest.trials(m)) for m in (*contest.OURS, *contest.THEIRS)} == dict.fromkeys(
        (*contest.OURS, *contest.THEIRS), contest.MOST_TRIALS)
    assert all(contest.trials(m)[0] in ([], {}) for m in (*contest.OURS, *contest.THEIRS))
    for log, edits in contest.MORE.items():
        assert set(edits) == {"auto-te", "wide_deep"} < {*contest.OURS}
        example = contest.ROOT / "examples" / contest.LOGS[log][0]
        plain, rates, crosses = (contest.load_config(example, sets).schema.features for sets in ([], *edits.values()))
        assert not any(f.kind == "cross" or f.kind == "rate" and f.task for f in plain.values())
        assert len(rates) == len(plain) + len(edits["auto-te"])
        assert all(f.kind == "rate" and f.task and f.period for n, f in rates.items() if n not in plain)
        assert len(crosses) == len(plain) + len(edits["wide_deep"])
        assert all(f.kind == "cross" for n, f in crosses.items() if n not in plain)
