"""Configs of EasyRec, TorchEasyRec and FuxiCTR as configs of ours, with a table of what became of every key.

    read         files -> Imported: the config's text, and a Row for each key path of the source

One module a system says what its keys mean (easyrec.py, torch_easyrec.py, fuxictr.py); source.py keeps the answers,
target.py writes the config. Nothing of a source is evaluated as code, and no torch is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from funnelrank import config, document
from funnelrank.durable import replace_file
from funnelrank.errors import ConfigError
from funnelrank.imports import easyrec, fuxictr, prototext, torch_easyrec
from funnelrank.imports.source import VERDICTS, Row, Section, Verdict, of_message, stop_at, table
from funnelrank.imports.target import Target

System = Literal["easyrec", "torch_easyrec", "fuxictr"]
NAMES: dict[System, str] = {"easyrec": "EasyRec", "torch_easyrec": "TorchEasyRec", "fuxictr": "FuxiCTR"}


@dataclass(frozen=True)
class Imported:
    """What an import comes to: our config as YAML, and what became of every key path of the source."""

    name: str
    system: System
    text: str
    rows: tuple[Row, ...]
    faults: tuple[str, ...] = ()             # what `check` would say of the text; the source's refusals are why

    def of(self, verdict: Verdict) -> list[Row]:
        return [row for row in self.rows if row.verdict == verdict]

    def counts(self) -> str:
        """'212 carried, 3 approximated, 8 ignored, 0 refused'."""
        return ", ".join(f"{len(self.of(v))} {v}" for v in VERDICTS)

    def page(self) -> str:
        """The table as Markdown."""
        cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
        lines = [f"# {self.name}, from {NAMES[self.system]}", "", f"Key paths: {self.counts()}.", "",
                 "| key path | lines | became | what |", "|---|---|---|---|"]
        lines += [f"| `{cell(r.path)}` | {cell(r.where)} | {r.verdict} | {cell(r.said)} |" for r in self.rows]
        return "\n".join(lines) + "\n"


def write(paths: Sequence[Path], out: Path | None = None, *, strict: bool = False, anyway: bool = False,
          system: System | None = None, experiment: str | None = None) -> tuple[Imported, Path]:
    """Reads a source config and writes ours to `out`, with the table beside it, as NAME.import.md.

    Relative data paths go on to start at the current folder. Raises ConfigError where something is refused, or with
    `strict` approximated, and writes nothing then; with `anyway` what is refused is left out.
    """
    found = read(paths, system, experiment, out.parent if out else None)
    out = out or Path(f"{found.name}.yaml")
    if out.exists():
        raise ConfigError(f"{out}: is there already; remove it, or name another file with --out")
    barred = [*([] if anyway else found.of("refused")), *(found.of("approximated") if strict else [])]
    outer = {r.path for r in barred if r.verdict == "refused"}                     # of what is within, it says enough
    barred = [r for r in barred if not any(r.path.startswith(f"{p}.") for p in outer)]
    if barred:
        raise ConfigError(*(f"{r.where}: {r.path}: {r.verdict}: {r.said}" for r in barred))
    if found.faults:
        raise ConfigError(*found.faults)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, found.text.encode())
    replace_file(page_of(out), found.page().encode())
    return found, out


def page_of(out: Path) -> Path:
    """Where the table of an imported config stands."""
    return out.with_suffix(".import.md")


def read(paths: Sequence[Path], system: System | None = None, experiment: str | None = None,
         beside: Path | None = None) -> Imported:
    """Reads one source config, a file or the files that belong together; `beside`, the folder of ours that is to be.

    Raises ConfigError for what is no config of that system, and where what comes out would not pass `check` although
    nothing was refused.
    """
    faults: list[str] = []
    target = Target()
    if beside is not None and beside.resolve() != Path.cwd():
        target.put("data.dir", os.path.relpath(Path.cwd(), beside.resolve()))
    path = paths[0]
    if system == "fuxictr" or system is None and (path.is_dir() or path.suffix in (".yaml", ".yml")):
        system, sources = "fuxictr", fuxictr.sections(paths, faults)
        name = fuxictr.read(sources, target, experiment)
    else:
        source = of_message(prototext.read(config.read_text(path), path.name), path.name, faults)
        system, sources = system or _system(source, path), [source]
        {"easyrec": easyrec.read, "torch_easyrec": torch_easyrec.read}[system](source, target)
        name = path.name.split(".")[0] or path.name
    stop_at(faults)
    _judge(target)
    rows = tuple(table(sources))
    names = list(dict.fromkeys(s.file for s in sources))
    files = " and ".join(names)
    text = target.text(f"Imported from {files}, a config of {NAMES[system]}; numbers behind # are lines there.\nKey "
                       f"paths: {', '.join(f'{sum(r.verdict == v for r in rows)} {v}' for v in VERDICTS)}.")
    where = lambda line: f"{files}:{line}" if len(names) == 1 else f"{files}, line {line}"
    return Imported(name, system, text, rows, _faults(text, target, where, rows))


def _judge(target: Target) -> None:
    """Without a binary task there is no mean AUC to choose weights by: the first task's error does."""
    kinds = {name: task.get("kind", "binary") for name, task in target["tasks"].items()}
    if kinds and "binary" not in kinds.values() and "valid" in target["data"]:
        name, kind = next(iter(kinds.items()))
        metric = "logloss" if kind == "multiclass" else "rmse"
        target["train"].setdefault("early_stopping", {})["metric"] = f"valid/{name}/{metric}"


def _system(source: Section, path: Path) -> System:
    """Which system a protobuf text is of, by keys that only one of them has."""
    train, data, model = (_peek(source, k) for k in ("train_config", "data_config", "model_config"))
    if {"sparse_optimizer", "dense_optimizer"} & train or {"dataset_type", "fg_mode", "fg_encoded"} & data:
        return "torch_easyrec"
    if "model_class" in model or "optimizer_config" in train or "input_type" in data:
        return "easyrec"
    raise ConfigError(f"{path}: looks like no config of EasyRec or TorchEasyRec: it has neither "
                      "model_config.model_class nor train_config.sparse_optimizer; say --from easyrec or --from "
                      "torch_easyrec if it is one")


def _peek(source: Section, key: str) -> set[str]:
    return {k for e in source.entries if e.key == key and isinstance(e.value, Section) for k in e.value.names()}


def _faults(text: str, target: Target, where: Callable[[int], str], rows: Sequence[Row]) -> tuple[str, ...]:
    """What `check` says of what comes out, with the lines of the source that it comes from. Raises ConfigError where
    nothing that was refused explains it."""
    try:
        config.load(document.read(text, "imported").value)
    except ConfigError as error:
        said = [re.sub(r"^imported:\d+:\d+: ", "", m) for m in error.messages]
        messages = tuple(f"{where(target.line_of(m.partition(': ')[0]))}: imported, it would not be a config: {m}"
                         for m in said)
        if not any(row.verdict == "refused" for row in rows):
            raise ConfigError(*messages) from None
        return messages
    return ()

