"""A run that goes on from another: what is the same stays, to the bit; what is new starts; nothing is silent."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import funnelrank
from funnelrank import ArtefactError, ConfigError, DataError, Ranker, again, api
from funnelrank.continued import Before
from funnelrank.data.encode import Encoder
from funnelrank.data.grow import carried_over
from funnelrank.flow import build, encode, fit, open_data, prepare
from funnelrank.models import MODELS
from funnelrank.models.fields import FieldVectors
from funnelrank.runs import train_seeds
from funnelrank.simulate import simulate
from funnelrank.train.optim import row_updates
from funnelrank.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_pictures")
CONFIG = {
    "data": {"scenario": "scenario", "tables": {"items": {"path": "items.parquet", "key": "item_id"}}},
    "features": {"item_id": {"min_count": 1}, "scenario": {"min_count": 1}, "price": "number", "lists": "off",
                 "shown": {"kind": "sequence", "column": "hist_shown", "space": "item_id", "max_len": 5}},
    "tasks": {"click": {}, "buy": {"after": "click"}},
    "embedding": {"width": 4}, "model": {"name": "aitm", "represent": {"hidden": [8, 6], "dropout": 0.1}},
    "train": {"epochs": 1, "batch_size": 128, "threads": 1, "log_every": 1000},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=2000, users=60, items=80, seed=3)
    rows = pq.read_table(folder / "train.parquet")
    rare = rows["item_id"].to_numpy()[-1]                                  # an item that only the second half has
    half = rows.num_rows // 2
    first, second = rows.slice(0, half), rows.slice(half)
    first = first.filter(pc.not_equal(first["item_id"], rare))
    first = first.filter(pa.array([rare not in h for h in first["hist_shown"].to_pylist()]))
    pq.write_table(first.filter(pc.not_equal(first["scenario"], "search")), folder / "a.parquet")
    pq.write_table(second, folder / "b.parquet")
    return folder


def config(log, out, train, *sets, **sections):
    said = {**CONFIG, **sections}
    said["data"] = {**said["data"], "train": f"{train}.parquet"}
    return funnelrank.load_config(said, [f"data.dir={log}", f"train.out={out}", *sets])


@pytest.fixture(scope="module")
def first(log, tmp_path_factory):
    return api.train(config(log, tmp_path_factory.mktemp("runs") / "a", "a"))


def begin(first, changed, anew=()):
    """The model that a continued run starts with: averages swapped in, not a step done; encoder, and what is said."""
    before = api.before_of(first.folder, changed, anew)
    data = open_data(changed)
    encoder = prepare(changed, data, old=before.encoder_for(changed))
    splits = encode(changed, data, encoder)
    model = build(changed, encoder, splits)
    start, said = before.onto(changed, encoder, model)
    trainer = Trainer(model, changed.settings.train, torch.ones(len(model.tasks)), folder=first.folder / "none",
                      report=lambda e: None)
    trainer.run(Nothing(), row_updates(model.embedding, changed.settings.embedding), start=(start.tensors, start.state))
    return Ranker._made(changed, encoder, model.eval()), said


class Nothing:
    def __len__(self):
        return 0

    def epoch(self, number):
        return iter(())

    def state(self):
        return None


def test_with_no_step_done_old_rows_are_scored_to_the_same_bits(log, first, tmp_path):
    ranker, said = begin(first, config(log, tmp_path / "x", "b"))
    rows = pq.read_table(log / "a.parquet")
    assert ranker.predict(rows).equals(first.ranker.predict(rows)) and ranker.predict(rows).num_rows > 300
    assert said["spaces"]["item_id"]["added"] > 0 and said["scenarios"]["added"] == ["search"]
    assert said["spaces"]["item_id"]["dropped"] == 0 and not said["weights"]["added"]


def test_a_then_b_is_one_training_of_a_then_b_to_the_bit(log, tmp_path):
    for name, sets in {"adagrad": (), "adam": ("embedding.optimiser.name=adam",)}.items():
        sets = (*sets, "train.average=0.9")
        one = api.train(config(log, tmp_path / name / "1", "b", *sets))
        two = api.train(config(log, tmp_path / name / "2", "b", *sets), continue_from=one.folder)
        settings = config(log, tmp_path / name / "both", "b", *sets, "train.epochs=1")
        data = open_data(settings)
        encoder = prepare(settings, data)
        splits = encode(settings, data, encoder)
        model = build(settings, encoder, splits)
        fit(settings, model, encoder, {"train": Twice(splits["train"])}, folder=tmp_path / name / "both")
        for key, value in model.state_dict().items():
            assert torch.equal(value, two.ranker.model.state_dict()[key]), (name, key)
        assert two.ranker.about["training"]["steps"] == one.trained.steps


class Twice:
    """An epoch that is the split's first epoch, and then that once more."""

    def __init__(self, split):
        self.split = split

    def __getattr__(self, name):
        return getattr(self.split, name)

    def __len__(self):
        return len(self.split)


