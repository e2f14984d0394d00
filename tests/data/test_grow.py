"""Vocabularies that go on: ids stay, new values come behind them, and what nobody sees retires."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnelrank.data.vocab import Vocab
from funnelrank.errors import ConfigError
from funnelrank.schema import Space


def space(**said):
    return Space(name="item", made="fitted", **{"min_count": 1, **said})


def vocab(*values):
    return Vocab(space(), "int", pa.array(values, pa.int64()))


def grow(old, counted, retire=None, **said):
    values, counts = list(counted), np.array(list(counted.values()), np.int64)
    return old.grown(space(**said), pa.array(values, pa.int64()), counts, retire)


def test_old_values_keep_their_ids_and_new_ones_follow_by_count_and_then_by_value():
    grown = grow(vocab(7, 3, 5), {9: 2, 3: 1, 8: 2, 1: 6, 4: 1}, min_count=2)
    assert grown.values() == [7, 3, 5, 1, 8, 9] and grown.unseen.tolist() == [1, 0, 1, 0, 0, 0]
    assert grown.before(vocab(7, 3, 5)).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]


def test_a_value_retires_after_so_many_trainings_without_it_and_may_come_back_as_new(tmp_path):
    one = vocab(7, 3)
    two = grow(one, {3: 1}, retire=2)
    two.save(tmp_path / "v.arrow")
    three = grow(Vocab.load(tmp_path / "v.arrow"), {3: 1}, retire=2)
    assert two.values() == [7, 3] and three.values() == [3] and three.before(two).tolist() == [0, 1, 3]
    assert grow(three, {7: 4}, retire=2).values() == [3, 7]
    assert grow(grow(one, {3: 1}, retire=2), {7: 1}, retire=2).unseen.tolist() == [0, 1]     # seen again: from 0


def test_there_is_no_room_beyond_max_size_until_something_retires():
    full = grow(vocab(7, 3), {9: 5, 8: 4}, max_size=3)
    assert full.values() == [7, 3, 9] and full.no_room == 1
    assert grow(full, {8: 4, 9: 1}, retire=2, max_size=3).values() == [9, 8]
    assert grow(vocab(7, 3, 5), {9: 1}, max_size=2).values() == [7, 3, 5]        # what is there stays


def test_a_vocabulary_written_without_ages_loads_as_seen(tmp_path):
    with pa.ipc.new_file(str(tmp_path / "v.arrow"), pa.schema([("value", pa.int64())])) as file:
        about = b'{"space": {"name": "item", "made": "fitted"}, "family": "int", "keeps_values": true}'
        table = pa.table({"value": pa.array([4, 5])}).replace_schema_metadata({"funnelrank": about})
    with pa.ipc.new_file(str(tmp_path / "v.arrow"), table.schema) as file:
        file.write_table(table)
    assert Vocab.load(tmp_path / "v.arrow").unseen.tolist() == [0, 0]


def test_ids_of_ranges_and_hashes_stay_and_families_do_not_mix():
    ten, six = (Vocab(Space(name="n", made="range", size=n), "int") for n in (10, 6))
    assert ten.before(six).tolist() == [*range(8), -1, -1, -1, -1] and six.before(ten).tolist() == list(range(8))
    texts = Vocab(space(), "string", pa.array(["a"], pa.large_string()))
    with pytest.raises(ConfigError, match="id space 'item': held whole numbers, now texts"):
        texts.before(vocab(1))


counted = st.dictionaries(st.integers(0, 30), st.integers(1, 9), max_size=20)


@given(st.lists(counted, min_size=1, max_size=5), st.integers(1, 4), st.none() | st.integers(1, 3))
def test_however_days_come_ids_are_distinct_known_and_where_they_were(days, least, retire):
    vocab, last = Vocab(space(), "int", pa.array([], pa.int64())), {}
    for number, day in enumerate(days):
        old, vocab = vocab, grow(vocab, day, retire, min_count=least)
        values = vocab.values()
        assert len(set(values)) == len(values) == len(vocab.unseen)
        last |= dict.fromkeys(day, number)
        for value, unseen in zip(values, vocab.unseen):
            assert unseen == number - last[value] and (retire is None or unseen < retire)
        ids, before = vocab.ids(pa.array(values, pa.int64())), vocab.before(old)
        assert [old.values()[b - 2] for b in before[2:] if b > 0] == [v for v in values if v in old.values()]
        assert ids.tolist() == list(range(2, vocab.size))
        assert all(v in values for v, n in day.items() if n >= least)
