"""data.memory kept, and the speed with it: a log repeated and shuffled to many rows, fitted, encoded and trained on.

    python benchmarks/memory.py LOG.parquet CONFIG.yaml [--rows 3000000 50000000] [--memory 2GB] [--ids user_id]
                                [--steps 300] [--scratch FOLDER] [--set KEY=VALUE ...]

The config's train rows are replaced by LOG.parquet, repeated. Each copy is shuffled; values of a column of --ids get
one of as many offsets as there are copies, so that its distinct values grow with the rows. Every size runs in a process
of its own, on the threads it is given. A thread reads RssAnon every 5 ms: file pages, as those of the encoded rows, are
not in it. Per phase: peak of anonymous memory, less what was there after the imports and, in training, less what
weights, optimiser state and averages need; the budget; rows per CPU-second (user + system, all threads). Training is
counted from the first steps that it reports (100): what comes before, such as building the model and drawing an epoch's
order, is done once, and is told apart.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

GROUP = 98_304
APART = 10**9              # between the offsets of --ids


def repeat(log: Path, folder: Path, rows: int, ids: list[str]) -> int:
    """Files of a log's rows, over and over, each copy in another order; the bytes they take."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    table = pq.read_table(log)
    for name in ids:
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
    copies = -(-rows // len(table))
    for copy in range(copies):
        rng = np.random.default_rng(copy)
        order = rng.permutation(len(table))[:rows - copy * len(table)]
        with pq.ParquetWriter(folder / f"{copy:05d}.parquet", table.schema, compression="zstd",
                              write_page_checksum=True) as writer:
            for start in range(0, len(order), GROUP):
                part = table.take(pa.array(order[start:start + GROUP]))
                for name in ids:
                    offsets = pa.array(APART * rng.integers(0, copies, len(part)))
                    part = part.set_column(part.column_names.index(name), name, pc.add(part[name], offsets))
                writer.write_table(part)
    return sum(f.stat().st_size for f in folder.iterdir())


def anonymous() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


class Enough(Exception):
    """So many steps were trained."""


def measure(config: str, sets: list[str], steps: int) -> dict:
    """One size, in this process."""
    import torch

    import funnelrank
    from funnelrank import flow
    with suppress(ImportError):                    # what counting on disk imports
        import duckdb  # noqa: F401
        import ibis
        ibis.to_sql(ibis.table({"a": "int64"}, name="t"), dialect="duckdb")
    config = funnelrank.load_config(config, sets)
    torch.set_num_threads(config.settings.train.threads or 1)
    base, phases, events, over, peak = anonymous(), {}, [], threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    @contextmanager
    def phase(name: str):
        peak[0], cpu, clock = anonymous(), time.process_time(), time.perf_counter()
        said = phases[name] = {}
        yield said
        said |= {"peak": peak[0] - base, "cpu": time.process_time() - cpu, "seconds": time.perf_counter() - clock}

    def report(event: dict) -> None:
        if event["event"] in ("disk", "skipped"):
            events.append(event)
        if event["event"] == "step":
            first, _ = trained.setdefault("first", (event["step"], time.process_time()))
            trained["rows"] = (event["step"] - first) * config.settings.train.batch_size
            if event["step"] >= steps:
                raise Enough

    threading.Thread(target=watch, daemon=True).start()
    data = flow.open_data(config)
    rows = data.sources["train"].rows
    with phase("fit") as fitted:
        encoder = flow.prepare(config, data, report)
    fitted["rows"] = rows
    with phase("encode") as encoded:
        splits = flow.encode(config, data, encoder, report)
    encoded["rows"] = rows
    with phase("train") as trained:
        model = flow.build(config, encoder, splits)
        tables = sum(p.nbytes for p in model.embedding.parameters())
        dense = sum(p.nbytes for p in model.parameters()) - tables
        averages = 1 if config.settings.train.average else 0
        # rows: weight and Adagrad's sum; dense weights: gradient and Adam's two moments
        trained["needs"] = tables * (2 + averages) + dense * (4 + averages)
        with suppress(Enough):
            flow.fit(config, model, encoder, splits, report=report)
        spent = time.process_time() - trained.pop("first")[1]
    trained |= {"before": trained["cpu"] - spent, "cpu": spent}
    over.set()
    return {"rows": rows, "base": base, "phases": phases, "events": events, "memory": config.settings.data.memory,
            "distinct": {name: vocab.size for name, vocab in encoder.vocabs.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 3_000_000])
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--ids", nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.child:
        print(json.dumps(measure(str(said.config), said.sets, said.steps)))
        return
    for rows in said.rows:
        folder = Path(tempfile.mkdtemp(prefix="funnelrank-memory-", dir=said.scratch))
        try:
            (folder / "log").mkdir()
            size = repeat(said.log, folder / "log", rows, said.ids)
            sets = [f"data.train={folder}/log", "data.valid=null", "data.test=null", f"data.memory={said.memory}",
                    f"data.cache={folder}/cache", f"train.out={folder}/run", "train.threads=1", *said.sets]
            child = [sys.executable, __file__, str(said.log), str(said.config), "--child", "1", "--steps",
                     str(said.steps), *(f"--set={s}" for s in sets)]
            found = json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            show(found, size)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def show(found: dict, size: int) -> None:
    print(f"\n{found['rows']:,} rows, {size / 1e9:.2f} GB of parquet; data.memory {found['memory'] / 1e6:,.0f} MB; "
          f"{found['base'] / 1e6:,.0f} MB after imports; largest vocabulary {max(found['distinct'].values()):,} ids")
    for event in found["events"]:
        print(f"  said before: {event['what']}, about {event['bytes'] / 1e9:.2f} GB of disk, {event['free'] / 1e9:.1f} "
              "GB free")
    print("  phase    peak MB  tables, state MB  left MB  of budget   rows per CPU-second")
    for name, p in found["phases"].items():
        needs = p.get("needs", 0)
        left = p["peak"] - needs
        print(f"  {name:<8} {p['peak'] / 1e6:>7,.0f}  {needs / 1e6:>16,.0f}  {left / 1e6:>7,.0f}  "
              f"{left / found['memory']:>9.0%}   {p['rows'] / p['cpu']:>19,.0f}"
              + (f", after {p['before']:.1f} CPU s" if "before" in p else ""), flush=True)


if __name__ == "__main__":
    main()