@pytest.fixture(autouse=True)
def twice_in_a_row(monkeypatch):
    from funnelrank import flow

    class Loader(flow.Loader):
        def epoch(self, n):
            yield from super().epoch(n)
            if isinstance(self.split, Twice):
                yield from super().epoch(n)
    monkeypatch.setattr(flow, "Loader", Loader)


def test_a_second_training_knows_all_and_says_what_it_took_over(log, first, tmp_path):
    events = []
    done = api.train(config(log, tmp_path / "b", "b"), continue_from=first.folder, report=events.append)
    said = next(e for e in events if e["event"] == "continue")
    kept = json.loads((done.folder / "artefact" / "continued.json").read_text())
    assert kept["spaces"] == said["spaces"] == Ranker.load(done.folder).continued["spaces"]
    assert kept["trainings"] == 1 and kept["features"]["carried"] == list(done.ranker.config.schema.features)
    third = api.train(config(log, tmp_path / "c", "a"), continue_from=done.folder / "artefact")
    assert third.ranker.continued["trainings"] == 2 and third.ranker.continued["spaces"]["item_id"]["added"] == 0
    a, b = (r.ranker.encoder.vocabs["item_id"].values() for r in (done, third))
    assert a == b


def test_features_tasks_and_columns_of_tables_come_and_go(log, first, tmp_path):
    features = {**CONFIG["features"], "category": {"column": "items.category", "min_count": 1}, "device": "id",
                "hour": {"kind": "number", "role": "user"}}
    del features["price"]
    changed = config(log, tmp_path / "d", "b", features=features,
                     tasks={"click": {}, "cart": {"after": "click"}, "buy": {"after": "click"}, "like": {}})
    ranker, said = begin(first, changed)
    assert said["features"]["added"] == ["category", "device", "hour"] and said["features"]["dropped"] == ["price"]
    assert said["tasks"] == {"carried": ["click", "buy"], "added": ["cart", "like"], "dropped": []}
    assert said["tables"] == {"items": {"rows": 80, "before": None}}
    assert any("click>cart" in w for w in said["weights"]["added"]) and said["weights"]["resized"]
    done = api.train(changed, continue_from=first.folder)
    assert {"click", "cart", "buy", "like"} <= set(done.ranker.predict(log / "b.parquet").column_names)


# what a model cannot go on with, and the slots that must start anew for it
REFUSED = {("ple", "tasks"): "represent", ("star", "features"): "side", ("fnn", "features"): "represent",
           ("pnn", "features"): "represent", ("autoint", "features"): "predict", ("auto", "features"): "predict"}
MOVED = {("afm", "features"), ("hmoe", "scenarios")}          # newcomers take a share of what others say; it is said
NEW = {"features": {"features": {"device": {"role": "user"}, "hour": {"kind": "number", "role": "user"},
                                 **CONFIG["features"]}},
       "tasks": {"tasks": {"like": {}, **CONFIG["tasks"]}}, "scenarios": {}}


