"""The whole flow on a small simulated log: as one call, as steps, and from an artefact."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import funnelrank
from funnelrank import ArtefactError, ConfigError, DataError, Ranker, api
from funnelrank.evaluate import table
from funnelrank.flow import label_statistics
from funnelrank.simulate import simulate

CONFIG = {
    "data": {"train": "train.parquet", "valid": "valid.parquet", "test": "test.parquet", "scenario": "scenario",
             "user": "user_id", "time": "time_ms", "tables": {"items": {"path": "items.parquet", "key": "item_id"}}},
    "features": {"item_id": {"min_count": 2}, "scenario": "id", "device": "id",
                 "category": {"column": "items.category"}, "price": "number",
                 "shown": {"kind": "sequence", "column": "hist_shown", "space": "item_id"},
                 "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id"}},
    "tasks": {"click": {}, "cart": {"after": "click"}, "buy": {"after": "cart"}, "like": {}},
    "embedding": {"width": 4}, "model": {"name": "aitm", "represent": {"hidden": [16, 8]}},
    "train": {"epochs": 1, "batch_size": 256, "threads": 1}, "evaluate": {"truth": {"click": "p_click"}},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=6000, users=300, items=150, seed=1)
    return folder


def config(log, out, *sets, **sections):
    changed = {k: {**CONFIG[k], **sections.get(k, {})} for k in CONFIG}
    return funnelrank.load_config({**changed, **{k: v for k, v in sections.items() if k not in CONFIG}},
                                  [f"data.dir={log}", f"train.out={out}", *sets])


@pytest.fixture(scope="module")
def run(log, tmp_path_factory):
    events = []
    done = api.train(config(log, tmp_path_factory.mktemp("runs") / "one"), report=events.append)
    done.events = events
    return done


def test_a_run_leaves_what_it_says(run):
    assert {p.name for p in run.folder.iterdir()} == {"artefact", "checkpoints", "events.jsonl", "metrics.json",
                                                      "report.html", "report.md", "run.json", "scores"}
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in lines][-1] == "done" and "progress" not in {e["event"] for e in lines}
    rows = json.loads((run.folder / "metrics.json").read_text())
    assert rows == json.loads(table.to_json(run.rows)) and {
        r["split"] for r in rows if not table.is_fact(r["metric"])} == {"valid", "test"}


def test_a_scenario_that_train_did_not_have_is_the_mean_of_those_it_had(run):
    (table,) = run.ranker.model.embedding.tables.values()
    start = table.offset["scenario"]
    torch.testing.assert_close(table.weight[start + 1], table.weight[start + 2:start + 6].mean(0))


def test_a_compiled_network_learns_the_same(run, log, tmp_path, monkeypatch):
    asked, compile = [], torch.nn.Module.compile          # without inductor, whose first step takes a minute

    def plainly(module):
        asked.append(module)
        compile(module, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", plainly)
    done = api.train(config(log, tmp_path / "compiled", "train.compile=true"))
    assert asked == [done.ranker.model.slots]
    auc = [[r["value"] for r in of.rows if r["metric"] == "auc" and r["scenario"] is None] for of in (done, run)]
    np.testing.assert_allclose(*np.array(auc, float), atol=2e-3)


def test_metrics_have_every_task_and_scenario_and_no_silent_null(run):
    test = [r for r in run.rows if r["split"] == "test"]
    assert {r["task"] for r in test} == {"click", "cart", "buy", "like", None}
    assert len({r["scenario"] for r in test}) == 5
    assert all(r["note"] for r in test if r["value"] is None)
    assert {"auc", "gauc", "gauc_frozen", "auc_oracle", "violation_rate"} <= {r["metric"] for r in test}


def test_the_steps_one_by_one_are_the_run(run, log, tmp_path):
    settings = config(log, tmp_path / "steps")
    data = funnelrank.open_data(settings)
    encoder = funnelrank.prepare(settings, data)
    splits = funnelrank.encode(settings, data, encoder)
    model = funnelrank.build(settings, encoder, splits)
    trained = funnelrank.fit(settings, model, encoder, splits)
    rows = funnelrank.measure_split(settings, model, encoder, splits["test"], "test")
    assert trained.steps == run.trained.steps
    mine, theirs = funnelrank.wide(rows, "test"), funnelrank.wide(run.rows, "test")
    assert mine["auc_click"] == theirs["auc_click"] and mine["gauc_buy"] == theirs["gauc_buy"]


def test_a_loaded_artefact_says_the_same_bit_for_bit(run, log):
    loaded = Ranker.load(run.folder)
    a, b = run.ranker.predict(log / "test.parquet"), loaded.predict(log / "test.parquet")
    assert a.equals(b)
    assert json.loads(table.to_json(loaded.evaluate())) == [
        r for r in json.loads(table.to_json(run.rows)) if r["split"] == "test" and not table.is_fact(r["metric"])
        and not ("@" in r["metric"] or r["metric"].startswith("psi:"))]                  # these need train


def test_an_artefact_of_another_version_is_refused_in_one_sentence(run, tmp_path):
    """Its config has a key that is gone; the seals match, so nobody is told to mend the file."""
    folder = tmp_path / "old"
    shutil.copytree(run.folder / "artefact", folder)
    text = (folder / "config.yaml").read_text().replace("train:\n", "train:\n  tensorboard: false\n", 1).encode()
    (folder / "config.yaml").write_bytes(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.yaml"] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="this version of funnelrank does not know its config .*train.tensorboard: "
                                            "unknown key.*written by version .* use that one, or train again") as error:
        Ranker.load(folder)
    assert len(error.value.messages) == 1


def test_predictions_are_named_by_task_and_by_step(run, log):
    said = run.ranker.predict(log / "test.parquet", keep=["user_id"])
    assert run.ranker.predict(log / "test.parquet", keep="user_id").equals(said)        # no column 'u', 's', 'e', 'r'
    assert said.column_names == ["user_id", "click", "cart", "cart|click", "buy", "buy|cart", "like"]
    rows = pq.read_table(log / "test.parquet")
    assert said.num_rows == rows.num_rows and said["user_id"].equals(rows["user_id"])
    ratio = np.minimum(said["cart"].to_numpy() / said["click"].to_numpy(), 1)
    np.testing.assert_allclose(said["cart|click"].to_numpy(), ratio, rtol=1e-4)


def test_rows_without_labels_users_or_times_can_be_scored(run, log):
    rows = pq.read_table(log / "test.parquet")
    bare = rows.drop_columns([c for c in rows.column_names if c.startswith("p_") or c in (
        "click", "cart", "buy", "like", "spend", "mean_spend", "user_id", "time_ms")])
    assert run.ranker.predict(bare)["buy"].equals(run.ranker.predict(rows)["buy"])


def test_a_missing_feature_is_named(run, log):
    with pytest.raises(DataError, match="device.*features.device"):
        run.ranker.predict(pq.read_table(log / "test.parquet").drop_columns(["device"]))


def test_kept_columns_that_are_not_there_or_clash_are_named(run, log):
    with pytest.raises(DataError, match="no column 'nope'"):
        run.ranker.predict(log / "test.parquet", keep=["nope"])
    with pytest.raises(ConfigError, match="'click' is also the name of a prediction"):
        run.ranker.predict(log / "test.parquet", keep=["click"])


def test_tables_of_pandas_polars_and_arrow_are_the_file(run, log):
    path = log / "test.parquet"
    expected = run.ranker.predict(path)
    assert run.ranker.predict(pq.read_table(path)).equals(expected)
    assert run.ranker.predict(pl.read_parquet(path)).equals(expected)
    assert run.ranker.predict(pd.read_parquet(path, dtype_backend="pyarrow")).equals(expected)


def test_fit_on_tables_does_not_touch_the_configs_files(log, tmp_path):
    train, test = pq.read_table(log / "train.parquet").slice(0, 2000), pq.read_table(log / "test.parquet")
    ranker = Ranker(config(log, tmp_path / "t")).fit(train)
    assert all(table.is_fact(r["metric"]) for r in ranker.rows)       # no valid, no test: nothing to measure
    assert ranker.evaluate(test, "later")[0]["split"] == "later"


def test_conditional_reading_serves_a_funnel_that_holds(log, tmp_path):
    run = api.train(config(log, tmp_path / "c", model={"name": "single_task", "reading": "conditional"}))
    said = run.ranker.predict(log / "test.parquet")
    assert pc.all(pc.less_equal(said["buy"], said["cart"])).as_py()
    violations = [r["value"] for r in run.rows if r["metric"] == "violation_rate"]
    assert violations and set(violations) == {0.0}


def test_down_sampled_negatives_are_corrected_in_what_is_served(log, tmp_path):
    whole = pq.read_table(log / "train.parquet")
    keep = np.random.default_rng(0).random(whole.num_rows) < 0.25
    sampled = whole.filter(pc.or_(pc.equal(pc.fill_null(whole["click"], 0), 1), pa.array(keep)))
    assert sampled.num_rows < 0.6 * whole.num_rows
    settings = config(log, tmp_path / "d", data={"negatives_kept": {"task": "click", "rate": 0.25}})
    ranker = Ranker(settings).fit(sampled)
    test = pq.read_table(log / "test.parquet")
    pcoc = funnelrank.wide(ranker.evaluate(test), "test")["pcoc_click"]
    plain = funnelrank.wide(Ranker(config(log, tmp_path / "e")).fit(sampled).evaluate(test), "test")["pcoc_click"]
    assert 0.8 < pcoc < 1.3 and plain > 2


def test_a_regression_hangs_off_the_funnel(log, tmp_path):
    tasks = {**CONFIG["tasks"], "spend": {"kind": "regression", "after": "buy", "weight": 0.1}}
    run = api.train(config(log, tmp_path / "r", tasks=tasks))
    assert funnelrank.wide(run.rows, "test")["rmse_spend"] > 0

    assert "spend|buy" not in run.ranker.predict(log / "test.parquet").column_names
    given = api.train(config(log, tmp_path / "g", tasks=tasks, model={"name": "single_task", "reading": "conditional"}))
    said = given.ranker.predict(log / "test.parquet")
    np.testing.assert_allclose(said["spend"].to_numpy(), said["buy"].to_numpy() * said["spend|buy"].to_numpy(),
                               rtol=1e-4, atol=1e-5)


def test_a_folder_of_something_else_is_refused_before_training(log, tmp_path):
    (tmp_path / "run" / "artefact").mkdir(parents=True)
    (tmp_path / "run" / "artefact" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="in the way"):
        api.train(config(log, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert (tmp_path / "run" / "artefact" / "thesis.txt").exists()


def test_rows_given_by_hand_start_at_the_current_folder(run, log, monkeypatch):
    monkeypatch.chdir(log.parent)
    assert run.ranker.predict(f"{log.name}/test.parquet").num_rows > 0


def test_a_second_run_reads_the_cache(log, tmp_path):
    settings = config(log, tmp_path / "runs" / "a")
    api.train(settings)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / ".funnelrank-cache").rglob("*") if p.is_file()}
    stages = []
    api.train(config(log, tmp_path / "runs" / "b"), report=lambda e: stages.append(e.get("stage")))
    assert made == {p: p.stat().st_mtime_ns for p in made}
    assert "encode train" not in stages


def test_an_unfitted_ranker_says_so(log, tmp_path):
    with pytest.raises(ConfigError, match="not fitted"):
        Ranker(config(log, tmp_path)).predict(log / "test.parquet")


def test_a_misspelt_stopping_metric_is_found_before_training(log, tmp_path):
    with pytest.raises(ConfigError, match="clik"):
        config(log, tmp_path, "train.early_stopping.metric=valid/clik/auc")


def test_seeds_decide_everything(log, tmp_path):
    a, b, c = (api.train(config(log, tmp_path / n, f"train.seed={s}")) for n, s in (("a", 3), ("b", 3), ("c", 4)))
    value = lambda run: funnelrank.wide(run.rows, "test")["logloss_click"]
    assert value(a) == value(b) != value(c)
    assert (a.folder / "artefact/model.safetensors").read_bytes() == (
        b.folder / "artefact/model.safetensors").read_bytes()


def test_heads_start_at_rates_given_the_step_before_under_the_conditional_reading(log, tmp_path):
    labels = np.array([[1, 1, 8, 0], [1, 0, 6, 1], [0, np.nan, 0, 0], [0, np.nan, np.nan, 1]], dtype=np.float32)
    tasks = {"click": {}, "cart": {"after": "click"}, "buy": {"after": "click", "kind": "count"}, "like": {}}
    mean = lambda reading: {t: s["mean"] for t, s in label_statistics(labels, config(
        log, tmp_path, tasks=tasks, model={"name": "single_task", "reading": reading}).schema).items()}
    assert mean("conditional") == {"click": 0.5, "cart": 0.5, "buy": 7.0, "like": 0.5}
    assert mean("joint") == {"click": 0.5, "cart": 0.5, "buy": pytest.approx(14 / 3), "like": 0.5}


def test_negatives_of_a_later_step_are_refused(log, tmp_path):
    with pytest.raises(ConfigError, match="'cart' comes after another task"):
        config(log, tmp_path, data={"negatives_kept": {"task": "cart", "rate": 0.5}})


def test_an_unfinished_run_is_called_one(tmp_path):
    (tmp_path / "events.jsonl").write_text("")
    with pytest.raises(ArtefactError, match="has not finished"):
        Ranker.load(tmp_path)


def test_a_device_that_is_not_there_is_said_before_any_row_is_read(tmp_path):
    with pytest.raises(ConfigError, match="^train.device: 'cuda:99' cannot be used here"):
        api.train(funnelrank.load_config(CONFIG, [f"data.dir={tmp_path / 'nowhere'}", f"train.out={tmp_path / 'run'}",
                                                  "train.device=cuda:99"]))
