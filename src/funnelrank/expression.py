"""Expressions over numbers of a row, as `log1p(price) / max(age, 1)`: a closed set of operators, read by a parser.

    c ? a : b    or ||    and &&    not !    < <= > >= == !=    + -    * / %    - +    ^ **        loosest first
    functions, see FUNCTIONS; names of columns or numbers, in backticks where they are not plain

`parse` gives a program for a stack: numbers and names are pushed, an operation takes its arguments off and pushes its
result. Nothing of a config is ever evaluated as code; data/expressions.py says what each operation computes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from funnelrank.errors import did_you_mean, listing

# name: fewest and most arguments
FUNCTIONS = {
    **dict.fromkeys(("abs", "sign", "sqrt", "exp", "log", "log1p", "log2", "log10", "floor", "ceil", "round", "sigmoid",
                     "tanh", "sin", "cos", "missing"), (1, 1)),
    "pow": (2, 2), "if": (3, 3), "clip": (3, 3), "coalesce": (2, 99), "min": (1, 99), "max": (1, 99), "sum": (1, 99),
    "mean": (1, 99)}
ALIASES = {"ln": "log", "rint": "round", "avg": "mean", "||": "or", "|": "or", "&&": "and", "&": "and", "!": "not",
           "**": "^", "=": "=="}
LOOSEST_FIRST = (("or",), ("and",), ("<", "<=", ">", ">=", "==", "!="), ("+", "-"), ("*", "/", "%"))
COMPARISONS = LOOSEST_FIRST[2]
TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|`(?P<quoted>[^`]+)`|"
                   r"(?P<sign>\*\*|<=|>=|==|!=|&&|\|\||[-+*/%^<>=!&|(),?:]))")
MOST = 10_000        # characters
DEEPEST = 50         # parts inside parts


class Name(NamedTuple):
    """A column, or a number of the config."""

    name: str


class Operation(NamedTuple):
    name: str            # an operator, or a function
    arguments: int


Step = float | Name | Operation


@lru_cache(maxsize=1024)
def parse(text: str) -> tuple[Step, ...]:
    """The program of an expression. Raises ValueError, naming the character, for a text that is none."""
    if len(text) > MOST:
        raise ValueError(f"an expression has at most {MOST} characters, and this has {len(text)}")
    return _Parser(text).whole()


def names_of(text: str) -> list[str]:
    """Names that an expression reads, each once; none of an empty text, which stands for no expression."""
    return list(dict.fromkeys(step.name for step in parse(text) if isinstance(step, Name))) if text else []


class _Parser:
    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0
        self.tokens: list[tuple[str, str, int]] = []           # kind, text, position
        end = len(text.rstrip())
        while self.at < end:
            found = TOKEN.match(text, self.at)
            if not found:
                at = self.at + len(text[self.at:]) - len(text[self.at:].lstrip())
                raise ValueError(f"character {at + 1}: {text[at]!r} has no meaning in an expression; a name that is "
                                 "not plain stands in backticks")
            word, kind = found[found.lastgroup], found.lastgroup
            if kind == "name" and word in ("and", "or", "not"):
                kind = "sign"
            self.tokens.append((kind, ALIASES.get(word, word) if kind == "sign" else word, found.start(kind) + 1))
            self.at = found.end()
        self.tokens.append(("end", "the end", len(text) + 1))
        self.program: list[Step] = []
        self.at = 0

    def whole(self) -> tuple[Step, ...]:
        self.choice()
        if self.here[0] != "end":
            raise self.fault("an operator")
        if not any(isinstance(step, Name) for step in self.program):
            raise ValueError("an expression reads at least one column")
        return tuple(self.program)

    @property
    def here(self) -> tuple[str, str, int]:
        return self.tokens[self.at]

    def takes(self, *signs: str) -> str | None:
        """The sign that stands here, if it is one of these; the next token is then here."""
        kind, word, _ = self.here
        if kind != "sign" or word not in signs:
            return None
        self.at += 1
        return word

    def needs(self, sign: str) -> None:
        if not self.takes(sign):
            raise self.fault(f"'{sign}'")

    def fault(self, needed: str) -> ValueError:
        kind, word, position = self.here
        return ValueError(f"character {position}: found {word if kind == 'end' else repr(word)}; {needed} is needed")

    def push(self, name: str, arguments: int) -> None:
        self.program.append(Operation(name, arguments))

    def choice(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"character {self.here[2]}: more than {DEEPEST} parts stand inside each other; make a "
                             "number of some of them")
        self.binary(0)
        if self.takes("?"):
            self.choice()
            self.needs(":")
            self.choice()
            self.push("if", 3)
        self.depth -= 1

    def binary(self, level: int) -> None:
        if level == len(LOOSEST_FIRST):
            self.unary()
            return
        operators, many = LOOSEST_FIRST[level], 0
        self.operand(level)
        while operator := self.takes(*operators):
            many += 1
            if many > 1 and operators is COMPARISONS:
                raise ValueError(f"character {self.tokens[self.at - 1][2]}: comparisons stand in a row; join them by "
                                 "'and'")
            self.operand(level)
            self.push(operator, 2)

    def operand(self, level: int) -> None:
        """What stands beside an operator; 'not' binds looser than comparisons do."""
        nots = 0
        while level == 1 and self.takes("not"):
            nots += 1
        self.binary(level + 1)
        for _ in range(nots):
            self.push("not", 1)

    def unary(self) -> None:
        signs = []
        while sign := self.takes("-", "+", "not"):
            signs.append(sign)
        self.power()
        for sign in reversed(signs):
            if sign != "+":
                self.push("negative" if sign == "-" else "not", 1)

    def power(self) -> None:
        self.atom()
        if self.takes("^"):
            self.depth += 1
            if self.depth > DEEPEST:
                raise ValueError(f"character {self.here[2]}: more than {DEEPEST} parts stand inside each other")
            self.unary()
            self.depth -= 1
            self.push("^", 2)

    def atom(self) -> None:
        kind, word, position = self.here
        if kind == "number":
            self.at += 1
            self.program.append(float(word))
        elif kind == "quoted" or kind == "name" and self.tokens[self.at + 1][:2] != ("sign", "("):
            self.at += 1
            self.program.append(Name(word))
        elif kind == "name":
            self.at += 2
            self.call(ALIASES.get(word, word), position)
        elif self.takes("("):
            self.choice()
            self.needs(")")
        else:
            raise self.fault("a number, a name, a function or '('")

    def call(self, name: str, position: int) -> None:
        if name not in FUNCTIONS:
            raise ValueError(f"character {position}: no function '{name}'; there are {listing(sorted(FUNCTIONS), 30)}"
                             + did_you_mean(name, FUNCTIONS))
        self.choice()
        given = 1
        while self.takes(","):
            self.choice()
            given += 1
        self.needs(")")
        least, most = FUNCTIONS[name]
        if not least <= given <= most:
            raise ValueError(f"character {position}: {name} takes {least if least == most else f'at least {least}'} "
                             f"argument{'s' if least > 1 else ''}, and is given {given}")
        self.push(name, given)