@pytest.mark.parametrize("name", MODELS)
def test_what_was_learned_says_the_same_beside_what_is_new(log, tmp_path, name):
    """Places are found by name in every model: columns move, heads move, and the old answers stay."""
    cross = {"cross": {"kind": "cross", "of": ["scenario", "item_id"], "min_count": 1}} if name == "wide_deep" else {}
    of = lambda sections: {"model": {"name": name}, **sections,
                           "features": {**sections.get("features", CONFIG["features"]), **cross}}
    one = api.train(config(log, tmp_path / "1", "a", **of({})))
    rows = pq.read_table(log / "a.parquet")
    before = one.ranker.predict(rows)
    for what, sections in NEW.items():
        changed = config(log, tmp_path / what, "b" if what == "scenarios" else "a", **of(sections))
        anew = REFUSED.get((name, what), "").split(",")
        if anew != [""]:
            with pytest.raises(ConfigError, match="start this slot anew with --anew " + anew[0]):
                begin(one, changed)
            ranker, said = begin(one, changed, anew)
            assert said["weights"]["carried"] + said["weights"]["resized"] and len(ranker.predict(rows)) == len(rows)
            continue
        ranker, said = begin(one, changed)
        added = {"features": ["device", "hour"], "tasks": ["like"], "scenarios": ["search"]}
        assert said[what]["added"] == added[what]
        shares = [line for line in said["weights"]["changed"] if "takes a share" in line]
        assert bool(shares) == ((name, what) in MOVED)
        if what == "features":                     # FM multiplies the new vectors with the old ones; at 0 it does not
            with torch.no_grad():
                table = ranker.model.embedding.tables["width_4"]
                table.weight[table.offset["device"]:][:ranker.encoder.layout.size["device"]] = 0
                for part in ranker.model.modules():
                    if isinstance(part, FieldVectors):
                        part.weight[ranker.encoder.layout.numbers.index("hour")] = 0
        after = ranker.predict(rows)
        for task in () if shares else ("click", "buy"):
            np.testing.assert_allclose(after[task].to_numpy(), before[task].to_numpy(), rtol=5e-5, atol=1e-7)


@pytest.mark.parametrize("sections, sets, message, anew", [
    ({}, ["features.price.log=false"], r"features.price: log was True, now False.*--anew price", "price"),
    ({}, ["model.represent.hidden=[8, 8]"], r"model.represent: .*width 6 has width 8 now.*--anew represent",
     "represent,transfer,predict"),
    ({}, ["model.reading=conditional", "model.calibrator=0"],
     r"model.reading: was joint, now conditional.*--anew predict", "predict"),
    ({}, ["embedding.width=8"], r"rows of space 'item_id' were 4 wide, now 8.*--anew item_id,shown",
     "item_id,shown,scenario"),
    ({}, ["embedding.optimiser.name=adam"], r"embedding.optimiser.name: was adagrad, now adam.*--anew optimiser",
     "optimiser"),
    ({"model": {"name": "single_task", "represent": {"hidden": [8, 6]}}}, [],
     r"model.transfer: was 'ait', now .*--anew transfer", "transfer"),
    ({"model": {"prepare": ["din"]}}, [], r"model.prepare: was .*, now 'din'.*--anew prepare", "prepare")])
def test_what_cannot_be_carried_is_refused_with_the_way_out(log, first, tmp_path, sections, sets, message, anew):
    changed = config(log, tmp_path / "x", "b", *sets, **{k: {**CONFIG[k], **v} for k, v in sections.items()})
    with pytest.raises(ConfigError, match=message):
        begin(first, changed)
    ranker, said = begin(first, changed, anew.split(","))
    assert said["anew"] == sorted(anew.split(",")) and ranker.predict(log / "b.parquet").num_rows


