"""What the command line prints, and how: lines, tables, and events as they come."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from funnelrank.stopping import refuse_to_go_on

if TYPE_CHECKING:
    from funnelrank.evaluate.table import Shown


def say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:            # the reader went away, as in `train x | head`; or a full disk. The work goes on
        _forget_stdout()
        if not isinstance(error, BrokenPipeError):
            print(f"stdout: {error.strerror}; nothing more is shown there", file=sys.stderr)


def complain(message: str) -> None:
    """On stderr, if anyone reads it."""
    with contextlib.suppress(BrokenPipeError):
        print(printable(message), file=sys.stderr, flush=True)


def many_ranks() -> bool:
    """Whether torchrun started several processes, of which this is one."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def other_rank() -> bool:
    """Whether torchrun started this process beside another one that speaks for all."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def silence() -> None:
    """Nothing more is shown on stdout."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")        # noqa: SIM115


def printable(message: str) -> str:
    """Without what a file's values could tell a terminal to do."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)


class Console:
    """A reader of events: one live bar a stage on a terminal, plain lines elsewhere."""

    EVERY = 5.0                     # seconds between plain lines of one stage
    MUCH = 100_000_000              # bytes on disk worth a line

    def __enter__(self) -> Console:
        from rich.console import Console as Screen
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        console = Screen()
        self.live = None
        if console.is_terminal:
            self.live = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"),
                                 TimeElapsedColumn(), console=console)
            self.live.start()
        self.bars, self.told = {}, {}
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def watch(self, event: dict) -> None:
        refuse_to_go_on()
        match event["event"]:
            case "progress":
                done, total = event["rows"], event.get("total")
                self._advance(event["stage"], done, total, f"{done:,}" + (f" / {total:,}" if total else "") + " rows")
            case "step":
                loss = "  ".join(f"{task} {value:.4f}" for task, value in event["loss"].items() if value is not None)
                self._advance("train", event["step"], event.get("steps"),
                              f"step {event['step']:,}  loss {loss}  {event['rows_per_s']:,} rows/s")
            case "part":
                self._line(f"{event['name']}: {event['folder']}")
            case "seed":
                self._line(f"seed {event['seed']}: {event['folder']}")
            case "trial":
                value = f"failed ({event['note']})" if event["state"] == "FAIL" else (
                    f"{event['metric']} {event['value']:.4f}" if event["value"] is not None else
                    f"not trained ({event['note']})" if event["note"] else "ended early")
                best = "" if event["best"] is None else f" (best {event['best']:.4f})"
                said = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}"
                                 for k, v in event["params"].items())
                self._line(f"{event['done']} of {event['of']}: trial {event['number']}: {value}"
                           f"{best}; {said}")
            case "continue":
                from funnelrank.describe import describe_continued
                for line in describe_continued(event):
                    self._line(line)
            case "pretrained":
                self._line(f"vectors of {event['space']}: {event['found']:,} of {event['values']:,} values start from "
                           f"{event['vectors']}{', frozen' if event['frozen'] else ''}; {event['unused']:,} vectors "
                           "are of other values")
            case "evaluate":
                value = "-" if event["value"] is None else f"{event['value']:.4f}"
                best = " (best)" if event["better"] else ""
                self._line(f"step {event['step']:,}: {event['metric']} {value}{best}")
            case "selection":
                self._line("how much of each feature is kept: " + ", ".join(
                    f"{name} {share:.2f}" for name, share in sorted(event["shares"].items(), key=lambda s: -s[1])))
            case "resume":
                self._line(f"going on from step {event['step']:,}" if event["step"] else
                           "going on with a run that had no checkpoint yet")
            case "anew":
                why = f" ({'; '.join(event['changed'][:3])})" if event["changed"] else ""
                kept = "; the artefact that is there stays until this run ends" if event["artefact"] else ""
                self._line(f"{event['folder']}: beginning anew{why}{kept}")
            case "skipped":
                self._line(f"{event['split']}: left out {event['words']}; first: {printable(event['samples'][0])}")
            case "disk" if event["bytes"] > min(self.MUCH, event["free"] / 10):
                from funnelrank.durable import spell_size
                self._line(f"{event['what']}: about {spell_size(event['bytes'])} to be written to {event['folder']} "
                           f"({spell_size(event['free'])} free)")
            case "fitted":
                self._line(f"vocabularies and statistics from {event['folder']}")
            case "engine":
                cut = f"; buckets of {', '.join(event['buckets'])} cut at its approximate quantiles" if (
                    event["quantiles"] == "approximate" and event["buckets"]) else ""
                left = f"; left to a pass over the rows here: {', '.join(event['left'])}" if event["left"] else ""
                self._line(f"train is counted by {event['engine']}{cut}{left}")
            case "profile" if event["asked"]:
                self._line(_profile(event))
            case "warning":
                self._line(f"step {event['step']:,}: warning: {event['said']}")
            case "interrupted":
                self._line(f"step {event['step']:,}: checkpoint written; the same command goes on from here")
            case "finished":
                self._line(f"{event['folder']}: this run is finished, and the same config, data and code would give "
                           "the same again; --fresh trains all the same")

    def _advance(self, stage: str, done: int, total: int | None, said: str) -> None:
        if self.live:
            if stage not in self.bars:
                self.bars[stage] = self.live.add_task(stage, total=total, said="")
            self.live.update(self.bars[stage], completed=done, total=total, said=said)
            return
        import time
        now = time.monotonic()
        if done == total or now - self.told.setdefault(stage, now) >= self.EVERY:
            self.told[stage] = now
            self._line(f"{stage}: {said}")

    def _line(self, text: str) -> None:
        if self.live:
            self.live.console.print(text, highlight=False)
        else:
            say(text)


def show_metrics(rows: list[dict], split: str) -> None:
    """Metrics of one split, a line per task x scenario; on a narrow terminal, without the least telling columns."""
    import shutil

    from funnelrank.evaluate.table import show
    shown = show(rows, split)
    columns = list(zip(shown.columns, *shown.rows))
    wide = shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else None
    left_out = []
    for name in ("note", "auc_oracle", "positives", "rows"):
        if wide and sum(max(map(len, c)) + 2 for c in columns) > wide:
            columns, left_out = [c for c in columns if c[0] != name], [*left_out, name]
    texts = ("task", "scenario", "note")
    widths = [max(map(len, column)) for column in columns]
    say(f"\n{split}" + (f" (no room for {', '.join(left_out)}; see report.html)" if left_out else ""))
    before = None
    for line in zip(*columns):
        if before not in (None, "task", line[0]):
            say("")
        before = line[0]
        say("  ".join(cell.ljust(w) if column[0] in texts else cell.rjust(w)
                      for cell, w, column in zip(line, widths, columns)).rstrip())
    say("")


def show_table(shown: Shown, texts: Sequence[str]) -> None:
    """A table of texts; columns named in `texts` begin at their left."""
    columns = list(zip(shown.columns, *shown.rows))
    widths = [max(map(len, column)) for column in columns]
    for line in zip(*columns):
        say("  ".join(cell.ljust(w) if column[0] in texts else cell.rjust(w)
                      for cell, w, column in zip(line, widths, columns)).rstrip())


def _profile(event: dict) -> str:
    """The event as lines: part, milliseconds, share of the step."""
    whole = sum(event["ms"].values()) or 1.0
    rows = [f"a step of {event['rows']:,.0f} rows in {event['clock']} milliseconds, mean of {event['steps']:,}"]
    rows += [f"  {part:<12}{ms:>9.3f}{ms / whole:>7.1%}" for part, ms in event["ms"].items()]
    rows += [f"  {'whole':<12}{whole:>9.3f}"]
    if "floor_ms" in event:
        rows += [f"  {'floor':<12}{event['floor_ms']:>9.3f}{event['share']:>7.1%} of its rate reached; a row takes "
                 f"{event['multiply_adds']:,.0f} multiply-adds and {event['bytes']:,.0f} bytes"]
    return "\n".join(rows)


def _forget_stdout() -> None:
    """Whatever is still to be flushed at the end goes nowhere, instead of failing again."""
    with contextlib.suppress(OSError, ValueError):          # captured, it has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
