"""How parameters move: rows that a batch touched, dense weights, the learning rate's course, and weight averages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from funnelrank import ranks
from funnelrank.embedding import native
from funnelrank.embedding.tables import Embedding, RowGradient, Table
from funnelrank.settings import DenseOptimiser, RowOptimiser, Schedule
from funnelrank.settings import Embedding as EmbeddingSettings

TOGETHER = 1 << 25        # bytes of a table's weights from which it pays that what else a row has lies together


class RowUpdates:
    """The row optimiser: reads and writes only the rows that a step touched.

    With g the gradient of row w, plus l2 * w:

    adagrad           s += g^2;         w -= lr g / (sqrt(s) + eps)
    rowwise_adagrad   s += mean(g^2);   w -= lr g / (sqrt(s) + eps)      one s a row
    adam              m, v as in Adam, moved only when touched (lazy); bias corrected by the run's step
    ftrl              s' = s + g^2;     z += lr g - (sqrt(s') - sqrt(s)) w
                      w = -sign(z) max(|z| - lr_0 l1, 0) / (sqrt(s') + eps)
    sgd               w -= lr g

    FTRL-Proximal (McMahan et al., KDD 2013) with its z times lr, so that a learning rate that changes leaves weights
    where they are; lr_0 is the rate before the schedule. Without l1 it is adagrad.

    `tables` names tables that have an optimiser of their own.
    """

    def __init__(self, embedding: Embedding, settings: RowOptimiser, tables: Mapping[str, RowOptimiser] | None = None):
        self.embedding = embedding
        self.of = {name: (tables or {}).get(name, settings) for name in embedding.tables}
        self.step_count = 0
        self.state: dict[str, dict[str, Tensor]] = {}
        self.names: dict[int, str] = {}
        for name, table in embedding.tables.items():
            w = table.weight
            self.state[name] = {k: torch.zeros(shape, device=w.device)
                                for k, shape in row_state(self.of[name], *w.shape).items()}
            self.names[id(table)] = name
            if embedding.runs_native:
                for tensor in self.state[name].values():
                    native.large_pages(tensor)

    def lay_together(self, average: Average | None) -> None:
        """Lay what a large table keeps of each row, its optimiser's state and its average, beside each other.

        Weights stay on their own: a lookup reads nothing else, and more of them then lie in a page or a cache.
        """
        for name, table in self.embedding.tables.items() if self.embedding.runs_native else ():
            kept = [average.rows[name], average.seen[name]] if average else []
            if table.weight.nbytes < TOGETHER or len(self.state[name]) + len(kept) < 2:
                continue
            views = native.side_by_side([*self.state[name].values(), *kept])
            self.state[name] = dict(zip(self.state[name], views))
            if average:
                average.rows[name], average.seen[name] = views[-2:]

    def lay_apart(self) -> None:
        """Averages that have become weights lie beside optimiser states; give tables memory of their own again."""
        for table in self.embedding.tables.values():
            table.weight.data = table.weight.data.contiguous()

    def fuse(self, factor: float = 1.0, average: Average | None = None) -> None:
        """Let the next backward move the rows itself, and their average, where the engine can; `apply` and
        `average.update` are then called as ever, with the gradients that are left, if any."""
        if self.embedding.runs_native and self.embedding.all_learn:
            self.embedding.native.moves = [self._move(n, factor, average.shadow_of(n) if average else None)
                                           for n in self.embedding.tables]

    @torch.no_grad()
    def apply(self, gradients: list[RowGradient], factor: float = 1.0) -> None:
        """Move the rows of one step; `factor` scales the learning rate."""
        for gradient in gradients:
            name = self.names[id(gradient.table)]
            if self.embedding.runs_native:
                native.move_rows(self._move(name, factor, None), gradient.rows, gradient.grad, None)
            else:
                self._apply(gradient, self.of[name], self.state[name], self.of[name].lr * factor)
        self.step_count += 1

    def _move(self, name: str, factor: float, shadow: native.Shadow | None) -> native.Move:
        return native.move(self.embedding.tables[name].weight, self.of[name], self.state[name],
                           self.of[name].lr * factor, self.step_count + 1, shadow)

    def _apply(self, gradient: RowGradient, s: RowOptimiser, state: dict[str, Tensor], lr: float) -> None:
        rows, g, old, w = gradient.rows, gradient.grad, gradient.old, gradient.table.weight
        if s.l2:
            g = g + s.l2 * old
        if s.name == "sgd":
            w[rows] = old - lr * g
        elif s.name == "adam":
            b1, b2 = s.betas
            m = state["m"][rows].lerp_(g, 1 - b1)
            v = state["v"][rows].mul_(b2).addcmul_(g, g, value=1 - b2)
            state["m"][rows], state["v"][rows] = m, v
            step = self.step_count + 1
            w[rows] = old - lr / (1 - b1 ** step) * m / ((v / (1 - b2 ** step)).sqrt_() + s.eps)
        elif s.name == "ftrl":
            before = state["sum"][rows]
            total = before + g.square()
            z = state["z"][rows] + lr * g - (total.sqrt() - before.sqrt()) * old
            state["sum"][rows], state["z"][rows] = total, z
            moved = -z.sign() * (z.abs() - s.lr * s.l1).clamp_(min=0) / (total.sqrt() + s.eps)
            w[rows] = torch.where(total > 0, moved, old)            # no evidence yet: where it started
        else:
            square = g.square().mean(1, keepdim=True) if s.name == "rowwise_adagrad" else g.square()
            total = state["sum"][rows] + square
            state["sum"][rows] = total
            w[rows] = old - lr * g / (total.sqrt() + s.eps)


def row_optimiser(table: str, settings: EmbeddingSettings) -> RowOptimiser:
    """How the rows of a table learn: weights of declared crosses by a rule of their own."""
    return settings.crosses if table == "crosses" else settings.optimiser


def row_updates(embedding: Embedding, settings: EmbeddingSettings) -> RowUpdates:
    """The optimisers of every table, as the config has them."""
    return RowUpdates(embedding, settings.optimiser, {name: row_optimiser(name, settings) for name in embedding.tables})


def row_state(optimiser: RowOptimiser, rows: int, width: int) -> dict[str, tuple[int, int]]:
    """What the optimiser keeps of a table [rows, width], as names and shapes."""
    return {k: (rows, 1 if optimiser.name == "rowwise_adagrad" else width) for k in native.STATES[optimiser.name]}


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Everything that autograd moves; tables are not among them."""
    return [p for p in model.parameters() if p.requires_grad]


def averaged_names(model: nn.Module) -> list[str]:
    """Names of the dense parameters in the order in which an Average keeps them."""
    return [n for n, p in model.named_parameters() if p.requires_grad]


def optimised_names(model: nn.Module, settings: DenseOptimiser) -> list[str]:
    """Names of the dense parameters in the order in which their optimiser numbers them."""
    names = {id(p): n for n, p in model.named_parameters()}
    groups = dense_optimiser(model, settings).param_groups if dense_parameters(model) else []
    return [names[id(p)] for g in groups for p in g["params"]]


def dense_optimiser(model: nn.Module, settings: DenseOptimiser) -> torch.optim.Optimizer:
    """L2 acts on weight matrices, never on biases, gains or other vectors. One pass over each weight (`fused`)."""
    matrices = {id(p) for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1}
    groups = [{"params": [p for p in dense_parameters(model) if (id(p) in matrices) == held],
               "weight_decay": settings.l2 if held else 0.0} for held in (True, False)]
    groups = [g for g in groups if g["params"]]
    lr = settings.lr
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, fused=fused)
    if settings.name == "adagrad":
        return torch.optim.Adagrad(groups, lr=lr, eps=settings.eps)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=lr, betas=settings.betas, eps=settings.eps, fused=fused)