BASE = {
    "item": {}, "tab": {}, "price": {"kind": "number", "boundaries": [5, 20]}, "age": {"kind": "number", "buckets": 3},
    "raw": {"kind": "number", "default": 1},
    "dear": {"kind": "number", "expression": "raw * price", "boundaries": [9]},
    "shown": {"kind": "sequence", "space": "item"}, "paid": {"kind": "sequence", "space": "price"},
    "at": {"kind": "cross", "of": ["tab", "price"]}, "here": {"kind": "cross", "of": ["tab", "item"]},
    "of_age": {"kind": "cross", "of": ["tab", "age"], "hash_buckets": 50},
    "x": {"kind": "cross", "of": ["tab", "dear"]}, "rate": {"kind": "rate", "of": "at", "task": "click", "period": 10}}


@pytest.mark.parametrize("changed, anew, refused", [
    ({"price": {"boundaries": [5, 10]}}, "", "price at rate paid"),                            # all at once
    ({"price": {"boundaries": [5, 10]}}, "price at", "rate paid"),
    ({"price": {"boundaries": [5, 10]}}, "price at rate paid", ""),         # dear reads the number, not its bucket
    ({"raw": {"default": 3}}, "raw", "dear x"), ({"raw": {"default": 3}}, "raw dear", "x"),
    ({}, "age", "of_age"), ({}, "tab item shown", ""),                                # the same buckets of other rows
    ({"item": {"hash_buckets": 50}}, "item shown", ""), ({"shown": {"pool": "sum"}}, "shown", ""),
    ({"price": {"log": False}}, "price", ""), ({"paid": {"max_len": 9}}, "", "")])
def test_what_rests_on_other_values_than_before_starts_anew_with_them(changed, anew, refused):
    said = {n: {**f, **changed.get(n, {})} for n, f in BASE.items()}
    made = lambda features: funnelrank.load_config({
        "data": {"time": "time"}, "features": features, "tasks": {"click": {}}}, []).schema
    old = Encoder.unfitted(made(BASE), 10)
    try:
        carried_over(old, made(said), anew.split())
        found = []
    except ConfigError as error:
        found = [m.split(":")[0].removeprefix("features.") for m in error.messages if m.startswith("features.")]
    assert sorted(found) == sorted(refused.split())


def test_words_of_anew_that_name_nothing_and_a_run_into_itself_are_refused(log, first, tmp_path):
    with pytest.raises(ConfigError, match=r"--anew: no feature, task or slot 'prise' \(did you mean 'price'"):
        api.train(config(log, tmp_path / "x", "b"), continue_from=first.folder, anew=["prise"])
    with pytest.raises(ConfigError, match="is the run to continue from"):
        api.train(config(log, first.folder, "b"), continue_from=first.folder)


def test_without_its_state_only_weights_go_on_and_only_if_asked(log, first, tmp_path):
    first.ranker.save(tmp_path / "alone")
    changed = config(log, tmp_path / "x", "b")
    with pytest.raises(ConfigError, match="the state of its optimisers, .* is not there; .* --anew optimiser"):
        api.before_of(tmp_path / "alone", changed, ())
    before = api.before_of(tmp_path / "alone", changed, ["optimiser"])
    assert isinstance(before, Before) and before.state is None
    done = api.train(changed, continue_from=tmp_path / "alone", anew=["optimiser"])
    assert done.ranker.continued["optimiser"] == "anew"


def test_the_state_of_another_training_is_refused(log, first, tmp_path):
    import shutil
    shutil.copytree(first.folder, tmp_path / "mixed")
    other = api.train(config(log, tmp_path / "other", "a", "train.seed=5"))
    shutil.rmtree(tmp_path / "mixed" / "checkpoints")
    shutil.copytree(other.folder / "checkpoints", tmp_path / "mixed" / "checkpoints")
    with pytest.raises(ConfigError, match="is of another training"):
        api.before_of(tmp_path / "mixed", config(log, tmp_path / "x", "b"), ())
    tensors = tmp_path / "mixed" / "checkpoints" / "last" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactError, match="has hash"):
        api.before_of(tmp_path / "mixed", config(log, tmp_path / "x", "b"), ())


