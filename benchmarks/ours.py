"""funnelrank's workers: `python benchmarks/ours.py '{"work": "train", ...}'`, driven through gate.py.

Training goes the default path, as `funnelrank train` does: config, encoded cache, Loader, Trainer, all by flow.py.
What is not counted: encoding (it has cells of its own), building the model, and the checkpoint at a run's end.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from cells import NETS, dims
from gate import Gate
from rows import config as log_config
from rows import made
from scores import scores

from funnelrank import flow
from funnelrank.config import Config, load
from funnelrank.data.loader import Loader
from funnelrank.evaluate.metrics import auc, gauc
from funnelrank.kernels import keep_freed_memory
from funnelrank.train.events import Recorder
from funnelrank.train.floor import measure_machine, products, row_bytes
from funnelrank.train.optim import Average, RowUpdates

FOLDER = Path(__file__).parents[1] / ".bench"


def model_section(name: str, net: str, norm: str | None) -> dict:
    """The net of every cell; batch norm where the peer has it."""
    sizes = dims(net)
    tower, body = sizes["tower"], {"hidden": sizes["bottom"], "norm": norm}
    return {"name": name, **{
        "aitm": {"represent": body, "predict": {"name": "towers", "hidden": tower, "norm": norm}},
        "mmoe": {"represent": {"experts": sizes["experts"], "hidden": sizes["expert"], "norm": norm},
                 "predict": {"hidden": tower, "norm": norm}},
        "deepfm": {"represent": body},
        "din": {"represent": body, "prepare": [{"name": "din", "hidden": [36]}]}}[name]}


def train_config(said: dict, out: Path) -> Config:
    tasks = {"click": {}} if said["model"] in ("deepfm", "din") else {"click": {}, "buy": {"after": "click"}}
    document = log_config(made(FOLDER / "data", int(said["ids"])), FOLDER / "cache",
                          model=model_section(said["model"], said["net"], said.get("norm")),
                          train={"out": str(out), "batch_size": said["batch"], "threads": said.get("threads", 1)})
    return load(document | {"tasks": tasks})


class GatedBatches:
    """A Loader whose epochs follow each other without an end, while the gate is open."""

    def __init__(self, gate: Gate, loader: Loader):
        self.gate, self.loader = gate, loader

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int) -> Iterator:
        epochs = (self.loader.epoch(n) for n in range(number, sys.maxsize))
        return self.gate.batches(epochs, len)

    def state(self) -> dict:
        return self.loader.state()


def train(gate: Gate, said: dict, out: Path) -> None:
    config = train_config(said, out)
    flow.Loader = lambda *a, **k: GatedBatches(gate, Loader(*a, **k))
    data = flow.open_data(config)
    encoder = flow.prepare(config, data)
    splits = flow.encode(config, data, encoder)
    with Recorder(out / "events.jsonl", [], flow.silent) as record:
        flow.fit(config, flow.build(config, encoder, splits), encoder, splits, folder=out, report=record)


def loader(gate: Gate, said: dict, out: Path) -> None:
    """The shuffled loader alone, in a process that keeps its memory as one that trains does."""
    keep_freed_memory()
    config = train_config({"model": "aitm", "net": "small", **said}, out)
    data = flow.open_data(config)
    encoder = flow.prepare(config, data)
    split = flow.encode(config, data, encoder)["train"]
    epochs = GatedBatches(gate, Loader(split, encoder.layout, said["batch"], shuffle=True))
    for _ in epochs.epoch(0):
        pass


def encode(gate: Gate, said: dict, out: Path) -> None:
    """Parquet to cache, into a new folder each time. With `fit`, what is counted is fitting the vocabularies."""
    folder = made(FOLDER / "data", int(said["ids"]), said["rows"], strings=said["strings"])
    config = load(log_config(folder, out / "cache", numbered=not said["strings"],
                             lists="auto" if said["strings"] else "off",
                             train={"out": str(out), "threads": 1}))
    data = flow.open_data(config)
    encoder = flow.prepare(config, data)

    def work() -> int:
        if said.get("fit"):
            flow.prepare(config, data)
        else:
            flow.encode(config, data, encoder)
            shutil.rmtree(out / "cache")
        return said["rows"]
    gate.passes(work)


def metric(gate: Gate, said: dict, out: Path) -> None:
    score, label, user = scores(said["rows"])

    def work() -> int:
        if said["metric"] == "auc":
            auc(score, label)
        else:
            gauc(score, label, user)
        return said["rows"]
    gate.passes(work)


def floor(gate: Gate, said: dict, out: Path) -> None:
    """What the machine can do at best: rates over the products of every net, and the work of a row of `said["net"]`."""
    shapes = set()
    for net in NETS:
        config = train_config({**said, "net": net}, out)
        data = flow.open_data(config)
        encoder = flow.prepare(config, data)
        splits = flow.encode(config, data, encoder)
        batch = next(Loader(splits["train"], encoder.layout, said["batch"], shuffle=True).epoch(0))
        model = flow.build(config, encoder, splits)
        found = products(model, batch)
        shapes |= set(found)
        if net == said["net"]:
            average = Average(model, model.embedding, config.settings.train.average)
            updates = RowUpdates(model.embedding, config.settings.embedding.optimiser)
            multiply_adds = sum(n * m * k * p for n, m, k, p in found) / len(batch)
            moved = row_bytes(model.embedding, batch, updates, average) / len(batch)
            del updates, average
        del model

    def work() -> int:
        machine = measure_machine(shapes, 0.02)
        gate.notes = {"flops": max(machine.flops, gate.notes.get("flops", 0)),
                      "bytes": max(machine.bytes, gate.notes.get("bytes", 0)),
                      "multiply_adds_per_row": multiply_adds, "bytes_per_row": moved}
        return 1
    gate.passes(work)


def main() -> None:
    said = json.loads(sys.argv[1])
    torch.set_num_threads(said.get("threads", 1))
    gate = Gate()
    work = {f.__name__: f for f in (train, loader, encode, metric, floor)}[said["work"]]
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as out:
        work(gate, said, Path(out))


if __name__ == "__main__":
    main()