def schedule_factor(settings: Schedule, step: int, total: int | None) -> float:
    """The factor on both learning rates at step 0, 1, ...; `total` steps in the run, None where that is not known."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.name == "exponential":
        return max(settings.decay ** ((step - settings.warmup) // settings.every), settings.final)
    if settings.name == "constant" or total is None:
        return 1.0
    done = min((step - settings.warmup) / max(total - 1 - settings.warmup, 1), 1.0)
    shape = 1 - done if settings.name == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return settings.final + (1 - settings.final) * shape


def clip(parameters: list[nn.Parameter], gradients: list[RowGradient], norm: float, sharded: bool = False) -> None:
    """Scale all gradients, rows included, so that their norm together is at most `norm`. With `sharded`, rows of some
    tables lie with other ranks, which all ask."""
    grads = [p.grad for p in parameters if p.grad is not None] + [g.grad for g in gradients]
    if not grads and not sharded:
        return
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads] or [torch.zeros(())]))
    if sharded:
        own = sum((g.grad.square().sum() for g in gradients if g.table.sharded), total.new_zeros(()))
        total = (total.square() - own + ranks.add(own.clone())).sqrt()
    scale = (norm / (total + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale)


class Average:
    """Moving average of every weight: a_t = d_t a_{t-1} + (1 - d_t) w_t, with d_t = min(decay, (1 + t) / (10 + t)).

    Dense weights are averaged each step. A row is brought up to date when it is touched and when it is read: while it
    stands still for the steps s+1 .. t, a_t = w + (d_{s+1} ... d_t) (a_s - w), which is exact and costs nothing.
    """

    def __init__(self, model: nn.Module, embedding: Embedding, decay: float):
        self.decay, self.step_count, self.log_decay = decay, 0, 0.0
        self.model, self.embedding = model, embedding
        self.dense = dense_parameters(model)
        self.shadow = [p.detach().clone() for p in self.dense]
        self.tables: dict[str, Table] = dict(embedding.tables.items())
        self.names = {id(t): n for n, t in self.tables.items()}
        self.rows = {n: t.weight.detach().clone() for n, t in self.tables.items()}
        # the running sum of log d at each row's last touch; float64, since it grows with the run
        self.seen = {n: torch.zeros(len(t.weight), dtype=torch.float64, device=t.weight.device)
                     for n, t in self.tables.items()}
        if embedding.runs_native:
            for name in self.tables:
                native.large_pages(self.rows[name])
                native.large_pages(self.seen[name])

    def shadow_of(self, name: str) -> native.Shadow:
        """One table's averages, and what the step that is under way does to them."""
        d = self._decay()
        return native.Shadow(self.rows[name], self.seen[name], d, self.log_decay, self.log_decay + math.log(d))

    def _decay(self) -> float:
        return min(self.decay, (1 + self.step_count) / (10 + self.step_count))

    @torch.no_grad()
    def update(self, gradients: list[RowGradient]) -> None:
        """After a step: `gradients` still hold the touched rows' old values."""
        for g in gradients:
            shadow = self.shadow_of(self.names[id(g.table)])
            if self.embedding.runs_native:
                native.move_rows(native.move(g.table.weight, None, {}, 0.0, 1, shadow), g.rows, None, g.old)
                continue
            held = torch.exp(shadow.before - shadow.seen[g.rows]).float().unsqueeze(1)
            average = g.old + held * (shadow.rows[g.rows] - g.old)
            shadow.rows[g.rows] = average.lerp_(g.table.weight[g.rows], 1 - shadow.decay)
            shadow.seen[g.rows] = shadow.after
        d = self._decay()
        self.log_decay += math.log(d)
        self.step_count += 1
        if self.shadow:
            torch._foreach_lerp_(self.shadow, self.dense, 1 - d)

    @torch.no_grad()
    def catch_up(self) -> None:
        """Bring every row's average to the present. What is there already stays as it is, to the bit: an evaluation
        that is broken off and done again leaves the same state as one."""
        for name, table in self.tables.items():
            for start in range(0, len(table.weight), 1 << 18):
                part = slice(start, start + (1 << 18))
                w, a = table.weight[part], self.rows[name][part]
                held = torch.exp(self.log_decay - self.seen[name][part]).float().unsqueeze(1)
                self.rows[name][part] = torch.where(held == 1, a, w + held * (a - w))
                self.seen[name][part] = self.log_decay

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model with averaged weights, for as long as the block lasts."""
        self.catch_up()
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, p in enumerate(self.dense):
            p.data, self.shadow[i] = self.shadow[i], p.data
        for name, table in self.tables.items():
            table.weight.data, self.rows[name] = self.rows[name], table.weight.data