def test_numbers_keep_the_scales_that_weights_were_learned_on(log, first, tmp_path):
    ranker, _ = begin(first, config(log, tmp_path / "x", "b"))
    assert ranker.encoder.scalers == first.ranker.encoder.scalers
    ranker, _ = begin(first, config(log, tmp_path / "x", "b"), ["price"])
    assert ranker.encoder.scalers["price"] != first.ranker.encoder.scalers["price"]


def test_the_state_of_the_best_evaluation_is_what_goes_on(log, tmp_path):
    """Patience spent: the artefact holds the best weights, and so does what continues from it."""
    valid = {**CONFIG["data"], "valid": "a.parquet", "test": "valid.parquet"}
    sets = ("train.epochs=20", "train.optimiser.lr=0.1", "embedding.optimiser.name=rowwise_adagrad",
            "model.represent.norm=batch")
    one = api.train(config(log, tmp_path / "1", "b", *sets, data=valid))
    assert one.trained.kept == "best" and one.trained.best_step < one.trained.steps
    ranker, said = begin(one, config(log, tmp_path / "2", "b", *sets, data=valid))
    rows = pq.read_table(log / "a.parquet")
    assert ranker.predict(rows).equals(one.ranker.predict(rows)) and not said["weights"]["resized"]


def test_retired_values_leave_and_the_rows_of_others_stay(log, tmp_path):
    one = api.train(config(log, tmp_path / "b", "b"))
    ranker, said = begin(one, config(log, tmp_path / "x", "a", data={**CONFIG["data"], "retire": 1}))
    old, new = one.ranker.encoder.vocabs["item_id"], ranker.encoder.vocabs["item_id"]
    assert said["spaces"]["item_id"]["dropped"] == len(set(old.values()) - set(new.values())) > 0
    tables = [r.model.embedding.tables["width_4"] for r in (one.ranker, ranker)]
    for value in set(old.values()) & set(new.values()):
        at = [t.weight[t.offset["item_id"] + v.values().index(value) + 2] for t, v in zip(tables, (old, new))]
        assert torch.equal(*at)


def test_calibrators_are_fitted_anew_and_nothing_of_them_is_expected(log, tmp_path):
    valid = {**CONFIG["data"], "valid": "b.parquet"}
    quick = "evaluate.intervals=none"
    one = api.train(config(log, tmp_path / "1", "b", "calibrate.method=platt", quick, data=valid))
    assert not torch.equal(one.ranker.model.calibration.line[:, 0], torch.ones(2, dtype=torch.float64))
    for method in ("none", "isotonic"):
        ranker, _ = begin(one, config(log, tmp_path / method, "b", f"calibrate.method={method}", data=valid))
        assert ranker.model.calibration is None or not ranker.model.calibration.line[:, 2].any()
    plain = api.train(config(log, tmp_path / "2", "b"))
    changed = config(log, tmp_path / "3", "b", "calibrate.method=platt", quick, data=valid)
    done = api.train(changed, continue_from=plain.folder)
    assert done.ranker.model.calibration is not None


