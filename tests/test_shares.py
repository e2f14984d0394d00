"""Encoding as tasks of their own: one fit, any number of shares in any order, and what one process makes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from funnelrank import flow
from funnelrank.cli import main
from funnelrank.config import load
from funnelrank.errors import ConfigError, DataError

CONFIG = """
data:
  train: train/*.parquet
  valid: [valid-0.parquet, valid-1.parquet]
  test: test.parquet
  scenario: tab
  user: user
  time: time
  contradictions: drop
  events: {{log: {{path: train/*.parquet}}}}
  {data}
features:
  user: {{min_count: 1}}
  item: {{min_count: 1}}
  price: number
  tags: {{kind: bag, separator: "|", weight_separator: ":", min_count: 1}}
  shown: {{kind: history, of: log, item: item}}
tasks: {{click: {{}}, buy: {{after: click}}}}
model: {{name: shared_bottom, represent: {{name: mlp, hidden: [8]}}}}
embedding: {{width: 4}}
train: {{epochs: 1, batch_size: 64, out: {out}}}
evaluate: {{intervals: none}}
"""


def log(rows=90, seed=0, dropped=False):
    g = np.random.default_rng(seed)
    click = np.zeros(rows) if dropped else g.integers(0, 2, rows)
    return pa.table({
        "user": g.integers(0, 9, rows), "item": g.integers(0, 30, rows), "tab": g.integers(0, 3, rows),
        "time": g.integers(0, 500, rows), "price": pa.array(g.random(rows), mask=g.random(rows) < 0.1),
        "tags": ["|".join(f"t{t}:{t}" for t in g.integers(0, 5, n)) for n in g.integers(0, 3, rows)],
        "click": click, "buy": np.ones(rows) if dropped else np.maximum(click * g.integers(0, 2, rows),
                                                                        g.random(rows) < 0.05)})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(4):
        pq.write_table(log(seed=i, dropped=i == 2), tmp_path / "train" / f"{i}.parquet", row_group_size=40)
    for name, seed in (("valid-0", 7), ("valid-1", 8), ("test", 9)):
        pq.write_table(log(seed=seed), tmp_path / f"{name}.parquet")
    return tmp_path


def config(folder, cache="cache", out="run", **data):
    said = "\n  ".join(f"{k}: {v}" for k, v in {"cache": folder / cache, **data}.items())
    path = folder / f"{cache}.yaml"
    path.write_text(CONFIG.format(data=said, out=folder / out))
    return path


def whole(read):
    data = flow.open_data(read)
    return flow.encode(read, data, flow.prepare(read, data))


def files(split):
    return {p.name: p.read_bytes() for p in sorted(split.folder.iterdir())}


@pytest.mark.parametrize("of, order", [(3, (1, 3, 2)), (20, tuple(range(1, 21))), (1, (1,))])
def test_shares_in_any_order_join_into_what_one_process_makes(folder, of, order):
    """To the byte, checksums and reports among it. One file keeps no row: each contradicts the funnel."""
    expected = whole(load(config(folder)))
    read = load(config(folder, "shared"))
    data = flow.open_data(read)
    flow.keep_encoder(read, data, flow.prepare(read, data))
    made = [flow.encode_share(read, flow.open_data(read), (k, of)) for k in order]
    assert sum(n for n, _ in made) == sum(n for _, n in made) == 7
    assert flow.encode_share(read, data, (1, of))[0] == 0, "a share that is done is not done again"
    encoder = flow.kept_encoder(read, data)
    encoder.encode = lambda *a, **k: pytest.fail("rows of a part were encoded again")
    for split, source in data.sources.items():
        found = flow.open_encoded(encoder, source, read.settings.data, folder / "shared", split == "train")
        assert files(found) == files(expected[split]), split
    assert expected["train"].contradictions["dropped"] > 90
    assert not list((folder / "shared").glob("part-*"))


def test_what_no_task_encoded_is_encoded_where_parts_are_joined(folder):
    expected, read = whole(load(config(folder))), load(config(folder, "shared"))
    data = flow.open_data(read)
    flow.keep_encoder(read, data, flow.prepare(read, data))
    flow.encode_share(read, data, (2, 3))
    part = next((folder / "shared").glob("part-*"))
    (part / "rows.bin").write_bytes(b"damaged")
    for split, found in whole(read).items():
        assert files(found) == files(expected[split]), split


def test_parts_of_others_in_the_cache_are_nothing_to_rows_that_are_sifted(folder):
    read = load(config(folder))
    data = flow.open_data(read)
    flow.keep_encoder(read, data, flow.prepare(read, data))
    flow.encode_share(read, data, (1, 7))
    sifted = whole(load(config(folder, on_error="skip")))
    assert len(sifted["valid"]) == 180 and list((folder / "cache").glob("part-*"))


def test_a_training_takes_the_vocabularies_that_are_kept_unless_they_are_damaged(folder):
    read, events = load(config(folder)), []
    data = flow.open_data(read)
    fitted = flow.prepare(read, data, events.append)
    kept = flow.keep_encoder(read, data, fitted)
    assert flow.prepare(read, data, events.append).hash() == fitted.hash()
    assert [e["folder"] for e in events if e["event"] == "fitted"] == [str(kept)]
    vocab = next((kept / "vocab").iterdir())
    vocab.write_bytes(vocab.read_bytes()[:-9])
    events.clear()
    assert flow.prepare(read, data, events.append).hash() == fitted.hash()
    assert {e["event"] for e in events} == {"progress"}


def test_other_files_or_another_schema_are_fitted_anew(folder):
    read = load(config(folder))
    data = flow.open_data(read)
    flow.keep_encoder(read, data, flow.prepare(read, data))
    pq.write_table(log(seed=11), folder / "train" / "9.parquet")
    assert flow.kept_encoder(read, flow.open_data(read)) is None
    (folder / "train" / "9.parquet").unlink()
    assert flow.kept_encoder(read, flow.open_data(read)) is not None
    other = load(config(folder), ["features.item.min_count=2"])
    assert flow.kept_encoder(other, flow.open_data(other)) is None
    (folder / "items.txt").write_text("1\n2\n")
    listed = load(config(folder), [f"features.item={{vocab_file: {folder / 'items.txt'}}}"])
    flow.keep_encoder(listed, flow.open_data(listed), flow.prepare(listed, flow.open_data(listed)))
    assert flow.kept_encoder(listed, flow.open_data(listed)) is not None
    (folder / "items.txt").write_text("1\n2\n3\n")
    assert flow.kept_encoder(listed, flow.open_data(listed)) is None
    (folder / "items.txt").unlink()
    with pytest.raises(DataError, match="vocab_file .*: cannot be read"):
        flow.prepare(listed, flow.open_data(listed))


def test_shares_are_refused_where_they_could_not_join(folder):
    read = load(config(folder))
    with pytest.raises(ConfigError, match="holds no vocabularies of this config .* encode CONFIG --fit` once"):
        flow.encode_share(read, flow.open_data(read), (1, 2))
    skipping = load(config(folder, on_error="skip"))
    with pytest.raises(ConfigError, match="data.on_error: skip passes over all files .* without --share"):
        flow.encode_share(skipping, flow.open_data(skipping), (1, 2))


def test_a_contradiction_is_raised_by_the_share_that_meets_it(folder):
    read = load(config(folder))
    data = flow.open_data(read)
    flow.keep_encoder(read, data, flow.prepare(read, data))
    raising = load(config(folder), ["data.contradictions=raise"])
    with pytest.raises(DataError, match="2.parquet, row group 0: label 'buy' is 1 on 40 rows"):
        flow.encode_share(raising, flow.open_data(raising), (3, 7))


def test_the_commands_end_in_a_training_that_only_joins(folder, capsys):
    path = str(config(folder))
    assert main(["encode", path, "--fit"]) == 0
    for k in (1, 2):
        assert main(["encode", path, "--share", f"{k}/2"]) == 0
    said = capsys.readouterr().out
    assert "ids of user 11" in said and "4 files in share 1/2, 4 of them encoded now" in said
    assert main(["train", path]) == 0
    assert "vocabularies and statistics from" in capsys.readouterr().out
    assert main(["encode", path]) == 0
    assert "train, " in capsys.readouterr().out


@pytest.mark.parametrize("tokens, said", [
    (["--share", "0/4"], "--share: found '0/4'; a share is K/N, from 1/N to N/N"), (["--share", "5/4"], "found '5/4'"),
    (["--share", "three"], "found 'three'"), (["--share", "1/2", "--fit"], "shares begin once --fit has ended")])
def test_a_share_that_is_none_is_a_sentence(folder, tokens, said, capsys):
    assert main(["encode", str(config(folder)), *tokens]) == 2
    assert said in capsys.readouterr().err
