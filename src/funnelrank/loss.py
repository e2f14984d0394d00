"""What training minimises: one loss per task over its observed labels, and the calibrator.

A loss is the negative log likelihood of the funnel, unless a task has another: focal and huber stand for it row by row,
pairwise and jrc mix it with a loss that compares rows of one context, a user or a batch.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from funnelrank.funnel import Funnel, Prediction
from funnelrank.settings import JRC, AnyLoss, Focal, Huber, Pairwise


def task_losses(funnel: Funnel, said: Prediction, labels: Tensor, weight: Tensor,
                losses: Mapping[int, AnyLoss] | None = None, user: Tensor | None = None) -> Tensor:
    """Mean loss of each task over the rows where its label was observed.

        L_t = sum_i w_i m_it l_it / sum_i w_i m_it,     m_it = 1 where y_it was observed

    labels [B, T] with NaN for "not observed", weight [B] >= 0, or [B, T] of each task's own -> [T]. A task that no row
    observes gives 0. l is the negative log likelihood, unless `losses` has another for the task; user [B] says whose
    rows are compared, -1 is nobody.
    """
    weight = (weight if weight.dim() == 2 else weight.unsqueeze(1)) * funnel.observed(labels)         # [B, T]
    total = weight.sum(0)
    each = funnel.nll(said, labels)
    if losses:
        each = torch.stack([_of_rows(funnel, said, labels, each, t, losses.get(t)) for t in range(each.shape[1])], 1)
    mean = (weight * each).sum(0) / torch.where(total > 0, total, 1.0)
    if not losses or not any(isinstance(x, Pairwise | JRC) for x in losses.values()):
        return mean
    columns = list(mean.unbind())
    for t, loss in losses.items():
        if isinstance(loss, Pairwise | JRC):
            context = torch.zeros_like(user) if loss.by == "batch" else user
            if isinstance(loss, Pairwise):
                score = said.log_p[:, t] - said.log_not_p[:, t]
                ranked = pairwise(score, labels[:, t], weight[:, t], context)
            else:
                ranked = of_context(said.logits[:, funnel.slices[t]], labels[:, t], weight[:, t], context)
            columns[t] = loss.alpha * columns[t] + (1 - loss.alpha) * ranked
    return torch.stack(columns)


def within(weight: Tensor, labels: Tensor, spaces: Mapping[int, tuple[int, float, float]]) -> Tensor:
    """Weights [B, T] of rows of weight [B], where some tasks learn from a space of rows: t -> (a, inside, outside).

        w_it = w_i (inside if y_ia > 0 else outside)

    A label y_ia that was not observed is outside.
    """
    each = [weight] * labels.shape[1]
    for t, (a, inside, outside) in spaces.items():
        there = (labels[:, a] > 0).to(weight.dtype)
        each[t] = weight * (inside * there + outside * (1 - there))
    return torch.stack(each, 1)


def _of_rows(funnel: Funnel, said: Prediction, labels: Tensor, each: Tensor, t: int, loss: AnyLoss | None) -> Tensor:
    """The loss [B] of task t that stands for its likelihood; 0 where the label is not observed."""
    seen = ~labels[:, t].isnan()
    y = torch.where(seen, labels[:, t], 0.0)
    if isinstance(loss, Focal):
        return torch.where(seen, focal(said.log_p[:, t], said.log_not_p[:, t], y, loss.gamma, loss.alpha), 0.0)
    if isinstance(loss, Huber):
        z = said.logits[:, funnel.slices[t]].squeeze(1)
        error = F.huber_loss(z, (y - funnel.loc[t]) / funnel.scale[t], reduction="none", delta=loss.delta)
        return torch.where(seen, error, 0.0)
    return each[:, t]


def focal(log_p: Tensor, log_not_p: Tensor, y: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """-a (1 - p)^gamma log p where y is 1, -(1 - a) p^gamma log(1 - p) where it is 0 (Lin et al., ICCV 2017, eq. 5);
    without alpha both factors are 1. With gamma 0 it is cross entropy. [B]"""
    a, b = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    return -(a * y * (gamma * log_not_p).exp() * log_p + b * (1 - y) * (gamma * log_p).exp() * log_not_p)


def pairwise(score: Tensor, y: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    """RankNet's loss over the pairs of a positive i and a negative j of one context; 0 without any. A scalar.

        sum_ij w_i w_j log(1 + e^-(s_i - s_j)) / sum_ij w_i w_j

    score, y, weight [B]; context [B] of codes, -1: of no pair.
    """
    there = (weight > 0) & (context >= 0)
    rows, group = there.nonzero().squeeze(1), torch.unique(context[there], return_inverse=True)[1]
    is_negative = y[rows] == 0
    positive, negative = rows[y[rows] == 1], rows[is_negative][group[is_negative].argsort()]
    n = torch.bincount(group[is_negative], minlength=len(rows))                      # negatives of each context
    first, mine = n.cumsum(0) - n, group[y[rows] == 1]
    times = n[mine]                                                                  # of each positive
    i = positive.repeat_interleave(times)
    start = (first[mine] - (times.cumsum(0) - times)).repeat_interleave(times)
    j = negative[start + torch.arange(len(i), device=i.device)]
    w = weight[i] * weight[j]
    return (w * F.softplus(score[j] - score[i])).sum() / w.sum().clamp(min=torch.finfo(w.dtype).tiny)


def of_context(f: Tensor, y: Tensor, weight: Tensor, context: Tensor) -> Tensor:
    """JRC's generative half: how surely a row is told from the others of its context by the logit of its class.

        sum_i w_i (log sum_{j in context of i} e^{f_j[y_i]} - f_i[y_i]) / sum_i w_i

    The listwise half of the loss of Sheng et al. (KDD 2023, arXiv 2208.06164), whose mean over rows of their context's
    sum, divided by its size, comes to the same. f [B, 2], the logits of class 0 and 1; a row of context -1 is alone and
    gives 0. A scalar.
    """
    there = (weight > 0) & (context >= 0)
    w, own = weight[there], y[there].long().unsqueeze(1)
    f, group = f[there], torch.unique(context[there], return_inverse=True)[1]
    top = f.detach().new_full((len(f) + 1, 2), -torch.inf).scatter_reduce(
        0, group.unsqueeze(1).expand(-1, 2), f.detach(), "amax")
    total = f.new_zeros(len(f) + 1, 2).index_add(0, group, (f - top[group]).exp())
    lost = (total[group].log() + top[group] - f).gather(1, own).squeeze(1)
    return (w * lost).sum() / weight.sum().clamp(min=torch.finfo(w.dtype).tiny)


def calibrator(said: Prediction, parents: Sequence[int | None], kinds: Sequence[str], weight: Tensor) -> Tensor:
    """AITM's behavioural expectation calibrator (KDD 2021): a later step is not likelier than an earlier.

        L_lc = sum_i w_i sum_t max(p_it - p_i,parent(t), 0) / sum_i w_i

    From predictions only, so rows with missing labels count too; weight [B] >= 0. Identically 0 under every other
    reading than joint. A scalar.
    """
    edges = [(t, p) for t, p in enumerate(parents) if p is not None and kinds[t] == "binary"]
    if not edges:
        return said.mean.new_zeros(())
    p, share = said.mean.unbind(1), _shares(weight)
    return sum(share @ (p[t] - p[parent]).clamp(min=0) for t, parent in edges)


def _shares(weight: Tensor) -> Tensor:
    """Weights [B] or [B, T] as shares of their sum over rows; zeros where that is 0."""
    total = weight.sum(0)
    return weight / torch.where(total > 0, total, 1.0)


def is_plain(funnel: Funnel) -> bool:
    """Whether `plain_losses` knows this funnel: binary tasks only, read jointly."""
    return funnel.reading == "joint" and set(funnel.kinds) == {"binary"}


def plain_losses(funnel: Funnel, logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`task_losses` [T] and `calibrator` of a plain funnel, straight from logits [B, T], in few operations."""
    edges = [(t, p) for t, p in enumerate(funnel.parents) if p is not None]
    return _Plain.apply(logits, labels, weight, edges)


