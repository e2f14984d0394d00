"""torch-rechub on encoded rows: tabular.py FOLDER rechub-MODEL SEED SETTINGS (see contest.py).

Its own networks, trainer and defaults (Adam 1e-3, weight decay 1e-5) unless SETTINGS say lr or batch, layers as wide
as ours, histories mean-pooled from shared tables. Epochs go on while mean AUC on valid rises, at most 5; the best is
kept.
"""

import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from log import cut_to
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.multi_task import AITM, MMOE, PLE, SharedBottom
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator

WIDTH, LENGTH, BATCH = 16, 50, 1024


def build(model: str, meta: dict) -> torch.nn.Module:
    tasks = len(meta["tasks"])
    first: dict[str, str] = {}
    sparse = []
    for name in meta["ids"]:
        space = meta["space"][name]
        sparse.append(SparseFeature(name, meta["size"][space], WIDTH, shared_with=first.get(space)))
        first.setdefault(space, name)
    sequences = []
    for name in meta["lists"]:
        space = meta["space"][name]
        sequences.append(SequenceFeature(name, meta["size"][space], WIDTH, "mean", shared_with=first.get(space),
                                         padding_idx=0))
        first.setdefault(space, name)
    features = [*sparse, *sequences, *(DenseFeature(n) for n in meta["numbers"])]
    kinds, towers = ["classification"] * tasks, [{"dims": [64]}] * tasks
    match model:
        case "shared_bottom":
            return SharedBottom(features, kinds, {"dims": [128]}, towers)
        case "mmoe":
            return MMOE(features, kinds, 4, {"dims": [128, 64]}, towers)
        case "ple":
            return PLE(features, kinds, 1, 2, 1, {"dims": [128, 64]}, towers)
        case _:
            return AITM(features, tasks, {"dims": [128, 64]}, [{"dims": [64]}] * tasks)


def main() -> None:
    place, model, seed = Path(sys.argv[1]), sys.argv[2].removeprefix("rechub-"), int(sys.argv[3])
    settings = {"lr": 1e-3, "batch": BATCH} | json.loads(sys.argv[4])
    torch.set_num_threads(1)
    meta = json.loads((place / "meta.json").read_text())
    x, y = {}, {}
    for split in meta["splits"]:
        arrays = np.load(place / f"{split}.npz")
        x[split] = {n: arrays["ids"][:, i] for i, n in enumerate(meta["ids"])}
        x[split] |= {n: arrays["numbers"][:, i] for i, n in enumerate(meta["numbers"])}
        x[split] |= {n: cut_to(arrays[f"list{i}.values"], arrays[f"list{i}.offsets"], LENGTH)
                     for i, n in enumerate(meta["lists"])}
        y[split] = arrays["labels"]
    torch.manual_seed(seed)
    net = build(model, meta)
    few = {k: v[:2] for k, v in x["valid"].items()}
    loader, _, _ = DataGenerator(x["train"], y["train"]).generate_dataloader(
        x_val=few, y_val=y["valid"][:2], x_test=few, y_test=y["valid"][:2], batch_size=settings["batch"])
    trainer = MTLTrainer(net, ["classification"] * len(meta["tasks"]), n_epoch=5,
                         optimizer_params={"lr": settings["lr"], "weight_decay": 1e-5})
    best, kept, clock, epochs = 0.0, None, time.process_time(), 0
    for _ in range(5):
        trainer.train_one_epoch(loader)
        found = np.mean([roc_auc_score(y["valid"][:, t], p) for t, p in enumerate(said(net, x["valid"]).T)])
        if found <= best:
            break
        best, kept, epochs = found, copy.deepcopy(net.state_dict()), epochs + 1
    seconds = time.process_time() - clock
    net.load_state_dict(kept)
    np.savez(place / "scores.npz", **{s: said(net, x[s]) for s in meta["splits"] if s != "train"})
    print("\n" + json.dumps({"cpu_seconds": round(seconds, 1), "epochs": epochs,
                             "parameters": sum(p.numel() for p in net.parameters())}))


@torch.inference_mode()
def said(net: torch.nn.Module, x: dict[str, np.ndarray]) -> np.ndarray:
    net.eval()
    rows = len(next(iter(x.values())))
    parts = [net({k: torch.as_tensor(np.asarray(v[a:a + 8192])) for k, v in x.items()}).numpy()
             for a in range(0, rows, 8192)]
    net.train()
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
