"""Pieces of networks that several model classes of EasyRec and TorchEasyRec have: towers, experts, attentions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from funnelrank.imports.drawing import Drawing, Mlp, Ref, history, take
from funnelrank.imports.mlps import dnn
from funnelrank.imports.ranking import Ranking, Tower
from funnelrank.imports.source import Section

UNIT = (128, 64, 32)             # of EasyRec's attention over a sequence of a feature group


def variational(model: Section, ranking: Ranking) -> None:
    """Selection of features by variational dropout, ahead of everything else."""
    section = model.section("variational_dropout")
    rate = section.number("regularization_lambda", 0.01, to="model.prepare.price, less the batch's rows")
    rows = ranking.target["train"].get("batch_size", 1024)
    if section.flag("embedding_wise_variational_dropout"):
        section.approximated("embedding_wise_variational_dropout", "a feature is kept as a whole")
    if rate > 0:
        ranking.target.put("model.prepare", [{"name": "variational_dropout", "price": rate / rows}],
                           model.line_of("variational_dropout"))


def unit_of(section: Section, key: str) -> Sequence[int]:
    """Hidden layers of an activation unit."""
    if not section.has(key):
        return UNIT
    mlp = dnn(section.section(key))
    section.approximated(key, "Dice stands between the attention's layers")
    section.section(key).approximated("activation", "Dice")
    return mlp.hidden[:-1] or (36,)


def attention(ranking: Ranking, wanted: str, sequence: str, hidden: Sequence[int], target: bool, line: int) -> str:
    """A sequence read against the row's item, whose vector stands beside what comes of it with `target`."""
    layer = {"name": "target_attention", "hidden": list(hidden), "softmax": True}
    layer |= {"target": True} if target else {}
    return ranking.drawing.add(wanted, [history(sequence)], layer, line=line)


def wide_side(model: Section, section: Section, ranking: Ranking, final: bool,
              key: str = "wide_output_dim") -> dict[str, Any]:
    """A weight per id, added to the logit: `side: [lr]`, for a group of its own or not."""
    if "wide" not in ranking.groups:
        return {}
    wide = ranking.groups["wide"]
    others = {f for g, members in ranking.groups.items() if g != "wide" for f in members}
    if final:
        section.approximated(key, "each value has one weight, which is added to the logit (side: lr) instead of being "
                                  "read by final_dnn")
    if set(wide) != others:
        model.approximated("feature_groups", "side: lr has a weight for every value of every feature, in the wide "
                                             "group or not")
    if "wide" not in ranking.used:
        ranking.used.append("wide")
    return {"side": ["lr"]}


def draw_towers(ranking: Ranking, towers: Sequence[Tower], inputs: Callable[[int], list[Ref]]) -> dict[str, str]:
    """A block for each task's tower, its relations to others behind it; {task: block}."""
    draw, top, related = ranking.drawing, {}, {}
    for i, tower in enumerate(towers):
        refs = inputs(i)
        if tower.mlp.hidden or len(refs) > 1 or not isinstance(refs[0], str):
            top[tower.task] = draw.mlp(f"{tower.task}_tower", refs, tower.mlp, tower.line)
        else:
            top[tower.task] = refs[0]
    waiting = list(towers)
    while waiting:
        ready = [t for t in waiting if all(p in related for p in t.parents)]
        if not ready:
            break                                                # `task` has told of parents that there are not
        for t in ready:
            parents = [related[p] for p in t.parents]
            if t.ait and parents:
                related[t.task] = draw_ait(ranking, f"{t.task}_ait", top[t.task], parents, t)
            elif t.relation.hidden or parents:
                related[t.task] = draw.mlp(f"{t.task}_relation", [top[t.task], *parents], t.relation, t.line)
            else:
                related[t.task] = top[t.task]
            waiting.remove(t)
    return {t.task: related.get(t.task, top[t.task]) for t in towers}


def draw_ait(ranking: Ranking, wanted: str, own: str, parents: Sequence[str], tower: Tower) -> str:
    """The transfer of towers by `use_ait_module`: all brought to one width first where they are not of one."""
    own, *before = ranking.drawing.of_one_width(wanted, [own, *parents], tower.project, tower.line)
    return ranking.drawing.add(wanted, [*before, own], {"name": "ait", "variant": "own_keys", "gate": None},
                               merge="list", line=tower.line)


def finish_towers(ranking: Ranking, outputs: dict[str, str], **keys: Any) -> None:
    """One block for all, or one for each task."""
    blocks = set(outputs.values())
    alone = next(iter(blocks)) if len(blocks) == 1 else None
    if alone is not None and alone not in ranking.drawing.blocks:
        alone = ranking.drawing.add("features", [alone])
    elif alone is None:
        for t, block in outputs.items():
            if block not in ranking.drawing.blocks:
                outputs[t] = ranking.drawing.add(f"{t}_features", [block])
    ranking.finish(outputs=alone or outputs, **keys)


def experts_layer(section: Section, gates: int, count: int, expert: Mlp) -> dict[str, Any]:
    """The layer `mmoe`, whose experts have one activation, dropout and norm for all their layers."""
    keys = expert.keys
    if keys is None:
        section.approximated("expert_dnn" if section.has("expert_dnn") else "expert_mlp",
                             "all its layers have the first one's activation, dropout and norm")
        keys = Mlp(expert.hidden, expert.activation[:1] * len(expert.hidden), expert.dropout[:1] * len(expert.hidden),
                   expert.norm[:1] * len(expert.hidden)).keys
    return {"name": "mmoe", "gates": gates, "experts": count, **(keys or {})}


def draw_levels(draw: Drawing, refs: list[Ref], levels: list[dict[str, Any]], tasks: int) -> Callable[[int], list[Ref]]:
    for j, keys in enumerate(levels):
        layer = {"name": "ple", "tasks": tasks, **keys, **({"last": True} if j == len(levels) - 1 else {})}
        refs = [draw.add(f"level_{j + 1}", refs, layer)]
    return lambda i: [take(refs[0], i)]


def level_keys(network: Section, own: Mlp, shared: Mlp, n_own: int, n_shared: int) -> dict[str, Any]:
    if shared.hidden and n_shared and (shared.hidden, shared.activation, shared.norm) != (
            own.hidden, own.activation, own.norm):
        network.approximated("share_expert_net", "shared experts have the layers of the tasks' own")
    keys = own.keys
    if keys is None:
        network.approximated("task_expert_net", "all its layers have the first one's activation, dropout and norm")
        n = len(own.hidden)
        keys = Mlp(own.hidden, own.activation[:1] * n, own.dropout[:1] * n, own.norm[:1] * n).keys or {}
    return {"own": n_own, "shared": n_shared, **keys}


def same(towers: Sequence[Tower]) -> dict[str, Any] | None:
    """Keys of the part `towers` where all have the same layers; None where they differ."""
    keys = [t.mlp.keys for t in towers]
    return keys[0] if keys and all(k is not None and k == keys[0] for k in keys) else None
