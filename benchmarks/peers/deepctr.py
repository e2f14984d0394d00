"""DeepCTR-Torch: its own `fit` with its defaults (Adam, l2 1e-5 on embeddings), without metrics on every batch."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gate import Gate, GatedLoader  # noqa: E402

gate = Gate()                    # first of all: some of the packages print while they are imported

import torch  # noqa: E402
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat  # noqa: E402
from deepctr_torch.models import MMOE, DeepFM, basemodel  # noqa: E402
from log import read  # noqa: E402

WIDTH = 16


def columns(meta: dict) -> list:
    fields = meta["fields"]
    sparse = [SparseFeat(f, size, WIDTH) for f, size in fields.items()]
    lists = [VarLenSparseFeat(SparseFeat(h, fields[said["space"]], WIDTH, embedding_name=said["space"]), said["most"],
                              "mean") for h, said in meta["lists"].items()]
    return [*sparse, *lists, *(DenseFeat(n, 1) for n in meta["numbers"])]


def main() -> None:
    said = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    meta, x, labels = read(said["log"])
    if said["model"] == "mmoe":
        # the paper's gates are linear, as on the other side
        model = MMOE(columns(meta), said["experts"], said["expert"], (), said["tower"])
        model.compile("adam", ["binary_crossentropy"] * 2)
        y = np.stack(list(labels.values()), 1)
    else:
        model = DeepFM(columns(meta), columns(meta), dnn_hidden_units=said["bottom"])
        model.compile("adam", "binary_crossentropy")
        y = labels["click"]
    make = basemodel.DataLoader
    basemodel.DataLoader = lambda *a, **k: GatedLoader(gate, make(*a, **k))      # the same loader, which can pause
    model.fit(x, y, batch_size=said["batch"], epochs=1, verbose=2)


if __name__ == "__main__":
    main()
