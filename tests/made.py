"""Small made things that many tests need: a layout, a batch, a model."""

from dataclasses import replace

import torch

from funnelrank import config as configs
from funnelrank.batch import Batch, Layout
from funnelrank.inputs import Inputs, Spec
from funnelrank.ranker import RankingModel
from funnelrank.schema import resolve
from funnelrank.settings import Settings


def config(model=None, tasks=None, **rest) -> Settings:
    return configs.load({
        "data": {"scenario": "tab", "user": "user", "contradictions": "keep"},
        "features": {"user": {"min_count": 1}, "item": {"min_count": 1}, "tab": "id", "price": "number",
                     "shown": {"kind": "sequence", "space": "item"}, "tags": {"kind": "bag"},
                     "item_x_tab": {"kind": "cross", "of": ["item", "tab"], "min_count": 1}, "lists": "off"},
        "tasks": tasks or {"click": {}, "cart": {"after": "click"}, "buy": {"after": "cart"}},
        "embedding": {"width": 4},
        "model": {"name": "aitm", "represent": {"hidden": [16, 8]}} if model is None else model, **rest}).settings


def layout(tasks=("click", "cart", "buy")) -> Layout:
    return Layout(
        ids=("user", "item", "tab", "item_x_tab"), numbers=("price", "price.missing"), lists=("shown", "tags"),
        tasks=tuple(tasks),
        space={"user": "user", "item": "item", "tab": "tab", "shown": "item", "tags": "tags",
               "item_x_tab": "item_x_tab"},
        size={"user": 20, "item": 30, "tab": 5, "tags": 9, "item_x_tab": 12},
        role={"user": "user", "item": "item", "tab": "scenario", "price": "item", "price.missing": "item",
              "shown": "user", "tags": "item", "item_x_tab": "context"},
        pool={"shown": "mean", "tags": "sum"}, target={"shown": "item"},
        feature={"price": "price", "price.missing": "price"}, scenarios=("a", "b", "c"),
        crosses=("item_x_tab",))


def batch(rows: int = 12, tasks: int = 3, seed: int = 0, missing: float = 0.0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(0, high, shape, generator=g, dtype=torch.int32)
    lengths = torch.randint(0, 4, (2 * rows,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    n_shown = int(offsets[rows])
    labels = torch.rand(rows, tasks, generator=g).lt(0.4).float().cumprod(1)
    labels[torch.rand(rows, tasks, generator=g) < missing] = float("nan")
    user, item, tab = draw(20, rows), draw(30, rows), draw(5, rows)
    return Batch(
        ids=torch.stack([user, item, tab, 2 + (item * 5 + tab) % 10], 1),
        numbers=torch.randn(rows, 2, generator=g),
        values=torch.cat([2 + draw(28, n_shown), 2 + draw(7, int(offsets[-1]) - n_shown)]),
        offsets=offsets, scenario=draw(5, rows), labels=labels, weight=torch.ones(rows),
        user=torch.arange(rows))


def pick(rows: Batch, keep: list[int]) -> Batch:
    """The rows `keep` of a batch, lists included."""
    values, lengths = [], []
    for k in range(2):
        v, o = rows.bags(k)
        for b in keep:
            values.append(v[o[b]:o[b + 1]])
            lengths.append(len(values[-1]))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return replace(rows, ids=rows.ids[keep], numbers=rows.numbers[keep],
                   values=torch.cat([rows.values[:0], *values]), offsets=offsets, scenario=rows.scenario[keep],
                   labels=rows.labels[keep], weight=rows.weight[keep], user=rows.user[keep])


def model(settings: Settings | None = None, seed: int = 0) -> RankingModel:
    settings = settings or config()
    torch.manual_seed(seed)
    schema = resolve(settings)
    return RankingModel(settings, schema, layout(schema.task_names),
                        {t: {"mean": 0.3 / (i + 1), "std": 1.0} for i, t in enumerate(schema.task_names)})


def spec(fields: tuple[int, int] = (4, 3), numbers: int = 2, tasks: int = 2, **rest) -> Spec:
    """Sizes of a part that is tested by itself: F fields of width D, N numbers."""
    return Spec(flat=fields[0] * fields[1] + numbers, tasks=tasks, fields=fields, embedded=fields[0], numbers=numbers,
                **rest)


def inputs(sizes: Spec, rows: int = 6, seed: int = 0) -> Inputs:
    """Random float64 Inputs of those sizes."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(rows, *shape, generator=g, dtype=torch.float64)
    fields, numbers = draw(*sizes.fields), draw(sizes.numbers)
    return Inputs(torch.cat([fields.flatten(1), numbers], 1), fields=fields, numbers=numbers,
                  linear=draw(sizes.embedded, sizes.tasks), crosses=draw(3, sizes.tasks))
