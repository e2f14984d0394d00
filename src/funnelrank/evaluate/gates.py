"""What a model's gates weigh: every softmax over the same candidates for all rows, and every gate of PEPNet's kind.

They are seen as they run, whatever model they are in, and named by the module that computes them. Attention over
histories is left out: its candidates are another row's others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from funnelrank.batch import Batch
from funnelrank.evaluate.table import COLUMNS
from funnelrank.models.aitm import InformationTransfer
from funnelrank.models.hmoe import ScenarioTowers
from funnelrank.models.pepnet import GateNU
from funnelrank.models.ple import Level
from funnelrank.nn import mix
from funnelrank.nn.watch import as_written
from funnelrank.ranker import RankingModel

MOST_CANDIDATES = 64
MOST_SLICES = 25          # scenarios whose shares are told, the largest
MOST_CELLS = 200          # views times candidates of a gate; of more, as of attention between features, none are told


@dataclass(frozen=True)
class Gate:
    """share [B, V, N] of a softmax: what each of N candidates weighs for V views; [B, V, W] of sigmoids, 0 to 1."""

    name: str                         # of the module
    kind: str                         # softmax | sigmoid
    share: Tensor
    masked: bool = False              # candidates are left out by -inf on some rows
    views: tuple[str, ...] = ()       # V names: tasks, scenarios, or '' for one
    candidates: tuple[str, ...] = ()  # N names; of sigmoids ('opening',)


def gates_of(model: RankingModel, batch: Batch, scenarios: Sequence[str] = ()) -> list[Gate]:
    """The gates of a model on a batch, in the order in which they run."""
    names: list[str] = []
    found: list[Gate] = []
    modules = dict(model.named_modules())
    B = len(batch)

    class Softmax(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._softmax.default and names and ".prepare" not in names[-1]:
                x, dim = args[0], args[1] % args[0].dim()
                rows = [d for d in range(out.dim()) if out.shape[d] == B and d != dim]
                if rows and 1 < out.shape[dim] <= MOST_CANDIDATES:
                    share = out.movedim((rows[0], dim), (0, -1)).flatten(1, -2) if out.dim() > 2 else (
                        out.movedim((rows[0], dim), (0, 1)).unsqueeze(1))
                    found.append(Gate(names[-1], "softmax", share.clone(), bool(torch.isinf(x).any())))
            return out

    def enter(name: str):
        return lambda module, given: names.append(name)

    def leave(name: str, gate: bool):
        def hook(module, given, out):
            names.pop()
            if gate:
                share = (out / module.gamma).clone()
                found.append(Gate(name, "sigmoid", share if share.dim() == 3 else share.unsqueeze(1)))
        return hook

    hooks = []
    for name, module in modules.items():
        if name:
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(leave(name, isinstance(module, GateNU))))
    try:
        model.eval()
        with torch.no_grad(), mix.kernels.off(), as_written(), Softmax():
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return _labelled(found, modules, model.tasks, scenarios)


def _labelled(gates: Sequence[Gate], modules: Mapping[str, torch.nn.Module], tasks: Sequence[str],
              scenarios: Sequence[str]) -> list[Gate]:
    """With names of views and candidates, as their modules know them."""
    calls: Counter[str] = Counter()
    out = []
    for g in gates:
        V, N = g.share.shape[1:]
        call, calls[g.name] = calls[g.name], calls[g.name] + 1
        module, parent = modules[g.name], modules.get(g.name.rsplit(".", 2)[0])
        places = ("(no scenario)", *scenarios)
        by_scenario = getattr(module, "views_per", None) == "scenario" and len(places) == V
        views = places if by_scenario else tuple(tasks) if len(tasks) == V else ("",) if V == 1 else tuple(
            f"view {v}" for v in range(V))
        what = "expert" if hasattr(module, "experts") else "candidate"
        candidates = ("opening",) if g.kind == "sigmoid" else tuple(f"{what} {n}" for n in range(N))
        if isinstance(parent, InformationTransfer):
            steps = [t for t, before in enumerate(parent.parents) if before]
            last = g.name.rsplit(".", 1)[1]
            t = steps[call % len(steps)] if last == "all" else int(last)
            of = tasks if parent.tasks == len(tasks) else [f"entry {i}" for i in range(parent.tasks)]
            views = (of[t],) if V == 1 else tuple(f"{of[t]}, head {v}" for v in range(V))
            candidates = (*(f"from {of[p]}" for p in parent.parents[t]), "own tower")
        elif isinstance(module, Level):
            shared = [f"shared {n}" for n in range(module.n_shared)]
            own = [f"own {n}" for n in range(module.n_own)]
            candidates = tuple((*own, *shared) if len(tasks) == V and len(own) + len(shared) == N else
                               (*(f"{t} {n}" for t in tasks for n in range(module.n_own)), *shared))
        elif isinstance(module, ScenarioTowers) and len(places) == N:
            candidates = places
        if g.kind == "softmax" and len(candidates) != N:        # of a part that is drawn or written by somebody
            candidates = tuple(f"candidate {n}" for n in range(N))
        name = g.name.removeprefix("slots.")
        again = sum(x.name == g.name for x in gates) > 1 and not isinstance(parent, InformationTransfer)
        out.append(Gate(f"{name} ({call + 1})" if again else name, g.kind, g.share, g.masked, views, candidates))
    return out


def gate_rows(split: str, gates: Sequence[Gate], tasks: Sequence[str], scenarios: Sequence[str],
              scenario: np.ndarray | None) -> list[dict[str, Any]]:
    """Rows of metrics.json: `gate:NAME:CANDIDATE`, the mean share for a `view`, over all rows and in each scenario.

    Of sigmoids the mean of all units, and as `spread` how far units move between rows (mean standard deviation).
    """
    slices: list[tuple[str | None, Tensor]] = [(None, torch.arange(len(gates[0].share)))] if gates else []
    if scenario is not None and scenarios:
        codes = torch.from_numpy(np.asarray(scenario).astype(np.int64))
        sizes = sorted(((int((codes == s).sum()), s) for s in codes.unique().tolist() if s > 1), reverse=True)
        slices += [(str(scenarios[s - 2]), (codes == s).nonzero().flatten()) for _, s in sizes[:MOST_SLICES]]
    rows = []
    for g in gates:
        if g.share.shape[1] * len(g.candidates) > MOST_CELLS:
            continue
        for name, mine in slices:
            share = g.share[mine]
            mean = share.mean(0)                                                         # [V, N]
            for v, view in enumerate(g.views):
                task = next((t for t in tasks if view == t or view.startswith(f"{t}, head ")), None)
                for n, candidate in enumerate(g.candidates):
                    value = float(mean[v].mean() if g.kind == "sigmoid" else mean[v, n])
                    row = {**dict.fromkeys(COLUMNS), "split": split, "task": task, "scenario": name,
                           "metric": f"gate:{g.name}:{candidate}", "value": value, "rows": len(mine), "view": view}
                    if g.kind == "sigmoid" and len(mine) > 1:
                        row["spread"] = float(share[:, v].std(0).mean())
                    rows.append(row)
    return rows
