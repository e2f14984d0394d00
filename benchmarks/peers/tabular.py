"""torch-rechub on encoded rows: tabular.py FOLDER rechub-MODEL SEED SETTINGS (see contest.py).

Its own networks, trainers and defaults (Adam 1e-3, weight decay 1e-5) unless SETTINGS say lr or batch, layers as wide
as ours, lists mean-pooled from shared tables. A network of one task is trained once for each; its ESMM has two steps,
so there is one for each step after the first. Its ESMM and DIN read no numbers, and DIN's histories are those that have
a feature of the row in their space. Wide & Deep's crosses have vectors of width 1: a weight for each value. Epochs go
on while the mean AUC on valid rises, at most 5; the best is kept.
"""

import copy
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from log import cut_to
from sklearn.metrics import roc_auc_score
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.multi_task import AITM, ESMM, MMOE, PLE, SharedBottom
from torch_rechub.models.ranking import DIN, DCNv2, DeepFM, WideDeep
from torch_rechub.trainers import CTRTrainer, MTLTrainer
from torch_rechub.utils.data import DataGenerator

WIDTH, LENGTH, BATCH = 16, 50, 1024
MOST_EPOCHS = 5


class Network(NamedTuple):
    """One training: its answers learn the labels of `tasks`, in order, and `kept` says which answer is whose."""

    net: torch.nn.Module
    tasks: list[int]
    kept: dict[int, int]                        # task -> column of the answer


def networks(model: str, meta: dict) -> list[Network]:
    tasks = range(len(meta["tasks"]))
    if model == "esmm":                         # its answers: p(later | first), not trained, p(first), p(later)
        return [Network(single(model, meta), [t, 0, t], {0: 1, t: 2} if t == 1 else {t: 2}) for t in tasks[1:]]
    if model in ("shared_bottom", "mmoe", "ple", "aitm"):
        return [Network(several(model, meta), list(tasks), {t: t for t in tasks})]
    return [Network(single(model, meta), [t], {t: 0}) for t in tasks]


def several(model: str, meta: dict) -> torch.nn.Module:
    tasks, features = len(meta["tasks"]), declared(meta)
    every = [f for part in features.values() for f in part]
    kinds, towers = ["classification"] * tasks, [{"dims": [64]}] * tasks
    match model:
        case "shared_bottom":
            return SharedBottom(every, kinds, {"dims": [128]}, towers)
        case "mmoe":
            return MMOE(every, kinds, 4, {"dims": [128, 64]}, towers)
        case "ple":
            return PLE(every, kinds, 1, 2, 1, {"dims": [128, 64]}, towers)
        case "aitm":
            return AITM(every, tasks, {"dims": [128, 64]}, [{"dims": [64]}] * tasks)
    raise ValueError(model)


def single(model: str, meta: dict) -> torch.nn.Module:
    pairs = {n: meta["space"][n] for n in meta["lists"] if meta["space"][n] != n} if model == "din" else {}
    features = declared(meta, pooled=[n for n in meta["lists"] if n not in pairs])
    crosses = [f for f in features["ids"] if f.name in meta["crosses"]]
    ids = [f for f in features["ids"] if f.name not in meta["crosses"]]
    embedded, numbers, hidden = [*ids, *features["lists"]], features["numbers"], {"dims": [128, 64]}
    match model:
        case "deepfm":
            return DeepFM([*embedded, *numbers], embedded, hidden)
        case "dcn_v2":
            return DCNv2([*embedded, *numbers], 3, hidden, model_structure="stacked", use_low_rank_mixture=False)
        case "wide_deep":
            return WideDeep(crosses, [*embedded, *numbers], hidden)
        case "esmm":
            return ESMM(embedded[:1], embedded[1:], hidden, hidden)
        case "din":
            named = {f.name: f for f in embedded}
            histories = [f for f in features["lists"] if f.name in pairs]
            targets = [named[space] for space in pairs.values()]
            rest = [f for f in embedded if f.name not in {*pairs, *pairs.values()}]
            return DIN(rest, histories, targets, hidden, {"dims": [36]})
    raise ValueError(model)


def declared(meta: dict, pooled: list[str] | None = None) -> dict[str, list]:
    """Its features. Lists that are not `pooled` (None: all are) stay lists."""
    first: dict[str, str] = {}
    sparse = []
    for name in meta["ids"]:
        space = meta["space"][name]
        sparse.append(SparseFeature(name, meta["size"][space], 1 if name in meta["crosses"] else WIDTH,
                                    shared_with=first.get(space)))
        first.setdefault(space, name)
    sequences = []
    for name in meta["lists"]:
        space = meta["space"][name]
        sequences.append(SequenceFeature(name, meta["size"][space], WIDTH,
                                         "mean" if pooled is None or name in pooled else "concat",
                                         shared_with=first.get(space), padding_idx=0))
        first.setdefault(space, name)
    return {"ids": sparse, "lists": sequences, "numbers": [DenseFeature(n) for n in meta["numbers"]]}


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
    scores = {s: np.zeros((len(y[s]), len(meta["tasks"]))) for s in meta["splits"] if s != "train"}
    seconds, epochs, parameters = 0.0, [], 0
    for network in networks(model, meta):
        clock = time.process_time()
        epochs.append(trained(network, x, y, settings))
        seconds += time.process_time() - clock
        parameters += sum(p.numel() for p in network.net.parameters())
        for split, table in scores.items():
            answer = said(network.net, x[split])
            for task, column in network.kept.items():
                table[:, task] = answer[:, column]
    np.savez(place / "scores.npz", **scores)
    print("\n" + json.dumps({"cpu_seconds": round(seconds, 1), "epochs": epochs[0] if len(epochs) == 1 else epochs,
                             "parameters": parameters}))


def trained(network: Network, x: dict, y: dict, settings: dict) -> int:
    """How many epochs were of use; their weights are the network's."""
    net, tasks = network.net, network.tasks
    labels = {s: y[s][:, tasks[0] if len(tasks) == 1 else tasks] for s in ("train", "valid")}
    few = {k: v[:2] for k, v in x["valid"].items()}
    loader, _, _ = DataGenerator(x["train"], labels["train"]).generate_dataloader(
        x_val=few, y_val=labels["valid"][:2], x_test=few, y_test=labels["valid"][:2], batch_size=settings["batch"])
    how = {"n_epoch": MOST_EPOCHS, "optimizer_params": {"lr": settings["lr"], "weight_decay": 1e-5}}
    trainer = CTRTrainer(net, **how) if len(tasks) == 1 else MTLTrainer(net, ["classification"] * len(tasks), **how)
    best, kept, epochs = 0.0, None, 0
    for _ in range(MOST_EPOCHS):
        trainer.train_one_epoch(loader)
        answer = said(net, x["valid"])
        found = np.mean([roc_auc_score(y["valid"][:, t], answer[:, c]) for t, c in network.kept.items()])
        if found <= best:
            break
        best, kept, epochs = found, copy.deepcopy(net.state_dict()), epochs + 1
    net.load_state_dict(kept)
    return epochs


@torch.inference_mode()
def said(net: torch.nn.Module, x: dict[str, np.ndarray]) -> np.ndarray:
    """[rows, answers]"""
    net.eval()
    rows = len(next(iter(x.values())))
    parts = [net({k: torch.as_tensor(np.asarray(v[a:a + 8192])) for k, v in x.items()}).numpy()
             for a in range(0, rows, 8192)]
    net.train()
    return np.concatenate(parts).reshape(rows, -1)


if __name__ == "__main__":
    main()
