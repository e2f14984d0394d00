import itertools
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from funnelrank.data.labels import Contradiction, apply_policy, contradictions, read_labels
from funnelrank.errors import DataError
from funnelrank.schema import Schema, TaskColumn

NAN = float("nan")


def a_schema(*tasks: tuple) -> Schema:
    """Tasks as (name, kind, after); the label of `buy` is the column `is_buy`."""
    return Schema(features={}, spaces={}, tables={}, reading="joint", tasks=tuple(
        TaskColumn(name=name, label=f"is_{name}", kind=kind, after=after, weight=1.0)
        for name, kind, after in tasks))


CHAIN = a_schema(("click", "binary", None), ("cart", "binary", "click"), ("buy", "binary", "cart"))
TREE = a_schema(("click", "binary", None), ("view", "binary", "click"), ("like", "binary", "click"))
MIXED = a_schema(("click", "binary", None), ("spend", "regression", "click"), ("items", "count", "click"))


def rows(*values) -> np.ndarray:
    return np.array(values, np.float32)


def every_row(tasks: int) -> np.ndarray:
    return rows(*itertools.product([0, 1, NAN], repeat=tasks))


@pytest.mark.parametrize("column", [
    pa.array([0, 1, None], pa.int8()), pa.array([0, 1, None], pa.uint64()), pa.array([False, True, None]),
    pa.array([0.0, 1.0, None]), pa.array([0.0, 1.0, NAN]), pa.array([0, 1, None], pa.float16()),
    pa.array([Decimal(0), Decimal(1), None]), pa.array([0, 1, None]).dictionary_encode()],
    ids=lambda column: str(column.type))
def test_binary_labels_of_every_number_type_read_the_same(column):
    labels = read_labels(pa.table({"is_click": column}), a_schema(("click", "binary", None)), "a.parquet")
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, [[0], [1], [NAN]])


def test_chunks_nulls_and_no_rows():
    click = a_schema(("click", "binary", None))
    chunked = pa.table({"is_click": pa.chunked_array([[1, None], [], [0]], pa.int64())})
    np.testing.assert_array_equal(read_labels(chunked, click, "a"), [[1], [NAN], [0]])
    unseen = pa.table({"is_click": pa.nulls(2)})
    np.testing.assert_array_equal(read_labels(unseen, click, "a"), [[NAN], [NAN]])
    assert read_labels(chunked.slice(0, 0), click, "a").shape == (0, 1)


@pytest.mark.parametrize("column, said", [
    (pa.array([0, 1, 2, 2]), "is 2 on 2 rows (first: row 2 of it, from 0); a binary label is 0, 1 or null"),
    (pa.array([0, -1]), "is -1 on 1 row (first: row 1 of it, from 0)"),
    (pa.array([0.9999999, 1.0]), "is 0.9999999 on 1 row"),
    (pa.array([1.0, float("inf")]), "is inf on 1 row"),
    (pa.array([2**63], pa.uint64()), "is 9.223372036854776e+18 on 1 row"),
    (pa.array(["0", "1"]), "is of type string; a binary label is 0, 1 or null"),
    (pa.array(["0", "1"]).dictionary_encode(), "is of type string"),
    (pa.array([[0], [1]]), "is of type list<"),
    (pa.array([0, 1], pa.timestamp("s")), "is of type timestamp[s]")])
def test_what_is_no_binary_label_is_named(column, said):
    with pytest.raises(DataError) as fault:
        read_labels(pa.table({"is_click": column}), a_schema(("click", "binary", None)), "a.parquet, group 3")
    assert str(fault.value).startswith(f"a.parquet, group 3: label 'is_click' {said}")


def test_regressions_and_counts_take_their_own_values():
    table = pa.table({"is_click": [1, 1, 0], "is_spend": [-2.5, None, 1e30], "is_items": [0, 3, None]})
    np.testing.assert_allclose(read_labels(table, MIXED, "a"), [[1, -2.5, 0], [1, NAN, 3], [0, 1e30, NAN]])
    bad = pa.table({"is_click": [1], "is_spend": [1e39], "is_items": [-1]})
    with pytest.raises(DataError) as fault:
        read_labels(bad, MIXED, "a")
    assert fault.value.messages == (
        "a: label 'is_spend' is 1e+39 on 1 row (first: row 0 of it, from 0); a regression label is a finite "
        "number or null",
        "a: label 'is_items' is -1 on 1 row (first: row 0 of it, from 0); a count label is a finite number, 0 "
        "or more, or null")


def test_a_missing_label_is_named_with_the_nearest_column():
    said = r"a: no column 'is_click', the label of task 'click' \(did you mean 'is_clik'\?\)"
    with pytest.raises(DataError, match=said):
        read_labels(pa.table({"is_clik": [1]}), a_schema(("click", "binary", None)), "a")


def test_contradictions_are_counted_edge_by_edge():
    labels = rows([0, 0, 0], [0, 1, 0], [1, 0, 1], [0, NAN, 1], [NAN, NAN, 1], [1, 1, 1], [0, 1, 1])
    assert contradictions(labels, CHAIN) == [
        Contradiction("cart", "click", 2, 3, 1), Contradiction("buy", "cart", 1, 5, 2),
        Contradiction("buy", "click", 1, 5, 3)]
    assert contradictions(labels[:1], CHAIN) == [
        Contradiction("cart", "click", 0, 0, None), Contradiction("buy", "cart", 0, 0, None)]


