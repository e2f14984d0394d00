"""A drawing of boxes (network.py) as SVG: columns from features to tasks, and below which features reach which task.

Boxes stand in the column behind the last one that they read; in a column they are ordered by where their neighbours
stand, so that few lines cross; a line that passes a column has a place of its own in it. Text is monospaced, so that
its width is known; colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from funnelrank.network import Box, Network, summary

CHAR, LINE, PAD = 7.25, 16, 9            # of 12px monospaced text; within boxes
GAP, BETWEEN, MARGIN = 16, 74, 20        # between boxes of a column; between columns; around all
MOST_LINES, MOST_CHARS, MOST_FEATURES = 12, 40, 200
SWEEPS = 8
STYLE = """
  svg { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #9aa4af; --edge: #57606a;
        --features: #e8f1fb; --part: #eef7ee; --sum: #f4f1fa; --task: #fdf1e3; --yes: #2b7a3d; --only: #b8860b }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --soft: #9aa6b2; --line: #4a545f; --edge: #8b949e;
          --features: #16283c; --part: #16301d; --sum: #262038; --task: #3a2a14; --yes: #5fce7a; --only: #e0b040 } }
  text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--ink) }
  .t { font-weight: 600 } .s { fill: var(--soft) }
  rect { stroke: var(--line); rx: 6px }
  .features { fill: var(--features) } .part, .block { fill: var(--part) } .sum { fill: var(--sum) }
  .task { fill: var(--task) }
  path { fill: none; stroke: var(--edge); stroke-width: 1.3 } .after { stroke-dasharray: 4 3 }
  .yes { fill: var(--yes); stroke: none } .only { fill: none; stroke: var(--only); stroke-width: 1.6 }
