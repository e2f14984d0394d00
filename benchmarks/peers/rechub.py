"""torch-rechub: its own DataGenerator, trainers and defaults (Adam, weight decay 1e-5), one epoch after the other."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gate import Gate, GatedLoader  # noqa: E402

gate = Gate()                    # first of all: some of the packages print while they are imported

import torch  # noqa: E402
from log import read  # noqa: E402
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature  # noqa: E402
from torch_rechub.models.multi_task import AITM  # noqa: E402
from torch_rechub.models.ranking import DIN, DeepFM  # noqa: E402
from torch_rechub.trainers import CTRTrainer, MTLTrainer  # noqa: E402
from torch_rechub.utils.data import DataGenerator  # noqa: E402

WIDTH = 16


def features(meta: dict, pooling: str) -> tuple[dict, dict, list]:
    sparse = {f: SparseFeature(f, size, WIDTH) for f, size in meta["fields"].items()}
    sequences = {h: SequenceFeature(h, meta["fields"][said["space"]], WIDTH, pooling, shared_with=said["space"],
                                    padding_idx=0) for h, said in meta["lists"].items()}
    return sparse, sequences, [DenseFeature(n) for n in meta["numbers"]]


def model(said: dict, meta: dict) -> torch.nn.Module:
    name, hidden, tower = said["model"], said["bottom"], said["tower"]
    sparse, sequences, dense = features(meta, "concat" if name == "din" else "mean")
    embedded = [*sparse.values(), *sequences.values()]
    if name == "aitm":
        return AITM([*embedded, *dense], 2, {"dims": hidden}, [{"dims": tower}, {"dims": tower}])
    if name == "deepfm":
        return DeepFM([*embedded, *dense], embedded, {"dims": hidden})
    spaces = [list_["space"] for list_ in meta["lists"].values()]         # its DIN reads no numbers
    return DIN([f for name, f in sparse.items() if name not in spaces], list(sequences.values()),
               [sparse[s] for s in spaces], {"dims": hidden}, {"dims": [36]})


def main() -> None:
    said = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    # its DIN joins histories along an axis of their own, so they must be of one length
    meta, x, labels = read(said["log"], length=50 if said["model"] == "din" else None)
    single = said["model"] != "aitm"
    y = labels["click"] if single else np.stack(list(labels.values()), 1)
    torch.manual_seed(0)
    net = model(said, meta)
    rows = {k: v[:1] for k, v in x.items()}
    loader, _, _ = DataGenerator(x, y).generate_dataloader(x_val=rows, y_val=y[:1], x_test=rows, y_test=y[:1],
                                                           batch_size=said["batch"])
    trainer = CTRTrainer(net) if single else MTLTrainer(net, ["classification"] * 2)
    trainer.train_one_epoch(GatedLoader(gate, loader))


if __name__ == "__main__":
    main()