class _Plain(torch.autograd.Function):
    """With s the sigmoid: L = y softplus(-z) + (1 - y) softplus(z), dL/dz = (1 - y) s(z) - y s(-z), p = s(z)."""

    @staticmethod
    def forward(ctx, logits, labels, weight, edges):
        seen = labels == labels
        y, z = torch.where(seen, labels, 0.0), torch.where(seen, logits, 0.0)     # an unseen row must not overflow
        share, rows = _shares(weight.unsqueeze(1) * seen), _shares(weight) if edges else weight     # [B, T], [B]
        losses = (share * torch.lerp(F.softplus(z), F.softplus(-z), y)).sum(0)
        pressed, over = logits.new_zeros(()), []
        if edges:
            p = logits.sigmoid()
            gaps = [p[:, t] - p[:, parent] for t, parent in edges]
            over = [gap >= 0 for gap in gaps]
            pressed = sum(rows @ gap.clamp(min=0) for gap in gaps)
        ctx.save_for_backward(logits, z, y, rows, share, *over)
        ctx.edges = edges
        return losses, pressed

    @staticmethod
    @once_differentiable
    def backward(ctx, of_losses, of_pressed):
        logits, z, y, rows, share, *over = ctx.saved_tensors
        g = torch.lerp(z.sigmoid(), -(-z).sigmoid(), y).mul_(share).mul_(of_losses)
        if ctx.edges:
            slope = logits.sigmoid().mul_((-logits).sigmoid())
            for (t, parent), at in zip(ctx.edges, over):
                up = at * rows * of_pressed
                g[:, t] += up * slope[:, t]
                g[:, parent] -= up * slope[:, parent]
        return g, None, None, None
