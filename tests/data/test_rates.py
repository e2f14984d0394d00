"""Rates of values: counted in train, ordered in time, and never of the row itself."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.data.encode import Encoder
from funnelrank.data.rates import Lines, Rates, Tally
from funnelrank.data.source import open_source
from funnelrank.data.tables import Dimension
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import resolve
from funnelrank.settings import Settings

ITEMS = pa.table({"item": [0, 1, 2, 3, 4], "brand": ["a", "a", "b", "b", None], "tags": ["x|y", "y", "x", None, "z"]})
FEATURES = {"item": {"min_count": 1}, "brand": {"column": "items.brand", "min_count": 1},
            "tags": {"kind": "bag", "column": "items.tags", "separator": "|", "min_count": 1},
            "price": {"kind": "number", "boundaries": [2, 4]}, "tab": {"min_count": 1},
            "item_x_tab": {"kind": "cross", "of": ["item", "tab"], "min_count": 1},
            "shown": {"kind": "sequence", "space": "item"}, "liked": {"kind": "sequence", "space": "item"}}
STRENGTH = 3.0


def rate(of, **more):
    return {"kind": "rate", "of": of, "strength": STRENGTH, **more}


def log(seed=0, rows=80) -> pa.Table:
    draw = np.random.default_rng(seed)
    lists = [draw.integers(0, 5, draw.integers(0, 6)).tolist() for _ in range(rows)]
    y = draw.integers(0, 2, rows).astype(float)
    y[draw.random(rows) < 0.1] = math.nan
    return pa.table({"user": draw.integers(0, 9, rows), "time": draw.integers(0, 50, rows),
                     "item": draw.integers(0, 5, rows), "tab": draw.integers(0, 2, rows),
                     "price": draw.integers(0, 6, rows), "shown": lists,
                     "liked": [[v for v in one if draw.random() < 0.5] for one in lists],
                     "click": pa.array(y, from_pandas=True), "buy": draw.integers(0, 2, rows)})


def schema_of(features, **data):
    return resolve(Settings.model_validate({
        "data": {"user": "user", "time": "time", "tables": {"items": {"path": "x", "key": "item"}}, **data},
        "features": {"lists": "off", **FEATURES, **features}, "tasks": {"click": {}, "buy": {}}}))


def fit(features, rows, old=None, memory=2_000_000_000, **data):
    source = open_source(rows, Settings.model_validate({"features": {"a": "id"}, "tasks": {"t": {}},
                                                        "data": {"memory": memory}}).data, "train")
    return Encoder.fit(schema_of(features, **data), source, {"items": Dimension("items", "item", ITEMS)}, old=old)


def numbers(encoder, rows, name):
    return encoder.encode(rows, "rows", labels=False).numbers[:, encoder.layout.numbers.index(name)]


def values(row, of):
    """The values of a row's feature, or of an element of a list, as plain Python says."""
    attribute = lambda column: ITEMS[column][row["item"]].as_py()
    match of:
        case "brand":
            return [b for b in [attribute("brand")] if b]
        case "tags":
            return (attribute("tags") or "").split("|") if attribute("tags") else []
        case "price":
            return [sum(row["price"] >= b for b in (2, 4))]
        case "item_x_tab":
            return [(row["item"], row["tab"])]
    return [row[of]]


def log_odds(p):
    return math.log(p / (1 - p))


def smoothed(counted, asked):
    """The formula of the page, from (value, good) pairs; mean over all that were counted."""
    if not counted:
        return 0.0
    mean = (sum(g for _, g in counted) + 0.5) / (len(counted) + 1)
    found = [g for a in asked for v, g in counted if v == a]
    return log_odds((sum(found) + STRENGTH * mean) / (len(found) + STRENGTH)) - log_odds(mean)


@pytest.mark.parametrize("of", ["item", "brand", "tags", "price", "item_x_tab"])
def test_a_rate_of_labels_counts_the_rows_of_strictly_earlier_periods(of):
    train, other = log(1), log(2, rows=30)
    encoder = fit({"r": rate(of, task="click", period=10)}, train)
    lines = train.to_pylist()
    for rows in (train, other):
        found = numbers(encoder, rows, "r")
        for row, number in zip(rows.to_pylist(), found):
            counted = [(v, r["click"]) for r in lines if r["time"] // 10 < row["time"] // 10 and r["click"] is not None
                       for v in values(r, of)]
            assert number == pytest.approx(smoothed(counted, values(row, of)), abs=1e-5)


@pytest.mark.parametrize("of", ["item", "brand", "tags"])
def test_a_rate_of_lists_counts_the_list_of_each_users_first_row(of):
    train, other = log(3), log(4, rows=30)
    encoder = fit({"r": rate(of, among="shown", within="liked")}, train)
    first = {}
    for row in train.to_pylist():
        if row["user"] not in first or row["time"] < first[row["user"]]["time"]:
            first[row["user"]] = row
    counted = [(v, element in row["liked"]) for row in first.values() for element in row["shown"]
               for v in values({"item": element}, of)]
    for rows in (train, other):
        for row, number in zip(rows.to_pylist(), numbers(encoder, rows, "r")):
            assert number == pytest.approx(smoothed(counted, values(row, of)), abs=1e-5)


BOTH = {"labels": rate("item", task="click", period=7), "listed": rate("brand", among="shown", within="liked")}


