"""Running a trained model over rows: the numbers behind every metric and every served probability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from funnelrank import ranks
from funnelrank.batch import Batch
from funnelrank.evaluate.measure import Scores
from funnelrank.funnel import Prediction
from funnelrank.ranker import RankingModel
from funnelrank.schema import Schema


@torch.inference_mode()
def predict_batches(model: RankingModel, batches: Iterable[Batch], *,
                    corrected: bool) -> Iterable[tuple[Batch, Prediction]]:
    """Each batch with what is served of it; `corrected` as in RankingModel.served."""
    model.eval()
    device = model.funnel.loc.device
    for batch in batches:
        yield batch, model.served(batch.to(device), corrected)


def score(model: RankingModel, schema: Schema, batches: Iterable[Batch], split: str, *,
          corrected: bool = False) -> Scores | None:
    """What the model says of a whole split, beside what happened: as it is served. Of several ranks each scores its own
    share of every batch; the first gets all rows in their order, the others None.

    Where the split's own negatives were sampled, probabilities are those of sampled rows, unless `corrected`.
    """
    kept = schema.negatives_kept
    corrected = corrected or kept is None or split not in kept.splits
    columns: dict[str, list[np.ndarray]] = {
        k: [] for k in ("log_p", "log_not_p", "mean", "given", "labels", "scenario", "user")}
    for batch, said in predict_batches(model, batches, corrected=corrected):
        for name, tensor in (("log_p", said.log_p), ("log_not_p", said.log_not_p), ("mean", said.mean),
                             ("given", said.given), ("labels", batch.labels), ("scenario", batch.scenario),
                             ("user", batch.user)):
            columns[name].append(tensor.cpu().numpy())
        for task, kind, own in zip(model.tasks, model.funnel.kinds, model.funnel.slices):
            if kind == "multiclass":
                columns.setdefault(f"={task}", []).append(said.logits[:, own].log_softmax(1).cpu().numpy())
    if model.embedding.apart:
        columns = _of_all_ranks(columns)
        if not ranks.first():
            return None
    whole = {k: np.concatenate(v) for k, v in columns.items() if not k.startswith("=")}
    classes = {k[1:]: np.concatenate(v) for k, v in columns.items() if k.startswith("=")}
    for t, (kind, parent) in enumerate(zip(model.funnel.kinds, model.funnel.parents)):
        if kind != "binary" and parent is not None and model.funnel.nested:
            seen = ~np.isnan(whole["labels"][:, t])
            if (whole["labels"][seen, parent] == 1).all():       # a value recorded only where its step happened
                whole["mean"][:, t] = whole["given"][:, t]
    return Scores(tasks=model.tasks, kinds=model.funnel.kinds, parents=model.funnel.parents,
                  log_p=whole["log_p"], log_not_p=whole["log_not_p"], mean=whole["mean"], labels=whole["labels"],
                  scenario=whole["scenario"] if schema.scenario else None,
                  user=whole["user"] if schema.user else None, classes=classes)


def _of_all_ranks(columns: Mapping[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Pieces of every batch and rank, in the order of the split's rows, on the first rank."""
    sizes = ranks.every([len(piece) for piece in columns["labels"]])                  # [ranks][batches]
    out = {}
    for name, pieces in columns.items():
        every = ranks.gather(torch.from_numpy(np.concatenate(pieces)), [sum(s) for s in sizes])
        cut = [np.split(part.numpy(), np.cumsum(s)[:-1]) for part, s in zip(every, sizes)]
        out[name] = [piece for batch in zip(*cut) for piece in batch] if ranks.first() else []
    return out
