"""TorchEasyRec's models and the tasks of their towers, as recipes where one fits, and otherwise as drawings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from funnelrank.imports.drawing import Mlp, Ref, fields, take
from funnelrank.imports.mlps import STARTS, activation, mlp
from funnelrank.imports.networks import (
    attention,
    draw_levels,
    draw_towers,
    experts_layer,
    finish_towers,
    level_keys,
    same,
    variational,
    wide_side,
)
from funnelrank.imports.ranking import Ranking, Tower
from funnelrank.imports.source import Section, legal
from funnelrank.imports.target import Target
from funnelrank.imports.towers import declared, mix, task_space


def read(model: Section, ranking: Ranking, labels: list[str]) -> None:
    model.ignored("it is chosen by the machine here", "kernel")
    if model.flag("use_pareto_loss_weight"):
        model.refused("use_pareto_loss_weight", "train.balance has gradnorm, pcgrad, metabalance and others")
    if model.has("variational_dropout"):
        variational(model, ranking)
    named = [k for k in model.names() if k in MODELS]
    if not named:
        beside = ("feature_groups", "losses", "metrics", "num_class", "train_metrics", "kernel",
                  "use_pareto_loss_weight", "variational_dropout")
        others = [k for k in model.names() if k not in beside]
        for key in others:
            model.refused(key, f"there is no importer for it; models that are carried are {', '.join(MODELS)}")
        if not others:
            model.faults.append(f"{model.file}:{model.line}: model_config names no model; those that are carried are "
                                f"{', '.join(MODELS)}")
        ranking.target["model"].update({"name": "shared_bottom"})
        return
    MODELS[named[0]](model, model.section(named[0]), ranking, labels)


def _main_group(model: Section, ranking: Ranking) -> list[Ref]:
    """The group that a model of several tasks reads: the one called all, or the first."""
    if not ranking.groups:
        ranking.there(model, "feature_groups", "all")
        return ["all"]
    return ranking.reads("all" if "all" in ranking.groups else next(iter(ranking.groups)))


def _towers(section: Section, ranking: Ranking, labels: list[str]) -> list[Tower]:
    towers = [_tower(t, ranking, labels, i) for i, t in enumerate(section.sections("task_towers"))]
    if not towers:
        section.faults.append(f"{section.file}:{section.line}: {section.path}: task_towers is missing; a model of "
                              "several tasks has a tower for each")
    return towers


def _gate(section: Section) -> None:
    if section.has("gate_mlp"):
        section.approximated("gate_mlp", "a gate is one linear layer, as in the paper")
        for entry in section.section("gate_mlp").entries:
            entry.judge("approximated", "a gate is one linear layer")


def _recipe(ranking: Ranking) -> bool:
    return not ranking.attended and not any(ranking.beside.values())


def _simple(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    towers, refs = _towers(section, ranking, labels), _main_group(model, ranking)
    if towers and (keys := same(towers)) and _recipe(ranking):
        return ranking.finish(model="single_task", represent=keys)
    return finish_towers(ranking, draw_towers(ranking, towers, lambda i: refs)) if towers else None


def _mmoe(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    towers, refs = _towers(section, ranking, labels), _main_group(model, ranking)
    expert, count = mlp(section.section("expert_mlp")), section.whole("num_expert", 3, to="experts") or 3
    _gate(section)
    if not towers:
        return None
    if (keys := same(towers)) and keys["hidden"] and expert.keys is not None and _recipe(ranking):
        return ranking.finish(model="mmoe", represent={"experts": count, **expert.keys}, predict=keys)
    layer = experts_layer(section, len(towers), count, expert)
    experts = ranking.drawing.add("experts", refs, layer, line=section.line)
    return finish_towers(ranking, draw_towers(ranking, towers, lambda i: [take(experts, i)]))


def _ple(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    towers, refs = _towers(section, ranking, labels), _main_group(model, ranking)
    levels = []
    for network in section.sections("extraction_networks"):
        network.ignored("a name for people", "network_name")
        own = mlp(network.section("task_expert_net"))
        shared = mlp(network.section("share_expert_net")) if network.has("share_expert_net") else Mlp()
        levels.append(level_keys(network, own, shared, network.whole("expert_num_per_task", 1, to="own"),
                                 network.whole("share_num", 0, to="shared")))
    if not towers or not levels:
        return None
    if (keys := same(towers)) and keys["hidden"] and all(x == levels[0] for x in levels) and _recipe(ranking):
        return ranking.finish(model="ple", represent={"levels": len(levels), **levels[0]}, predict=keys)
    return finish_towers(ranking, draw_towers(ranking, towers, draw_levels(ranking.drawing, refs, levels, len(towers))))


def _dbmtl(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    draw = ranking.drawing
    towers, refs = _towers(section, ranking, labels), _main_group(model, ranking)
    if section.has("mask_net"):
        refs = [_mask_blocks(section.section("mask_net"), ranking, refs)]
    if section.has("bottom_mlp"):
        refs = [draw.mlp("bottom", refs, mlp(section.section("bottom_mlp")))]
    inputs: Callable[[int], list[Ref]] = lambda i: refs
    _gate(section)
    count = section.whole("num_expert", 3, to="experts") or 3
    if section.has("expert_mlp"):
        experts = draw.add("experts", refs, experts_layer(section, max(1, len(towers)), count,
                                                          mlp(section.section("expert_mlp"))), line=section.line)
        inputs = lambda i: [take(experts, i)]
    if towers:
        finish_towers(ranking, draw_towers(ranking, towers, inputs))


def _pepnet(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    draw = ranking.drawing
    towers, refs = _towers(section, ranking, labels), _main_group(model, ranking)
    if (section.whole("task_domain_num", 1) or 1) > 1:
        section.refused("task_domain_num", "a task has one tower for all domains; its gates see the domain")
    section.ignored("towers are not of domains", "domain_input_name")
    x = draw.add("features", refs) if len(refs) > 1 or not isinstance(refs[0], str) else refs[0]
    gamma = section.number("epnet_gamma", 2.0, to="gamma")
    if "domain" in ranking.groups:
        hidden = section.whole("epnet_hidden_unit", to="hidden")
        x = draw.add("epnet", [x, *ranking.reads("domain")], {"name": "gate", **({"hidden": hidden} if hidden else {}),
                                                              **({"gamma": gamma} if gamma != 2 else {})},
                     merge="list", line=section.line)
    else:
        section.ignored("no group 'domain' opens a gate", "epnet_hidden_unit")
    act = activation(section, "ppnet_activation", "nn.ReLU")
    widths = section.wholes("ppnet_hidden_units", "hidden")
    rates = section.numbers("ppnet_dropout_ratio", "dropout")
    if len(set(rates)) > 1:
        section.approximated("ppnet_dropout_ratio", "one rate for all layers, the first")
    strength = section.number("ppnet_gamma", 2.0, to="gamma")
    inputs: Callable[[int], list[Ref]] = lambda i: [x]
    if "uia" in ranking.groups and widths:
        layer = {"name": "ppnet", "hidden": widths, "position": "output",
                 **({"activation": act} if act not in ("relu", "dice") else {}),
                 **({"dropout": rates[0]} if rates and 0 < rates[0] < 1 else {}),
                 **({"gamma": strength} if strength != 2 else {})}
        gated = [draw.add(f"{t.task}_ppnet", [x, *ranking.reads("uia")], dict(layer), merge="list", line=section.line)
                 for t in towers]
        section.approximated("ppnet_hidden_units", "hidden; each gate's own hidden layer has 64 numbers")
        inputs = lambda i: [gated[i]]
    if towers:
        finish_towers(ranking, draw_towers(ranking, towers, inputs))


def _multi_tower(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    draw = ranking.drawing
    _alone(model, ranking, labels)
    tops: list[Ref] = []
    for tower in section.sections("towers"):
        group = tower.text("input", "", to="inputs of its block")
        if ranking.there(tower, "input", group):
            tops.append(draw.mlp(f"{group}_tower", ranking.reads(group), mlp(tower.section("mlp"))))
    for tower in section.sections("din_towers"):
        group = tower.text("input", "", to="inputs of its blocks")
        if ranking.there(tower, "input", group):
            hidden = attention_unit(tower)
            if group not in ranking.used:
                ranking.used.append(group)
            tops += [attention(ranking, f"{s}_attention", s, hidden, False, tower.line)
                     for s in ranking.beside.get(f"seq_att:{group}", [])]
    if tops:
        ranking.finish(outputs=draw.mlp("final", tops, mlp(section.section("final"))))


def _deepfm(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    draw = ranking.drawing
    _alone(model, ranking, labels)
    section.whole("wide_embedding_dim", 4)
    section.ignored(STARTS, "wide_init_fn")
    final = mlp(section.section("final")) if section.has("final") else Mlp()
    side = wide_side(model, section, ranking, bool(final.hidden), "wide_embedding_dim")
    if not ranking.there(model, "feature_groups", "deep"):
        return
    h = draw.mlp("deep_mlp", ranking.reads("deep"), mlp(section.section("deep")))
    crossed = fields(ranking.refer("fm" if "fm" in ranking.groups else "deep"))
    if final.hidden:
        out = draw.mlp("final", [draw.add("fm_pairs", [crossed], {"name": "bi_interaction"}), h], final)
    else:
        section.approximated("deep", "the pairs' sum has a weight of its own before it joins the logit")
        out = draw.add("output", [draw.add("fm_pairs", [crossed], {"name": "fm"}), h])
    ranking.finish(outputs=out, **side)


def _wide_and_deep(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    draw = ranking.drawing
    _alone(model, ranking, labels)
    section.whole("wide_embedding_dim", 4)
    section.ignored(STARTS, "wide_init_fn")
    final = mlp(section.section("final")) if section.has("final") else Mlp()
    side = wide_side(model, section, ranking, bool(final.hidden), "wide_embedding_dim")
    if ranking.there(model, "feature_groups", "deep"):
        h = draw.mlp("deep_mlp", ranking.reads("deep"), mlp(section.section("deep")))
        ranking.finish(outputs=draw.mlp("final", [h], final) if final.hidden else h, **side)


def _dcn(kind: str) -> Callable[[Section, Section, Ranking, list[str]], None]:
    def make(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
        draw = ranking.drawing
        _alone(model, ranking, labels)
        refs, inner = _main_group(model, ranking), section.section("cross")
        layer: dict[str, Any] = {"name": kind, "layers": inner.whole("cross_num", 3, to="layers") or 3}
        if kind == "cross_v2" and (rank := inner.whole("low_rank", 32, to="rank")):
            layer["rank"] = rank
        if section.has("backbone"):
            refs = [draw.mlp("bottom", refs, mlp(section.section("backbone")))]
        tops = [draw.add("crossed", refs, layer, line=section.line)]
        if section.has("deep"):
            tops.append(draw.mlp("deep", refs, mlp(section.section("deep"))))
        final = mlp(section.section("final")) if section.has("final") else Mlp()
        ranking.finish(outputs=draw.mlp("final", tops, final) if final.hidden or len(tops) > 1 else tops[0])
    return make


def _dlrm(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    draw = ranking.drawing
    _alone(model, ranking, labels)
    if not ranking.there(model, "feature_groups", "sparse"):
        return
    sparse = ranking.refer("sparse")
    inner: list[Ref] = [fields(sparse)]
    dense = None
    if "dense" in ranking.groups:
        dense = draw.mlp("bottom", ranking.reads("dense"), mlp(section.section("dense_mlp")))
        inner.insert(0, dense)
    pairs = draw.add("pairs", inner, {"name": "dot"}, merge="stack" if dense else None, line=section.line)
    top: list[Ref] = [pairs, *([dense] if dense else [])]
    if section.flag("arch_with_sparse", True, to="inputs of final"):
        top += ranking.reads("sparse")
    ranking.finish(outputs=draw.mlp("final", top, mlp(section.section("final"))))


def _mask_blocks(section: Section, ranking: Ranking, refs: list[Ref]) -> str:
    """A mask_net_module: so many blocks of one kind, side by side or one after another."""
    draw, block = ranking.drawing, section.section("mask_block")
    width = block.whole("hidden_dim", 64, to="width") or 64
    hidden = block.whole("aggregation_dim", 0, to="hidden")
    if not hidden:
        hidden = max(1, int(width * block.number("reduction_ratio", 1.0)))
        block.approximated("reduction_ratio", f"hidden: {hidden}, of the block's own width")
    else:
        block.ignored("aggregation_dim says it", "reduction_ratio")
    x = draw.add("features", refs) if len(refs) > 1 or not isinstance(refs[0], str) else refs[0]
    normed = draw.add("features_norm", [x], {"name": "layer_norm"}, line=section.line)
    parallel, made, before = section.flag("use_parallel", True, to="inputs of the mask blocks"), [], normed
    for i in range(min(100, section.whole("n_mask_blocks", 1, to="mask blocks") or 1)):
        before = draw.add(f"mask_{i + 1}", [normed if parallel else before, x],
                          {"name": "mask_block", "width": width, "hidden": hidden}, merge="list", line=block.line)
        made.append(before)
    tops = made if parallel else [before]
    top = mlp(section.section("top_mlp")) if section.has("top_mlp") else Mlp()
    return draw.mlp("mask_net", tops, top) if top.hidden or len(tops) > 1 else tops[0]


def _masknet(model: Section, section: Section, ranking: Ranking, labels: list[str]) -> None:
    _alone(model, ranking, labels)
    ranking.finish(outputs=_mask_blocks(section.section("mask_net_module"), ranking, _main_group(model, ranking)))


MODELS: dict[str, Callable[[Section, Section, Ranking, list[str]], None]] = {
    "simple_multi_task": _simple, "mmoe": _mmoe, "ple": _ple, "dbmtl": _dbmtl, "pepnet": _pepnet,
    "multi_tower": _multi_tower, "multi_tower_din": _multi_tower, "deepfm": _deepfm, "wide_and_deep": _wide_and_deep,
    "dcn_v1": _dcn("cross"), "dcn_v2": _dcn("cross_v2"), "dlrm": _dlrm, "mask_net": _masknet,
}


# ---- tasks

def _tower(section: Section, ranking: Ranking, labels: list[str], position: int) -> Tower:
    said = section.text("tower_name", f"task_{position + 1}", to="tasks, by name")
    name = legal(said)
    if name in ranking.target["tasks"]:
        section.faults.append(f"{section.file}:{section.line}: {section.path}: a second tower '{name}'; give each a "
                              "name")
    label = section.text("label_name", labels[position] if position < len(labels) else None, to="tasks.*.label")
    parents, made = declared(section, ranking, name, label)
    _outcome(section, made, ranking)
    weight = section.number("weight", 1.0, to="tasks.*.weight") * made.pop("times", 1.0)
    if weight != 1:
        made["weight"] = weight
    column = section.text("sample_weight_name", to="data.weight")
    if column and column != ranking.target["data"].get("weight"):
        section.approximated("sample_weight_name", "one column of weights for all tasks, data.weight")
    task_space(section, ranking, name, normalised=True)
    return Tower(task=name, mlp=mlp(section.section("mlp")) if section.has("mlp") else Mlp(), line=section.line,
                 relation=mlp(section.section("relation_mlp")) if section.has("relation_mlp") else Mlp(),
                 parents=tuple(p for p in parents if p != name and p in ranking.target["tasks"]))


def _outcome(section: Section, made: dict[str, Any], ranking: Ranking) -> None:
    for metrics in section.sections("metrics"):
        _metric(metrics, ranking.target)
    for metrics in section.sections("train_metrics"):
        for entry in metrics.entries:
            entry.judge("ignored", "reports have metrics of their own")
    classes = section.whole("num_class", 1, to="tasks.*.kind") or 1
    shares, keys = {"bce": 0.0, "pairwise": 0.0, "jrc": 0.0, "focal": 0.0}, {}
    for holder in section.sections("losses"):
        for key in holder.names():
            inner = holder.section(key)
            if key == "binary_cross_entropy":
                shares["bce"] += 1
            elif key == "l2_loss":
                made["kind"] = "regression"
                holder.approximated(key, "half the squared error, in units of the label's spread")
            elif key == "softmax_cross_entropy":
                if inner.number("label_smoothing", 0.0):
                    inner.approximated("label_smoothing", "none")
                shares["bce"] += 1
                classes = max(classes, 2)
            elif key == "jrc_loss":
                shares["jrc"] += 1
                user = inner.text("session_name", "", to="data.user")
                if user and ranking.target["data"].setdefault("user", user) != user:
                    inner.approximated("session_name", "rows are compared within data.user")
                keys = {"alpha": inner.number("alpha", 0.5, to="tasks.*.loss.alpha"), "by": "user" if user else "batch"}
            elif key == "binary_focal_loss":
                shares["focal"] += 1
                keys = {k: inner.number(k, usual, to=k) for k, usual in (("gamma", 2.0), ("alpha", 0.5))}
            else:
                holder.refused(key, "there is no such loss; bce, focal, jrc and squared are there")
    if made.get("kind") == "regression":
        return
    if classes > 2:
        made |= {"kind": "multiclass", "classes": classes}
    else:
        mix(section, made, shares, keys)


def _metric(section: Section, target: Target) -> None:
    for key in section.names():
        inner = section.section(key)
        inner.ignored("AUC is exact, without thresholds", "thresholds")
        if key == "auc":
            section.carried(key, "in every report")
        elif key == "grouped_auc":
            group = inner.text("grouping_key", to="data.user, or evaluate.gauc_by")
            if group and target["data"].setdefault("user", group) != group:
                target["evaluate"].setdefault("gauc_by", []).append(group)
        else:
            section.ignored("reports have metrics of their own; none is trained by it", key)


def _alone(model: Section, ranking: Ranking, labels: list[str]) -> None:
    """The one task of a model without towers."""
    name = legal(labels[0]) if labels else "label"
    if not labels:
        model.faults.append(f"{model.file}:{model.line}: data_config.label_fields is missing; name the label's column")
    made: dict[str, Any] = {} if not labels or labels[0] == name else {"label": labels[0]}
    ranking.target["tasks"][name] = made
    _outcome(model, made, ranking)
    if (times := made.pop("times", 1.0)) != 1:
        made["weight"] = times


def attention_unit(section: Section) -> Sequence[int]:
    """Hidden layers of an attention over a sequence."""
    if not section.has("attn_mlp"):
        return (36,)
    layers = mlp(section.section("attn_mlp"))
    if set(layers.activation) - {"dice"}:
        section.approximated("attn_mlp", "Dice stands between the attention's layers")
    return layers.hidden or (36,)
