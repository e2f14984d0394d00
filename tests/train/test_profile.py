"""A profile adds up, names every part, and leaves the training as it is."""

import pytest
import torch
from made import batch, config, model

from funnelrank.settings import RowOptimiser, Train
from funnelrank.train.optim import RowUpdates
from funnelrank.train.profile import PARTS, Profile
from funnelrank.train.trainer import Trainer


class Thrice:
    """Three batches an epoch."""

    def __len__(self):
        return 3

    def epoch(self, number):
        return iter([batch(32, seed=s) for s in range(3)])

    def state(self):
        return {"epoch": 0, "batch": 0}

    def restore(self, state):
        raise AssertionError("nothing to restore")


def trained(folder, profiled, engine):
    events, m = [], model(config(embedding={"width": 4, "engine": engine}))
    trainer = Trainer(m, Train(epochs=2, threads=1), torch.ones(len(m.tasks)), folder=folder, report=events.append,
                      profile=Profile(m) if profiled else None)
    trainer.run(Thrice(), RowUpdates(m.embedding, RowOptimiser()))
    return m, [e for e in events if e["event"] == "profile"]


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_every_part_of_every_step_is_counted_once(tmp_path, engine):
    m, (found,) = trained(tmp_path, True, engine)
    assert found["steps"] == 6 and tuple(found["ms"]) == PARTS and found["rows"] == 32
    assert all(found["ms"][part] > 0 for part in ("gather", "forward", "backward", "row update", "dense step"))
    assert found["share"] == pytest.approx(found["floor_ms"] / sum(found["ms"].values()))
    assert found["multiply_adds"] > 0 and found["bytes"] > 0
    assert m.embedding.native is None or "reduce" not in vars(m.embedding.native)      # nothing is left in the model


def test_it_changes_no_bit(tmp_path):
    weights = [[p.detach().clone() for p in trained(tmp_path / str(on), on, "auto")[0].parameters()]
               for on in (False, True)]
    assert all(torch.equal(a, b) for a, b in zip(*weights))
