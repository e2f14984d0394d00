"""tune.html: a search on one page, what was best first; and tune.md, the same for a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from funnelrank.evaluate.page import duration, figure, figures, frame, h, integer, name_of, nothing, table_of
from funnelrank.evaluate.pictures import bars, search_by_key, search_by_trial
from funnelrank.evaluate.table import direction

MOST = 200              # trials of the table
STATES = {"COMPLETE": "", "PRUNED": "ended early", "FAIL": "failed"}


def page(found: Mapping[str, Any]) -> str:
    """The text of the page. `found` as Tuned.to_json() gives it."""
    trials, way = found["trials"], direction(found["metric"])
    said = "".join(f"<li>{h(line)}</li>" for line in words(found))
    parts = [
        ("Verdict", f"<ul>{said}</ul>" if said else nothing("No trial was begun.")),
        ("Search", figures(search_by_trial(trials, found["metric"], way), "No trial has a value.",
                           "Each dot is a trial; the line is the best so far. All values are on valid.")),
        ("Importance", figures(bars(found["importances"], "share"), "Too few trials to tell which keys matter.",
                               "Of how far values of the metric differ, the share that each key explains (fANOVA).")),
        ("Keys", figures(search_by_key(trials, found["metric"]), "No trial has a value.",
                         "Each dot is a trial with a value.")),
        ("Trials", _trials(trials, way))]
    return frame(f"{found['name']}: search", '<p class="facts">all numbers: tune.json · to train: best.yaml</p>', parts)


def words(found: Mapping[str, Any]) -> list[str]:
    """What was found, a sentence each."""
    trials = found["trials"]
    at = {t["number"]: t for t in trials}
    best, written = (at.get(found[k]) for k in ("best", "written"))
    count = lambda state: sum(t["state"] == state for t in trials)
    said = []
    if best is None:
        said.append("No trial came to its end with a value.")
    else:
        keys = ", ".join(f"{k} {_short(v)}" for k, v in best["params"].items())
        said.append(f"Best is trial {best['number']}: {found['metric']} {best['value']:.4f}, with {keys}.")
        if written is best:
            said.append("That is the config as written: nothing that was tried did better.")
        elif written:
            said.append(f"The config as written has {written['value']:.4f}, {best['value'] - written['value']:+.4f} to "
                        "the best.")
    if trials:
        said.append(f"{len(trials)} trials: {count('COMPLETE')} to their end, {count('PRUNED')} ended early or not "
                    f"begun for their cost, {count('FAIL')} failed.")
    if found["importances"]:
        key, share = next(iter(found["importances"].items()))
        said.append(f"What mattered most is {key} ({100 * share:.0f} % of the differences).")
    said += found["notes"]
    if best is not None and len(trials) > 1:
        said.append("The best of many tries on the same rows looks better than it is: train best.yaml and the config "
                    "as written with --seeds, and hold them against each other on test with funnelrank compare.")
    return said


def markdown(found: Mapping[str, Any]) -> str:
    cell = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    done = [t for t in found["trials"] if t["state"] == "COMPLETE"]
    keys = list(dict.fromkeys(k for t in done for k in t["params"]))
    way = direction(found["metric"])
    lines = [["trial", found["metric"], *keys], ["---"] * (2 + len(keys)),
             *([t["number"], f"{t['value']:.4f}", *(_short(t["params"].get(k)) for k in keys)]
               for t in sorted(done, key=lambda t: -way * t["value"])[:10])]
    return "\n".join([f"# Search of {cell(found['name'])}", "", *(f"- {cell(w)}" for w in words(found)), "",
                      *("| " + " | ".join(map(cell, line)) + " |" for line in lines), ""])


def _trials(trials: Sequence[Mapping], way: int) -> str:
    keys = list(dict.fromkeys(k for t in trials for k in t["params"]))
    order = sorted(trials, key=lambda t: (t["value"] is None, -way * (t["value"] or 0.0), t["number"]))
    body = [[str(t["number"]) + (" <small>as written</small>" if t["written"] else ""),
             h(STATES[t["state"]]), figure(t["value"]), *(name_of(_short(t["params"].get(k))) for k in keys),
             integer(t["parameters"]), figure(t["latency_ms"]), duration(t["seconds"]) or "-", h(t["note"] or "")]
            for t in order[:MOST]]
    if not body:
        return nothing("No trial was begun.")
    left = f'<p class="note">{len(trials) - MOST:,} more are in tune.json.</p>' if len(trials) > MOST else ""
    return table_of(["trial", "", "value", *keys, "parameters", "ms", "took", "note"], body, texts=2,
                    last_is_text=True) + left


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
