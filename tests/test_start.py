"""Tables that start from an earlier run's: FNN from a trained FM."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import funnelrank
from funnelrank import ArtefactError, ConfigError, Ranker, api
from funnelrank.check import notes
from funnelrank.data.vocab import Vocab
from funnelrank.flow import build
from funnelrank.schema import Space
from funnelrank.simulate import simulate


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=1500, users=100, items=50, seed=1)
    return folder


def config(log, out, model, *sets, **embedding):
    return funnelrank.load_config({
        "data": {"dir": str(log), "train": "train.parquet", "scenario": "scenario"},
        "features": {"item_id": {"min_count": 2}, "scenario": "id", "price": "number", "lists": "off",
                     "device": {"hash_buckets": 20}},
        "tasks": {"click": {}, "buy": {"after": "click"}}, "embedding": {"width": 4, **embedding},
        "model": model, "train": {"epochs": 1, "batch_size": 256, "threads": 1, "out": str(out)}}, sets)


@pytest.fixture(scope="module")
def fm(log, tmp_path_factory):
    return api.train(config(log, tmp_path_factory.mktemp("runs") / "fm", "fm"))


def fresh(fm, log, out, *sets, **embedding):
    return build(config(log, out, "fnn", *sets, init_from=str(fm.folder), **embedding), fm.ranker.encoder, {})


def test_fnn_starts_from_the_weights_and_vectors_of_fm(fm, log, tmp_path):
    m, before = fresh(fm, log, tmp_path).embedding, fm.ranker.model.embedding
    for name in ("linear", "width_4"):
        old, new, table = before.tables[name].weight, m.tables[name].weight, m.tables[name]
        held = torch.ones(len(new), dtype=torch.bool)
        held[table.pad] = False
        assert torch.equal(new[held], old[held]) and (new[table.pad] == 0).all() and old[held].abs().sum() > 0


def test_values_are_matched_by_what_they_are_and_not_by_their_number(fm, log, tmp_path):
    settings = config(log, tmp_path, "fnn", "features.item_id.min_count=5", "features.item_id.max_size=20",
                      init_from=str(fm.folder))
    encoder = funnelrank.prepare(settings, funnelrank.open_data(settings))
    m, before = build(settings, encoder, {}).embedding, fm.ranker
    new, old = m.tables["width_4"], before.model.embedding.tables["width_4"]
    mine, theirs = encoder.vocabs["item_id"].values(), before.encoder.vocabs["item_id"].values()
    assert len(mine) < len(theirs)
    for i, value in enumerate(mine):
        torch.testing.assert_close(new.weight[new.offset["item_id"] + 2 + i],
                                   old.weight[old.offset["item_id"] + 2 + theirs.index(value)])


def test_values_that_the_run_does_not_know_start_afresh():
    space = Space(name="s", made="fitted")
    vocab = lambda *values: Vocab(space, "string", pa.array(values, pa.large_string()))
    to, source = vocab("b", "new", "a").shared(vocab("a", "b"), "here")
    assert to.tolist() == [1, 2, 4] and source.tolist() == [1, 3, 2]


def test_weights_are_matched_by_task(fm, log, tmp_path):
    settings = config(log, tmp_path, "fnn", "tasks={buy: {}, like: {}}", init_from=str(fm.folder))
    encoder = funnelrank.prepare(settings, funnelrank.open_data(settings))
    new, old = (e.tables["linear"].weight for e in (build(settings, encoder, {}).embedding,
                                                    fm.ranker.model.embedding))
    assert torch.equal(new[:, 0], old[:, 1]) and (new[:, 1] == 0).all()


def test_other_widths_and_other_hashes_are_refused(fm, log, tmp_path):
    with pytest.raises(ConfigError, match="init_from: vectors of '.*' are 4 wide in .* and 6 here"):
        fresh(fm, log, tmp_path, width=6)
    settings = config(log, tmp_path, "fnn", "features.device.hash_buckets=30", init_from=str(fm.folder))
    with pytest.raises(ConfigError, match="'device' is hash of 30 here, and has 22 ids made by hash there"):
        build(settings, funnelrank.prepare(settings, funnelrank.open_data(settings)), {})


def test_a_folder_without_an_artefact_is_refused(log, tmp_path, fm):
    with pytest.raises(ArtefactError):
        build(config(log, tmp_path, "fnn", init_from=str(tmp_path / "none")), fm.ranker.encoder, {})


def test_an_artefact_does_not_need_the_run_it_started_from(fm, log, tmp_path):
    run = api.train(config(log, tmp_path / "fnn", "fnn", init_from=str(fm.folder)))
    fm_folder = fm.folder.rename(tmp_path / "moved")
    try:
        rows = str(log / "test.parquet")
        scores = Ranker.load(run.folder).predict(rows)["buy"].to_numpy()
        np.testing.assert_array_equal(scores, run.ranker.predict(rows)["buy"].to_numpy())
    finally:
        fm_folder.rename(fm.folder)


def test_an_fnn_that_starts_from_nothing_is_noted(log, tmp_path):
    def said(**embedding):
        found = config(log, tmp_path, "fnn", **embedding)
        return [n for n in notes(found.settings, found.schema) if n.startswith("embedding.init_from")]

    assert len(said()) == 1 and said(init_from="runs/fm") == []
