"""Does data.memory hold where nearly every id is a new one? The statistics pass over ids of which N are distinct.

    python benchmarks/distinct.py [--distinct 100000000] [--memory 2GB] [--scratch DIR] [--engine duckdb]

Writes a log of N distinct 64-bit ids, a twentieth of them five times and the others once, in files of a million rows in
hashed order, and fits an encoder with the default min_count of 5. Prints rows, distinct ids, the vocabulary, what was
said of the disk and what was on it at most, peak of anonymous memory over what was there after the imports, seconds and
rows per CPU-second; and ends with code 1 unless the vocabulary is exactly the ids that stand five times. With --engine
it is data.engine that counts.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from memory import anonymous

FILE = 1_000_000           # rows
HEAVY = 20                 # one id in so many stands TIMES times
TIMES = 5


def write(folder: Path, distinct: int) -> int:
    """The log; returns its rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from funnelrank.data.vocab import splitmix64
    heavy = distinct // HEAVY
    rows = distinct + (TIMES - 1) * heavy
    for number, start in enumerate(range(0, rows, FILE)):
        place = np.arange(start, min(start + FILE, rows), dtype=np.uint64)
        # a stride that shares no factor with `rows` visits each place once, far from its neighbours
        place = place * np.uint64(1_000_003 if rows % 1_000_003 else 999_983) % np.uint64(rows)
        which = np.where(place < distinct, place, (place - np.uint64(distinct)) % np.uint64(max(heavy, 1)))
        pq.write_table(pa.table({"id": splitmix64(which).view(np.int64), "click": (place % 7 == 0).astype(np.int64)}),
                       folder / f"{number:05d}.parquet", compression="zstd", write_page_checksum=True)
    return rows


def measure(folder: Path, memory: str, distinct: int, engine: str | None) -> dict:
    import duckdb  # noqa: F401
    import ibis
    import numpy as np

    import funnelrank
    from funnelrank import flow
    from funnelrank.data.vocab import splitmix64
    ibis.to_sql(ibis.table({"a": "int64"}, name="t"), dialect="duckdb")     # imports what counting on disk imports
    config = funnelrank.load_config({
        "data": {"train": str(folder / "log"), "memory": memory, "cache": str(folder / "cache"),
                 **({"engine": engine} if engine else {})},
        "features": {"id": "id"}, "tasks": {"click": {}}, "train": {"threads": 1, "out": str(folder / "run")}})
    data = flow.open_data(config)
    rows, base, most, over, said = data.sources["train"].rows, anonymous(), [0, 0], threading.Event(), []

    def watch() -> None:
        for tick in range(10**9):
            if over.wait(0.005):
                return
            most[0] = max(most[0], anonymous())
            if tick % 200 == 0:
                sizes = []
                for path in (folder / "cache").rglob("*"):
                    try:
                        sizes.append(path.stat().st_size)
                    except OSError:            # gone since it was listed
                        continue
                most[1] = max(most[1], sum(sizes))

    threading.Thread(target=watch, daemon=True).start()
    clock, cpu = time.perf_counter(), time.process_time()
    encoder = flow.prepare(config, data, lambda e: said.append(e) if e["event"] == "disk" else None)
    cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    over.set()
    peak = most[0] - base
    found = np.sort(encoder.vocabs["id"].known().to_numpy())
    right = np.array_equal(found, np.sort(splitmix64(np.arange(distinct // HEAVY, dtype=np.uint64)).view(np.int64)))
    return {"rows": rows, "vocabulary": len(found), "right": right, "peak": peak, "budget": config.settings.data.memory,
            "disk": most[1], "said": said, "seconds": clock, "cpu": cpu}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distinct", type=int, default=100_000_000)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--engine", choices=("duckdb", "spark"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.child:
        print(json.dumps(measure(said.child, said.memory, said.distinct, said.engine)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="funnelrank-distinct-", dir=said.scratch))
    try:
        (folder / "log").mkdir()
        write(folder / "log", said.distinct)
        child = [sys.executable, __file__, "--distinct", str(said.distinct), "--memory", said.memory, "--child", folder]
        child += ["--engine", said.engine] if said.engine else []
        f = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{f['rows']:,} rows, {said.distinct:,} distinct ids; a vocabulary of {f['vocabulary']:,}, "
          f"{'exactly' if f['right'] else 'NOT'} those that stand {TIMES} times")
    for event in f["said"]:
        print(f"said before: {event['what']}, about {event['bytes'] / 1e9:.2f} GB of disk")
    print(f"on the disk at most {f['disk'] / 1e9:.2f} GB; peak of anonymous memory {f['peak'] / 1e6:,.0f} MB, "
          f"{f['peak'] / f['budget']:.0%} of data.memory; {f['seconds']:,.0f} s, {f['rows'] / f['cpu']:,.0f} rows per "
          "CPU-second")
    return 0 if f["right"] else 1


if __name__ == "__main__":
    sys.exit(main())
