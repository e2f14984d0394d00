"""FuxiCTR's models by their names, as recipes of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from funnelrank.imports.overlaid import Overlaid, holds

if TYPE_CHECKING:
    from funnelrank.imports.fuxictr import Import


def _plain(name: str, units: str | None = None) -> Callable[[Import, Overlaid], dict[str, Any]]:
    def make(made: Import, said: Overlaid) -> dict[str, Any]:
        return {"name": name, **({"represent": made.mlp(units)} if units else {})}
    return make


def _wide_deep(made: Import, said: Overlaid) -> dict[str, Any]:
    return {"name": "single_task", "represent": made.mlp("hidden_units"), "side": ["lr"]}


def _afm(made: Import, said: Overlaid) -> dict[str, Any]:
    rates = [r for r in said.scalars("attention_dropout", to="dropout") if isinstance(r, int | float) and 0 < r < 1]
    if not said.flag("use_attention", True):
        said.approximated("use_attention", "pairs are weighed by attention")
    width = said.whole("attention_dim", 10, to="attention") or 10
    return {"name": "afm", "represent": {"attention": width, **({"dropout": rates[0]} if rates else {})}}


def _pnn(made: Import, said: Overlaid) -> dict[str, Any]:
    product = said.text("product_type", "inner", to="product")
    if product not in ("inner", "outer", "both"):
        said.refused("product_type", f"there is no '{product}'; inner, outer and both are there")
        product = "inner"
    return {"name": "pnn", "represent": {"product": product, **made.mlp("hidden_units")}}


def _autoint(made: Import, said: Overlaid) -> dict[str, Any]:
    heads, width = said.whole("num_heads", 1, to="heads") or 1, said.whole("attention_dim", 8, to="width") or 8
    layers = said.whole("attention_layers", 1, to="layers") or 1
    deep = made.mlp("dnn_hidden_units", default=())
    for key, how in (("layer_norm", "layers have no norm"), ("use_scale", "scores are not divided"),
                     ("use_wide", "left out; side: lr would be it")):
        if said.flag(key):
            said.approximated(key, how)
    per_head = max(1, width // heads)
    if heads > 1:
        said.approximated("attention_dim", f"width: {per_head} a head")
    residual = said.flag("use_residual", True, to="residual")
    return {"name": "autoint", "represent": {
        "layers": layers, "heads": heads, "width": per_head, **({} if residual else {"residual": False}),
        **({"deep": deep["hidden"]} if deep["hidden"] else {}),
        **{k: deep[k] for k in ("activation", "dropout") if k in deep}}}


def _dcn(made: Import, said: Overlaid) -> dict[str, Any]:
    layers = said.whole("num_cross_layers", said.whole("crossing_layers", 3, to="layers"), to="layers") or 1
    deep = made.mlp("dnn_hidden_units", default=())
    blocks: dict[str, Any] = {"cross": {"inputs": "all", "layer": {"name": "cross", "layers": layers}}}
    if deep["hidden"]:
        blocks["deep"] = {"inputs": "all", "layer": {"name": "mlp", **deep}}
        blocks["both"] = {"inputs": ["cross", "deep"]}
    return {"name": "backbone", "represent": {"blocks": blocks}}


def _dcn_v2(made: Import, said: Overlaid) -> dict[str, Any]:
    structure = said.text("model_structure", "parallel", to="structure") or "parallel"
    layers = said.whole("num_cross_layers", 3, to="layers") or 1
    low = said.flag("use_low_rank_mixture", to="rank, experts")
    rank, experts = said.whole("low_rank", 32, to="rank") or 32, said.whole("num_experts", 4, to="experts") or 1
    if not low:
        said.ignored("cross layers are of full rank", "low_rank", "num_experts")
    stacked, beside = made.mlp("stacked_dnn_hidden_units"), made.mlp("parallel_dnn_hidden_units")
    deep = stacked if structure == "stacked" else {**beside, "hidden": []} if structure == "crossnet_only" else beside
    if structure == "stacked_parallel":
        said.approximated("model_structure", "parallel: one MLP beside the cross layers")
    unread = {"stacked": ("parallel_dnn_hidden_units",), "parallel": ("stacked_dnn_hidden_units",)}.get(
        structure, ("stacked_dnn_hidden_units", "parallel_dnn_hidden_units") if structure == "crossnet_only" else ())
    said.ignored("the structure has no such MLP", *unread)
    return {"name": "dcn_v2", "represent": {
        "layers": layers, **({"rank": rank, **({"experts": experts} if experts > 1 else {})} if low else {}),
        "structure": "stacked" if structure == "stacked" else "parallel", **deep}}


def _din(made: Import, said: Overlaid) -> dict[str, Any]:
    unit = said.wholes("attention_hidden_units", (64,), to="prepare.hidden")
    acts = [str(a).lower() for a in said.scalars("attention_hidden_activations", to="Dice")]
    if any(a != "dice" for a in acts):
        said.approximated("attention_hidden_activations", "Dice stands between the attention's layers")
    if said.scalars("attention_output_activation"):
        said.approximated("attention_output_activation", "weights are as they are")
    if said.number("attention_dropout", 0.0):
        said.approximated("attention_dropout", "none")
    softmax = said.flag("din_use_softmax", to="prepare.softmax")
    return {"name": "din", "prepare": [{"name": "din", "hidden": unit, **({"softmax": True} if softmax else {})}],
            "represent": {"activation": "relu", **made.mlp("dnn_hidden_units")}}


def _ppnet(made: Import, said: Overlaid) -> dict[str, Any]:
    priors = made.fields_of("gate_priors")
    known = [p for p in priors if p in made.features]
    if not known:
        said.refused("gate_priors", "none of them is a feature; name features that open the gates")
        known = list(made.features)[:1]
    made.target["embedding"].setdefault("groups", {})["priors"] = known
    said.approximated("gate_emb_dim", "priors have the vectors that they have elsewhere")
    keys = made.mlp("hidden_units")
    if keys.pop("norm", None):
        said.approximated("batch_norm", "gated layers have no batch norm")
    gate = said.whole("gate_hidden_dim", 64, to="gate") or 64
    return {"name": "pepnet", "prepare": [], "represent": "flat",
            "predict": {"name": "ppnet", "groups": ["priors"], "gate": gate, "position": "output", **keys}}


def _apg(made: Import, said: Overlaid) -> dict[str, Any]:
    mode = said.text("condition_mode", "self-wise", to="groups") or "self-wise"
    conditions = [f for f in made.fields_of("condition_features") if f in made.features]
    groups: list[str] = []
    if mode != "self-wise" and conditions:
        made.target["embedding"].setdefault("groups", {})["condition"] = conditions
        groups = ["condition"]
    rank, middle = said.scalars("rank_k", to="rank"), said.scalars("overparam_p", to="middle")
    keys = made.mlp("hidden_units")
    if keys.pop("norm", None):
        said.approximated("batch_norm", "generated layers have no batch norm")
    number = lambda found, usual: next((int(v) for v in found if isinstance(v, int) and v > 0), usual)
    if len(set(map(str, rank))) > 1 or len(set(map(str, middle))) > 1:
        said.approximated("rank_k", "all layers have the first one's")
    k, p = number(rank, 8), number(middle, None)
    generator: list[int] = []
    if said.has("hypernet_config") and isinstance(said.of("hypernet_config").entries, list):
        inner = said.of("hypernet_config").section("hypernet_config")
        generator = [w for w in inner.wholes("hidden_units", "generator") if 0 < w < 10**6] if holds(
            inner, "hidden_units") else []
        for key in inner.names():
            if key != "hidden_units":
                inner.approximated(key, "the generator is an MLP with relu, without a norm")
    said.approximated("generate_bias", "a layer's bias is not generated")
    said.approximated("new_condition_emb", "conditions have the vectors that they have elsewhere")
    return {"name": "apg", "represent": {"groups": groups, "rank": k, "middle": max(p, k) if p else None,
                                         **({"generator": generator} if generator else {}), **keys}}


def _gates(said: Overlaid) -> None:
    if said.wholes("gate_hidden_units"):
        said.approximated("gate_hidden_units", "a gate is one linear layer, as in the paper")


def _towers(made: Import) -> dict[str, Any]:
    return made.mlp("tower_hidden_units", default=(64,))


def _shared_bottom(made: Import, said: Overlaid) -> dict[str, Any]:
    return {"name": "shared_bottom", "represent": made.mlp("bottom_hidden_units"), "predict": _towers(made)}


def _mmoe(made: Import, said: Overlaid) -> dict[str, Any]:
    _gates(said)
    return {"name": "mmoe", "represent": {"experts": said.whole("num_experts", 8, to="experts") or 8,
                                          **made.mlp("expert_hidden_units", default=(512, 256, 128))},
            "predict": _towers(made)}


def _ple(made: Import, said: Overlaid) -> dict[str, Any]:
    _gates(said)
    return {"name": "ple", "represent": {
        "levels": said.whole("num_layers", 1, to="levels") or 1,
        "own": said.whole("num_specific_experts", 1, to="own") or 1,
        "shared": said.whole("num_shared_experts", 1, to="shared") or 0,
        **made.mlp("expert_hidden_units", default=(512, 256, 128))}, "predict": _towers(made)}


def _aitm(made: Import, said: Overlaid) -> dict[str, Any]:
    tasks = list(made.target["tasks"])
    if len(tasks) < 2:
        said.refused("model", "AITM is of several steps; label_col names one")
    for before, after in zip(tasks, tasks[1:]):
        made.target["tasks"][after]["after"] = before
    said.approximated("model", "steps come after one another as label_col lists them")
    made.target.put("data.contradictions", "keep")
    hidden = [w for key in ("bottom_hidden_units", "tower_hidden_units") for w in said.wholes(key, (64,), to="hidden")]
    said.approximated("bottom_hidden_units", "each task has a bottom of its own, as in the paper")
    return {"name": "aitm", "represent": {**made.mlp("bottom_hidden_units"), "hidden": hidden}}


MODELS: dict[str, Callable[[Import, Overlaid], dict[str, Any]]] = {
    "LR": _plain("lr"), "FM": _plain("fm"), "DNN": _plain("dnn", "hidden_units"),
    "DeepFM": _plain("deepfm", "hidden_units"), "WideDeep": _wide_deep, "NFM": _plain("nfm", "hidden_units"),
    "AFM": _afm, "PNN": _pnn, "AutoInt": _autoint, "DCN": _dcn, "DCNv2": _dcn_v2, "DIN": _din, "PPNet": _ppnet,
    "APG": _apg, "ShareBottom": _shared_bottom, "MMoE": _mmoe, "PLE": _ple, "AITM": _aitm,
}
