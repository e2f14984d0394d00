import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.data.tables import KeyIndex
from funnelrank.data.vocab import (
    Counts,
    Vocab,
    digest_values,
    hash_values,
    splitmix64,
    to_family,
)
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import Space

TYPE = {"int": pa.int64(), "string": pa.large_string()}
VALUES = {"int": st.integers(-2**63, 2**63 - 1) | st.integers(-5, 5), "string": st.text(max_size=6)}


def column(family, values):
    return pa.array(values, TYPE[family])


def space(made="fitted", **rest):
    return Space(name="item", made=made, **rest)


def fit(family, parts, **rest):
    counts = Counts(family)
    for part in parts:
        counts.add(column(family, part))
    return Vocab.fit(space(**rest), family, *counts.total())


@pytest.mark.parametrize("family", ["int", "string"])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_vocabulary_is_by_count_then_value_whatever_the_chunks(family, data):
    values = data.draw(st.lists(VALUES[family] | st.none(), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    least, most = data.draw(st.integers(1, 3)), data.draw(st.none() | st.integers(1, 5))
    counted = Counter(v for v in values if v is not None)
    order = (lambda v: v.encode()) if family == "string" else (lambda v: v)
    expected = sorted((v for v in counted if counted[v] >= least), key=lambda v: (-counted[v], order(v)))[:most]
    parts = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)])]
    vocab = fit(family, parts, min_count=least, max_size=most)
    assert vocab.values() == expected
    assert vocab.size == 2 + len(expected)
    known = {v: i + 2 for i, v in enumerate(expected)}
    ids = vocab.ids(column(family, values))
    assert ids.dtype == np.int32
    assert ids.tolist() == [0 if v is None else known.get(v, 1) for v in values]


def test_counts_merge_before_they_grow(monkeypatch):
    monkeypatch.setattr("funnelrank.data.vocab.PENDING", 3)
    counts = Counts("int")
    for part in range(50):
        counts.add(column("int", [part % 4, part % 3, None]))
    assert len(counts._parts) <= 4
    values, times = counts.total()
    assert dict(zip(values.to_pylist(), times)) == Counter(x for p in range(50) for x in (p % 4, p % 3))


def test_counts_take_how_often_each_value_stands():
    counts = Counts("string")
    counts.add(column("string", ["a", "b", None, "c"]), np.array([2, 0, 5, 1]))
    counts.add(column("string", ["a"]))
    values, times = counts.total()
    assert dict(zip(values.to_pylist(), times)) == {"a": 3, "c": 1}


@pytest.mark.parametrize("vocab, values", [
    (fit("int", [[7, 7, -2**63, 2**63 - 1]], min_count=1), [7, None, 8, -2**63, 2**63 - 1]),
    (fit("string", [["é", "", "b"]], min_count=1), ["é", "", "x", None]),
    (Vocab(space("hash", size=13), "string"), ["a", "b", None]),
    (Vocab(space("range", size=3), "int"), [0, 2, 3, -1, None]),
    (Vocab.listed(space("list", values=("b", "a")), "string"), ["a", "b", "c", None]),
    (fit("int", [[]]), [1, None]),
])
def test_saved_vocabulary_gives_the_same_ids(vocab, values, tmp_path):
    vocab.save(tmp_path / "v.arrow")
    again = Vocab.load(tmp_path / "v.arrow")
    array = column(vocab.family, values)
    assert again.ids(array).tolist() == vocab.ids(array).tolist()
    assert (again.size, again.values(), again.family) == (vocab.size, vocab.values(), vocab.family)
    digests = []
    for v in (vocab, again):
        said = []
        v.digest(said.append)
        digests.append(b"|".join(said))
    assert digests[0] == digests[1]


def test_range_keeps_its_numbers_and_everything_outside_is_unknown():
    vocab = Vocab(space("range", size=3), "int")
    assert vocab.ids(column("int", [0, 1, 2, 3, -1, 2**62, None])).tolist() == [2, 3, 4, 1, 1, 1, 0]
    assert vocab.size == 5 and vocab.values() is None


def test_hash_never_is_unknown_and_stays_within_its_buckets():
    vocab = Vocab(space("hash", size=10), "int")
    ids = vocab.ids(column("int", [*range(5000), None]))
    assert ids[-1] == 0
    assert set(ids[:-1].tolist()) == set(range(2, 12))
    assert np.bincount(ids[:-1])[2:].min() > 400


# ---- lists of values

def test_listed_values_keep_their_order(tmp_path):
    path = tmp_path / "values.txt"
    path.write_text("12\n7\n\n-3\n", encoding="utf-8")
    ints = Vocab.listed(space("list", file=str(path)), "int")
    assert (ints.family, ints.values()) == ("int", [12, 7, -3])
    texts = Vocab.listed(space("list", file=str(path)), "string")
    assert (texts.family, texts.values()) == ("string", ["12", "7", "-3"])
    assert texts.ids(column("int", [7, 8])).tolist() == [3, 1]


def test_words_listed_for_a_column_of_integers_make_a_space_of_texts():
    vocab = Vocab.listed(space("list", values=("red", 7)), "int")
    assert vocab.family == "string" and vocab.ids(column("int", [7, 8])).tolist() == [3, 1]


