import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from funnelrank import cli
from funnelrank.config import load
from funnelrank.console import Console, show_metrics
from funnelrank.data.verify import verify
from funnelrank.errors import DataError
from funnelrank.simulate import simulate

CONFIG = """\
data: {train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: scenario, user: user_id, time: time_ms}
features:
  item_id: {min_count: 2}
  scenario: id
  hour: {num_buckets: 24}
  price: number
  shown: {kind: sequence, column: hist_shown, space: item_id}
tasks:
  click:
  cart: {after: click}
  buy: {after: cart}
model: {name: aitm, represent: {hidden: [16]}}
embedding: {width: 4}
train: {epochs: 1}
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("log")
    simulate(out, rows=3000, users=80, items=60, scenarios=3)
    (out / "shop.yaml").write_text(CONFIG)
    return out


@pytest.fixture(scope="module")
def run(log, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "shop"
    assert cli.main(["train", str(log / "shop.yaml"), "--set", f"train.out={out}"]) == 0
    return out


def said(capsys, *tokens) -> tuple[int, str, str]:
    code = cli.main([str(t) for t in tokens])
    return code, *capsys.readouterr()


def refused(capsys, *tokens) -> str:
    """The message of a command that ends with exit code 2."""
    code, out, err = said(capsys, *tokens)
    assert code == 2 and "Traceback" not in err, err
    return err.strip()


# ---- help and usage

def test_help_teaches_every_command(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0 and "funnelrank train examples/demo.yaml" in out
    for command in ("check", "train", "evaluate", "predict", "describe", "simulate"):
        assert re.search(rf"^│ {command} +\S", out, re.MULTILINE)
        code, text, _ = said(capsys, command, "--help")
        assert code == 0 and f"funnelrank {command} " in " ".join(text.split()).split("For example:")[1]


@pytest.mark.parametrize("tokens, message", [
    (["trian"], 'Unknown command "trian". Did you mean "train"?'),
    (["train"], "requires an argument"),
    (["export", "runs/x", "--out", "x"], "--to requires an argument: one of onnx, aoti, "),
    (["train", "a.yaml", "--sett", "x=1"], "--set"),
    (["predict", "runs/x", "rows.parquet"], "--out"),
    (["simulate", "x", "--rows", "many"], "many"),
    (["evaluate", "runs/x", "--split", "tset"], "test"),
    (["check", "nowhere.yaml"], "nowhere.yaml: no such file"),
])
def test_a_wrong_command_is_one_message_and_exit_code_2(capsys, tokens, message):
    assert message in refused(capsys, *tokens)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_under_torchrun_only_train_is_shared_and_the_first_rank_says_so(capsys, monkeypatch, rank):
    for name, value in {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", sys.stdout)            # silenced for good otherwise
    assert cli.main(["predict", "runs/shop", "rows.parquet"]) == 2
    assert ("starts `predict` several times" in capsys.readouterr().err) == (rank == "0")


def test_help_and_check_import_nothing_that_is_slow_to_import(log):
    for tokens in (["--help"], ["check", str(log / "shop.yaml")]):
        done = subprocess.run([sys.executable, "-X", "importtime", "-m", "funnelrank", *tokens], check=True,
                              capture_output=True, text=True)
        modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
        assert "funnelrank.cli" in modules
        assert not modules & {"torch", "pyarrow", "numpy", "matplotlib", "fsspec", "jsonschema"}


def test_python_m_gives_the_exit_code(tmp_path):
    done = subprocess.run([sys.executable, "-m", "funnelrank", "check", str(tmp_path / "a.yaml")], capture_output=True,
                          text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


# ---- exit codes

def test_a_fault_of_ours_is_exit_code_1_and_says_what_to_do(capsys, monkeypatch, log):
    def broken(*_):
        raise KeyError("inner")
    monkeypatch.setattr(cli, "_load", broken)
    code, _, err = said(capsys, "check", log / "shop.yaml")
    assert code == 1 and "Traceback" not in err and "Run again with --debug" in err and "KeyError" in err
    code, _, err = said(capsys, "check", log / "shop.yaml", "--debug")
    assert code == 1 and "Traceback" in err


def test_debug_shows_where_a_users_error_arose_and_keeps_its_exit_code(capsys, tmp_path):
    code, _, err = said(capsys, "--debug", "check", tmp_path / "a.yaml")
    assert code == 2 and "Traceback" in err and err.strip().endswith("a.yaml: no such file")


def test_ctrl_c_is_130(capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, "_load", stopped)
    assert said(capsys, "check", "x.yaml")[::2] == (130, "stopped; what is complete on disk stays\n")


@pytest.mark.parametrize("way", ["-m", "script"])
def test_ctrl_c_before_the_command_line_is_imported_shows_no_traceback(tmp_path, way):
    (tmp_path / "cyclopts.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    words = ["-m", "funnelrank"] if way == "-m" else ["-c", "from funnelrank.__main__ import main; exit(main())"]
    ended = subprocess.run([sys.executable, *words], env={**os.environ, "PYTHONPATH": str(tmp_path)},
                           capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "stopped; nothing was begun\n")


def test_sigterm_is_143_and_what_swallows_it_is_asked_again(capsys, monkeypatch):
    def swallow(*_, **__):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        Console().watch({"event": "progress"})
        raise AssertionError("went on")
    monkeypatch.setattr("funnelrank.config.load", swallow)
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = said(capsys, "check", "x.yaml")
    assert code == 143 and "asked to end" in err and signal.getsignal(signal.SIGTERM) is before


def test_a_model_that_no_memory_holds_is_exit_code_2(capsys, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 13600000000000 bytes.")
    monkeypatch.setattr("funnelrank.config.load", full)
    err = refused(capsys, "check", "x.yaml")
    assert err.startswith("the memory does not hold this (13600000000000 bytes asked for at once); smaller")


def test_values_cannot_command_the_terminal(capsys):
    assert refused(capsys, "check", "\x1b[2J.yaml").startswith("\\x1b[2J.yaml: no such file")


def test_a_reader_that_goes_away_stops_no_work(log, tmp_path):
    for command, rest in (("describe", ""), ("check", " --help")):
        ran = subprocess.run(["bash", "-c", f"'{sys.executable}' -m funnelrank {command} '{log / 'shop.yaml'}'{rest} | "
                              "head -0; echo ${PIPESTATUS[0]}"], capture_output=True, text=True)
        assert (ran.stdout, ran.stderr) == ("0\n", "")


def test_a_folder_that_cannot_be_written_is_exit_code_2(capsys, log, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(capsys, "train", log / "shop.yaml", "--set",
                                             f"train.out={tmp_path / 'file' / 'run'}")


# ---- check

def test_check_prints_notes_and_says_that_a_config_is_good(capsys, log):
    code, out, _ = said(capsys, "check", log / "shop.yaml", "--set", "tasks.click.weight=0")
    assert code == 0
    assert "note: --set tasks.click.weight: 0, so this task learns nothing" in out and "shop.yaml: good" in out


def test_check_data_says_what_the_files_hold(capsys, log):
    code, out, _ = said(capsys, "check", log / "shop.yaml", "--data", "--set", "features.price.buckets=4")
    assert code == 0 and re.search(r"train: \d,\d{3} rows; click 0\.\d{4} \(9\d\.\d% observed\), cart", out)
    assert "note:" not in out


@pytest.mark.parametrize("model, fault", [
    ("{name: dcn_v2, represent: {experts: 3}}", "represent.experts: 3 experts of full rank"),
    ("{name: apg, represent: {middle: 2, rank: 8}}", "represent.middle: 2 is narrower than rank 8"),
    ("{name: ple, represent: {hidden: []}}", r"represent.hidden: found \[\]; an expert has at least one layer")])
def test_check_data_builds_the_network_and_says_what_only_a_part_knows(capsys, log, model, fault):
    err = refused(capsys, "check", log / "shop.yaml", "--data", "--set", f"model={model}")
    assert re.search(f"^--set model: {fault}", err, re.MULTILINE)


def test_check_data_names_every_fault_of_the_files_at_once(capsys, log):
    err = refused(capsys, "check", log / "shop.yaml", "--data", "--set", "features.pric=number",
                  "--set", "features.device=number", "--set", "features.user={kind: sequence, column: user_id}",
                  "--set", "features.ids={column: hist_shown}", "--set", "data.valid=vald.parquet",
                  "--set", "tasks.hour={}", "--set", "features.hour=null", "--set", "features.hour={column: day}")
    assert "no column 'pric' (features.pric.column) (did you mean 'price'?)" in err
    assert "'vald.parquet' (did you mean 'valid.parquet'?)" in err
    for part in ("column 'device'", "column 'user_id'", "column 'hist_shown'", "label 'hour' is "):
        assert f"train.parquet, row group 0: {part}" in err and f"test.parquet, row group 0: {part}" in err
    assert "shop.yaml:1:1: train.parquet" not in err, "a file's name is no key"


def test_check_data_finds_a_funnel_that_the_labels_contradict(capsys, log):
    turned = ["--set", "tasks={buy: , click: {after: buy}}"]
    err = refused(capsys, "check", log / "shop.yaml", "--data", *turned)
    assert re.search(r"^--set tasks: click.after: \d+ of \d+ positives of 'click' have 'buy' = 0 in data.train "
                     r"\(first: train.parquet, row group 0, row \d+\); correct the labels", err, re.MULTILINE)
    code, out, _ = said(capsys, "check", log / "shop.yaml", "--data", "--set", "data.contradictions=keep", *turned)
    assert code == 0 and "labels of this split are never changed" in out and "; they stay as they are" in out


@pytest.mark.parametrize("edit, note", [
    ("features.hour.num_buckets=10", "num_buckets: 10 means ids 0 to 9, but train holds 0 to 23"),
    ("features.device={hash_buckets: 2}", "hash_buckets: 2 buckets for 3 values of train"),
    ("features.device={vocab_list: [ios]}", "vocab_list: 2 values of train are not in it"),
    ("features.item_id.max_size=5", "max_size: 5, but 60 values of train were seen at least 2 times"),
])
def test_check_data_notes_a_vocabulary_smaller_than_the_data(capsys, log, edit, note):
    code, out, _ = said(capsys, "check", log / "shop.yaml", "--data", "--set", edit)
    assert code == 0 and note in out


def test_check_data_notes_labels_of_one_class_and_scenarios_that_train_lacks(log, tmp_path):
    def write(name, change):
        pq.write_table(change(pq.read_table(log / f"{name}.parquet")), tmp_path / f"{name}.parquet")

    def set_column(t, name, values):
        return t.set_column(t.column_names.index(name), name, values)
    write("train", lambda t: set_column(t, "buy", pa.nulls(len(t), pa.int8())))
    write("valid", lambda t: set_column(t, "cart", pa.array([0] * len(t))))
    write("test", lambda t: set_column(t, "scenario", pc.replace_substring(t["scenario"], "home", "moon")))
    c = load(log / "shop.yaml", [f"data.dir={tmp_path}"])
    found = verify(c.schema, c.settings)
    assert found.faults == []
    text = "\n".join(found.notes)
    assert "tasks.buy: no row of data.train has a label" in text
    assert "tasks.cart: every label in data.valid is 0, so rankings cannot be measured" in text
    assert "data.scenario: 'moon' of data.test is not in train" in text


def test_check_data_goes_on_after_a_damaged_file(log, tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").write_bytes((log / f"{name}.parquet").read_bytes())
    whole = (log / "valid.parquet").read_bytes()
    (tmp_path / "valid.parquet").write_bytes(whole[:len(whole) // 2])
    c = load(log / "shop.yaml", [f"data.dir={tmp_path}"])
    found = verify(c.schema, c.settings)
    assert len(found.faults) == 1 and "valid.parquet" in found.faults[0]
    assert [line.split(":")[0] for line in found.summary] == ["train", "test"]


def test_check_data_holds_every_split_against_what_train_holds(log, tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.parquet").write_bytes((log / f"{name}.parquet").read_bytes())
    test = pq.read_table(tmp_path / "test.parquet")
    for column, values in (("item_id", ["five"] * len(test)), ("w", [-1.0] * len(test))):
        test = test.select([c for c in test.column_names if c != column]).append_column(column, pa.array(values))
    pq.write_table(test, tmp_path / "test.parquet")
    for name in ("train", "valid"):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        pq.write_table(table.append_column("w", pa.array([1.0] * len(table))), tmp_path / f"{name}.parquet")
    c = load(log / "shop.yaml", [f"data.dir={tmp_path}", "data.weight=w", "data.valid=train.parquet",
                                 "evaluate.truth={click: hour, buy: nope}"])
    found = verify(c.schema, c.settings)
    text = "\n".join(found.faults)
    assert "test.parquet, row group 0: column 'item_id': holds 'five', but id space 'item_id' holds integers" in text
    assert "test.parquet, row group 0: column 'w' holds -1.0" in text and len(found.faults) == 2
    notes = "\n".join(found.notes)
    assert "data.valid: 'train.parquet' of it is in data.train, too" in notes
    assert "evaluate.truth.buy: no column 'nope' in data.test" in notes


def test_a_split_that_could_not_be_read_gives_no_notes(log, tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.parquet").write_bytes((log / f"{name}.parquet").read_bytes())
    table = pq.read_table(tmp_path / "train.parquet").drop_columns(["item_id"])
    huge = pa.array([2**64 - 1] * len(table), pa.uint64())
    pq.write_table(table.append_column("item_id", huge), tmp_path / "train.parquet")
    c = load(log / "shop.yaml", [f"data.dir={tmp_path}"])
    found = verify(c.schema, c.settings)
    assert len(found.faults) == 1 and "write such values as text" in found.faults[0] and not found.notes


# ---- train, evaluate, predict, describe, simulate

def test_train_leaves_a_run_and_prints_its_table(capsys, log, tmp_path):
    code, out, err = said(capsys, "train", log / "shop.yaml", "--set", f"train.out={tmp_path / 'run'}")
    assert code == 0 and err == ""
    assert re.search(r"^task +scenario +auc", out, re.MULTILINE)
    assert re.search(r"^click +all +0\.\d{4}", out, re.MULTILINE)
    assert f"{tmp_path / 'run'}: artefact" in out and "fit: " in out
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"artefact", "metrics.json", "report.html", "events.jsonl"}


def test_evaluate_prints_and_writes_what_training_measured(capsys, run, tmp_path):
    code, out, _ = said(capsys, "evaluate", run, "--out", tmp_path / "m.json")
    assert code == 0 and "click" in out
    trained = [r for r in json.loads((run / "metrics.json").read_text()) if r["split"] == "test"]
    again = json.loads((tmp_path / "m.json").read_text())
    auc = lambda rows: {(r["task"], r["scenario"]): r["value"] for r in rows if r["metric"] == "logloss"}
    assert auc(again) == pytest.approx(auc(trained), rel=1e-5)


def test_predict_writes_named_columns_beside_those_to_keep(capsys, log, run, tmp_path, monkeypatch):
    monkeypatch.chdir(log)                          # rows of the command line start at the current folder
    code, out, _ = said(capsys, "predict", run, "test.parquet", "--out", tmp_path / "s.parquet", "--keep",
                        "user_id,item_id", "--keep", "row_id")
    scores = pq.read_table(tmp_path / "s.parquet")
    assert code == 0 and f"{scores.num_rows:,} rows" in out
    assert scores.column_names == ["user_id", "item_id", "row_id", "click", "cart", "cart|click", "buy", "buy|cart"]
    assert "no column 'nope'" in refused(capsys, "predict", run, "test.parquet", "--out", tmp_path / "x.parquet",
                                         "--keep", "nope")
    assert not (tmp_path / "x.parquet").exists()
    assert "ends in .csv, and scores are written as parquet" in refused(capsys, "predict", run, "test.parquet", "--out",
                                                                        "s.csv")
    assert refused(capsys, "predict", run, "tset.parquet", "--out", "s.parquet").startswith("rows: no file or folder")


def test_scores_never_replace_the_rows_they_are_of(capsys, log, run, tmp_path):
    rows, link = tmp_path / "rows.parquet", tmp_path / "link.parquet"
    rows.write_bytes((log / "test.parquet").read_bytes())
    link.symlink_to(rows)
    for out in (rows, link):
        assert "holds rows to score, which would be lost" in refused(capsys, "predict", run, rows, "--out", out)
    assert rows.read_bytes() == (log / "test.parquet").read_bytes()


def test_describe_shows_a_config_and_an_artefact(capsys, log, run):
    code, out, _ = said(capsys, "describe", log / "shop.yaml")
    assert code == 0 and re.search(r"^match\(item_id,shown\) +match +item_id in shown", out, re.MULTILINE)
    assert re.search(r"^hour +range of 24 ", out, re.MULTILINE) and "variant=self_gate" in out
    code, out, _ = said(capsys, "describe", run, "--shapes")
    assert code == 0 and re.search(r"slots\.predict\.linear\.weight +3x1x16 +48", out) and "numbers in all" in out
    assert "no manifest" in refused(capsys, "describe", log)
    assert "--set" in refused(capsys, "describe", run, "--set", "train.seed=1")


def test_simulate_offers_every_argument_of_the_library(capsys, tmp_path):
    ours = inspect.signature(cli.simulate).parameters
    theirs = inspect.signature(simulate).parameters
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        default = ours[name].default
        if isinstance(parameter.default, tuple):
            default = tuple(default.split(","))
        assert default == parameter.default, name
    code, out, _ = said(capsys, "simulate", tmp_path, "--rows", 500, "--users", 20, "--items", 20,
                        "--funnel", "see,buy", "--side-tasks", "", "--no-spend")
    assert code == 0 and "train " in out and "see 0." in out
    assert "spend" not in pq.read_schema(tmp_path / "train.parquet").names
    assert "rows" in refused(capsys, "simulate", tmp_path, "--rows", -5)


def test_a_live_console_shows_one_bar_a_stage(monkeypatch):
    import io

    import rich.console
    screen = io.StringIO()
    terminal = rich.console.Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(rich.console, "Console", lambda: terminal)
    with Console() as console:
        console.watch({"event": "progress", "stage": "fit", "rows": 500, "total": 1000})
        console.watch({"event": "progress", "stage": "fit", "rows": 1000, "total": 1000})
        console.watch({"event": "step", "step": 20, "steps": 40, "loss": {"click": 0.5}, "rows_per_s": 9000})
        console.watch({"event": "evaluate", "step": 20, "metric": "valid/auc", "value": 0.7, "better": True})
        console.watch({"event": "checkpoint", "step": 20, "name": "best"})
    text = screen.getvalue()
    assert "1,000 / 1,000 rows" in text and "loss click 0.5000" in text and "valid/auc 0.7000 (best)" in text


def test_a_narrow_terminal_drops_the_least_telling_columns(capsys, monkeypatch):
    import os
    import shutil
    rows = [{"split": "test", "task": "click", "scenario": None, "metric": m, "value": 0.5, "rows": 10, "positives": 2,
             "users": None, "valid_users": None, "note": "few" * 20} for m in ("auc", "logloss", "pcoc")]
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((60, 20)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_metrics(rows, "test")
    out = capsys.readouterr().out
    assert "(no room for note; see report.html)" in out and max(map(len, out.splitlines())) <= 60


def test_data_errors_keep_their_place_in_the_file(capsys, monkeypatch, log):
    def broken(*_, **__):
        raise DataError("a.parquet: one", "b.parquet: two")
    from funnelrank import api
    monkeypatch.setattr(api, "train", broken)
    assert refused(capsys, "train", log / "shop.yaml") == "a.parquet: one\nb.parquet: two"
