"""The reader of protobuf text: what the format allows is read, what it does not names its line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.errors import ConfigError
from funnelrank.imports import prototext
from funnelrank.imports.prototext import DEEPEST, Message, Word, read


def plain(message: Message) -> list:
    return [(f.name, plain(f.value) if isinstance(f.value, Message) else f.value) for f in message.fields]


@pytest.mark.parametrize("text, fields", [
    ("", []),
    ("# nothing but a comment", []),
    ("a: 1 b: -2 c: 0x1F d: 017", [("a", 1), ("b", -2), ("c", 31), ("d", 15)]),
    ("a: 1.5 b: .5 c: 1e-3 d: 2f e: - 3", [("a", 1.5), ("b", 0.5), ("c", 0.001), ("d", 2.0), ("e", -3)]),
    ("a: inf b: -inf", [("a", float("inf")), ("b", -float("inf"))]),
    ("a: DEEP b: true", [("a", Word("DEEP")), ("b", Word("true"))]),
    ("""a: "x" 'y' # joined
     "z" """, [("a", "xyz")]),
    (r"""a: "\n\t\"\'\\\x41\101\u00e9" """, [("a", "\n\t\"'\\AA\u00e9")]),
    (r'a: "\346\226\207"', [("a", "\u6587")]),
    ("a { b: 1 } a: { b: 2 } a < b: 3 >", [("a", [("b", 1)]), ("a", [("b", 2)]), ("a", [("b", 3)])]),
    ("a: [1, 2] b: [] c: [{d: 1}, <d: 2>]", [("a", 1), ("a", 2), ("c", [("d", 1)]), ("c", [("d", 2)])]),
    ("a: 1, b: 2; c { d: 3 }, e: 4", [("a", 1), ("b", 2), ("c", [("d", 3)]), ("e", 4)]),
    ("[some.kind/of-name] { a: 1 }", [("[some.kind/of-name]", [("a", 1)])]),
])
def test_what_the_format_allows_is_read(text, fields):
    assert plain(read(text, "x")) == fields


@pytest.mark.parametrize("text, line, words", [
    ("a: 1\nb", 2, "the end of the file after 'b'"),
    ("a: 1\n\nb: }", 3, "where a value must stand"),
    ("a {\n b: 1\n", 3, "ends before the '}' that closes what line 1 opens"),
    ("a: 1\n}", 2, "where a field's name must stand"),
    ("a: 1\nb: 'x\ny'", 2, "not closed on its line"),
    ("a: [1 2]", 1, "separated by ','"),
    ("\n\na: 09", 3, "is no number"),
    ("a: 1 2", 1, "where a field's name must stand"),
    ("a: \"\\q\"", 1, "no meaning in a text"),
    ("a: $", 1, "no meaning here"),
    ("a{" * (DEEPEST + 2), 1, "nested more than"),
])
def test_what_it_does_not_names_its_line(text, line, words):
    with pytest.raises(ConfigError) as error:
        read(text, "x.config")
    assert str(error.value).startswith(f"x.config:{line}: not protobuf text: ") and words in str(error.value)


def test_a_file_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(prototext, "MOST", 100)
    with pytest.raises(ConfigError, match=r"x:2: .* more than 100 fields; a config is shorter"):
        read("\na: [" + "1, " * 101 + "1]", "x")


def test_fields_know_their_lines():
    message = read("# one\na: 1\nb {\n  c: 'x'\n     'y'\n  d: [1,\n 2]\n}", "x")
    a, b = message.fields
    assert (a.line, b.line) == (2, 3) and [f.line for f in b.value.fields] == [4, 6, 7]


values = st.recursive(
    st.one_of(st.integers(-10**9, 10**9), st.floats(allow_nan=False), st.text(max_size=20),
              st.sampled_from(["DEEP", "true"]).map(Word)),
    lambda inner: st.lists(st.tuples(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), inner), max_size=4),
    max_leaves=20)


def written(value) -> str:
    if isinstance(value, list):
        return "{ " + " ".join(f"{name}: {written(inner)}" for name, inner in value) + " }"
    if isinstance(value, str) and not isinstance(value, Word):
        return '"' + "".join(f"\\{b:03o}" for b in value.encode()) + '"'
    return str(value) if isinstance(value, Word) else repr(value)


@given(st.lists(st.tuples(st.just("field"), values), max_size=5))
@settings(max_examples=30, deadline=None)
def test_whatever_is_written_is_read_back(fields):
    assert plain(read("\n".join(f"{name}: {written(value)}" for name, value in fields), "x")) == fields


PIECES = st.sampled_from(["a", "b_1", ":", "{", "}", "<", ">", "[", "]", ",", ";", "-", "1", "0x", "1.5e", "'t'", '"',
                          "'", "\\", "#", "\n", " ", "true", "\x00", "\u6587", ".", "/"])


@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_text_ends_in_anything_but_fields_or_a_sentence_with_a_line(text):
    try:
        read(text, "x")
    except ConfigError as error:
        assert str(error).split(":")[0] == "x" and 1 <= int(str(error).split(":")[1]) <= text.count("\n") + 1
