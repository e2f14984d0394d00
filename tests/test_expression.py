"""Expressions over numbers: what their text means, against the same said of one row in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.config import load
from funnelrank.data.expressions import evaluate
from funnelrank.errors import ConfigError
from funnelrank.expression import FUNCTIONS, names_of, parse

# those that every machine computes to the last bit, so that a floor or a comparison of them is the same everywhere
BINARY = ["+", "-", "*", "/", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
UNARY = ["abs", "sign", "sqrt", "floor", "ceil", "round", "missing"]
SMOOTH = ["exp", "log", "log1p", "log2", "log10", "sigmoid", "tanh", "sin", "cos"]
MANY = ["min", "max", "sum", "mean", "coalesce"]
rows_of_three = st.lists(st.fixed_dictionaries({n: st.none() | st.integers(-5, 5).map(float) for n in "abc"}),
                         min_size=1, max_size=4)
leaves = st.tuples(st.just("name"), st.sampled_from("abc")) | st.tuples(st.just("number"), st.integers(0, 9))
trees = st.recursive(leaves, lambda inner: st.one_of(
    st.tuples(st.sampled_from(BINARY), inner, inner), st.tuples(st.sampled_from([*UNARY, "-", "not"]), inner),
    st.tuples(st.sampled_from(MANY), inner, inner, inner), st.tuples(st.just("if"), inner, inner, inner),
    st.tuples(st.just("clip"), inner, inner, inner)), max_leaves=12)


def text(tree):
    name, *inner = tree
    if name in ("name", "number"):
        return str(inner[0])
    parts = [text(t) for t in inner]
    if len(parts) == 2 and (name in BINARY or name == "^"):
        return f"({parts[0]} {name} {parts[1]})"
    return f"({name} {parts[0]})" if name in ("-", "not") else f"{name}({', '.join(parts)})"


def plain(tree, row):
    """The value, None where it is missing."""
    name, *inner = tree
    if name == "name":
        return row[inner[0]]
    if name == "number":
        return float(inner[0])
    x = [plain(t, row) for t in inner]
    match name:
        case "missing":
            return float(x[0] is None)
        case "coalesce":
            return next((v for v in x if v is not None), None)
        case "if":
            return None if x[0] is None else x[1] if x[0] != 0 else x[2]
    if any(v is None for v in x):
        return None
    try:
        found = {
            "+": lambda a, b: a + b, "-": lambda a, b=None: -a if b is None else a - b, "*": lambda a, b: a * b,
            "/": lambda a, b: a / b, "%": lambda a, b: a % b, "^": lambda a, b: a ** b, "pow": lambda a, b: a ** b,
            "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
            "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "and": lambda a, b: bool(a) and bool(b),
            "or": lambda a, b: bool(a) or bool(b), "not": lambda a: not a, "abs": abs,
            "sign": lambda a: (a > 0) - (a < 0), "sqrt": math.sqrt, "exp": math.exp, "log": math.log,
            "log1p": math.log1p, "log2": math.log2, "log10": math.log10, "floor": math.floor, "ceil": math.ceil,
            "round": round, "sigmoid": lambda a: 1 / (1 + math.exp(-a)) if a > -700 else 0.0, "tanh": math.tanh,
            "sin": math.sin, "cos": math.cos, "clip": lambda a, low, high: min(max(a, low), high),
            "min": min, "max": max, "sum": lambda *v: sum(v), "mean": lambda *v: sum(v) / len(v)}[name](*x)
    except (ZeroDivisionError, OverflowError, ValueError):
        return None
    return float(found) if not isinstance(found, complex) and math.isfinite(found) else None


def values(said, **columns):
    arrays = {n: np.array([np.nan if v is None else v for v in c], np.float64) for n, c in columns.items()}
    found = evaluate(said, arrays.__getitem__, len(next(iter(arrays.values()))))
    return [None if math.isnan(v) else v for v in found.tolist()]


@settings(max_examples=150)
@given(trees, rows_of_three)
def test_an_expression_means_what_it_says_of_each_row(tree, rows):
    assert_as_said(tree, rows)


@settings(max_examples=60)
@given(st.one_of(st.tuples(st.sampled_from(SMOOTH), leaves), st.tuples(st.sampled_from(["^", "pow"]), leaves, leaves)),
       rows_of_three)
def test_smooth_functions_do_too(tree, rows):
    assert_as_said(tree, rows)


def assert_as_said(tree, rows):
    said = text(tree) + " + 0 * missing(a)"                                # so that at least one column is read
    found = values(said, **{n: [r[n] for r in rows] for n in "abc"})
    for row, v in zip(rows, found):
        expected = plain(tree, row)
        assert (v is None) == (expected is None), (said, row)
        if v is not None:
            assert v == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("said, full", [
    ("a + b * c", "a + (b * c)"), ("a - b - c", "(a - b) - c"), ("-a ^ 2", "-(a ^ 2)"), ("2 ^ -a", "2 ^ (-a)"),
    ("a ^ b ^ c", "a ^ (b ^ c)"), ("a < b + 1", "a < (b + 1)"), ("not a < b", "not (a < b)"),
    ("a or b and c", "a or (b and c)"), ("a ? b : c ? 1 : 2", "a ? b : (c ? 1 : 2)"),
    ("a ? b : c", "if(a, b, c)"), ("a && !b || c", "a and not b or c"), ("ln(a) ** 2", "log(a) ^ 2"),
    ("a = b", "a == b"), ("a < b & b < c", "(a < b) and (b < c)")])
def test_operators_bind_as_everywhere(said, full):
    assert parse(said) == parse(full)


def test_what_is_missing_stays_missing_and_what_has_no_value_is_missing():
    assert values("a + b", a=[1, None], b=[2, 2]) == [3, None]
    assert values("1 / a", a=[0, 4]) == [None, 0.25] and values("log(a)", a=[0, 1]) == [None, 0]
    assert values("1 ^ a", a=[None]) == [None] and values("a > 1", a=[None, 2]) == [None, 1]
    assert values("if(missing(a), 7, a)", a=[None, 2]) == [7, 2] == values("coalesce(a, 7)", a=[None, 2])
    assert values("exp(a) - exp(a)", a=[1e4]) == [None]


def test_a_name_of_a_function_without_brackets_is_a_column():
    assert names_of("log + 1") == ["log"]


def test_names_are_columns_and_stand_in_backticks_where_they_are_not_plain():
    assert names_of("`my col` + größe * log(x_1) - x_1") == ["my col", "größe", "x_1"]


@pytest.mark.parametrize("said, message", [
    ("a +", "character 4: found the end; a number, a name, a function or '\\(' is needed"),
    ("(a", "character 3: found the end; '\\)' is needed"), ("a b", "character 3: found 'b'; an operator is needed"),
    ("lgo(a)", "character 1: no function 'lgo'.*did you mean 'log'"), ("a < b < c", "comparisons stand in a row"),
    ("1 + 2", "reads at least one column"), ("", "found the end"), ("a $ b", "character 3: '\\$' has no meaning"),
    ("if(a, b)", "if takes 3 arguments, and is given 2"), ("__import__('os')", "character 12: \"'\" has no meaning"),
    ("(" * 60 + "a" + ")" * 60, "more than 50 parts"), ("^".join("a" * 60), "more than 50 parts"),
    ("a" * 10_001, "at most 10000 characters"), ("a.b", "'.' has no meaning")])
def test_what_is_no_expression_is_said_at_its_character(said, message):
    with pytest.raises(ValueError, match=message):
        parse(said)


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab1.+-*/%^<>=!&|(),?: `elogif"), max_size=30))
def test_any_text_is_parsed_or_refused(said):
    try:
        program = parse(said)
    except ValueError as error:
        assert "character" in str(error) or "expression" in str(error)
        return
    assert evaluate(said, lambda name: np.ones(2), 2).shape == (2,) and program


def test_every_function_is_computed():
    for name, (least, _) in FUNCTIONS.items():
        assert len(values(f"{name}({', '.join('a' * least)})", a=[0.5])) == 1


def test_a_config_says_where_an_expression_is_wrong_and_what_it_may_not_read(tmp_path):
    def told(**features):
        with pytest.raises(ConfigError) as error:
            load({"features": features, "tasks": {"click": {}}})
        return "; ".join(error.value.messages)
    number = lambda said, **more: {"kind": "number", "expression": said, **more}
    assert "features.x.expression: character 4: found the end" in told(x=number("a +"))
    assert "an expression names what it reads; remove column" in told(x=number("a", column="b"))
    assert "features.x: reads column 'click', which is the label" in told(x=number("click + 1"))
    assert "features.x.expression: reads itself (x > y > x)" in told(x=number("y"), y=number("x + 1"))
