"""EasyRec's model classes as recipes where one fits, and otherwise as drawings of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from funnelrank.imports import easyrec_blocks
from funnelrank.imports.drawing import Mlp, Ref, fields, history, numbers, take
from funnelrank.imports.mlps import dnn
from funnelrank.imports.networks import (
    attention,
    draw_levels,
    draw_towers,
    experts_layer,
    finish_towers,
    level_keys,
    same,
    unit_of,
    variational,
    wide_side,
)
from funnelrank.imports.ranking import Ranking, Tower
from funnelrank.imports.source import Section, legal
from funnelrank.imports.towers import single_task, task

LEVEL_NAMES = "a name for people"


def read(model: Section, ranking: Ranking, labels: list[str]) -> None:
    kind = model.text("model_class", "")
    if kind not in MODELS:
        model.refused("model_class", f"there is no importer for {kind or 'a config without a class'}; those that are "
                                     f"carried are {', '.join(MODELS)}")
        ranking.target["model"].update({"name": "shared_bottom"})
        return
    _regularisation(model, ranking)
    strategy = model.text("loss_weight_strategy", "Fixed", to="train.balance")
    if strategy == "Uncertainty":
        ranking.target.put("train.balance", "uncertainty", model.line_of("loss_weight_strategy"))
    elif strategy != "Fixed":
        model.refused("loss_weight_strategy", f"there is no {strategy}; train.balance has fixed, uncertainty and "
                                              "others")
    if model.has("kd"):
        model.refused("kd", "a teacher's predictions are not learnt from; remove kd")
    if model.has("variational_dropout"):
        variational(model, ranking)
    model.ignored("a vocabulary is fitted on train", "ev_params")
    model.ignored("weights of another system are not read", "restore_filters")
    _attentions(model, ranking)
    MODELS[kind](model, ranking, labels)


def _regularisation(model: Section, ranking: Ranking) -> None:
    rows = model.number("embedding_regularization", 0.0)
    if rows:
        ranking.target.put("embedding.optimiser.l2", rows, model.line_of("embedding_regularization"))
        model.approximated("embedding_regularization", "embedding.optimiser.l2: of each row that a batch has, once; "
                                                       "there as often as the batch has it")
    else:
        model.carried("embedding_regularization", "none")


def _l2(section: Section, ranking: Ranking, default: float = 1e-4) -> None:
    l2 = section.number("l2_regularization", default, to="train.optimiser.l2")
    if l2:
        ranking.target["train"].setdefault("optimiser", {})
        ranking.target.put("train.optimiser.l2", l2, section.line_of("l2_regularization"))


def _attentions(model: Section, ranking: Ranking) -> None:
    """Sequences that the source reads against an item: all of them first, then the blocks that read them."""
    pairs: dict[int, list[str]] = {}
    places = [(None, s) for s in model.sections("seq_att_groups")]
    for group in model.sections("feature_groups"):
        places += [(group.text("group_name"), s) for s in group.sections("sequence_features")]
    for group, section in places:
        pairs[id(section)] = []
        for map_section in section.sections("seq_att_map"):
            keys, lists = map_section.texts("key", "features.*.target"), map_section.texts("hist_seq", "history")
            if len(keys) != len(lists):
                map_section.faults.append(f"{section.file}:{map_section.line}: {map_section.path}: {len(keys)} keys "
                                          f"and {len(lists)} sequences; each sequence is compared with one key")
            for key, sequence in zip(map(legal, keys), map(legal, lists)):
                if ranking.attend(map_section, sequence, key):
                    pairs[id(section)].append(sequence)
            for other in map(legal, map_section.texts("aux_hist_seq")):
                if group not in ranking.groups:
                    map_section.refused("aux_hist_seq", "a sequence without a key stands in no attention; remove it, "
                                                        "or name it in a feature group, where it is pooled")
                elif other not in ranking.features:
                    map_section.faults.append(f"{section.file}:{map_section.line_of('aux_hist_seq')}: "
                                              f"{map_section.path}.aux_hist_seq: no feature '{other}' is declared")
                elif other not in ranking.groups[group]:
                    map_section.approximated("aux_hist_seq", "the mean of its entries, beside the attention")
                    ranking.groups[group].append(other)                      # read flat, it is pooled
        section.ignored("a picture for people", "tf_summary")
        section.ignored("keys are declared features", "allow_key_search")
        for key in ("allow_key_transform", "transform_dnn"):
            if section.flag(key):
                section.refused(key, "key and sequence share one space, so none is transformed; give both one width")
        if len(pairs[id(section)]) > 1:
            section.approximated("seq_att_map", "an attention for each sequence, instead of one over all side by side")
    for group, section in places:
        name = section.text("group_name") or "attention"
        if group is None:
            ranking.beside.setdefault(f"seq_att:{name}", []).extend(pairs[id(section)])
            if section.has("seq_dnn"):
                section.refused("seq_dnn", "the tower that reads the group says its attention's layers")
            continue
        unit, target = unit_of(section, "seq_dnn"), section.flag("need_key_feature", True, to="target of its blocks")
        for sequence in pairs[id(section)]:
            ranking.beside.setdefault(group, []).append(
                attention(ranking, f"{sequence}_attention", sequence, unit, target, section.line))


# ---- models of one task

def _bottom(model: Section, ranking: Ranking, group: str = "all") -> list[Ref]:
    """What the class reads as its features: a backbone's output where there is one, else a group."""
    if model.has("backbone"):
        outputs = easyrec_blocks.read(model.section("backbone"), ranking, 1)
        return [outputs] if isinstance(outputs, str) else outputs
    return ranking.reads(group) if ranking.there(model, "feature_groups", group) else ["all"]


