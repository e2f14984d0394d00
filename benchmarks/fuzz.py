"""Texts for the config reader, configs of other systems and rows for the encoder that nobody has seen, for as long as
you like.

    python benchmarks/fuzz.py --seconds 600          make fuzz
    python benchmarks/fuzz.py --seconds 60 --only encoder --seed 3

config    texts made of a good config's lines and of YAML's stranger parts, cut, doubled and mixed: `load` returns a
          Config that is written out and read back as an equal one, or raises ConfigError of one line a message
encoder   a fitted encoder on columns of any type and value: `encode` returns ids inside their spaces, finite numbers
          and rising offsets, the same for the rows in two parts, or raises DataError of one line
imports   configs of EasyRec, TorchEasyRec and FuxiCTR with fields cut, doubled, renamed and given strange values, or
          with broken characters: `import` gives a config that `check` takes and a table that answers for every key, or
          names what it refuses, or raises ConfigError that begins with the file, and the line where there is one

Prints how often each came out and how; a case that does neither, or takes longer than 10 seconds, ends the run with the
seed and the case, exit code 1.
"""

import argparse
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_imports  # noqa: E402
import hostile  # noqa: E402

from funnelrank import config as configs  # noqa: E402
from funnelrank.data.encode import Encoder  # noqa: E402
from funnelrank.data.source import open_source  # noqa: E402
from funnelrank.errors import FunnelrankError  # noqa: E402
from funnelrank.settings import Data  # noqa: E402

NAMES = ["config", "encoder", "imports"]
SLOWEST_S = 10
EXAMPLES = sorted((Path(__file__).parent.parent / "examples").rglob("*.yaml"))
PIECES = ["&a", "*a", "<<: *a", "!!binary", "!x", "|", ">-", "? ", ": ", "- ", "[", "]", "{", "}", "'", '"',
          "#", "---", "...", "%YAML 1.1", "\t", "\x00", "\ufeff", "\u2028", "\ud7ff", "\xe9", "~", "null",
          "yes", "0x10", "0o7", "1e999", "-.inf", ".nan", "1_000", "12:30", "1" * 5000, "a" * 5000, "=", "\\",
          "\\U0010FFFF", "../..", "[" * 60, "{a: " * 60, "- " * 60, "\r", "\n\n", "@", "`"]
SPEECH = ["name", "kind", "id", "number", "bag", "sequence", "cross", "of", "within", "space", "task", "click",
          "buy", "after", "model", "aitm", "mlp", "hidden", "width", "-1", "0", "1", "2.5", "true", "2GB",
          "auto", "lists", "data", "features", "tasks", "train", "evaluate"]


def config_text(draw: random.Random) -> str:
    lines = draw.choice(EXAMPLES).read_text().splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for _ in range(draw.choice([0, 1, 1, 2, 5, 20])):
        at, how = draw.randrange(len(lines)), draw.randrange(8)
        line = lines[at]
        if how == 0:
            del lines[at]
            lines = lines or [""]
        elif how == 1:
            lines.insert(at, draw.choice(lines))
        elif how == 2:
            lines[at] = " " * draw.randrange(8) + line.strip()
        elif how == 3:
            cut = draw.randrange(len(line) + 1)
            lines[at] = line[:cut] + draw.choice(PIECES) + line[cut:]
        elif how == 4:
            lines[at] = line.partition(":")[0] + ": " + draw.choice(PIECES + SPEECH)
        elif how == 5:
            words = line.split(" ")
            words[draw.randrange(len(words))] = draw.choice(SPEECH)
            lines[at] = " ".join(words)
        elif how == 6:
            other = draw.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            a, b, c = draw.choices(SPEECH, k=3)
            lines[at] = f"{' ' * draw.choice([0, 2, 4])}{a}: {{{b}: {c}}}"
    return "\n".join(lines)


def try_config(draw: random.Random, place: Path) -> str:
    text = config_text(draw)
    try:
        path = place / "fuzz.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        sets = [f"{draw.choice(SPEECH)}{draw.choice(['.', '[0]', '=', '[99]', '..'])}{draw.choice(SPEECH)}="
                f"{draw.choice(PIECES + SPEECH)}"] if draw.random() < 0.1 else []
        read = configs.load(path, sets)
    except FunnelrankError as error:
        assert error.messages and all(m and "\n" not in m for m in error.messages), error.messages
        str(error).encode()
        return "refused"
    path.write_text(configs.dump(read), encoding="utf-8")
    assert configs.load(path) == read, "what is written out is not what was read"
    return "read"