def test_weights_of_crosses_keep_the_state_of_their_own_optimiser(log, tmp_path):
    features = {**CONFIG["features"], "both": {"kind": "cross", "of": ["scenario", "item_id"], "min_count": 1}}
    wide = {"model": {"name": "wide_deep"}, "features": features}
    one = api.train(config(log, tmp_path / "1", "a", **wide))
    before = api.before_of(one.folder, config(log, tmp_path / "2", "b", **wide))
    assert {"rows.crosses.z", "rows.crosses.sum"} <= set(before.tensors)
    data = open_data(changed := config(log, tmp_path / "2", "b", **wide))
    encoder = prepare(changed, data, old=before.encoder_for(changed))
    model = build(changed, encoder, encode(changed, data, encoder))
    start, said = before.onto(changed, encoder, model)
    known = np.flatnonzero(encoder.vocabs["both"].before(one.ranker.encoder.vocabs["both"]) >= 0)
    was = encoder.vocabs["both"].before(one.ranker.encoder.vocabs["both"])[known]
    assert torch.equal(start.tensors["rows.crosses.z"][known], before.tensors["rows.crosses.z"][was])
    assert said["spaces"]["both"]["added"] > 0 and before.tensors["rows.crosses.z"].any()
    with pytest.raises(ConfigError, match=r"embedding.crosses.name: was ftrl, now adagrad.*--anew optimiser"):
        begin(one, config(log, tmp_path / "3", "b", "embedding.crosses.name=adagrad", **wide))


@pytest.mark.parametrize("name, table", [("wide_deep", "crosses"), ("deepfm", "linear")])
def test_weights_of_a_slot_that_starts_anew_start_anew_with_it(log, tmp_path, name, table):
    features = {**CONFIG["features"], "both": {"kind": "cross", "of": ["scenario", "item_id"], "min_count": 1}}
    sections = {"model": {"name": name}, "features": features}
    one = api.train(config(log, tmp_path / "1", "a", **sections))
    changed = config(log, tmp_path / "2", "b", *(["embedding.crosses.name=adagrad", "embedding.crosses.l1=0"]
                                                 if table == "crosses" else []), **sections)
    before = api.before_of(one.folder, changed, ["side"])
    data = open_data(changed)
    encoder = prepare(changed, data, old=before.encoder_for(changed))
    model = build(changed, encoder, encode(changed, data, encoder))
    start, said = before.onto(changed, encoder, model)
    assert torch.equal(start.tensors[f"model.embedding.tables.{table}.weight"],
                       model.embedding.tables[table].weight.cpu())
    kept = [v for k, v in start.tensors.items() if k.startswith(f"rows.{table}.")]
    assert kept and not any(v.any() for v in kept) and f"table {table}" in said["weights"]["added"]
    deep = next(t for t in model.embedding.tables if t not in ("linear", "crosses"))
    assert start.tensors[f"rows.{deep}.sum"].any()


def test_a_finished_or_stopped_run_notices_another_predecessor(log, first, tmp_path):
    """The same command is answered from the folder; another predecessor, or other things anew, is another run."""
    changed, events = config(log, tmp_path / "b", "b"), []
    done = api.train(changed, continue_from=first.folder)
    same = api.train(changed, continue_from=first.folder, report=events.append)
    assert events == [{"event": "finished", "folder": str(done.folder)}] and same.trained == done.trained
    other = api.train(config(log, tmp_path / "other", "a", "train.seed=5"))
    record = json.loads((done.folder / "run.json").read_text())
    for said in ({}, {"continue_from": other.folder}, {"continue_from": first.folder, "anew": ["price"]}):
        (done.folder / "run.json").write_text(json.dumps({**record, "state": "running"}))
        with pytest.raises(ConfigError, match="it went on from another run, or with other things anew"):
            api.train(changed, **said)
    (done.folder / "run.json").write_text(json.dumps(record))
    events.clear()
    api.train(changed, continue_from=other.folder, report=events.append)
    assert any(e["event"] == "anew" for e in events)


def test_a_continued_run_that_was_stopped_ends_bitwise_equal(log, first, tmp_path, monkeypatch):
    """Before its first checkpoint it begins where the other run ended; behind it, where it stood."""
    sets = ("train.checkpoint_every=2", "train.average=0.9")
    straight = api.train(config(log, tmp_path / "1", "b", *sets), continue_from=first.folder)
    for stop in (1, 3):
        step, changed = Trainer._train_step, config(log, tmp_path / f"stopped-{stop}", "b", *sets)

        def stopping(trainer, *said, stop=stop, step=step):
            if trainer.step == stop:
                raise KeyboardInterrupt
            return step(trainer, *said)
        monkeypatch.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            api.train(changed, continue_from=first.folder)
        monkeypatch.setattr(Trainer, "_train_step", step)
        went_on = api.train(changed, continue_from=first.folder)
        for key, value in straight.ranker.model.state_dict().items():
            assert torch.equal(value, went_on.ranker.model.state_dict()[key]), (stop, key)