def test_a_row_contradicts_exactly_where_a_one_stands_behind_a_zero():
    """The plain definition, for every row there is: going down the chain, observed labels never rise."""
    for row in every_row(3):
        observed = row[~np.isnan(row)]
        rises = bool((np.diff(observed) > 0).any())
        assert any(edge.rows for edge in contradictions(row[None], CHAIN)) == rises


def test_raise_names_the_place_the_count_and_the_first_row():
    labels = rows([1, 1, 0], [0, 0, 1], [0, 1, 1])
    with pytest.raises(DataError) as fault:
        apply_policy(labels, TREE, "raise", False, "part-0007.parquet, row group 3", start=40310)
    assert fault.value.messages == (
        "part-0007.parquet, row group 3: label 'is_view' is 1 on 1 row where 'is_click' is 0 (first: row 40312 "
        "of the file, from 0); 'view' comes after 'click'; set data.contradictions to keep, drop or repair",
        "part-0007.parquet, row group 3: label 'is_like' is 1 on 2 rows where 'is_click' is 0 (first: row "
        "40311 of the file, from 0); 'like' comes after 'click'; set data.contradictions to keep, drop or repair")


@pytest.mark.parametrize("policy", ["raise", "keep", "drop", "repair"])
def test_labels_without_contradiction_pass_every_policy(policy):
    labels = rows([1, 1, 0], [0, 0, NAN], [NAN, NAN, 1])
    out, keep, report = apply_policy(labels, CHAIN, policy, False, "a")
    np.testing.assert_array_equal(out, labels)
    assert keep.all() and report["dropped"] == report["repaired"] == 0


def test_keep_drop_and_repair():
    labels = rows([0, 0, 1], [1, 1, 1], [0, NAN, 1], [NAN, 0, 1])
    before = labels.copy()
    out, keep, report = apply_policy(labels, CHAIN, "keep", False, "a")
    np.testing.assert_array_equal(out, labels)
    assert keep.all()
    assert report["edges"][1] == {"child": "buy", "parent": "cart", "rows": 2, "positives": 4,
                                  "first": "a, row 0 of it, from 0"}
    out, keep, report = apply_policy(labels, CHAIN, "drop", False, "a")
    assert keep.tolist() == [False, True, False, False] and report["dropped"] == 3
    out, keep, report = apply_policy(labels, CHAIN, "repair", False, "a")
    np.testing.assert_array_equal(out, [[1, 1, 1], [1, 1, 1], [1, NAN, 1], [NAN, 1, 1]])
    assert keep.all() and report["repaired"] == 3
    np.testing.assert_array_equal(labels, before)     # the caller's array is not changed


def test_repair_leaves_no_contradiction_and_changes_only_zeros():
    for schema in (CHAIN, TREE):
        labels = every_row(3)
        out, _, _ = apply_policy(labels, schema, "repair", False, "a")
        assert not any(edge.rows for edge in contradictions(out, schema))
        changed = ~((out == labels) | np.isnan(out) & np.isnan(labels))
        assert (labels[changed] == 0).all() and (out[changed] == 1).all()


def test_fill_implied_fills_what_the_funnel_says():
    labels = rows([NAN, NAN, 1], [0, NAN, NAN], [1, NAN, NAN], [NAN, 1, NAN], [NAN, 0, NAN], [0, NAN, 1])
    out, _, report = apply_policy(labels, CHAIN, "keep", True, "a")
    np.testing.assert_array_equal(
        out, [[1, 1, 1], [0, 0, 0], [1, NAN, NAN], [1, 1, NAN], [NAN, 0, 0], [0, NAN, 1]])
    assert report["filled"] == {"click": 2, "cart": 2, "buy": 2}
    out, _, _ = apply_policy(labels[-1:], CHAIN, "repair", True, "a")
    np.testing.assert_array_equal(out, [[1, 1, 1]])
    out, _, _ = apply_policy(rows([NAN, 1, NAN], [0, NAN, NAN]), TREE, "raise", True, "a")
    np.testing.assert_array_equal(out, [[1, 1, NAN], [0, 0, 0]])    # a sibling's 1 says nothing of the other


def test_fill_implied_never_changes_an_observed_label_and_is_done_in_one_go():
    labels = every_row(3)
    for schema in (CHAIN, TREE):
        out, _, _ = apply_policy(labels, schema, "keep", True, "a")
        seen = ~np.isnan(labels)
        np.testing.assert_array_equal(out[seen], labels[seen])
        again, _, _ = apply_policy(out, schema, "keep", True, "a")
        clean = [not any(edge.rows for edge in contradictions(row[None], schema)) for row in labels]
        np.testing.assert_array_equal(again[clean], out[clean])


def test_tasks_that_are_not_binary_take_no_part():
    labels = rows([0, 5, 2], [NAN, 1, 1], [0, NAN, NAN])
    assert contradictions(labels, MIXED) == []
    out, keep, _ = apply_policy(labels, MIXED, "raise", True, "a")
    np.testing.assert_array_equal(out, labels)
    assert keep.all()
