"""How T losses become one gradient. A balance is one object with one method,

    backward(losses, seen, rest, shared) -> row gradients          dense ones are left in `.grad`

losses [T] are mean losses times `tasks.NAME.weight`, seen [T] says of which the batch observed any label, `rest` is
what is minimised besides (the calibrator) or None: it is added with weight 1, and no balance counts it as a task.

fixed          sum_t L_t, and `equal`, the same where no weight is said
uncertainty    sum_t e^{-s_t} L_t + s_t / 2            Kendall, Gal & Cipolla, CVPR 2018
dwa            sum_t w_t L_t,  w = T softmax(r / temp)  Liu, Johns & Davison, CVPR 2019
gradnorm       sum_t w_t L_t,  w learned                Chen et al., ICML 2018
pcgrad         gradients that conflict are projected    Yu et al., NeurIPS 2020
metabalance    gradients as long as the target's        He et al., WWW 2022

The first three are one backward pass of a weighted sum, within which rows may move. The others `look` at each task's
own gradient of what tasks share (shared.py): T passes, one after the other, and rows move behind them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from funnelrank import settings
from funnelrank.batch import Batch
from funnelrank.embedding.tables import RowGradient
from funnelrank.ranker import RankingModel
from funnelrank.train.shared import Shared

LEAST = 1e-3         # of a weight that GradNorm learns: one at 0 would silence its task for good


class Balance(Protocol):
    """`weights` [T] are those of the last step, for its event, or None where they are always 1. `state`: what a run
    goes on from, tensors that are filled in place."""

    looks: bool
    weights: Tensor | None
    state: dict[str, Tensor]

    def begin(self, batch: Batch, shared: Shared) -> None: ...
    def backward(self, losses: Tensor, seen: Tensor, rest: Tensor | None, shared: Shared) -> list[RowGradient]: ...


class Fixed:
    """L = sum_t L_t."""

    looks = False
    weights: Tensor | None = None

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def begin(self, batch: Batch, shared: Shared) -> None:
        """Called before every step."""

    def backward(self, losses: Tensor, seen: Tensor, rest: Tensor | None, shared: Shared) -> list[RowGradient]:
        return shared.one(_plus(losses.sum(), rest))


class Uncertainty(Fixed):
    """L = sum_t e^{-s_t} L_t + s_t / 2, s_t = log sigma_t^2 learned with the rest, by Adam, from 0.

    The paper has L / sigma^2 + log sigma for classes and |y - f|^2 / (2 sigma^2) + log sigma for values: one formula
    of our losses, which keep the half of a squared error. s_t may be below 0, and is for most clicks: at its best
    e^{s_t} = 2 L_t.
    """

    def __init__(self, tasks: int, said: settings.UncertaintyBalance, device: torch.device):
        self.s, self.adam = torch.zeros(tasks, device=device), _Adam(tasks, said.lr, device)
        self.state = {"s": self.s, **self.adam.state}

    @property
    def weights(self) -> Tensor:
        return (-self.s).exp()

    def backward(self, losses: Tensor, seen: Tensor, rest: Tensor | None, shared: Shared) -> list[RowGradient]:
        w = self.weights
        gradients = shared.one(_plus((w * losses).sum(), rest))
        self.adam.move(self.s, 0.5 - w * losses.detach(), seen)
        return gradients


class DynamicAverage(Fixed):
    """Dynamic Weight Average: a task whose loss fell least in the time before weighs most.

        w_t = T e^{r_t / temp} / sum_u e^{r_u / temp},      r_t = L_t(n - 1) / L_t(n - 2)

    L_t(n) is the mean loss over the n-th `every` steps (the paper's are epochs); weights are 1 until two are there.
    """

    def __init__(self, tasks: int, said: settings.DwaBalance, device: torch.device):
        self.said = said
        empty = lambda *shape: torch.zeros(*shape, device=device)
        self.state = {"weights": empty(tasks) + 1, "sums": empty(2, tasks), "means": empty(2, tasks),
                      "steps": torch.zeros(1)}

    @property
    def weights(self) -> Tensor:
        return self.state["weights"]

    def backward(self, losses: Tensor, seen: Tensor, rest: Tensor | None, shared: Shared) -> list[RowGradient]:
        gradients = shared.one(_plus((self.weights * losses).sum(), rest))
        kept, (total, count) = self.state, self.state["sums"]
        total += torch.where(seen, losses.detach(), 0.0)
        count += seen
        kept["steps"] += 1
        if kept["steps"].item() % self.said.every == 0:
            mean = torch.where(count > 0, total / count, kept["means"][1])          # one never seen is as it was
            kept["means"].copy_(torch.stack([kept["means"][1], mean]))
            kept["sums"].zero_()
            if kept["steps"].item() >= 2 * self.said.every:
                before, now = kept["means"]
                r = torch.where(before > 0, now / before, 1.0)
                kept["weights"].copy_(len(r) * (r / self.said.temperature).softmax(0))
        return gradients


class _Looking:
    """Balances that ask each task for its gradient of what is shared. Each says

        weigh(products [K, T, T], names of the blocks, losses, seen) -> weights [K, T] where it is shared, [T] elsewhere
    """

    looks = True

    def __init__(self, shared: Shared, device: torch.device):
        self.state = {"ready": torch.zeros(1, dtype=torch.bool, device=device),
                      **{f"shared.{n}": r for n, r in shared.reach.items()}}

    def begin(self, batch: Batch, shared: Shared) -> None:
        """Find out what is shared, before the first step."""
        if not self.state["ready"]:
            shared.find(batch)
            self.state["ready"].fill_(True)

    def backward(self, losses: Tensor, seen: Tensor, rest: Tensor | None, shared: Shared) -> list[RowGradient]:
        found = shared.each(losses if rest is None else torch.cat([losses, rest.view(1)]))
        T = len(losses)
        found.products = found.products.cpu()
        weights, own = self.weigh(found.products[:, :T, :T], found.names, losses.detach().cpu(), seen.cpu())
        if rest is not None:                                             # with weight 1, wherever it reaches
            weights = torch.cat([weights, weights.new_ones(len(weights), 1)], 1)
            own = torch.cat([own, own.new_ones(1)])
        return shared.combine(found, weights, own)


class GradNorm(_Looking):
    """Weights under which tasks pull equally hard, more where a task is behind.

        G_t = |grad of w_t L_t|,   l_t = L_t(n) / L_t(0),   r_t = l_t / mean l
        w moves down the gradient of sum_t |G_t - mean(G) r_t^alpha|, the target held constant; then sum w = T

    The gradient is of everything shared, where the paper takes the last shared layer to save time. w moves by Adam, a
    step size that does not depend on the loss's unit, and stays above 0. A task that a batch has no label of stays out.
    """

    def __init__(self, tasks: int, said: settings.GradNormBalance, shared: Shared, device: torch.device):
        super().__init__(shared, device)
        self.said, self.adam = said, _Adam(tasks, said.lr, torch.device("cpu"))
        self.first = torch.zeros(tasks)
        self.w = torch.ones(tasks)
        self.state |= {"weights": self.w, "first": self.first, **self.adam.state}

    @property
    def weights(self) -> Tensor:
        return self.w

    def weigh(self, products: Tensor, names: list[str], losses: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        w = self.w.clone()
        norm = products.sum(0).diagonal().clamp(min=0).sqrt().float()                    # |grad of L_t|
        self.first.copy_(torch.where(seen & (self.first == 0), losses, self.first))
        if seen.sum() > 1:
            self.adam.move(self.w, gradnorm_gradient(w, norm, losses / self.first, seen, self.said.alpha), seen)
            self.w.clamp_(min=LEAST)
            self.w.mul_(len(w) / self.w.sum())
        return w.double().expand(len(products), -1), w.double()


def gradnorm_gradient(w: Tensor, norm: Tensor, progress: Tensor, seen: Tensor, alpha: float) -> Tensor:
    """d/dw_t of sum |G_t - mean(G) r_t^alpha| over tasks that are seen, G_t = w_t norm_t, the target constant."""
    G = w * norm
    r = progress / progress[seen].mean()
    target = G[seen].mean() * r.clamp(min=0).pow(alpha)
    return torch.where(seen, (G - target).sign() * norm, 0.0)


class PCGrad(_Looking):
    """Projecting conflicting gradients: of each task's gradient, what points against another's is taken out.

        g_i' = g_i;  for every other j, in random order:  if <g_i', g_j> < 0:  g_i' -= <g_i', g_j> / |g_j|^2 g_j
        g = sum_i g_i'

    Each g_i' is a sum of the g_j, so products of pairs say all there is to know. The order is of torch's random state.
    """

    weights: Tensor | None = None

    def weigh(self, products: Tensor, names: list[str], losses: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        T = len(losses)
        orders = [torch.randperm(T).tolist() for _ in range(T)]
        self.weights = projected(products.sum(0), orders).sum(0)
        return self.weights.expand(len(products), -1), torch.ones(T, dtype=torch.float64)


def projected(products: Tensor, orders: list[list[int]]) -> Tensor:
    """products [T, T] of g -> c [T, T] with g_i' = sum_j c_ij g_j; orders[i] is the order of i's projections."""
    c = torch.eye(len(products), dtype=products.dtype)
    for i, order in enumerate(orders):
        for j in order:
            dot = c[i] @ products[:, j]
            if j != i and dot < 0:
                c[i, j] -= dot / products[j, j]
    return c


class MetaBalance(_Looking):
    """Every task's gradient of a block made as long as the target's, by the share `relax`.

        m_t = beta m_t + (1 - beta) |g_t|                      of each block: a parameter, or a table
        g = sum_t relax (m_target / m_t) g_t + (1 - relax) g_t

    Longer ones are cut and shorter ones drawn out. m starts at 0 and is divided by 1 - beta^n, with n the batches that
    had labels of the task, so that tasks seen more rarely compare. A block that the target does not reach is left
    alone.
    """

    weights: Tensor | None = None

    def __init__(self, tasks: int, target: int, said: settings.MetaBalance, shared: Shared, device: torch.device):
        super().__init__(shared, device)
        self.said, self.target = said, target
        self.places = {n: k for k, n in enumerate(shared.reach)}
        self.norms = torch.zeros(len(shared.reach), tasks, dtype=torch.float64)
        self.times = torch.zeros(tasks, dtype=torch.float64)
        self.state |= {"norms": self.norms, "times": self.times}

    def weigh(self, products: Tensor, names: list[str], losses: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        beta, at = self.said.beta, torch.tensor([self.places[n] for n in names])
        norm = torch.zeros_like(self.norms).index_copy_(0, at, products.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt())
        self.norms.copy_(torch.where(seen, beta * self.norms + (1 - beta) * norm, self.norms))
        self.times += seen
        m = self.norms / (1 - beta ** self.times).clamp(min=1e-12)                  # [blocks, T]
        self.weights = self._factor(m.square().sum(0, keepdim=True).sqrt())[0]      # over all blocks, for the event
        return self._factor(m[at]), torch.ones(len(losses), dtype=torch.float64)

    def _factor(self, m: Tensor) -> Tensor:
        target, relax = m[:, self.target:self.target + 1], self.said.relax
        return torch.where((m > 0) & (target > 0), relax * target / m + 1 - relax, 1.0)


class _Adam:
    """Adam on one small vector, for numbers that stand beside the model; those not `seen` stay where they are."""

    def __init__(self, size: int, lr: float, device: torch.device):
        self.lr = lr
        self.state = {"adam.m": torch.zeros(size, device=device), "adam.v": torch.zeros(size, device=device),
                      "adam.n": torch.zeros(size, device=device)}

    @torch.no_grad()
    def move(self, x: Tensor, g: Tensor, seen: Tensor) -> None:
        m, v, n = self.state.values()
        m.copy_(torch.where(seen, 0.9 * m + 0.1 * g, m))
        v.copy_(torch.where(seen, 0.999 * v + 0.001 * g.square(), v))
        n += seen
        step = self.lr * (m / (1 - 0.9 ** n)) / ((v / (1 - 0.999 ** n)).sqrt() + 1e-8)
        x -= torch.where(seen, step, 0.0)


def _plus(loss: Tensor, rest: Tensor | None) -> Tensor:
    return loss if rest is None else loss + rest


def balance_of(said: settings.AnyBalance, model: RankingModel, shared: Shared) -> Balance:
    """The balance that `train.balance` names."""
    tasks, device = model.tasks, model.funnel.loc.device
    match said:
        case settings.UncertaintyBalance():
            return Uncertainty(len(tasks), said, device)
        case settings.DwaBalance():
            return DynamicAverage(len(tasks), said, device)
        case settings.GradNormBalance():
            return GradNorm(len(tasks), said, shared, device)
        case settings.PCGradBalance():
            return PCGrad(shared, device)
        case settings.MetaBalance():
            return MetaBalance(len(tasks), tasks.index(said.target or tasks[-1]), said, shared, device)
    return Fixed()