"""


def svg(network: Network) -> str:
    """The text of an SVG file."""
    columns, ways = _columns(network)
    lines = {name: _lines(box) for name, box in network.boxes.items()}
    width = {n: 2 * PAD + CHAR * max(map(len, lines[n])) for n in lines}
    tasks = [n for n, box in network.boxes.items() if box.kind == "task"]
    width |= dict.fromkeys(tasks, max((width[n] for n in tasks), default=0.0))
    height = {n: 2 * PAD + LINE * len(lines[n]) - 4 for n in lines}
    size = lambda n: height.get(n, 10)                       # what is no box is a line that passes
    x, ends, at = {}, {}, float(MARGIN)
    for column in columns:
        wide = max((width.get(n, 0) for n in column), default=0)
        for n in column:
            x[n], ends[n] = at, at + wide
        at += wide + BETWEEN
    right = at - BETWEEN
    y = _rows(columns, ways, size)
    bottom = max((y[n] + size(n) for n in y), default=0.0) + MARGIN
    parts = []
    for way, after in ways:
        parts.append(_line([(x[n], y[n] + size(n) / 2, ends[n]) for n in way], x[way[0]] + width[way[0]], after))
    for name, box in network.boxes.items():
        parts.append(_box(box, lines[name], x[name], y[name], width[name], height[name]))
    table, table_width, end = _reach(network, bottom + LINE)
    total_width, total_height = max(right + 30 * bool(tasks), table_width), end + MARGIN
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width:.0f} {total_height:.0f}" '
            f'width="{total_width:.0f}" height="{total_height:.0f}" role="img" aria-label="{escape(network.title)}">\n'
            f"<title>{escape(network.title)}</title>\n<style>{STYLE}</style>\n" + "\n".join([*parts, *table])
            + "\n</svg>\n")


# ---- where things stand

def _columns(network: Network) -> tuple[list[list[str]], list[tuple[list[str], bool]]]:
    """Names by column, and the way of each line through the columns, with stand-ins where it passes one."""
    reads: dict[str, list[str]] = {n: [] for n in network.boxes}
    for a, b, _ in network.edges:
        if network.boxes[a].kind != "task":                  # tasks stand below each other, whichever comes after which
            reads[b].append(a)
    rank: dict[str, int] = {}
    for name in network.boxes:                               # boxes come behind what they read
        rank[name] = max((rank[r] + 1 for r in reads[name]), default=0)
    last = max(rank.values(), default=0)
    for name, box in network.boxes.items():
        if box.kind == "task":
            rank[name] = last
    for name in reversed(list(network.boxes)):               # features stand close to who reads them
        readers = [rank[b] for a, b, _ in network.edges if a == name]
        if network.boxes[name].kind == "features" and readers:
            rank[name] = min(readers) - 1
    columns: list[list[str]] = [[] for _ in range(last + 1)]
    for name in network.boxes:
        columns[rank[name]].append(name)
    ways = []
    for i, (a, b, after) in enumerate(network.edges):
        passed = [f"\0{i} {c}" for c in range(rank[a] + 1, rank[b])]
        for c, stand_in in enumerate(passed, rank[a] + 1):
            columns[c].append(stand_in)
        ways.append(([a, *passed, b], after))
    near: dict[str, list[str]] = {n: [] for column in columns for n in column}
    for way, _ in ways:
        for a, b in zip(way, way[1:]):
            near[a].append(b)
            near[b].append(a)
    for sweep in range(SWEEPS):
        order = range(1, len(columns)) if sweep % 2 == 0 else range(len(columns) - 2, -1, -1)
        for c in order:
            beside = columns[c - 1 if sweep % 2 == 0 else c + 1]
            place = {n: i / max(len(beside) - 1, 1) for i, n in enumerate(beside)}
            here = {n: i / max(len(columns[c]) - 1, 1) for i, n in enumerate(columns[c])}
            mean = {n: [place[m] for m in near[n] if m in place] for n in columns[c]}
            columns[c].sort(key=lambda n: (sum(mean[n]) / len(mean[n]) if mean[n] else here[n]))
    return columns, ways


def _rows(columns: Sequence[list[str]], ways: Sequence[tuple[list[str], bool]], size) -> dict[str, float]:
    """The upper edge of everything: stacked, each column in the middle, then drawn towards what it is joined to."""
    whole = [sum(size(n) + GAP for n in column) - GAP for column in columns]
    tallest, y = max(whole, default=0.0), {}
    for column, tall in zip(columns, whole):
        at = MARGIN + (tallest - tall) / 2
        for n in column:
            y[n] = at
            at += size(n) + GAP
    near: dict[str, list[str]] = {n: [] for n in y}
    for way, _ in ways:
        for a, b in zip(way, way[1:]):
            near[a].append(b)
            near[b].append(a)
    middle = lambda n: y[n] + size(n) / 2
    for _ in range(SWEEPS):
        for column in columns:
            wanted = [sum(map(middle, near[n])) / len(near[n]) - size(n) / 2 if near[n] else y[n] for n in column]
            at = -float("inf")
            for i, n in enumerate(column):                   # as wanted, but never over the one above
                y[n] = max(wanted[i], at)
                at = y[n] + size(n) + GAP
            sank = sum(y[n] - w for n, w in zip(column, wanted)) / max(len(column), 1)
            for n in column:                                 # and as far above what is wanted as below it
                y[n] -= sank
    least = min(y.values(), default=0.0)
    return {n: v - least + MARGIN for n, v in y.items()}


# ---- what things look like

def _lines(box: Box) -> list[str]:
    """The title, what it is, and what it gives and costs."""
    short = lambda text: text if len(text) <= MOST_CHARS else text[:MOST_CHARS - 1] + "\N{HORIZONTAL ELLIPSIS}"
    inner = [short(line) for line in box.lines[:MOST_LINES]]
    if len(box.lines) > MOST_LINES:
        inner.append(f"and {len(box.lines) - MOST_LINES} more")
    cost = [f"{_many(box.parameters)} parameters"] if box.parameters else []
    cost += [f"{_many(box.multiply_adds)} multiply-adds"] if box.multiply_adds else []
    return [short(box.title), *inner, *([box.gives] if box.gives else []), *cost]


def _many(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _box(box: Box, lines: Sequence[str], x: float, y: float, width: float, height: float) -> str:
    texts = "".join(_text(x + PAD, y + PAD + LINE * i + 9, line, "s" if i else "t") for i, line in enumerate(lines))
    return (f'<g><title>{escape(box.told or box.title)}</title><rect class="{box.kind}" x="{x:.1f}" y="{y:.1f}" '
            f'width="{width:.1f}" height="{height:.1f}"/>{texts}</g>')


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _line(points: Sequence[tuple[float, float, float]], start: float, after: bool) -> str:
    """From `start` through (left, middle, right) of each column: level within one, curved between two. From a task to
    the one after it, beside them."""
    _, y, x = points[0]
    path = f"M{start:.1f} {y:.1f}H{x:.1f}"
    for left, level, right in points[1:]:
        if after:
            path += f"C{x + 30:.1f} {y:.1f} {x + 30:.1f} {level:.1f} {right:.1f} {level:.1f}"
        else:
            bend = (left - x) / 2
            path += f"C{x + bend:.1f} {y:.1f} {left - bend:.1f} {level:.1f} {left:.1f} {level:.1f}"
            path += f"H{right:.1f}" if (left, level, right) != points[-1] else ""
        x, y = right, level
    kind = ' class="after"' if after else ""
    return f'<path{kind} d="{path}"/>'


def _reach(network: Network, top: float) -> tuple[list[str], float, float]:
    """Totals, and a table of features and tasks: its parts, how wide it is and where it ends."""
    parts, x = [], 0.0
    for clause in summary(network).split("; "):
        parts.append(_text(MARGIN, top, clause, "s"))
        x, top = max(x, 2 * MARGIN + CHAR * len(clause)), top + LINE
    names = list(network.reach)[:MOST_FEATURES]
    top += LINE
    parts.append(_text(MARGIN, top, "reaches", "s"))
    column, at = MARGIN + CHAR * max(map(len, [*names, "reaches"])) + 24, {}
    for task in network.tasks:
        at[task] = column + CHAR * len(task) / 2
        parts.append(_text(column, top, task, "t"))
        column += CHAR * len(task) + 24
    said = {"teaches": ("yes", "and learns from it"), "reaches": ("only", "behind a stop-gradient")}
    for name in names:
        top += LINE
        parts.append(_text(MARGIN, top, name, ""))
        for task in network.tasks:
            if found := network.reach[name][task]:
                kind, how = said[found]
                parts.append(f'<circle class="{kind}" cx="{at[task]:.1f}" cy="{top - 4:.1f}" r="4"><title>'
                             f"{escape(f'{name} changes {task}, {how}')}</title></circle>")
    if len(network.reach) > len(names):
        top += LINE
        parts.append(_text(MARGIN, top, f"and {len(network.reach) - len(names):,} more", "s"))
    return parts, max(x, column), top
