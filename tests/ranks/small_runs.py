"""Small trainings, by one process or by several: torchrun starts `small_runs.py CASES`; `train` is one of them.

A case: {"out": file of weights, "settings": of a config, "train": ..., "steps": in all, "until": where this part of it
stops, "resume": whether it goes on from the checkpoint that the part before left}.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from made import batch, config, layout, pick  # noqa: E402

from funnelrank import ranks  # noqa: E402
from funnelrank.ranker import RankingModel  # noqa: E402
from funnelrank.schema import resolve  # noqa: E402
from funnelrank.settings import Train  # noqa: E402
from funnelrank.tensors import save_tensors  # noqa: E402
from funnelrank.train.optim import row_updates  # noqa: E402
from funnelrank.train.trainer import Trainer  # noqa: E402


class Stopped(Exception):
    """Where a part of a training ends, as if it had been killed."""


class Made:
    """Batches of 37 rows, each rank's share of them; every fifth has 2 rows, so that some ranks have none."""

    def __init__(self, steps, until=None):
        self.steps, self.until, self.at = steps, until or steps, 0

    def __len__(self):
        return self.steps

    def epoch(self, n):
        for i in range(self.at, self.steps):
            if i == self.until:
                raise Stopped
            rows = batch(37 if i % 5 else 2, seed=i, missing=0.2)
            rows = replace(rows, weight=torch.rand(len(rows), generator=torch.Generator().manual_seed(i)))
            self.at = i + 1
            yield pick(rows, list(range(*ranks.share(len(rows)))))

    def state(self):
        return {"epoch": 0, "batch": self.at}

    def restore(self, state):
        self.at = state["batch"]


def train(out, settings, steps, train=None, until=None, resume=False):
    """Weights of the whole model after these steps, on the first rank; also written to `out`."""
    said, out = config(**settings), Path(out)
    schema = resolve(said)
    torch.manual_seed(0)
    model = RankingModel(said, schema, layout(schema.task_names), {t: {"mean": 0.3, "std": 1.0}
                                                                   for t in schema.task_names}, apart=True)
    given = {"epochs": 1, "checkpoint_seconds": None, **(train or {})}
    events = []
    trainer = Trainer(model, Train.model_validate(given), torch.ones(len(schema.tasks)),
                      folder=out.with_suffix(".checkpoints"), report=events.append)
    try:
        trainer.run(Made(steps, until), row_updates(model.embedding, said.embedding), resume=resume)
    except Stopped:
        return {}
    tensors = dict(model.state_dict())
    for name, table in model.embedding.tables.items():
        if table.sharded:
            tensors[f"embedding.tables.{name}.weight"] = table.whole(out.with_suffix(f".{name}") if ranks.first()
                                                                     else None)
    if ranks.first():
        tensors["losses"] = torch.tensor([list(e["loss"].values()) for e in events if e["event"] == "step"])
        save_tensors(out, tensors)
    return tensors


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.joined():
        for case in json.loads(sys.argv[1]):
            train(**case)