def _rank_model(model: Section, ranking: Ranking, labels: list[str]) -> None:
    params = model.section("model_params")
    _l2(params, ranking, 0.0)
    params.ignored("predictions are those of tasks", "outputs")
    single_task(model, ranking, labels)
    out = _bottom(model, ranking)
    ranking.finish(outputs=ranking.drawing.add("output", out) if len(out) > 1 else out[0])


def _deepfm(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("deepfm"), ranking.drawing
    _l2(section, ranking)
    single_task(model, ranking, labels)
    section.whole("wide_output_dim", 1)
    deep = dnn(section.section("dnn"))
    final = dnn(section.section("final_dnn")) if section.has("final_dnn") else Mlp()
    section.ignored("l2_regularization says it", "wide_regularization", "dense_regularization")
    side = wide_side(model, section, ranking, bool(final.hidden))
    crossed = "fm" if "fm" in ranking.groups else "deep"
    if not (ranking.there(model, "feature_groups", "deep") and ranking.there(model, "feature_groups", crossed)):
        return
    refs = ranking.reads("deep")
    h = draw.mlp("deep_mlp", refs, deep)
    pairs = _pairs(ranking, crossed, section)
    if final.hidden:
        out = draw.mlp("final", [draw.add("fm_pairs", [pairs], {"name": "bi_interaction"}), h], final)
    else:
        section.approximated("dnn", "the pairs' sum has a weight of its own before it joins the logit")
        out = draw.add("output", [draw.add("fm_pairs", [pairs], {"name": "fm"}), h])
    ranking.finish(outputs=out, **side)


def _pairs(ranking: Ranking, group: str, section: Section) -> Ref:
    return fields(ranking.refer(group))


def _fm(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section = model.section("fm")
    _l2(section, ranking)
    section.ignored("pairs are summed", "use_variant")
    single_task(model, ranking, labels)
    group = next((g for g in ("deep", "all", *ranking.groups) if g in ranking.groups), None)
    if group is None:
        ranking.there(model, "feature_groups", "deep")
        return
    ranking.used += [g for g in ("wide", group) if g in ranking.groups and g not in ranking.used]
    if "wide" in ranking.groups and set(ranking.groups["wide"]) != set(ranking.groups[group]):
        model.approximated("feature_groups", "weights and pairs are those of all features in both groups")
    ranking.finish(model="fm")


def _wide_and_deep(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("wide_and_deep"), ranking.drawing
    _l2(section, ranking)
    single_task(model, ranking, labels)
    section.whole("wide_output_dim", 1)
    final = dnn(section.section("final_dnn")) if section.has("final_dnn") else Mlp()
    side = wide_side(model, section, ranking, bool(final.hidden))
    if not ranking.there(model, "feature_groups", "deep"):
        return
    h = draw.mlp("deep_mlp", ranking.reads("deep"), dnn(section.section("dnn")))
    ranking.finish(outputs=draw.mlp("final", [h], final) if final.hidden else h, **side)


def _dcn(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("dcn"), ranking.drawing
    _l2(section, ranking)
    single_task(model, ranking, labels)
    deep, cross = section.section("deep_tower"), section.section("cross_tower")
    names = [tower.text("input", "all", to="inputs of its block") for tower in (deep, cross)]
    if not all(ranking.there(model, "feature_groups", n) for n in names):
        return
    h = draw.mlp("deep", ranking.reads(names[0]), dnn(deep.section("dnn")))
    layers = cross.whole("cross_num", 3, to="layers of the cross")
    x = draw.add("cross", ranking.reads(names[1]), {"name": "cross", "layers": max(1, layers)}, line=cross.line)
    ranking.finish(outputs=draw.mlp("final", [h, x], dnn(section.section("final_dnn"))))


def _autoint(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("autoint"), ranking.drawing
    _l2(section, ranking)
    single_task(model, ranking, labels)
    if not ranking.there(model, "feature_groups", "all"):
        return
    heads, width = section.whole("multi_head_num", 1, to="heads"), section.whole("multi_head_size", 16, to="width")
    layers = section.whole("interacting_layer_num", 1, to="chain")
    section.approximated("multi_head_num", "heads; scores are not divided by a square root, as in the paper")
    refs = [fields(ranking.refer("all")), *_number_vectors(ranking, "all")]
    x = draw.add("features", refs, merge="stack") if len(refs) > 1 else refs[0]
    out = draw.add("interacting", [x], {"name": "autoint", "heads": max(1, heads), "width": max(1, width)},
                   chain=max(1, layers), line=section.line)
    ranking.finish(outputs=draw.add("output", [out, *ranking.beside.get("all", [])]))


def _number_vectors(ranking: Ranking, group: str) -> list[Ref]:
    """A group's numbers as vectors, as wide as its embedded features are."""
    plain = [f for f in ranking.groups[group] if ranking.features[f].get("kind") in ("number", "vector")
             and "boundaries" not in ranking.features[f]]
    if not plain:
        return []
    width = next((ranking.widths[w] for f in ranking.groups[group]
                  if (w := ranking.features[f].get("space", f)) in ranking.widths and f not in plain), 16)
    return [ranking.drawing.add("number_vectors", [numbers(ranking.refer(group))],
                                {"name": "number_vectors", "width": width})]


def _dlrm(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("dlrm"), ranking.drawing
    _l2(section, ranking)
    single_task(model, ranking, labels)
    if not all(ranking.there(model, "feature_groups", g) for g in ("sparse", "dense")):
        return
    dense = draw.mlp("bottom", ranking.reads("dense"), dnn(section.section("bot_dnn")))
    sparse = ranking.refer("sparse")
    if section.text("arch_interaction_op", "dot", to="layer dot") == "cat":
        inner: list[Ref] = [dense, *ranking.reads("sparse")]
    else:
        if section.flag("arch_interaction_itself"):
            section.approximated("arch_interaction_itself", "a vector's product with itself is left out")
        pairs = draw.add("pairs", [dense, fields(sparse)], {"name": "dot"}, merge="stack", line=section.line)
        inner = [pairs, *ranking.reads("sparse")]
        if section.flag("arch_with_dense_feature", True, to="inputs of top"):
            inner.append(dense)
    ranking.finish(outputs=draw.mlp("top", inner, dnn(section.section("top_dnn"))))


def _multi_tower(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("multi_tower"), ranking.drawing
    _l2(section, ranking)
    single_task(model, ranking, labels)
    tops: list[Ref] = []
    for tower in section.sections("towers"):
        group = tower.text("input", "", to="inputs of its block")
        if ranking.there(tower, "input", group):
            normed = draw.add(f"{group}_norm", ranking.reads(group), {"name": "batch_norm"}, line=tower.line)
            tops.append(draw.mlp(f"{group}_tower", [normed], dnn(tower.section("dnn"))))
    for key in ("din_towers", "bst_towers"):
        for tower in section.sections(key):
            group = tower.text("input", "", to="inputs of its blocks")
            sequences = ranking.beside.get(f"seq_att:{group}")
            if not sequences:
                tower.refused("input", f"seq_att_groups has no group '{group}' with a sequence; declare it")
                continue
            tops += [_din(ranking, tower, s) if key == "din_towers" else _bst(ranking, tower, s) for s in sequences]
    if tops:
        ranking.finish(outputs=draw.mlp("final", tops, dnn(section.section("final_dnn"))))


def _din(ranking: Ranking, tower: Section, sequence: str) -> str:
    hidden = unit_of(tower, "dnn")
    return attention(ranking, f"{sequence}_attention", sequence, hidden, True, tower.line)


def _bst(ranking: Ranking, tower: Section, sequence: str) -> str:
    heads, length = tower.whole("multi_head_size", 4, to="heads"), tower.whole("seq_len", 5, to="length")
    width = ranking.widths.get(ranking.features[sequence].get("space", sequence), 16)
    if width % heads:
        tower.approximated("multi_head_size", f"1 head, because {heads} do not divide vectors of {width}")
        heads = 1
    tower.approximated("seq_len", "length; what comes out is the item's vector, not those of all places side by side, "
                                  "and places have vectors")
    return ranking.drawing.add(f"{sequence}_bst", [history(sequence)], {
        "name": "bst", "heads": heads, "hidden": width, "length": max(1, length - 1)}, line=tower.line)


# ---- models of several tasks

def _towers(section: Section, ranking: Ranking, labels: list[str]) -> list[Tower]:
    towers = [task(tower, ranking, labels, i) for i, tower in enumerate(section.sections("task_towers"))]
    if not towers:
        section.faults.append(f"{section.file}:{section.line}: {section.path}: task_towers is missing; a model of "
                              "several tasks has a tower for each")
    return towers


def _recipe(ranking: Ranking, model: Section, towers: Sequence[Tower], group: str = "all") -> bool:
    """Whether everything is read by one part, so that a recipe's parts can stand for blocks."""
    return not (model.has("backbone") or ranking.attended or ranking.beside or any(t.parents for t in towers))


def _simple(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section = model.section("simple_multi_task")
    _l2(section, ranking)
    towers = _towers(section, ranking, labels)
    refs = _bottom(model, ranking)
    if towers and (keys := same(towers)) and _recipe(ranking, model, towers):
        return ranking.finish(model="single_task", represent=keys)
    return finish_towers(ranking, draw_towers(ranking, towers, lambda i: refs))


def _mmoe(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section = model.section("mmoe")
    _l2(section, ranking)
    towers = _towers(section, ranking, labels)
    expert = dnn(section.section("expert_dnn"))
    count = section.whole("num_expert", 0, to="experts") or 3
    if section.has("experts"):
        listed = section.sections("experts")
        named = [dnn(e.section("dnn")) for e in listed]
        for e in listed:
            e.ignored(LEVEL_NAMES, "expert_name")
        if len({m.hidden for m in named}) > 1:
            section.approximated("experts", "all have the layers of the first")
        expert, count = named[0], len(named)
    refs = _bottom(model, ranking)
    if not towers:
        return None
    if (keys := same(towers)) and keys["hidden"] and expert.keys is not None and _recipe(ranking, model, towers):
        return ranking.finish(model="mmoe", represent={"experts": count, **expert.keys}, predict=keys)
    layer = experts_layer(section, len(towers), count, expert)
    experts = ranking.drawing.add("experts", refs, layer, line=section.line)
    return finish_towers(ranking, draw_towers(ranking, towers, lambda i: [take(experts, i)]))


def _ple(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("ple"), ranking.drawing
    _l2(section, ranking)
    towers = _towers(section, ranking, labels)
    levels = []
    for network in section.sections("extraction_networks"):
        network.ignored(LEVEL_NAMES, "network_name")
        own, shared = (dnn(network.section(k)) for k in ("task_expert_net", "share_expert_net"))
        levels.append(level_keys(network, own, shared, network.whole("expert_num_per_task", 1, to="own"),
                             network.whole("share_num", 0, to="shared")))
    refs = _bottom(model, ranking)
    if not towers or not levels:
        return None
    if (keys := same(towers)) and all(x == levels[0] for x in levels) and _recipe(ranking, model, towers) and (
            keys["hidden"]):
        return ranking.finish(model="ple", represent={"levels": len(levels), **levels[0]}, predict=keys)
    return finish_towers(ranking, draw_towers(ranking, towers, draw_levels(draw, refs, levels, len(towers))))


def _esmm(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("esmm"), ranking.drawing
    _l2(section, ranking)
    first, second = (task(section.section(k), ranking, labels, i) for i, k in enumerate(("ctr_tower", "cvr_tower")))
    section.approximated("ctr_tower", "losses are means over rows, where there they are sums; Adam's steps hardly "
                                      "depend on a loss's scale")
    ranking.target["tasks"][second.task]["after"] = first.task
    for _, tower, _ in ranking.spaces:
        tower.refused("task_space_indicator_label", "both losses of ESMM are over all rows; leave it out")
    ranking.spaces.clear()
    refs: list[Ref] = []
    for group in section.sections("groups"):
        name = group.text("input", "", to="inputs of its block")
        if ranking.there(group, "input", name):
            refs.append(draw.mlp(f"{name}_dnn", ranking.reads(name), dnn(group.section("dnn"))))
    towers = [first, second]
    keys = same(towers)
    if not refs and keys and _recipe(ranking, model, towers):
        ranking.reads("all") if ranking.there(model, "feature_groups", "all") else None
        return ranking.finish(model="esmm", represent=keys)
    refs = refs or _bottom(model, ranking)
    return finish_towers(ranking, draw_towers(ranking, towers, lambda i: refs), reading="conditional")


def _dbmtl(model: Section, ranking: Ranking, labels: list[str]) -> None:
    section, draw = model.section("dbmtl"), ranking.drawing
    _l2(section, ranking)
    towers = _towers(section, ranking, labels)
    for key in ("bottom_cmbf", "bottom_uniter", "sequence_dnn"):
        if section.has(key):
            section.refused(key, "there is no such bottom; say bottom_dnn")
    refs = _bottom(model, ranking)
    for key, layer in (("use_feature_bn", "batch_norm"), ("use_feature_ln", "layer_norm")):
        if section.flag(key, to=f"a block with layer: {layer}"):
            refs = [draw.add("features_norm", [draw.add("features", refs)] if layer == "layer_norm" else refs,
                             {"name": layer}, line=section.line_of(key))]
    if section.has("bottom_dnn"):
        refs = [draw.mlp("bottom", refs, dnn(section.section("bottom_dnn")))]
    if not towers:
        return
    inputs: Callable[[int], list[Ref]] = lambda i: refs
    count = section.whole("num_expert", 0, to="experts")
    if section.has("expert_dnn") and count:
        layer = experts_layer(section, len(towers), count, dnn(section.section("expert_dnn")))
        experts = draw.add("experts", refs, layer, line=section.line_of("expert_dnn"))
        inputs = lambda i: [take(experts, i)]
    elif section.has("expert_dnn"):
        section.refused("expert_dnn", "num_expert is missing or 0; say how many")
    finish_towers(ranking, draw_towers(ranking, towers, inputs))


def _multi_task(model: Section, ranking: Ranking, labels: list[str]) -> None:
    params = model.section("model_params")
    _l2(params, ranking, 0.0)
    params.ignored("predictions are those of tasks", "outputs")
    towers = _towers(params, ranking, labels)
    if not model.has("backbone"):
        refs = _bottom(model, ranking)
        return finish_towers(ranking, draw_towers(ranking, towers, lambda i: refs))
    outputs = easyrec_blocks.read(model.section("backbone"), ranking, len(towers))
    if isinstance(outputs, list):
        if len(outputs) != len(towers):
            backbone = model.section("backbone")
            backbone.faults.append(f"{model.file}:{backbone.line}: model_config.backbone: {len(outputs)} outputs for "
                                   f"{len(towers)} task towers; name one block for each, or one that all share")
            return None
        return finish_towers(ranking, draw_towers(ranking, towers, lambda i: [outputs[i]]))
    return finish_towers(ranking, draw_towers(ranking, towers, lambda i: [outputs]))


MODELS: dict[str, Callable[[Section, Ranking, list[str]], None]] = {
    "MultiTaskModel": _multi_task, "SimpleMultiTask": _simple, "MMoE": _mmoe, "PLE": _ple, "ESMM": _esmm,
    "DBMTL": _dbmtl, "DeepFM": _deepfm, "FM": _fm, "WideAndDeep": _wide_and_deep, "DCN": _dcn, "AutoInt": _autoint,
    "DLRM": _dlrm,
    "MultiTower": _multi_tower, "MultiTowerDIN": _multi_tower, "MultiTowerBST": _multi_tower, "RankModel": _rank_model,
}
