"""What expressions (expression.py) compute of numbers, for all rows at once.

A number that is missing is NaN, and so is what is computed from it; but `missing` says which are, `coalesce` takes the
first that is not, and `if` needs only the branch that it takes. What has no finite value is missing, too: 1 / 0,
log(0), 0 / 0, (-2) ^ 0.5. Comparisons, `and`, `or` and `not` give 1 and 0; any number but 0 counts as true.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from funnelrank.expression import Name, parse

Numbers = np.ndarray
PLAIN: dict[str, Callable[..., Numbers]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "%": np.mod, "^": np.power, "pow": np.power,
    "negative": np.negative, "abs": np.abs, "sign": np.sign, "sqrt": np.sqrt, "exp": np.exp, "log": np.log,
    "log1p": np.log1p, "log2": np.log2, "log10": np.log10, "floor": np.floor, "ceil": np.ceil, "round": np.rint,
    "tanh": np.tanh, "sin": np.sin, "cos": np.cos, "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "min": lambda *x: np.minimum.reduce(x), "max": lambda *x: np.maximum.reduce(x), "sum": lambda *x: np.add.reduce(x),
    "mean": lambda *x: np.add.reduce(x) / len(x)}
TRUTHS: dict[str, Callable[..., Numbers]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not}


def evaluate(text: str, number: Callable[[str], Numbers], rows: int) -> Numbers:
    """An expression for so many rows [rows] float64; `number` gives a name's, NaN where missing."""
    stack: list[Numbers] = []
    with np.errstate(all="ignore"):
        for step in parse(text):
            if isinstance(step, float):
                stack.append(np.full(rows, step))
            elif isinstance(step, Name):
                stack.append(number(step.name))
            else:
                arguments = stack[len(stack) - step.arguments:]
                del stack[len(stack) - step.arguments:]
                stack.append(_computed(step.name, arguments))
    return stack.pop()


def _computed(name: str, x: list[Numbers]) -> Numbers:
    match name:
        case "missing":
            return np.isnan(x[0]).astype(np.float64)
        case "coalesce":
            found = x[0]
            for other in x[1:]:
                found = np.where(np.isnan(found), other, found)
            return found
        case "if":
            return np.where(np.isnan(x[0]), np.nan, np.where(x[0] != 0, x[1], x[2]))
    if name in TRUTHS:
        return np.where(np.logical_or.reduce([np.isnan(a) for a in x]), np.nan, TRUTHS[name](*x))
    found = PLAIN[name](*x)
    # a function of a missing number may have a value (1 ^ NaN), which would tell nothing of the row
    return np.where(np.isfinite(found) & ~np.logical_or.reduce([np.isnan(a) for a in x]), found, np.nan)
