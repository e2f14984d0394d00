"""Protobuf's text format without its library: a tree of fields with the line of each, or the line that is wrong.

    feature_config { features { input_names: "brand"  hash_bucket_size: 1000 } }

Reads what the format allows, whatever the fields mean: `key: value`, `key { ... }`, `key: { ... }`, `key < ... >`,
lists in brackets, `#` comments, both quotes with their escapes, texts that stand side by side, numbers in every base,
enums and true or false as bare words, `,` and `;` between fields, `[names.with.dots]`. Nesting and size are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from funnelrank.errors import ConfigError

DEEPEST = 100             # messages inside messages, as protobuf's own readers have it
MOST = 200_000            # fields and values in one file


class Word(str):
    """A bare word: an enum's name, true, false."""


@dataclass
class Field:
    name: str
    value: Message | str | int | float
    line: int


@dataclass
class Message:
    line: int
    fields: list[Field] = field(default_factory=list)


TOKEN = re.compile(r"""
    (?P<space>  (?:[ \t\r\n\f\v\ufeff]|\#[^\n]*)+ )
  | (?P<text>   "(?:[^"\\\n]|\\[^\n])*" | '(?:[^'\\\n]|\\[^\n])*' )
  | (?P<number> \.?[0-9](?:[eE][+-]?[0-9]|[0-9A-Za-z_.])* )
  | (?P<word>   [A-Za-z_][A-Za-z0-9_]* )
  | (?P<mark>   [{}<>\[\]:,;\-./] )
""", re.VERBOSE)
NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,300}|0[0-7]{0,400}|[1-9][0-9]{0,400}")
FLOAT = re.compile(r"(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,9})?[fF]?")
ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
PLAIN = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v", b"\\": b"\\",
         b"'": b"'", b'"': b'"', b"?": b"?"}
CLOSING = {"{": "}", "<": ">"}


def read(text: str, name: str) -> Message:
    """The file's fields as one message; `name` stands for the file. Raises ConfigError with the line that is wrong."""
    return _Reader(text, name).file()


class _Reader:
    def __init__(self, text: str, name: str):
        self.name, self.tokens, self.count, self.line = name, self._tokens(text), 0, 1
        self._next()

    def _tokens(self, text: str) -> Iterator[tuple[str, str, int]]:
        at, line = 0, 1
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                self.line = line
                what = text[at]
                if what in "\"'":
                    self._wrong("a text begins here and is not closed on its line")
                self._wrong(f"found {what!r}, which has no meaning here")
            if found.lastgroup != "space":
                yield found.lastgroup, found[0], line
            line += found[0].count("\n")
            at = found.end()
        yield "end", "", line

    def _next(self) -> None:
        self.kind, self.text, self.line = next(self.tokens)

    def _wrong(self, what: str) -> NoReturn:
        raise ConfigError(f"{self.name}:{self.line}: not protobuf text: {what}")

    def _found(self) -> str:
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        return "the end of the file" if self.kind == "end" else f"found {shown!r}"

    def _take(self, mark: str) -> bool:
        if self.kind == "mark" and self.text == mark:
            self._next()
            return True
        return False

    def file(self) -> Message:
        return self._message(Message(1), "", 0)

    def _message(self, message: Message, closing: str, depth: int) -> Message:
        """Fields up to `closing`, which is taken, or up to the file's end."""
        while not (closing and self._take(closing)):
            if self.kind == "end":
                if closing:
                    self._wrong(f"the file ends before the '{closing}' that closes what line {message.line} opens")
                break
            name, line = self._name(), self.line
            colon = self._take(":")
            if self._opens():
                self._inner(message, name, depth)
            elif not colon:
                self._wrong(f"{self._found()} after '{name}'; a field is 'key: value' or 'key {{ ... }}'")
            elif self._take("["):
                self._list(message, name, depth)
            else:
                self._add(message, Field(name, self._scalar(), line))
            if self.kind == "mark" and self.text in ",;":
                self._next()
        return message

    def _opens(self) -> bool:
        return self.kind == "mark" and self.text in CLOSING

    def _inner(self, message: Message, name: str, depth: int) -> None:
        if depth == DEEPEST:
            self._wrong(f"messages are nested more than {DEEPEST} deep; a config is flatter")
        inner, closing = Message(self.line), CLOSING[self.text]
        self._add(message, Field(name, inner, self.line))
        self._next()
        self._message(inner, closing, depth + 1)

    def _list(self, message: Message, name: str, depth: int) -> None:
        while not self._take("]"):
            if self._opens():
                self._inner(message, name, depth)
            else:
                line = self.line
                self._add(message, Field(name, self._scalar(), line))
            if not self._take(",") and not (self.kind == "mark" and self.text == "]"):
                self._wrong(f"{self._found()} in the list '{name}'; its entries are separated by ',' and ']' closes it")

    def _add(self, message: Message, field: Field) -> None:
        self.count += 1
        if self.count > MOST:
            self._wrong(f"more than {MOST} fields; a config is shorter")
        message.fields.append(field)

    def _name(self) -> str:
        if self._take("["):                                        # an extension, or a type's address
            pieces = []
            while self.kind == "word" or self.kind == "number" or self.kind == "mark" and self.text in "./-":
                pieces.append(self.text)
                self._next()
            if not pieces or not self._take("]"):
                self._wrong(f"{self._found()} in a name in brackets")
            return f"[{''.join(pieces)}]"
        if self.kind != "word":
            self._wrong(f"{self._found()} where a field's name must stand")
        name = self.text
        self._next()
        return name

    def _scalar(self) -> str | int | float:
        if self.kind == "text":
            parts = []
            while self.kind == "text":
                parts.append(self._unescaped(self.text[1:-1]))
                self._next()
            return b"".join(parts).decode("utf-8", "backslashreplace")
        minus = self._take("-")
        kind, text = self.kind, self.text
        if kind == "word" and (not minus or text.lower() in ("inf", "infinity", "nan")):
            self._next()
            if text.lower() in ("inf", "infinity", "nan"):
                return float(f"{'-' if minus else ''}{text}")
            return Word(text)
        if kind != "number":
            self._wrong(f"{self._found()} where a value must stand")
        if NUMBER.fullmatch(text):
            octal = len(text) > 1 and text[0] == "0" and text[1] not in "xX"
            value: int | float = int(text, 8) if octal else int(text, 0)
        elif FLOAT.fullmatch(text) and not text.isdigit():        # 09 is no octal
            value = float(text.rstrip("fF"))
        else:
            self._wrong(f"found '{text[:40]}', which is no number")
        self._next()
        return -value if minus else value

    def _unescaped(self, text: str) -> bytes:
        def plain(found: re.Match[bytes]) -> bytes:
            octal, hexadecimal, short, long, other = found.groups()
            if octal or hexadecimal:
                return bytes([int(octal or hexadecimal, 8 if octal else 16) & 255])
            if short or long:
                code = int(short or long, 16)
                if code > 0x10FFFF:
                    self._wrong(f"the escape \\U{long.decode()} stands for no character")
                return chr(code).encode("utf-8", "surrogatepass")
            if other not in PLAIN:
                self._wrong(f"the escape '\\{other.decode('utf-8', 'replace')}' has no meaning in a text")
            return PLAIN[other]
        return ESCAPE.sub(plain, text.encode("utf-8", "surrogatepass"))