def test_a_continued_run_is_reproduced_and_replayed_from_its_predecessor(log, first, tmp_path):
    import shutil
    done = api.train(config(log, tmp_path / "b", "b"), continue_from=first.folder, anew=["price"])
    found = again.reproduce(done.folder)
    assert found.equal and not found.circumstances and found.tensors
    seen = again.replay(done.folder, 1)
    shutil.copytree(first.folder, tmp_path / "moved")
    assert again.replay(done.folder, 1, continue_from=tmp_path / "moved").losses == seen.losses
    other = api.train(config(log, tmp_path / "other", "a", "train.seed=5"))
    with pytest.raises(DataError, match="it went on from another run"):
        again.replay(done.folder, 1, continue_from=other.folder)


def test_all_seeds_go_on_from_one_run(log, first, tmp_path):
    several = train_seeds(config(log, tmp_path / "s", "b"), 2, continue_from=first.folder)
    marks = [json.loads((r.folder / "run.json").read_text())["before"] for r in several.runs]
    assert marks[0] == marks[1] and marks[0]["manifest"]


def test_a_debias_that_is_put_on_or_taken_off_leaves_all_that_is_served(log, tmp_path):
    model = {"name": "esmm", "represent": {"hidden": [8, 6]}}
    one = api.train(config(log, tmp_path / "one", "a", "train.epochs=1", model=model))
    rows = pq.read_table(log / "a.parquet")
    on, _ = begin(one, config(log, tmp_path / "on", "a", model={**model, "debias": "dr"}))
    assert on.predict(rows).equals(one.ranker.predict(rows))
    assert on.model.spec.outputs == (1, 2)
    two = api.train(config(log, tmp_path / "two", "a", model={**model, "debias": "dcmt"}), continue_from=one.folder)
    off, _ = begin(two, config(log, tmp_path / "off", "a", model=model))
    assert off.predict(rows).equals(two.ranker.predict(rows)) and off.model.spec.outputs == (1, 1)


def test_tasks_of_several_outputs_go_on_wherever_they_move(log, tmp_path):
    """A ziln has three outputs, a multiclass task one a class, a jrc task two: all are found by their task's name."""
    several = {"click": {"loss": {"name": "jrc", "by": "batch"}}, "device": {
        "kind": "multiclass", "classes": ["ios", "android", "web"]}, "buy": {"after": "click"}, "spend": {
        "after": "buy", "kind": "ziln"}}
    one = api.train(config(log, tmp_path / "one", "a", tasks=several))
    rows = pq.read_table(log / "a.parquet")
    served = one.ranker.predict(rows)
    orders = (("click", "device", "buy", "spend"), ("spend", "device", "like", "click", "buy"),
              ("click", "buy", "spend"))
    for order in orders:
        tasks = {name: several.get(name, {}) for name in order}
        ranker, said = begin(one, config(log, tmp_path / "next", "b", tasks=tasks))
        found = ranker.predict(rows)
        for column in found.column_names:
            assert column.startswith("like") or found[column].equals(served[column]), (order, column)
        assert said["tasks"]["dropped"] == [t for t in several if t not in order]
    with pytest.raises(ConfigError, match=r"tasks.device.classes: were .*, now .*; start it anew with --anew device"):
        begin(one, config(log, tmp_path / "other", "b", tasks={
            **several, "device": {"kind": "multiclass", "classes": ["web", "ios", "android"]}}))
    two = api.train(config(log, tmp_path / "two", "b", tasks=several), continue_from=one.folder)
    assert not two.ranker.predict(rows).equals(served)
