"""Histories made from event logs: what a user did strictly before a row, and nothing else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank import Ranker, cli
from funnelrank.data.ahead import each
from funnelrank.data.cache import open_encoded
from funnelrank.data.encode import Encoder
from funnelrank.data.events import open_events, with_histories
from funnelrank.data.frozen import frozen
from funnelrank.data.source import TooWide, open_source
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import resolve
from funnelrank.settings import Settings

SEEN = {"kind": "history", "of": "log", "item": "item"}
LIKED = {**SEEN, "where": "like", "max_len": 3}


def config(features, delay=0.0, **data) -> Settings:
    return Settings.model_validate({
        "data": {"user": "user", "time": "time", "events": {"log": {"path": "x", "delay": delay}}, **data},
        "features": {"item": {"min_count": 1}, "lists": "off", **features}, "tasks": {"click": {}}})


def read(features, events, rows, columns=None, **data):
    """The made columns of rows, as lists."""
    said = config(features, **data)
    schema = resolve(said)
    source = with_histories(open_source(rows, said.data, "train"), schema,
                            open_events(schema, said.data, {"log": events}))
    return source.read(source.units[0], columns or list(schema.made)).to_pydict()


def log(seed=0, rows=120, users=5, moments=40) -> pa.Table:
    draw = np.random.default_rng(seed)
    return pa.table({"user": draw.integers(0, users, rows), "time": draw.integers(0, moments, rows),
                     "item": draw.integers(0, 6, rows), "like": draw.integers(0, 2, rows),
                     "click": draw.integers(0, 2, rows)})


def plainly(events: pa.Table, user, time, taken=lambda e: True) -> list[dict]:
    return sorted((e for e in events.to_pylist() if e["user"] == user and e["time"] < time and taken(e)),
                  key=lambda e: e["time"])


@given(st.integers(0, 10**6))
@settings(max_examples=12)
def test_a_history_is_the_users_events_strictly_before_the_row_oldest_first(seed):
    events = log(seed, rows=60)
    found = read({"seen": SEEN, "liked": LIKED, "third": {"kind": "gap", "since": "seen", "nth": 3},
                  "any": {"kind": "gap", "since": "log"}}, events, events)
    for i, row in enumerate(events.to_pylist()):
        before = plainly(events, row["user"], row["time"])
        assert found["history:seen"][i] == [e["item"] for e in before][-50:]
        assert found["history:liked"][i] == [e["item"] for e in before if e["like"]][-3:]
        assert found["history:seen:3"][i] == (before[-3]["time"] if len(before) > 2 else None)
        assert found["history:log:1"][i] == (before[-1]["time"] if before else None)


def test_a_row_never_sees_itself_nor_what_happened_at_the_same_moment():
    events = pa.table({"user": [1, 1, 1], "time": [5, 5, 6], "item": [7, 8, 9], "click": [0, 1, 0]})
    assert read({"seen": SEEN}, events, events)["history:seen"] == [[], [], [7, 8]]


def test_with_a_delay_events_are_seen_so_much_later():
    events = pa.table({"user": [1, 1, 1], "time": [5, 7, 9], "item": [7, 8, 9], "click": [0, 1, 0]})
    assert read({"seen": SEEN}, events, events, delay=2)["history:seen"] == [[], [], [7]]
    times = pa.array([5, 7, 9], pa.timestamp("s")).cast(pa.timestamp("us"))
    stamped = events.set_column(1, "time", times)
    assert read({"seen": SEEN}, stamped, stamped, delay=2)["history:seen"] == [[], [], [7]]


def test_changing_a_row_or_what_came_later_never_changes_its_history():
    events, draw = log(3), np.random.default_rng(4)
    features = {"seen": SEEN, "liked": LIKED, "gap": {"kind": "gap", "since": "liked"}}
    before = read(features, events, events)
    times = events["time"].to_numpy()
    for row in range(0, len(events), 7):
        late = times >= times[row]
        shuffled = {c: np.where(late, draw.integers(0, 9, len(events)), events[c].to_numpy())
                    for c in ("user", "item", "like")}
        other = pa.table({**events.to_pydict(), **shuffled})
        after = read(features, other, events)
        assert all(after[c][row] == before[c][row] for c in before)


def test_rows_without_a_user_or_a_time_have_no_history_and_strangers_an_empty_one():
    events = log(1)
    rows = pa.table({"user": pa.array([None, 0, 99]), "time": pa.array([50, None, 50]), "item": [1, 1, 1]})
    assert read({"seen": SEEN}, events, rows)["history:seen"] == [None, None, []]


def test_conditions_all_hold_and_may_name_several_values():
    events = pa.table({"user": ["a"] * 4, "time": [1, 2, 3, 4], "event": ["view", "cart", "buy", "buy"],
                       "item": ["p", "q", None, "s"], "paid": [True, True, True, False]})
    rows = pa.table({"user": ["a"], "time": [9], "item": ["z"]})
    ask = lambda where: read({"h": {**SEEN, "where": where}}, events, rows)["history:h"][0]
    assert ask({}) == ["p", "q", "s"]                                     # an event without an item is none
    assert ask({"event": ["cart", "buy"]}) == ["q", "s"]
    assert ask({"event": ["cart", "buy"], "paid": 1}) == ["q"]
    with pytest.raises(DataError, match=r"column 'event' holds text, and a history's `where` asks for 1"):
        ask("event")


def test_a_history_shares_the_items_ids_and_feeds_list_numbers_and_attributes():
    said = Settings.model_validate({
        "data": {"user": "user", "time": "time", "events": {"log": {"path": "x"}},
                 "tables": {"items": {"path": "y", "key": "item"}}},
        "features": {"item": "id", "brand": {"column": "items.brand"}, "seen": SEEN, "liked": LIKED,
                     "seen_brand": {"kind": "sequence", "column": "items.brand", "by": "seen", "space": "brand"}},
        "tasks": {"click": {}}})
    schema = resolve(said)
    assert schema.features["seen"].space == schema.features["liked"].space == "item"
    assert schema.features["seen"].target == "item" and schema.features["seen_brand"].by == "history:seen"
    assert {"length(liked)", "share(seen,liked,10)", "match(brand,liked)", "gap(seen)", "gap(seen,10)",
            "gap(liked,3)"} <= set(schema.features) and "gap(liked,10)" not in schema.features   # max_len is 3


def trained(tmp_path, **more):
    """A run on a raw log of its own, and the pieces that it was made of."""
    whole = log(rows=400, users=12, moments=200)
    early = pa.array(whole["time"].to_numpy() < 150)
    train, test = whole.filter(early), whole.filter(pa.array(~early.to_numpy(zero_copy_only=False)))
    for name, table in (("train", train), ("test", test)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    ranker = Ranker({
        "data": {"dir": str(tmp_path), "train": "train.parquet", "test": "test.parquet", "user": "user", "time": "time",
                 "events": {"log": {"path": ["train.parquet", "test.parquet"]}}, **more},
        "features": {"item": {"min_count": 1}, "seen": SEEN, "liked": LIKED}, "tasks": {"click": {}},
        "model": {"name": "shared_bottom", "represent": {"hidden": [4]}, "predict": {"hidden": [4]}},
        "train": {"out": str(tmp_path / "run"), "epochs": 1}, "evaluate": {"resamples": 100}})
    return ranker.fit(), test


def test_training_evaluation_and_prediction_see_the_same_histories(tmp_path, no_pictures):
    ranker, test = trained(tmp_path)
    auc = lambda rows: next(r["value"] for r in rows if r["metric"] == "auc" and r["split"] == "test"
                            and not r.get("scenario"))
    loaded = Ranker.load(tmp_path / "run")
    assert auc(loaded.evaluate()) == auc(ranker.rows)
    by_path, bare = loaded.predict(test.drop(["click", "like"])), loaded.predict(test, events={"log": test.slice(0, 1)})
    given_whole = loaded.predict(test, events={"log": [tmp_path / "train.parquet", tmp_path / "test.parquet"]})
    assert by_path.equals(given_whole) and not by_path.equals(bare)       # histories reach the scores
    out, keep = tmp_path / "scores.parquet", ["--events", f"log={tmp_path}/train.parquet",
                                              "--events", f"log={tmp_path}/test.parquet"]
    assert cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "test.parquet"), "--out", str(out), *keep]) == 0
    assert pq.read_table(out).equals(by_path)


def test_a_changed_event_log_makes_another_cache(tmp_path):
    events, said = log(), config({"seen": SEEN})
    schema = resolve(said)
    source = open_source(events, said.data, "train")

    def folder(events):
        made = with_histories(source, schema, open_events(schema, said.data, {"log": events}))
        encoder = Encoder.fit(schema, made, {})
        return open_encoded(encoder, made, said.data, tmp_path, True).folder

    first = folder(events)
    assert folder(events) == first != folder(events.slice(1))


def test_a_history_of_other_events_or_another_time_is_another_feature():
    from funnelrank.data.grow import carried_over
    events = log().append_column("later", pa.array(np.arange(120)))

    def fitted(history, time="time"):
        said = config({"seen": history}, time=time)
        schema = resolve(said)
        return Encoder.fit(schema, with_histories(open_source(events, said.data, "train"), schema,
                                                  open_events(schema, said.data, {"log": events})), {})

    plain = fitted(SEEN)
    assert plain.hash() == fitted(SEEN).hash() != fitted(SEEN, "later").hash()
    assert carried_over(plain, fitted({**SEEN, "max_len": 7}).schema, []).vocabs.keys() == plain.vocabs.keys()
    with pytest.raises(ConfigError, match="features.seen: its events' where changed.*start it anew with --anew seen"):
        carried_over(plain, fitted(LIKED).schema, [])


def test_frozen_rows_keep_the_history_of_their_users_first_row():
    events, said = log(), config({"seen": SEEN})
    schema = resolve(said)
    source = with_histories(open_source(events, said.data, "test"), schema,
                            open_events(schema, said.data, {"log": events}))
    held = frozen(source, schema)
    lists, rows = held.read(held.units[0], ["history:seen"])["history:seen"].to_pylist(), events.to_pylist()
    for user in range(5):
        first = min(row["time"] for row in rows if row["user"] == user)
        expected = [e["item"] for e in plainly(events, user, first)]
        assert all(lists[i] == expected for i, row in enumerate(rows) if row["user"] == user)


def test_histories_and_event_logs_stay_within_data_memory(monkeypatch):
    events, said = log(rows=2000, users=2, moments=10**6), config({"seen": SEEN}, memory=20_000)
    schema = resolve(said)
    with pytest.raises(DataError, match=r"data.events.log.path: the event logs pass data.memory"):
        open_events(schema, said.data, {"log": events})
    made = open_events(schema, config({"seen": SEEN}).data, {"log": events})
    monkeypatch.setattr("funnelrank.data.events.LEAST", 8 * 50 * 100)          # the lists of 100 rows
    roomy = config({"seen": SEEN}, memory=600_000)
    source = with_histories(open_source(events, roomy.data, "train"), schema, made)
    with pytest.raises(TooWide):
        source.read(source.units[0], ["history:seen"])
    parts = list(each(source, ["history:seen"]))
    assert len(parts) > 10 and sum(len(table) for _, table in parts) == 2000
    assert pa.concat_tables(t for _, t in parts).to_pydict() == read({"seen": SEEN}, events, events)


@pytest.mark.parametrize("features, data, sentence", [
    ({"seen": {**SEEN, "of": "lok"}}, {}, r"features.seen.of: no event log 'lok' in data.events.*did you mean 'log'"),
    ({"seen": SEEN}, {"time": None}, r"data.time: features.seen reads what a user did before a row; name the column"),
    ({"g": {"kind": "gap", "since": "a", "nth": 2}}, {}, r"features.g.nth: 'a' is no history and no event log"),
    ({"g": {"kind": "gap", "since": "a"}}, {}, r"features.g.until: name the column with the later time"),
])
def test_what_cannot_be_made_is_refused_with_its_place(features, data, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve(config(features, **data))


def test_times_of_two_kinds_and_missing_columns_are_refused():
    events = log()
    dated = events.set_column(1, "time", pa.array(events["time"].to_numpy(), pa.timestamp("us")))
    with pytest.raises(DataError, match="data.time is timestamp.*and the times of event log 'log' are int"):
        read({"seen": SEEN}, events, dated)
    with pytest.raises(DataError, match=r"no column 'item' \(features.seen.item\)"):
        read({"seen": SEEN}, events.drop(["item"]), events)
    with pytest.raises(ConfigError, match="events: no history reads an event log 'lok'"):
        open_events(resolve(config({"seen": SEEN})), config({}).data, {"lok": events})
