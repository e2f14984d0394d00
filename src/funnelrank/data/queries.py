"""What is asked about train, as Ibis expressions: the same for every engine, and none of them reads anything by itself.

A stream is a table of one column `value`, without nulls: the ids of a column of the log, or of the lists in it. Texts
and lists are cut as parse.py cuts them.

    counted       stream -> value, count
    frequent      counted -> the values of a vocabulary, the most frequent first, ties by value
    summary       one row: of each column of numbers how many are known, their mean, deviation, least and most
    heaviest      the most frequent numbers, and the next larger one of each
    cuts          the values at which sorted numbers pass from one bucket to the next, and few others
    approximate   the same by the engine's own sketch, which is another on each engine; `following` belongs to it
    by_period     of each value in each period, how many rows, and how many of them with label 1
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import ibis
import pyarrow as pa

# what parse.py trims off pieces of texts: white space as Unicode says, spelt out for two dialects of patterns
WHITE = ("\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
         "\u200a\u2028\u2029\u202f\u205f\u3000")
TYPE = {"int": "int64", "string": "string"}
EXACT = float(2**53)
LARGEST = sys.float_info.max
SERIES = 0.01             # below this log(1 + x) is a series of it: the sum 1 + x would lose digits of x


def train(kinds: pa.Schema, raw: pa.Schema) -> Any:
    """The log as a table: columns of `raw` types, read as the types that Source.read gives."""
    held = {c: kind for c, kind in zip(raw.names, map(named, raw.types)) if kind}
    table = ibis.table(held, name="train")
    return table.select(**{c: table[c].cast(named(kinds.field(c).type)) for c in held})


def here(table: pa.Table, name: str) -> Any:
    """Rows that an engine was given under a name."""
    return ibis.table({c: named(kind) for c, kind in zip(table.column_names, table.schema.types)}, name=name)


def named(kind: pa.DataType) -> str | None:
    """What Ibis calls a type; None for those that no expression here is about."""
    t = pa.types
    if t.is_dictionary(kind):
        return named(kind.value_type)
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        inner = named(kind.value_type)
        return inner and f"array<{inner}>"
    if t.is_decimal(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    if t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return "string"
    if t.is_integer(kind):
        return str(kind)
    return {pa.bool_(): "boolean", pa.float32(): "float32", pa.float64(): "float64"}.get(kind)


def elements(table: Any, column: str, separator: str | None) -> Any:
    """A column of lists, or of texts that `separator` cuts: lists without what is no element."""
    if separator is None:
        return table[column].filter(lambda v: v.notnull())
    ends = f"^[{WHITE}]+|[{WHITE}]+$"
    # as a pattern, since Spark takes it for one anyway
    return table[column].re_split(re.escape(separator)).map(lambda v: v.re_replace(ends, "")).filter(lambda v: v != "")


def latest(lists: Any, most: int | None, end: str) -> Any:
    """The latest `most` elements of each list, whose `end` is the latest."""
    if most is None:
        return lists
    start = ibis.greatest(lists.length() - most, 0)
    return lists[start:] if end == "last" else lists[:most]


def stream(table: Any, values: Any, family: str, **others: Any) -> Any:
    """A stream of a column's values; `others` are columns that stand beside it."""
    table = table.select(value=values, **others)
    return table.filter(table.value.notnull()).mutate(value=lambda t: t.value.cast(TYPE[family]))


def counted(streams: list[Any]) -> Any:
    """How often each value stands in several streams together."""
    parts = [s.group_by("value").agg(count=s.count()) for s in streams]
    return summed(parts[0] if len(parts) == 1 else ibis.union(*parts))


def summed(counts: Any) -> Any:
    return counts.group_by("value").agg(count=counts["count"].sum())


def frequent(counts: Any, min_count: int, max_size: int | None, known: Any | None = None) -> Any:
    """Values that stand min_count times or more, or that are `known`: the first max_size of them in order."""
    wanted = counts["count"] >= min_count
    if known is not None:
        there = known.mutate(here=True).rename(kept="value")
        counts = counts.left_join(there, counts["value"] == there["kept"])
        wanted = (counts["count"] >= min_count) | counts["here"].notnull()
    wanted = counts.filter(wanted).select("value", "count")
    return wanted.order_by([ibis.desc("count"), "value"]).limit(max_size)