def test_bad_lists_of_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="vocab_list of space 'item': holds 'a' more than once"):
        Vocab.listed(space("list", values=("a", "b", "a")), "string")
    with pytest.raises(DataError, match="cannot be read"):
        Vocab.listed(space("list", file=str(tmp_path / "none.txt")), "string")
    (tmp_path / "latin").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="UTF-8"):
        Vocab.listed(space("list", file=str(tmp_path / "latin")), "string")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="holds no value"):
        Vocab.listed(space("list", file=str(tmp_path / "empty")), "string")


# ---- families

def test_values_are_brought_to_the_family_of_their_space():
    assert to_family(column("int", [1, None]), "string", "w", "s").to_pylist() == ["1", None]
    texts = column("string", ["-9223372036854775808", "0", None, "9223372036854775807"])
    assert to_family(texts, "int", "w", "s").to_pylist() == [-2**63, 0, None, 2**63 - 1]


@pytest.mark.parametrize("text", ["x", "", "007", "1.0", "+1", "-0", " 1", "9223372036854775808", "1e3", "１"])
def test_text_that_is_no_integer_is_named(text):
    with pytest.raises(DataError) as error:
        fit("int", [[1]]).ids(column("string", ["1", text]), "part-7.parquet: column 'item'")
    assert str(error.value).startswith(f"part-7.parquet: column 'item': holds '{text}', but id space 'item' holds")


# ---- hashes

GOLDEN_INTS = {0: 16294208416658607535, 1: 10451216379200822465, -1: 16490336266968443936}
GOLDEN_TEXTS = {"": 16294208416658607535, "a": 1334899836067985431, "item-42": 14935248166721737920,
                "日本": 13588412211923641775}


def test_hashes_never_change():
    """Served artefacts hold ids made by these: a change here breaks every model that hashes."""
    assert hash_values(column("int", list(GOLDEN_INTS))).tolist() == list(GOLDEN_INTS.values())
    assert hash_values(column("string", list(GOLDEN_TEXTS))).tolist() == list(GOLDEN_TEXTS.values())
    assert splitmix64(np.array([0], np.uint64)).tolist() == [0xE220A8397B1DCDAF]      # its authors' first number


def slow_hash(text):
    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31
    data = text.encode()
    total = sum((mix(j) | 1) * (b + 1) for j, b in enumerate(data))
    return mix((total % 2**64) ^ (len(data) * 0x9E3779B97F4A7C15 % 2**64))


@given(st.lists(st.text(max_size=12) | st.none(), max_size=20), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_text_hash_is_its_equation(texts, start):
    array = column("string", texts)[start:]
    assert hash_values(array).tolist() == [0 if t is None else slow_hash(t) for t in texts[start:]]


def test_text_hash_does_not_depend_on_how_bytes_are_blocked(monkeypatch):
    texts = column("string", ["x" * n for n in (0, 1, 30, 7, 100, 3, 0)])
    whole = hash_values(texts).tolist()
    for size in (1, 5, 64):
        monkeypatch.setattr("funnelrank.data.vocab.HASH_BYTES", size)
        assert hash_values(texts).tolist() == whole


def test_similar_texts_do_not_collide():
    texts = [f"{a}_{b}" for a in range(300) for b in range(300)]
    assert len(np.unique(hash_values(column("string", texts)))) == len(texts)


def test_digest_knows_values_and_not_their_layout():
    def digest(array):
        said = []
        digest_values(array, said.append)
        return b"|".join(said)
    for values, kind in [([1, None, 3], pa.int64()), (["a", None, "b"], pa.large_string()), ([[1], None, []],
                         pa.large_list(pa.int64())), ([1.5, None], pa.float64()), ([True, None], pa.bool_()),
                         ([[("k", 1)], None], pa.map_(pa.string(), pa.int8())), ([1, None], pa.date32())]:
        array = pa.array([values[0], *values], kind)
        assert digest(array[1:]) == digest(pa.array(values, kind)) != digest(pa.array(values[1:], kind))
    assert digest(pa.array([["ab"], ["c"]])) != digest(pa.array([["a"], ["bc"]]))


def test_vocabularies_need_no_torch():
    code = "import sys, funnelrank.data.vocab; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("keys, distinct", [
    ([1, 2, 9], True), ([3, 1, 3], False), ([0, 10**12, 5 * 10**15], True), ([0, 10**15, 5, 10**15], False),
    (["a", "b", ""], True), (["a", "b", "a"], False)])
def test_an_index_sees_whether_its_keys_are_distinct(keys, distinct):
    assert KeyIndex(pa.array(keys)).is_distinct() == distinct


def test_texts_that_share_a_hash_are_still_distinct(monkeypatch):
    from funnelrank.data import tables
    monkeypatch.setattr(tables, "library", lambda: None)
    monkeypatch.setattr(tables, "_hashes", lambda texts: np.zeros(len(texts), np.uint64))
    assert KeyIndex(pa.array(["a", "b", "c"])).is_distinct()
    assert not KeyIndex(pa.array(["a", "b", "a"])).is_distinct()
