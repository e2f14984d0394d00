"""Every example is a config that holds, and names columns that its log has."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from funnelrank.api import Ranker
from funnelrank.config import load
from funnelrank.errors import ConfigError
from funnelrank.schema import table_of
from funnelrank.simulate import simulate

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
FOLDER = {"kuairand": "kuairand_pure", "globo": "globo_news", "hillstrom": "hillstrom", "census": "census_income"}
LOGS = [e for e in EXAMPLES if e.parent.name in FOLDER]
SPLITS = ("train", "valid", "test")

by_name = lambda path: str(path.relative_to(ROOT / "examples"))


def log_of(example: Path) -> Path:
    """The folder of an example's log; skips where it is not on this machine."""
    said = os.environ.get("FUNNELRANK_DATA")
    base = Path(said) if said else ROOT.parent / "shared" / "data"
    folder = base / FOLDER[example.parent.name]
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name} in {'FUNNELRANK_DATA' if said else '../shared/data'}; set "
                    "FUNNELRANK_DATA to the folder that holds the public logs")
    return folder


def missing_columns(config) -> list[str]:
    """Columns that a config reads and its files do not have, as 'file: column'."""
    data, schema = config.settings.data, config.schema
    wanted = {f"{s}.parquet": schema.of_files().log_columns() for s in SPLITS}
    wanted |= {data.tables[t].path: [table.key, *table.columns] for t, table in schema.tables.items()}
    wanted["test.parquet"] = [*wanted["test.parquet"], *config.settings.evaluate.truth.values()]
    return [f"{file}: {column}" for file, columns in wanted.items()
            for column in set(columns) - set(pq.read_schema(Path(data.dir) / file).names)]


def test_every_log_has_an_example():
    assert {e.parent.name for e in LOGS} == set(FOLDER) and ROOT / "examples" / "demo.yaml" in EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=by_name)
def test_an_example_loads_without_its_data(example):
    config = load(example)
    assert config.schema.features and config.schema.tasks and config.settings.model["name"]
    assert config.settings.data.train and config.settings.data.valid and config.settings.data.test
    assert config.schema.scenario in {f.column for f in config.schema.features.values()}


@pytest.mark.parametrize("example", EXAMPLES, ids=by_name)
def test_an_example_opens_with_what_it_is_and_how_to_run_it(example):
    header = example.read_text().split("\n\n")[0]
    assert header.startswith("# ") and f"funnelrank train {example.relative_to(ROOT)}" in header


def test_no_two_examples_write_to_one_folder():
    outs = [load(e).settings.train.out for e in EXAMPLES]
    assert len(set(outs)) == len(outs)


@pytest.mark.real
@pytest.mark.parametrize("example", LOGS, ids=by_name)
def test_the_columns_an_example_names_are_in_its_log(example):
    assert missing_columns(load(example, [f"data.dir={log_of(example)}"])) == []


@pytest.mark.real
@pytest.mark.parametrize("example", LOGS, ids=by_name)
def test_no_example_looks_at_an_outcome_or_at_what_its_labels_were_made_from(example):
    facts = json.loads((log_of(example) / "dataset.json").read_text())
    barred = {*facts["never_features"], *facts["labels"], *facts.get("label_source", {}).values()}
    schema = load(example).schema
    read = {name for f in schema.features.values() if f.column
            for name in (f.by, f.column.split(".")[-1] if table_of(f.column) else f.column)}
    read |= {name for f in schema.of_kind("gap").values() for name in (f.since, f.until)}
    assert not read & barred


@pytest.mark.real
@pytest.mark.parametrize("example", LOGS, ids=by_name)
def test_an_example_declares_the_funnel_of_its_log(example):
    facts = json.loads((log_of(example) / "dataset.json").read_text())
    funnel = facts.get("funnel", [])
    edges = {tuple(e) for e in (funnel if funnel and isinstance(funnel[0], list) else zip(funnel, funnel[1:]))}
    schema = load(example).schema
    assert {(t.after, t.name) for t in schema.tasks if t.after and t.kind == "binary"} == edges
    assert {t.label for t in schema.tasks if t.kind == "binary"} <= set(facts["labels"])
    assert schema.scenario == facts["scenario"]


def test_the_demo_reads_what_the_simulator_writes(tmp_path):
    simulate(tmp_path, rows=200, users=20, items=20)
    assert missing_columns(load(ROOT / "examples" / "demo.yaml", [f"data.dir={tmp_path}"])) == []


def test_a_misspelt_column_of_an_example_would_be_found(tmp_path):
    simulate(tmp_path, rows=200, users=20, items=20)
    edits = [f"data.dir={tmp_path}", "features.brand.column=items.brnad"]
    assert missing_columns(load(ROOT / "examples" / "demo.yaml", edits)) == ["items.parquet: brnad"]
    with pytest.raises(ConfigError, match="no table 'itms'"):
        load(ROOT / "examples" / "demo.yaml", ["features.brand.column=itms.brand"])


@pytest.fixture(scope="module")
def small_log(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "log"
    simulate(folder, rows=600, users=40, items=30)
    return folder


SMALL = [e for e in EXAMPLES if e.parent.name in ("models", "balance", "losses")]


@pytest.mark.parametrize("example", SMALL, ids=by_name)
def test_an_example_on_the_simulated_log_trains_and_scores(example, small_log, tmp_path):
    edits = [f"data.dir={small_log}", f"train.out={tmp_path}", "train.epochs=1", "train.batch_size=128",
             "train.threads=1"]
    if load(example).settings.embedding.init_from:
        fm = Ranker(example.with_name("fm.yaml"), *edits, f"train.out={tmp_path / 'fm'}").fit()
        edits += [f"embedding.init_from={fm.config.settings.train.out}"]
    ranker = Ranker(example, *edits).fit()
    scores = ranker.predict(str(small_log / "test.parquet"))
    shares = [s.name for s in ranker.config.schema.served if s.of_class is not None or s.name in ("click", "buy")]
    assert len(scores) and all(0 <= p <= 1 for name in shares for p in scores[name].to_pylist())
    assert all(np.isfinite(scores[name].to_numpy()).all() for name in scores.column_names)