def summary(table: Any, columns: dict[str, Any], logged: set[str]) -> Any:
    """One row: rows, and for each number n0, n1, ... the count of known ones, their mean and deviation, low and high.

    Mean and deviation are of sign(x) log(1 + |x|) where a number is `logged`; low and high of the numbers themselves.
    """
    asked = {"rows": table.count()}
    for i, (name, values) in enumerate(columns.items()):
        x = _known(values)
        y = _logged(x) if name in logged else x
        asked |= {f"count{i}": x.count(), f"mean{i}": y.mean(), f"deviation{i}": y.std(how="pop"),
                  f"low{i}": x.min(), f"high{i}": x.max()}
    return table.agg(**asked)


def heaviest(table: Any, values: Any, buckets: int) -> Any:
    """The most frequent numbers, at most `buckets` of them: value, count and the next larger one (`following`)."""
    counts = counted([_numbers(table, values)])
    counts = counts.mutate(following=counts.value.lead().over(order_by=counts.value))
    return counts.order_by([ibis.desc("count"), "value"]).limit(buckets)


def cuts(table: Any, values: Any, buckets: int, known: int, without: Sequence[float] = ()) -> Any:
    """Distinct values and how many of the `known` numbers are not above them (`upto`), of those at a bucket's end.

    Bucket k of B begins at rank ceil(k (n - 1) / B), from 0. A value is kept where one of these may fall on it; two
    ranks of room are left for how a quotient is rounded. Numbers of `without` are left out, of `known` too.
    """
    counts = counted([_numbers(table, values, without)])
    counts = counts.mutate(upto=counts["count"].cumsum(order_by=counts.value))
    step = max(known - 1, 1)
    bucket = lambda rank: (rank.cast("float64") * buckets / step).floor()
    ends = bucket(counts.upto + 2) > bucket(counts.upto - counts["count"] - 2)
    return counts.filter(ends).select("value", "upto")


def approximate(table: Any, values: Any, buckets: int, without: Sequence[float] = ()) -> Any:
    """One row: approximate quantiles k / buckets of all numbers but some, as a list."""
    table = _numbers(table, values, without)
    return table.agg(cuts=table.value.approx_quantile([k / buckets for k in range(1, buckets)]))


def following(table: Any, values: Any, each: Sequence[float]) -> Any:
    """One row: f0, f1, ... the smallest number above each."""
    table = _numbers(table, values)
    return table.agg(**{f"f{i}": table.value.min(where=table.value > value) for i, value in enumerate(each)})


def _numbers(table: Any, values: Any, without: Sequence[float] = ()) -> Any:
    """A stream of those that are known."""
    table = table.select(value=_known(values))
    wanted = table.value.notnull()
    return table.filter(wanted & table.value.notin(list(without)) if len(without) else wanted)


def by_period(stream: Any, keys: list[str]) -> Any:
    """Of a stream with the columns `label` and `time`: good and seen of each of `keys` in each period."""
    return stream.group_by([*keys, "period"]).agg(
        good=(stream.label == 1).cast("int64").sum(), seen=stream.count())


def period(times: Any, length: int) -> Any:
    """floor(time / length) of whole numbers, exact wherever it is exact as a double."""
    within = ((times % length) + length) % length
    return ((times - within) / length).round().cast("int64")


def not_whole(values: Any) -> Any:
    """1 where a float is no id: a fraction, an infinity, or beyond 2^53; 0 elsewhere, NaN and null included."""
    inside = ibis.ifelse(values.abs() <= EXACT, values, 0.0)           # floor() is of what fits an int64
    return (~values.isnan() & ((inside.floor() != inside) | (values.abs() > EXACT))).fill_null(False).cast("int64")


def whole(values: Any) -> Any:
    """Floats that are whole numbers as such; null where NaN."""
    return ibis.ifelse(values.isnan(), ibis.null("float64"), values).cast("int64")


def labelled(labels: Any) -> Any:
    """A column of labels as numbers, null where not observed."""
    return _known(labels)


def _known(values: Any) -> Any:
    """Numbers as doubles, null where they are missing or not finite: engines have NaN above every number."""
    if not values.type().is_floating():
        return values.cast("float64")
    return ibis.ifelse(values.abs() <= LARGEST, values, ibis.null("float64"))


def _logged(x: Any) -> Any:
    """sign(x) log(1 + |x|); for small |x| by 2 atanh(z), z = |x| / (2 + |x|)."""
    a = x.abs()
    z = a / (a + 2.0)
    small = z * 2.0 * (1.0 + z * z * (1 / 3 + z * z * (1 / 5 + z * z * (1 / 7 + z * z / 9))))
    size = ibis.ifelse(a < SERIES, small, (a + 1.0).ln())
    return ibis.ifelse(x < 0, -size, size)
