import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as run
from hypothesis import strategies as st

from funnelrank.data.frozen import frozen, frozen_columns
from funnelrank.data.source import open_source
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import resolve
from funnelrank.settings import Data, Settings

LOG = pa.table({
    "user": [1, 2, 1, None, 2, 1, None],
    "at": [30, 5, 10, 1, 5, 20, 0],
    "shown": [[9], [], [1, 2], [3], [7], None, [4]],
    "liked": ["a|b", "", "c", "d", None, "e", "f"],
    "tags": [[1], [2], [3], [4], [5], [6], [7]],
    "click": [1, 0, 1, 0, 1, 0, 1],
})


def settings(time="at", user="user", **features):
    return Settings.model_validate({
        "data": {"user": user, "time": time, "tables": {"items": {"path": "x.parquet", "key": "item"}}},
        "features": {"shown": "sequence", "liked": {"kind": "bag", "separator": "|", "role": "user"}, "tags": "bag",
                     **features},
        "tasks": {"click": {}}})


def held(rows, s, columns=None, **data):
    source = frozen(open_source(rows, Data(**data), "test"), resolve(s))
    return pa.concat_tables([source.read(u, columns or source.columns.names) for u in source.units]).to_pylist()


@pytest.mark.parametrize("time, first", [("at", {1: 2, 2: 1}), (None, {1: 0, 2: 1})])
@pytest.mark.parametrize("memory", [2_000_000_000, 400_000])
def test_lists_are_those_of_the_users_first_row_and_nothing_else_changes(tmp_path, time, first, memory):
    pq.write_table(LOG, tmp_path / "log.parquet", row_group_size=2)
    live = LOG.to_pylist()
    for rows in (LOG, str(tmp_path)):
        assert held(rows, settings(time), memory=memory) == [
            {**r, **({c: live[first[r["user"]]][c] for c in ("shown", "liked")} if r["user"] else {}),
             "liked": (live[first[r["user"]]] if r["user"] else r)["liked"]} for r in live]


def test_only_what_is_asked_is_read_in_the_order_asked():
    assert held(LOG, settings(), ["shown", "click"])[:2] == [{"shown": [1, 2], "click": 1}, {"shown": [], "click": 0}]
    assert held(LOG, settings(), ["click"])[1] == {"click": 0}
    source = frozen(open_source(LOG, Data(), "test"), resolve(settings()))
    assert source.read(source.units[0], ["liked", "shown"]).schema == pa.schema(
        [("liked", pa.large_string()), ("shown", pa.large_list(pa.int64()))])


def test_a_frozen_source_stands_in_for_its_live_one_but_is_another_cache():
    live = open_source(LOG, Data(), "test")
    still = frozen(live, resolve(settings()))
    assert (still.units, still.rows, still.columns, still.split, still.name) == (
        live.units, live.rows, live.columns, "test", live.name)
    assert still.where(still.units[0]) == live.where(live.units[0])
    prints = [live.fingerprint(), still.fingerprint(), frozen(live, resolve(settings(None))).fingerprint()]
    assert len({str(p) for p in prints}) == 3
    assert still.fingerprint() == frozen(live, resolve(settings())).fingerprint()
    with pytest.raises(DataError, match="no column 'shwn' \\(did you mean 'shown'"):
        still.require(["shwn"], {})


def test_the_columns_that_freeze_are_the_users_lists():
    source = open_source(LOG.append_column("item", LOG["at"]), Data(), "test")

    def columns(**features):
        return frozen_columns(source, resolve(settings(**features)))

    assert columns() == ["shown", "liked"]
    assert columns(tags={"kind": "bag", "role": "user"}) == ["shown", "liked", "tags"]
    assert columns(shown={"kind": "sequence", "column": "items.author", "by": "shown"}) == ["shown", "liked"]
    assert columns(near={"kind": "sequence", "column": "items.near"}) == ["shown", "liked"]     # by item: one id a row


def test_a_number_pooled_of_a_users_list_freezes_with_it():
    pooled = {"kind": "number", "column": "tags", "pool": "mean"}
    columns = lambda **more: frozen_columns(open_source(LOG, Data(), "test"), resolve(settings(n={**pooled, **more})))
    assert columns(role="user") == ["shown", "liked", "tags"] and columns() == ["shown", "liked"]


@given(st.lists(st.tuples(st.none() | st.sampled_from("abc"), st.none() | st.integers(-3, 3) | st.just(2**62)),
                max_size=25, min_size=1), st.integers(1, 26), st.booleans())
@run(deadline=None, max_examples=60)
def test_the_first_row_is_the_earliest_and_ties_go_by_file_order(rows, group, fractions):
    times = [None if t is None else float(t) / 2 if fractions else t for _, t in rows]
    table = pa.table({"user": pa.array([u for u, _ in rows], pa.string()),
                      "at": pa.array(times, pa.float64() if fractions else pa.int64()),
                      "shown": [[i] for i in range(len(rows))], "liked": [str(i) for i in range(len(rows))],
                      "tags": [[0]] * len(rows), "click": [0] * len(rows)})
    first = {}
    for i, (user, _) in enumerate(rows):
        if user not in first or (times[i] is not None and (
                times[first[user]] is None or times[i] < times[first[user]])):
            first[user] = i
    expected = [[i if user is None else first[user]] for i, (user, _) in enumerate(rows)]
    assert [r["shown"] for r in held(table, settings(), memory=8 * group * 200)] == expected


def test_times_that_do_not_sort_and_missing_settings_are_named():
    with pytest.raises(DataError, match="column 'liked' is text|column 'liked': is text"):
        held(LOG, settings("liked"))
    with pytest.raises(ConfigError, match="data.user"):
        held(LOG, settings(user=None))
    with pytest.raises(DataError, match="no column 'usr' \\(data.user\\)"):
        held(LOG, settings(user="usr"))


def test_without_lists_of_the_user_the_rows_are_the_live_ones():
    rows = LOG.select(["user", "at", "tags", "click"])
    assert held(rows, settings()) == rows.to_pylist()


def test_lists_beyond_the_memory_budget_are_named():
    table = pa.table({"user": range(2000), "at": range(2000), "shown": [[1] * 20] * 2000, "click": [0] * 2000})
    with pytest.raises(DataError, match="data.test: the lists of .* users pass data.memory"):
        held(table, settings(), memory=200_000)