ENCODED = {
    "data": {"scenario": "scenario", "user": "user_id", "time": "time_ms"},
    "features": {"item_id": {"min_count": 1}, "scenario": {"min_count": 1}, "price": "number",
                 "device": {"hash_buckets": 7}, "hour": {"kind": "number", "buckets": 4}, "day": {"num_buckets": 3},
                 "badges": {"kind": "bag", "separator": "|", "min_count": 1},
                 "both": {"kind": "cross", "of": ["item_id", "device"], "hash_buckets": 50},
                 "pause": {"kind": "gap", "since": "last_ms", "until": "time_ms"},
                 "shown": {"kind": "sequence", "column": "hist_shown", "space": "item_id", "max_len": 3},
                 "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id"}},
    "tasks": {"click": {}, "spend": {"kind": "regression"}},
}


class Fitted:
    """An encoder, and rows that it knows."""

    def __init__(self, place: Path):
        import pyarrow.parquet as pq

        from funnelrank.simulate import simulate
        simulate(place, rows=400, users=20, items=30)
        self.rows = pq.read_table(place / "train.parquet")
        self.schema = configs.load(ENCODED).schema
        self.encoder = Encoder.fit(self.schema, open_source(self.rows, Data(), "train"), {})


def try_encoder(draw: random.Random, fitted: Fitted) -> str:
    n = draw.choice([1, 2, 3, 9, 40])
    table = fitted.rows.slice(draw.randrange(200), n)
    for name in draw.sample(fitted.schema.log_columns(), draw.choice([1, 1, 2, 4])):
        table = table.set_column(table.column_names.index(name), name, hostile.column(
            draw, len(table), None if draw.random() < 0.2 else table[name].type))
    try:
        source = open_source(table, Data(), "test")
        source.require(fitted.schema.log_columns())
        whole = [fitted.encoder.encode(source.read(u, fitted.schema.log_columns()), source.where(u))
                 for u in source.units]
    except FunnelrankError as error:
        assert error.messages and all(m and "\n" not in m for m in error.messages), error.messages
        return "refused"
    layout = fitted.encoder.layout
    for part in whole:
        for c, name in enumerate(layout.ids):
            ids = part.ids[:, c]
            assert ids.min() >= 0 and ids.max() < layout.size[layout.space[name]], name
        assert np.isfinite(part.numbers).all() and part.numbers.dtype == np.float32
        for name, listed in zip(layout.lists, part.lists):
            assert listed.offsets[0] == 0 and (np.diff(listed.offsets) >= 0).all(), name
            assert listed.offsets[-1] == len(listed.values), name
            assert not len(listed.values) or 0 <= listed.values.min() <= listed.values.max() < layout.size[
                layout.space[name]], name
        assert not np.isinf(part.labels).any()
    if n > 1:
        halves = [open_source(t, Data(), "test") for t in (table.slice(0, n // 2), table.slice(n // 2))]
        parts = [fitted.encoder.encode(s.read(u, fitted.schema.log_columns()), "half") for s in halves for u in s.units]
        ids = np.concatenate([p.ids for p in parts])
        assert np.array_equal(ids, np.concatenate([p.ids for p in whole])), "two parts give other ids than the whole"
    return "encoded"


def too_long(number: int, frame: Any) -> None:
    raise TimeoutError(f"no end within {SLOWEST_S} s")


def run(name: str, attempt: Callable[[random.Random], str], seconds: float, seed: int) -> int:
    counts: Counter[str] = Counter()
    end, number = time.monotonic() + seconds, 0
    signal.signal(signal.SIGALRM, too_long)
    while time.monotonic() < end:
        signal.alarm(SLOWEST_S)
        try:
            counts[attempt(random.Random(f"{seed} {name} {number}"))] += 1
        except Exception:                          # whatever it is, it is what was looked for
            signal.alarm(0)
            traceback.print_exc()
            print(f"\n{name}: FAULT after {number:,} cases (--seed {seed}, case {number})")
            return 1
        number += 1
    signal.alarm(0)
    print(f"{name}: {number:,} cases in {seconds:.0f} s, " + ", ".join(f"{n:,} {how}" for how, n in counts.items())
          + ", no fault", flush=True)
    return 0


def main() -> int:
    import tempfile
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--only", choices=NAMES, action="append")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    said = parser.parse_args()
    names = said.only or NAMES
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        place, failed = Path(folder), 0
        fitted = Fitted(place) if "encoder" in names else None
        for name in names:
            attempt = {"config": lambda d: try_config(d, place), "encoder": lambda d: try_encoder(d, fitted),
                       "imports": lambda d: fuzz_imports.attempt(d, place)}[name]
            failed |= run(name, attempt, said.seconds / len(names), said.seed)
    return failed


if __name__ == "__main__":
    sys.exit(main())
