"""How fast funnelrank is: training, loading, encoding and metrics, against peers and against the machine.

    make bench                               all of it, about an hour, on a machine that does nothing else
    make bench-quick                         the cells that say most, under ten minutes
    python benchmarks/bench.py --only aitm-small-1e5-4096-rechub gauc

Both sides of a cell are processes of one thread that take turns (A B A B): a warm-up, then windows; the unit is rows
per CPU second, and a row of the table is a median with its range. Finished cells are kept in .bench/cells until the
code changes, so that a run that was stopped goes on where it stood. A complete run is written to docs/.
"""

import argparse
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from cells import CELLS
from table import text, write
from windows import PEERS, ROOT, Failed, Plan, code_hash, keep, kept, place, run, summary


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wide = [f for f in ("avx2", "avx512f", "amx_tile") if f in flags]
    return {"processor": f"{names[0] if names else platform.machine()}, {' '.join(wide)}", "cores": len(names),
            "system": platform.system(), "python": platform.python_version(), "torch": version("torch"),
            "numpy": version("numpy")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cells, 2 windows of 2 seconds")
    parser.add_argument("--only", nargs="+", metavar="CELL", choices=[c.name for c in CELLS], help="these cells alone")
    parser.add_argument("--list", action="store_true", help="the cells' names")
    parser.add_argument("--window", type=float, help="CPU seconds of a window (at most 26)")
    parser.add_argument("--windows", type=int, help="windows of each side")
    parser.add_argument("--minutes", type=float, help="begin no cell later; call again for those left")
    parser.add_argument("--fresh", action="store_true", help="measure again what is already there")
    parser.add_argument("--out", type=Path, help="folder for bench.json, bench.svg and speed.md's table "
                                                 "(default: docs, of a complete run)")
    said = parser.parse_args()
    default = Plan(2, 2.0) if said.quick else Plan()
    plan = Plan(said.windows or default.windows, min(said.window or default.seconds, 26.0))
    cells = [c for c in CELLS if (not said.only or c.name in said.only) and (not said.quick or said.only or c.quick)]
    if said.list:
        for cell in cells:
            print(f"{cell.name:<32}{cell.work}, against {cell.against}")
        return 0
    if not PEERS.exists() and any(s and s.program != "ours" for c in cells for s in (c.ours, c.other)):
        parser.error(f"the peers are not installed in {PEERS.parents[1].name}; `make bench` installs them")
    code, started, results, failed, left = code_hash(), time.monotonic(), [], [], []
    for number, cell in enumerate(cells, 1):
        path = place(cell, plan, code)
        result = None if said.fresh else kept(path)
        note = "kept"
        if result is None:
            begun = time.monotonic()
            if said.minutes is not None and begun - started >= 60 * said.minutes:
                left.append(cell.name)
                continue
            try:
                result = summary(cell, run(cell, plan)) | {"measured": time.strftime("%Y-%m-%d")}
            except Failed as error:
                print(f"[{number}/{len(cells)}] {cell.name}: {error}", file=sys.stderr, flush=True)
                failed.append(cell.name)
                continue
            keep(path, result)
            note = f"{time.monotonic() - begun:.0f} s"
        results.append(result)
        print(f"[{number}/{len(cells)}] {(time.monotonic() - started) / 60:5.1f} min  {cell.name} ({note})",
              file=sys.stderr, flush=True)
    print(text(results))
    complete = len(results) == len(CELLS) and plan == Plan()
    if said.out or complete:
        write(said.out or ROOT / "docs", results, machine())
    if left:
        print(f"left for another call: {' '.join(left)}", file=sys.stderr)
    if failed:
        print(f"failed: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
