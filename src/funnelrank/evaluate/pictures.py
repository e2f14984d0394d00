"""The report's pictures, as SVG that stands in a page: it takes the page's font and its text colour, light or dark.

matplotlib is imported when the first picture is drawn. Each function returns one picture a panel, or none where
there is nothing to show.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

INK = "#010203"          # drawn in this, then replaced by the page's own colour
COLOURS = ("#3a86c8", "#e08214", "#2a9d6f", "#c44e8a", "#8c6bb1", "#a39017", "#cf4a3c", "#5f8795")
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "funnelrank", "text.parse_math": False, "font.size": 10,
         "text.color": INK, "axes.labelcolor": INK,
         "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK, "axes.linewidth": 0.6, "grid.color": INK,
         "grid.alpha": 0.13, "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 9, "axes.grid": True,
         "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.limits": (-4, 6),
         "axes.unicode_minus": False, "xtick.major.size": 0, "ytick.major.size": 0, "legend.handlelength": 1.2}
MOST_POINTS = 300        # of one curve; longer ones are averaged
MOST_SCENARIOS = 25
MOST_NAME = 28           # characters of a name in a picture
UNPRINTABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Picture(NamedTuple):
    title: str
    svg: str
    note: str = ""


def learning_curves(events: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Loss of every task over steps, what was measured on valid, and the calibrator's loss."""
    losses, calibrator, metrics, watched, best = _curves(events)
    pictures = []
    if losses:
        pictures.append(Picture("Training loss", _draw(lambda ax: _lines(ax, losses, "loss"))))
    if watched:
        note = f"Kept weights: those of step {best:,}." if best is not None else ""
        pictures.append(Picture(f"Watched: {next(iter(watched))}",
                                _draw(lambda ax: _lines(ax, watched, "", best)), note))
    if metrics:
        pictures.append(Picture("AUC on valid", _draw(lambda ax: _lines(ax, metrics, "AUC", best))))
    if calibrator:
        pictures.append(Picture("Calibrator", _draw(lambda ax: _lines(ax, calibrator, "loss"))))
    return pictures


def reliability_diagrams(bins: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Picture]:
    """Mean label against mean probability in bins of equal mass, per task, with 95 % intervals."""
    pictures = []
    for t, (task, b) in enumerate(bins.items()):
        columns = [np.asarray(b.get(k, ()), float) for k in ("p", "y", "low", "high", "count")]
        if len({len(c) for c in columns}) != 1 or not len(columns[0]):
            continue
        each = columns[4].sum() / len(columns[4])
        pictures.append(Picture(task, _draw(lambda ax, t=t, c=columns: _reliability(ax, *c[:4], _colour(t)), 3.3),
                                f"{len(columns[0])} bins, about {each:,.0f} rows in each"))
    return pictures


def ranking_by_task(rows: Sequence[Mapping[str, Any]], split: str) -> list[Picture]:
    """AUC, and where it is known GAUC, of each task over all rows: dots, with 95 % intervals as whiskers."""
    pictures = []
    for metric, title in (("auc", "AUC by task"), ("gauc", "GAUC by task"), ("gauc_frozen", "GAUC, frozen histories")):
        dots = [r for r in rows if (r["split"], r["metric"], r["scenario"]) == (split, metric, None) and r["task"]]
        if any(r["value"] is not None for r in dots):
            labels = [_short(r["task"]) for r in dots]
            pictures.append(Picture(title, _draw(
                lambda ax, d=dots, n=labels, m=metric: _dots(ax, d, n, None, COLOURS[0], m.split("_")[0].upper()),
                0.9 + 0.27 * len(dots))))
    return pictures


def auc_by_scenario(rows: Sequence[Mapping[str, Any]], split: str) -> list[Picture]:
    """One dot a scenario, the largest first, with its 95 % interval, and the AUC over all rows as a line."""
    pictures = []
    mine = [r for r in rows if r["split"] == split and r["metric"] == "auc" and r["task"] is not None]
    for t, task in enumerate(dict.fromkeys(r["task"] for r in mine)):
        whole = next((r["value"] for r in mine if r["task"] == task and r["scenario"] is None), None)
        dots = sorted((r for r in mine if r["task"] == task and r["scenario"] is not None and r["rows"]),
                      key=lambda r: -r["rows"])
        if not dots:
            continue
        shown = dots[:MOST_SCENARIOS]
        note = f"The {len(shown)} largest of {len(dots)} scenarios." if len(dots) > len(shown) else ""
        pictures.append(Picture(task, _draw(lambda ax, t=t, w=whole, d=shown: _dots(
            ax, d, [f"{_short(r['scenario'])} · {r['rows']:,}" for r in d], w, _colour(t)),
                                            0.9 + 0.27 * len(shown)), note))
    return pictures


