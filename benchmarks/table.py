"""Results as a table for the terminal, as docs/bench.json, docs/bench.svg and the generated part of docs/speed.md."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
HEAD = ("work", "against", "funnelrank", "other side", "result", "must (stretch)", "")
Result = dict[str, Any]


def short(x: float) -> str:
    """Three digits: 0.0123, 4.56, 45.6, 456, 4.56 k, 45.6 k, 4.56 M."""
    for size, name in ((1e6, " M"), (1e3, " k")):
        if x >= size * 0.9995:
            return short(x / size) + name
    return f"{x:.3g}" if x < 99.95 else f"{x:.0f}"


def said(kind: str, x: float) -> str:
    """A result in the units of its kind."""
    if kind in ("times", "slowdown", "threads"):
        return f"{x:,.0f}x" if x >= 99.95 else f"{short(x)}x"
    if kind == "share":
        return f"{100 * x:.0f} %"
    return f"{short(x)} s" if kind == "seconds" else f"{short(x)}/s"


def verdict(result: Result) -> str:
    if result["reached"] is None:
        return ""
    return "not reached" if not result["reached"] else "stretch reached" if result["stretched"] else "reached"


def row(result: Result) -> tuple[str, ...]:
    kind, sides = result["kind"], result["sides"]
    rate = lambda side: f"{short(sides[side][0])}/s ({short(sides[side][1])}..{short(sides[side][2])})" \
        if side in sides else ""
    middle, low, high = result["value"]
    goal = "" if result["must"] is None else said(kind, result["must"]) + (
        f" ({said(kind, result['stretch'])})" if result["stretch"] else "")
    return (result["work"], result["against"], rate("ours"), rate("other"),
            f"{said(kind, middle)} ({said(kind, low)}..{said(kind, high)})", goal, verdict(result))


def text(results: Sequence[Result]) -> str:
    rows = [HEAD, *map(row, results)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths)).rstrip() for r in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(results: Sequence[Result], machine: dict[str, Any]) -> str:
    days = sorted({r["measured"] for r in results})
    spent = [w["cpu"] for r in results for w in r["windows"]["ours"]]
    most = max(len(r["windows"]["ours"]) for r in results)
    windows = f"{most} windows of about {median(spent):.0f} CPU seconds a side"
    lines = [f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))} on {machine['processor']}, "
             f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}, torch {machine['torch']}. "
             f"{windows}. Rows per CPU second: median (lowest..highest window). Results: of the medians (range of "
             "the pairs).",
             "", "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row(r)) + " |" for r in results)])


def picture(results: Sequence[Result]) -> str:
    """Bars on a log scale: how many times faster than the other side, the threshold as a mark across each."""
    shown = [r for r in results if r["kind"] == "times"]
    height, left, width = 26, 330, 360
    top = max([10.0, *(r["value"][2] for r in shown), *(r["must"] for r in shown)])
    x = lambda value: left + width * max(math.log10(value), 0) / math.log10(top)
    parts = []
    for i, r in enumerate(shown):
        y = 14 + i * height
        name = escape(f"{r['work']}: {r['against']}")
        parts += [f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{name}</text>',
                  f'<rect x="{left}" y="{y}" width="{x(r["value"][0]) - left:.1f}" height="14" fill="#3a86c8"/>',
                  f'<line x1="{x(r["must"]):.1f}" x2="{x(r["must"]):.1f}" y1="{y - 3}" y2="{y + 17}" '
                  'stroke="#e08214" stroke-width="2"/>',
                  f'<text x="{x(max(r["value"][0], r["must"])) + 6:.1f}" y="{y + 11}">'
                  f'{said("times", r["value"][0])}</text>']
    end = 14 + len(shown) * height
    powers = range(int(math.log10(top)) + 1)
    parts += [f'<text x="{x(10 ** p):.1f}" y="{end + 12}" text-anchor="middle">{10 ** p}x</text>' for p in powers]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {end + 20}" '
            'font-family="sans-serif" font-size="11" fill="#808080">'
            '<title>Rows per CPU second over each peer, log scale; the mark is what had to be reached</title>\n'
            + "\n".join(parts) + "\n</svg>\n")


def write(folder: Path, results: Sequence[Result], machine: dict[str, Any]) -> None:
    """bench.json and bench.svg anew, and the part of speed.md between the marks, where there is such a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps({"machine": machine, "cells": list(results)}, indent=1) + "\n")
    (folder / "bench.svg").write_text(picture(results))
    page = folder / "speed.md"
    if page.exists():
        made = f"{BEGIN}\n{markdown(results, machine)}\n\n![How many times faster](bench.svg)\n{END}"
        page.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: made, page.read_text(), flags=re.S))
