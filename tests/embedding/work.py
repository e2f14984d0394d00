"""Random work for the engines: layouts, batches and pairs of equal embeddings."""

import copy

import torch

from funnelrank.batch import Batch, Layout
from funnelrank.embedding.tables import Embedding
from funnelrank.inputs import Needs
from funnelrank.settings import Embedding as Settings
from funnelrank.settings import RowOptimiser
from funnelrank.train.optim import Average, RowUpdates


class Work:
    """Everything is drawn from `seed` except what is given."""

    def __init__(self, seed=0, rows=40, widths=None, size=None, weighted=None, histories=None, linear=None,
                 fields=False):
        self.g = torch.Generator().manual_seed(seed)
        widths = widths or [(16,), (4, 16), (5, 1, 64), (32, 3)][self.int(4)]
        F, K = 1 + self.int(4), self.int(4)
        ids, lists = [f"f{i}" for i in range(F)], [f"h{k}" for k in range(K)]
        space = {f: f for f in ids} | {h: f"f{self.int(F)}" for h in lists}
        crosses = ("f0",) if F > 1 and seed % 2 else ()
        numbers = [f"n{i}" for i in range(self.int(4))]
        roles = ("user", "item", "context", "mine")
        self.rows, self.weighted = rows, self.int(2) if weighted is None else weighted
        self.layout = Layout(
            ids=tuple(ids), numbers=tuple(numbers), lists=tuple(lists), tasks=("click", "buy"), space=space,
            size={f: size or 2 + self.int(30) for f in ids},
            role={f: roles[self.int(4)] for f in (*ids, *lists, *numbers)},
            pool={h: ("mean", "sum")[self.int(2)] for h in lists},
            target={h: space[h] for h in lists if self.int(3) and space[h] not in crosses},
            feature={n: n for n in numbers}, scenarios=(), crosses=crosses)
        self.spaces = {f: {"width": widths[self.int(len(widths))]} for f in ids}
        if fields:
            self.spaces = {f: {"width": widths[0]} for f in ids}
        roles_used = tuple(dict.fromkeys(self.layout.role.values()))
        self.needs = Needs(histories=bool(self.int(2) if histories is None else histories), fields=fields,
                           crosses=bool(crosses), linear=bool(self.int(2) if linear is None else linear),
                           groups=roles_used[:self.int(3)])

    def int(self, n):
        return int(torch.randint(0, n, (), generator=self.g))

    def batch(self, rows=None):
        B, K = self.rows if rows is None else rows, len(self.layout.lists)
        lengths = torch.randint(0, 6, (K * B,), generator=self.g)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        size = lambda f: self.layout.size[self.layout.space[f]]
        draw = lambda f, n: torch.randint(0, size(f), (n,), generator=self.g, dtype=torch.int32)
        values = [draw(h, int(offsets[(k + 1) * B] - offsets[k * B])) for k, h in enumerate(self.layout.lists)]
        values = torch.cat([torch.zeros(0, dtype=torch.int32), *values])
        zeros = torch.zeros(B)
        weights = torch.rand(len(values), generator=self.g) if self.weighted else None
        return Batch(ids=torch.stack([draw(f, B) for f in self.layout.ids], 1),
                     numbers=torch.randn(B, len(self.layout.numbers), generator=self.g), values=values,
                     offsets=offsets, scenario=zeros.int(), labels=zeros.view(-1, 1), weight=zeros, user=zeros.long(),
                     value_weights=weights)

    def embedding(self, engine, **settings):
        torch.manual_seed(1)
        e = Embedding(self.layout, Settings(init=0.5, spaces=self.spaces, engine=engine, **settings), self.needs)
        for name in {"linear", "crosses"} & set(e.tables):
            table = e.tables[name]
            table.weight.normal_(generator=torch.Generator().manual_seed(2))
            table.weight[table.pad] = 0
        return e.train()


def outputs(x):
    """Every tensor of Inputs that carries a gradient, by name."""
    found = {"flat": x.flat} | {f"group {g}": v for g, v in x.groups.items()}
    for name, h in x.histories.items():
        found |= {f"values {name}": h.values, f"target {name}": h.target}
    return found | {n: getattr(x, n) for n in ("fields", "linear", "crosses") if getattr(x, n) is not None}


def directions(x, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(v.shape, generator=g) / 8 for n, v in outputs(x).items()}


def backward(x, toward, skip=()):
    pairs = [(v, toward[n]) for n, v in outputs(x).items() if n not in skip and v.requires_grad]
    torch.autograd.backward([v for v, _ in pairs], [d for _, d in pairs])


def dense(gradients, e):
    """Table name -> the gradient as large as the table."""
    names = {id(t): n for n, t in e.tables.items()}
    found = {n: torch.zeros_like(t.weight) for n, t in e.tables.items()}
    for g in gradients:
        assert len(g.rows.unique()) == len(g.rows)
        found[names[id(g.table)]][g.rows] = g.grad
    return found


class Run:
    """Steps of one engine, as training takes them."""

    def __init__(self, e, optimiser, average=None, fused=False, together=False):
        self.e, self.fused = e, fused
        self.updates = RowUpdates(e, RowOptimiser(**optimiser))
        self.average = Average(e, e, average) if average else None
        if together:
            self.updates.lay_together(self.average)

    def step(self, batch, factor=1.0, seed=0):
        x = self.e(batch)
        if self.fused:
            self.updates.fuse(factor, self.average)
        if any(v.requires_grad for v in outputs(x).values()):
            backward(x, directions(x, seed))
        gradients = self.e.take_gradients()
        self.updates.apply(gradients, factor)
        if self.average:
            self.average.update(gradients)
        return gradients

    def tensors(self):
        found = {f"weight {n}": t.weight for n, t in self.e.tables.items()}
        found |= {f"{n} {k}": v for n, s in self.updates.state.items() for k, v in s.items()}
        if self.average:
            self.average.catch_up()
            found |= {f"average {n}": v for n, v in self.average.rows.items()}
        return {n: copy.copy(v.detach()) for n, v in found.items()}