@given(st.integers(0, 10**6), st.integers(0, 39))
@settings(max_examples=8)
def test_no_label_of_a_row_or_of_a_later_one_reaches_its_rates(seed, row):
    train = log(seed, rows=40)
    before = {n: numbers(fit(BOTH, train), train, n)[row] for n in BOTH}
    labels, late = train["click"].to_pylist(), np.asarray(train["time"]) >= train["time"][row].as_py()
    turned = [1 - (y or 0) if is_late else y for y, is_late in zip(labels, late)]
    other = train.set_column(train.column_names.index("click"), "click", pa.array(turned, pa.float64()))
    encoder = fit(BOTH, other)
    assert {n: numbers(encoder, other, n)[row] for n in BOTH} == before


def test_what_comes_of_a_training_row_reaches_no_rate_of_lists_at_all():
    train, draw = log(5), np.random.default_rng(0)
    labels = pa.array(draw.integers(0, 2, 80), pa.float64())
    other = train.set_column(train.column_names.index("click"), "click", labels)
    assert np.array_equal(numbers(fit(BOTH, train), train, "listed"), numbers(fit(BOTH, other), train, "listed"))


def test_rates_do_not_depend_on_how_train_is_cut(monkeypatch):
    whole = fit(BOTH, log(6))
    monkeypatch.setattr("funnelrank.data.fit_rates.BLOCK", 7)
    assert fit(BOTH, log(6)).hash() == whole.hash()


def test_saved_rates_encode_alike_and_damaged_ones_are_refused(tmp_path):
    encoder = fit(BOTH, log(7))
    encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    assert loaded.hash() == encoder.hash()
    assert all(np.array_equal(numbers(loaded, log(8), n), numbers(encoder, log(8), n)) for n in BOTH)
    file = next((tmp_path / "rates").glob("*labels*"))
    Rates(Lines(np.array([2, 1], np.uint64), np.zeros(2, np.int64), np.zeros(2), np.ones(2)), 1.0).save(file)
    with pytest.raises(DataError, match="its counts are no counts of values in rising order"):
        Encoder.load(tmp_path)


def test_rates_go_on_counting_where_a_run_goes_on():
    from funnelrank.data.grow import carried_over
    train = log(9).sort_by("time")
    early, late = train.slice(0, 40), train.slice(40)
    old = fit(BOTH, early)
    grown = fit(BOTH, late, old=carried_over(old, old.schema, []))
    assert np.array_equal(numbers(grown, log(10), "labels"), numbers(fit(BOTH, train), log(10), "labels"))


def test_times_are_counted_by_days_unless_said_and_numbers_must_say():
    train = log(11)
    hours = pa.array(np.asarray(train["time"]) * 3600 * 10**6, pa.timestamp("us"))
    stamped = train.set_column(1, "time", hours)
    day = numbers(fit({"r": rate("item", task="click")}, stamped), stamped, "r")
    assert np.array_equal(day, numbers(fit({"r": rate("item", task="click", period=24)}, train), train, "r"))
    assert np.array_equal(day, numbers(fit({"r": rate("item", task="click", period=86400)}, stamped), stamped, "r"))
    with pytest.raises(DataError, match=r"column 'time' holds numbers; say in features.r.period"):
        fit({"r": rate("item", task="click")}, train)


def test_a_row_without_a_time_or_a_known_value_is_as_the_mean():
    encoder = fit({"r": rate("item", task="click", period=10)}, log(12))
    rows = log(12, rows=2).set_column(1, "time", pa.array([None, 49]))
    rows = rows.set_column(2, "item", pa.array([1, 77]))
    assert numbers(encoder, rows, "r").tolist() == [0, 0]


def test_counts_that_pass_data_memory_are_refused(monkeypatch):
    monkeypatch.setattr("funnelrank.data.rates.BYTES", 10**8)                  # of one value in one period
    fit({"r": rate("item", task="click", period=100)}, log(13))
    with pytest.raises(DataError, match="the counts behind rates pass data.memory"):
        fit({"r": rate("item_x_tab", task="click", period=1)}, log(13))


def test_a_tally_adds_up_what_comes_in_parts():
    draw = np.random.default_rng(0)
    value, period, good = draw.integers(0, 9, 500).astype(np.uint64), draw.integers(0, 4, 500), draw.integers(0, 2, 500)
    whole, parts = Tally(), Tally()
    whole.add(value, period, good)
    for i in range(0, 500, 13):
        parts.add(value[i:i + 13], period[i:i + 13], good[i:i + 13])
        parts.result()
    assert all(np.array_equal(a, b) for a, b in zip(whole.result(), parts.result()))


@pytest.mark.parametrize("feature, data, sentence", [
    (rate("item"), {}, "a rate is counted in lists, with `among` and `within`, or in labels, with `task`"),
    (rate("item", task="click", among="shown", within="liked"), {}, "a rate is counted in lists"),
    (rate("item", task="clik", period=1), {}, r"features.r.task: no task 'clik'.*did you mean 'click'"),
    (rate("item", task="click", period=1), {"time": None}, r"features.r: labels are counted over earlier periods; set"),
    (rate("item", among="shown", within="liked"), {"user": None}, r"features.r: lists are counted at each user's"),
    (rate("tab", among="shown", within="liked"), {}, r"features.r: 'tab' is of space 'tab' and 'shown' of 'item'"),
    (rate("shown", task="click", period=1), {}, r"features.r.of: 'shown' is of kind sequence; it must be an id, a bag"),
])
def test_rates_that_cannot_be_are_refused_with_their_place(feature, data, sentence):
    with pytest.raises((ConfigError, ValueError), match=sentence):
        schema_of({"r": feature}, **data)