def importance_by_task(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """A dot a feature, the most important first, with its 95 % interval; 0 as a line. Rows of importance.py."""
    pictures = []
    for t, task in enumerate(dict.fromkeys(r["task"] for r in rows)):
        whole = [r for r in rows if r["task"] == task and r["scenario"] is None]
        metric = "auc" if any(r["metric"] == "auc" and r["value"] is not None for r in whole) else "loss"
        dots = sorted((r for r in whole if r["metric"] == metric and r["value"] is not None), key=lambda r: -r["value"])
        if dots:
            shown = dots[:MOST_SCENARIOS]
            note = f"The {len(shown)} largest of {len(dots)}." if len(dots) > len(shown) else ""
            label = "AUC that it costs" if metric == "auc" else "rise of the loss"
            pictures.append(Picture(task, _draw(lambda ax, t=t, d=shown, x=label: _costs(ax, d, _colour(t), x),
                                                0.9 + 0.24 * len(shown)), note))
    return pictures


def search_by_trial(trials: Sequence[Mapping[str, Any]], metric: str, way: int) -> list[Picture]:
    """Values of trials in their order, and the best so far. way: +1 where higher is better."""
    known = [(t["number"], t["value"]) for t in trials if t["value"] is not None]
    if not known:
        return []
    x, y = np.array(known, float).T
    best = way * np.maximum.accumulate(way * y)

    def panel(ax: Any) -> None:
        ax.plot(x, y, "o", color=COLOURS[0], ms=4, alpha=0.6)
        ax.step(x, best, where="post", color=COLOURS[1], lw=1.6)
        ax.set(xlabel="trial", ylabel=_short(metric))
    return [Picture("Trials", _draw(panel))]


def search_by_key(trials: Sequence[Mapping[str, Any]], metric: str) -> list[Picture]:
    """A panel for each key: the metric by its value."""
    done = [t for t in trials if t["value"] is not None]
    pictures = []
    for k, key in enumerate(dict.fromkeys(key for t in done for key in t["params"])):
        mine = [(t["params"][key], t["value"]) for t in done if key in t["params"]]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v, _ in mine)
        names = None if numbers else list(dict.fromkeys(str(v) for v, _ in mine))

        def panel(ax: Any, mine=mine, names=names, k=k) -> None:
            x = [v if names is None else names.index(str(v)) for v, _ in mine]
            ax.plot(x, [y for _, y in mine], "o", color=_colour(k), ms=4, alpha=0.7)
            if names is not None:
                ax.set_xticks(range(len(names)), [_short(n) for n in names], rotation=20 if len(names) > 3 else 0)
                ax.set_xlim(-0.5, len(names) - 0.5)
            elif min(x) > 0 and max(x) > 20 * min(x):
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter("{x:g}")
            ax.set(ylabel=_short(metric))
        pictures.append(Picture(key, _draw(panel, 2.4)))
    return pictures


def bars(shares: Mapping[str, float], label: str) -> list[Picture]:
    """One bar a name, the largest first."""
    if not shares:
        return []

    def panel(ax: Any) -> None:
        ax.barh(range(len(shares)), list(shares.values()), color=COLOURS[0], height=0.6)
        ax.set_yticks(range(len(shares)), [_short(n) for n in shares])
        ax.set_ylim(len(shares) - 0.5, -0.5)
        ax.set(xlabel=label)
    return [Picture("Keys", _draw(panel, 0.9 + 0.27 * len(shares)))]


# ---- panels

def _costs(ax: Any, dots: Sequence[Mapping], colour: str, label: str) -> None:
    _dots(ax, dots, [_short(r["feature"]) for r in dots], None, colour, label)
    ax.axvline(0, color=INK, lw=0.8, alpha=0.5)
    left, right = ax.get_xlim()
    ax.set_xlim(min(left, 0), max(right, 0))


def _lines(ax: Any, curves: Mapping[str, tuple], label: str, best: float | None = None) -> None:
    for t, (name, (x, y)) in enumerate(curves.items()):
        x, y = _thinned(np.asarray(x, float), np.asarray(y, float))
        ax.plot(x, y, color=_colour(t), lw=1.6, marker="o" if len(x) < 15 else None, ms=4, label=_short(name))
    if best is not None:
        ax.axvline(best, color=INK, lw=0.8, ls=":")
    every = np.concatenate([y for _, y in curves.values()])
    if every.min() > 0 and every.max() > 20 * every.min():
        ax.set_yscale("log", subs=())
        ax.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if every.max() < 100 * every.min() else (1,))
        ax.yaxis.set_major_formatter("{x:g}")       # the default writes formulas
    ax.set_xlabel("step")
    ax.set_ylabel(label)
    if len(curves) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, borderaxespad=0.2, columnspacing=1)


def _reliability(ax: Any, p: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    top = max(float(p.max()), float(high.max()), 1e-9) * 1.05
    ax.plot([0, top], [0, top], color=INK, lw=0.8, ls="--", alpha=0.5)
    ax.errorbar(p, y, yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt="o", ms=4, color=colour, lw=1.2)
    ax.set(xlim=(0, top), ylim=(0, top), xlabel="mean predicted probability", ylabel="observed rate")


def _dots(ax: Any, dots: Sequence[Mapping], names: Sequence[str], whole: float | None, colour: str,
          metric: str = "AUC") -> None:
    places = np.arange(len(dots))
    known = [i for i, r in enumerate(dots) if r["value"] is not None]
    aucs = [dots[i]["value"] for i in known]
    bars = [_interval(dots[i]) for i in known]
    ax.hlines(known, [low for low, _ in bars], [high for _, high in bars], color=colour, lw=1.2)
    ax.plot(aucs, known, "o", color=colour, ms=6)
    if whole is not None:
        ax.axvline(whole, color=INK, lw=0.9, ls="--", alpha=0.6)
        ax.annotate(f"all {whole:.3f}", (whole, 1), (0, 3), xycoords=("data", "axes fraction"),
                    textcoords="offset points", ha="center", fontsize=9)
    values = [*(end for bar in bars for end in bar), *([whole] if whole is not None else [])]
    left, right = (min(values), max(values)) if values else (0.4, 0.6)
    room = max(0.12 * (right - left), 0.005)
    ax.set(xlim=(left - room, right + room), xlabel=metric)
    for i, r in enumerate(dots):
        if r["value"] is None:
            ax.annotate(_short(r["note"] or "no value"), (left, i), va="center", fontsize=9, alpha=0.7)
    ax.set_yticks(places, names)
    ax.set_ylim(len(dots) - 0.5, -0.5)


def _interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Ends of the whisker; the value twice where there is no interval."""
    low, high = row.get("low"), row.get("high")
    return (row["value"], row["value"]) if low is None or high is None else (low, high)


# ---- numbers behind curves

def _curves(events: Sequence[Mapping[str, Any]]) -> tuple[dict, dict, dict, dict, float | None]:
    """Curves name -> (steps, values): losses, calibrator, valid AUCs and the watched metric; and the best step."""
    losses: dict[str, tuple] = {}
    calibrator: dict[str, tuple] = {}
    metrics: dict[str, tuple] = {}
    watched: dict[str, tuple] = {}
    best = None
    for event in events:
        step = event.get("step")
        if not _finite(step):
            continue
        if event.get("event") == "step":
            for task, loss in (event.get("loss") or {}).items():
                _add(losses, task, step, loss)
            _add(calibrator, "calibrator", step, event.get("calibrator"))
        elif event.get("event") == "evaluate":
            for name, value in (event.get("metrics") or {}).items():
                if task := _auc_of(name):
                    _add(metrics, task, step, value)
            if event.get("metric"):
                _add(watched, event["metric"], step, event.get("value"))
            if event.get("better"):
                best = step
    return losses, calibrator, metrics, watched, best


def _auc_of(name: str) -> str | None:
    """The task of 'valid/auc_click' or 'valid/click/auc', 'mean' for 'valid/auc'; None for other metrics."""
    if re.search(r"(^|/)auc(_macro)?$", name) and name.count("/") < 2:
        return "mean"
    found = re.search(r"(?:^|/)(?:auc_(?!oracle)(.+)|([^/]+)/auc)$", name)
    return found and (found[1] or found[2])


def _add(curves: dict[str, tuple], name: str, step: float, value: Any) -> None:
    if _finite(value):
        x, y = curves.setdefault(str(name), ([], []))
        x.append(step)
        y.append(value)


def _finite(number: Any) -> bool:
    return isinstance(number, int | float) and bool(np.isfinite(number))


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)[:-1]
    size = np.diff(edges, append=len(x))
    return np.add.reduceat(x, edges) / size, np.add.reduceat(y, edges) / size


# ---- from panels to SVG

def _colour(t: int) -> str:
    return COLOURS[t % len(COLOURS)]


def printable(value: Any) -> str:
    """A text without what UTF-8 or HTML cannot hold, and without marks that turn the reading direction of a page."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value).encode("utf-8", "replace").decode("utf-8"))


def shortened(name: Any, most: int) -> str:
    """A printable text on one line of at most `most` characters, the last one an ellipsis where some are left out."""
    text = str(name)
    whole = len(text) <= most       # cut before anything looks at it: a name out of a log may have megabytes
    return printable(text if whole else text[:most - 1] + "…").replace("\n", " ")


def _short(name: Any) -> str:
    return shortened(name, MOST_NAME)


def _draw(panel: Callable[[Any], None], height: float = 2.9) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")   # the page's font draws the text
        figure = Figure(figsize=(4.6, height), layout="constrained")
        FigureCanvasSVG(figure)
        panel(figure.subplots())
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(out.getvalue())


def _for_page(svg: str) -> str:
    """One <svg> without prolog, comments, names of namespaces, own fonts, size, or rules that reach other elements."""
    svg = svg[svg.index("<svg"):]
    for unwanted in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        svg = re.sub(unwanted, "", svg, flags=re.S)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)[0]
    rest = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", rest)       # as older matplotlibs write it
    rest = re.sub(r" font-family: [^;\"]+;", "", rest)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)                           # nothing refers to groups
    mark = f"{crc32(rest.encode()):08x}"                                  # other ids are unique in one picture only
    rest = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{mark}", rest)
    rest = re.sub(r"\s*\n\s*", "\n", rest).replace(INK, "currentColor")
    return f'<svg {box} role="img">{rest}'
