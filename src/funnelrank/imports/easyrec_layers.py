"""Layers of EasyRec's backbone by their class_name, as blocks of ours; what they stand in is easyrec_blocks.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from funnelrank.imports.drawing import Mlp, Ref
from funnelrank.imports.mlps import activation, dnn
from funnelrank.imports.networks import UNIT, attention, experts_layer
from funnelrank.imports.source import Entry, Section

if TYPE_CHECKING:
    from funnelrank.imports.easyrec_blocks import Reader

SHAPED = "what reads it says in which form"


@dataclass
class Value:
    """What a block of the source gives, as blocks of ours.

    vector    items side by side
    list      items, each for itself
    stack     one block whose entries are meant: `size` of them, None where that is not known
    history   sequences of a group, each with its target; beside them the group's other features
    """

    items: list[Ref]
    form: str = "vector"
    size: int | None = None
    group: str | None = None

    def entry(self, i: int) -> Value | None:
        if self.form == "list" and -len(self.items) <= i < len(self.items):
            of_fields = isinstance(self.items[i], dict) and self.items[i].get("form") == "fields"
            return Value([self.items[i]], "stack" if of_fields else "vector")
        if self.form == "stack" and self.size is not None and -self.size <= i < self.size:
            return Value([taken(self.items[0], i % self.size)])
        return Value([taken(self.items[0], i)]) if self.form == "stack" and i >= 0 else None

    def part(self, start: int | None, stop: int | None) -> Value | None:
        if self.form == "list":
            return Value(self.items[start:stop], "list")
        if self.form == "stack" and self.size is not None:
            a, b, _ = slice(start, stop).indices(self.size)
            return Value([taken(self.items[0], [a, b])], "stack", b - a) if a < b else None
        return None


def taken(ref: Ref, what: int | list[int]) -> Ref:
    return {**(ref if isinstance(ref, dict) else {"of": ref}), "take": what}


def params_of(section: Section, key: str | None) -> Section:
    """A layer's settings: of its own message, or the free ones of `st_params`, as one section."""
    if key and section.has(key):
        return section.section(key)
    inner = Section(f"{section.path}.st_params", section.line, section.file, section.faults)
    if section.has("st_params"):
        for one in section.section("st_params").sections("fields"):
            name, held = one.text("key", "", to="a layer's key"), one.section("value")
            for kind in held.names():
                held.carried(kind, "a layer's key")
                inner.entries += [Entry(name, e.value, e.line, e.file) for e in held.entries if e.key == kind]
        for entry in inner.entries:
            if isinstance(entry.value, Section):
                _mark(entry.value)
    return inner


def _mark(section: Section) -> None:
    for _, entry in section.all_entries():
        entry.judge("carried", "a layer's key")


def _mlp(reader: Reader, section: Section, value: Value, name: str) -> Value:
    mlp = dnn(params_of(section, "mlp"), keras=True)
    return Value([reader.draw.mlp(name, reader.flat(value), mlp, section.line)])


def _dense(reader: Reader, section: Section, value: Value, name: str) -> Value:
    params = params_of(section, None)
    width = params.whole("units", 1, to="width") or 1
    act = activation(params, "activation", "linear")
    layer: dict[str, Any] = {"name": "linear", "width": width}
    if act != "linear":
        layer = {"name": "mlp", "hidden": [width], **({"activation": act} if act != "relu" else {})}
    elif not params.flag("use_bias", True, to="bias"):
        layer["bias"] = False
    return Value([reader.draw.add(name, reader.flat(value), layer, line=section.line)])


def _mmoe(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, "mmoe")
    if not params.has("expert_mlp"):
        section.refused("mmoe", "experts are MLPs here; say expert_mlp")
        return None
    gates, count = params.whole("num_task", 1, to="gates") or 1, params.whole("num_expert", 3, to="experts") or 3
    layer = experts_layer(params, gates, count, dnn(params.section("expert_mlp"), keras=True))
    return Value([reader.draw.add(name, reader.flat(value), layer, line=section.line)], "stack", gates)


def _aitm(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, "aitm")
    if value.form != "list" or len(value.items) < 2:
        section.refused("class_name", "AITMTower takes its own tower and those before it; name two inputs or more, "
                                      "with merge_inputs_into_list: true")
        return value
    own, *others = reader.draw.of_one_width(name, value.items, params.whole(
        "project_dim", to="linear blocks before the transfer"), section.line)
    layer: dict[str, Any] = {"name": "ait", "variant": "own_keys", "gate": None}
    if params.has("transfer_mlp"):
        del layer["gate"]
        mlp = dnn(params.section("transfer_mlp"), keras=True)
        params.approximated("transfer_mlp", "gate: its last layer is as wide as a tower, it has no batch norm, and "
                                            "each input has its own")
        if mlp.hidden[:-1]:
            layer["gate"] = list(mlp.hidden[:-1])
        if mlp.activation and mlp.activation[0] != "relu":
            layer["gate_activation"] = mlp.activation[0]
        if mlp.dropout and mlp.dropout[0]:
            layer["dropout"] = mlp.dropout[0]
    if params.flag("stop_gradient", True, to="stop_gradient"):
        layer["stop_gradient"] = True
    section.carried("class_name", "layer: ait, variant: own_keys")
    return Value([reader.draw.add(name, [*others, own], layer, merge="list", line=section.line)])


def _histories(reader: Reader, section: Section, value: Value) -> list[str] | None:
    if value.form != "history":
        section.refused("class_name", "it reads sequences with their items; let its input have "
                                      "output_seq_and_normal_feature")
        return None
    return [f for f in reader.ranking.groups[value.group] if f in reader.ranking.attended]


def _din(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, "din")
    sequences = _histories(reader, section, value)
    if sequences is None:
        return value if value.items else None
    hidden: list[int] = list(UNIT)
    if params.has("attention_dnn"):
        unit = params.section("attention_dnn")
        hidden = list(dnn(unit, keras=True).hidden[:-1])
        if unit.text("activation", "relu").lower() != "dice" or unit.flag("use_bn", True):
            params.approximated("attention_dnn", "Dice stands between the attention's layers, without batch norm")
    target = params.flag("need_target_feature", True, to="target")
    normal = params.text("attention_normalizer", "softmax", to="softmax")
    made: list[Ref] = []
    for i, sequence in enumerate(sequences):
        wanted = name if i == len(sequences) - 1 else f"{name}_{sequence}"
        at = attention(reader.ranking, wanted, sequence, hidden, target, section.line)
        if normal != "softmax":
            params.approximated("attention_normalizer", "weights are those of the paper, without a softmax or a "
                                                        "sigmoid")
            reader.ranking.drawing.blocks[at]["layer"].pop("softmax")
        made.append(at)
    return Value(made)


def _bst(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, "bst")
    sequences = _histories(reader, section, value)
    if sequences is None:
        return value if value.items else None
    heads, rate = params.whole("num_attention_heads", 1, to="heads") or 1, params.number("hidden_dropout_prob", 0.1,
                                                                                         to="dropout")
    made: list[Ref] = []
    for sequence in sequences:
        width = reader.ranking.widths.get(reader.ranking.features[sequence].get("space", sequence), 16)
        layer = {"name": "bst", "heads": heads if width % heads == 0 else 1,
                 "hidden": params.whole("intermediate_size", width, to="hidden") or width,
                 "layers": params.whole("num_hidden_layers", 1, to="layers") or 1,
                 "length": min(params.whole("max_position_embeddings", 512, to="length") or 512,
                               reader.ranking.features[sequence].get("max_len", 512)),
                 **({"dropout": rate} if 0 < rate < 1 else {})}
        if width % heads:
            params.approximated("num_attention_heads", f"1 head, because {heads} do not divide vectors of {width}")
        made.append(reader.draw.add(f"{name}_{sequence}" if len(sequences) > 1 else name,
                                    [{"of": sequence, "form": "history"}], layer, line=section.line))
    params.approximated("hidden_size", "layers are as wide as the vectors")
    params.approximated("hidden_act", "relu")
    params.approximated("attention_probs_dropout_prob", "dropout behind the attention")
    for key in ("output_all_token_embeddings", "target_item_position", "reserve_target_position",
                "use_position_embeddings"):
        params.approximated(key, "the item stands behind its history, places have vectors, and the item's comes out")
    params.ignored("where weights start differs from run to run anyway", "initializer_range")
    for key in ("need_contrastive_learning", "cl_param"):
        if params.has(key) and str(params.scalars(key)[:1]) not in ("['false']", "['False']"):
            params.refused(key, "there is no contrastive loss; remove it")
    params.ignored("there is no contrastive loss", "need_contrastive_learning", "contrastive_loss_weight")
    return Value(made)


def _ppnet(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, "ppnet")
    if value.form != "list" or len(value.items) < 2:
        section.refused("class_name", "PPNet takes what its MLP reads and what opens the gates; name two inputs, with "
                                      "merge_inputs_into_list: true")
        return value
    mlp = dnn(params.section("mlp"), keras=True)
    if any(mlp.norm):
        params.approximated("mlp", "gated layers have no batch norm, and one activation and dropout")
    gate = params.section("gate_params")
    width = gate.whole("hidden_dim", to="gate") or gate.whole("output_dim") or 64
    gate.ignored("a gate is as wide as what it gates", "output_dim")
    for key, how in (("activation", "relu"), ("use_bn", "without"), ("dropout_rate", "without")):
        gate.approximated(key, f"{how}, as in the paper")
    lazy = params.text("mode", "eager", to="position") == "lazy"
    act = mlp.activation[0] if mlp.activation else "relu"
    layer = {"name": "ppnet", "hidden": list(mlp.hidden), "gate": width, **({"position": "output"} if lazy else {}),
             **({"activation": act} if act not in ("relu", "dice") else {}),
             **({"dropout": mlp.dropout[0]} if mlp.dropout and mlp.dropout[0] else {}),
             **({} if params.flag("full_gate_input", True, to="sees") else {"sees": False})}
    return Value([reader.draw.add(name, value.items, layer, merge="list", line=section.line)])


def _mask_block(reader: Reader, params: Section, refs: list[Ref], masks: list[Ref], name: str, line: int) -> str:
    """One mask block on `refs`, its mask made of `masks`."""
    width = params.whole("output_size", 0, to="width") or 64
    hidden = params.whole("aggregation_size", 0, to="hidden") or params.whole("projection_dim", 0, to="hidden")
    if not hidden:
        factor = params.number("reduction_factor", 1.0)
        hidden = max(1, int(width * factor))
        params.approximated("reduction_factor", f"hidden: {hidden}, of the block's own width")
    if params.flag("input_layer_norm", to="layer: layer_norm"):
        joined = reader.draw.add(f"{name}_input", refs)
        refs = [reader.draw.add(f"{name}_norm", [joined], {"name": "layer_norm"}, line=line)]
    inputs = [reader.single(Value(refs)), reader.single(Value(masks))]
    layer = {"name": "mask_block", "width": width, "hidden": hidden}
    if inputs[0] == inputs[1]:
        return reader.draw.add(name, inputs[:1], layer, line=line)
    return reader.draw.add(name, inputs, layer, merge="list", line=line)


def _masknet(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, "masknet")
    blocks = params.sections("mask_blocks")
    if not blocks:
        section.refused("masknet", "mask_blocks is missing; name at least one")
        return None
    refs = [reader.single(Value(reader.flat(value)))]
    masks = refs
    if params.flag("input_layer_norm", True, to="layer: layer_norm"):
        refs = [reader.draw.add(f"{name}_norm", [reader.draw.add(f"{name}_input", refs)], {"name": "layer_norm"},
                                line=section.line)]
    parallel = params.flag("use_parallel", True, to="inputs of the mask blocks")
    made: list[Ref] = []
    before = refs
    for i, block in enumerate(blocks):
        at = _mask_block(reader, block, refs if parallel else before, masks, f"{name}_block_{i + 1}", block.line)
        before = [at]
        made.append(at)
    out = made if parallel else before
    mlp = dnn(params.section("mlp"), keras=True) if params.has("mlp") else Mlp()
    return Value([reader.draw.mlp(name, out, mlp, section.line)]) if mlp.hidden or len(out) > 1 else Value(out)


def _mask(reader: Reader, section: Section, value: Value, name: str) -> Value:
    items = value.items if value.form == "list" and len(value.items) > 1 else [reader.single(value)] * 2
    return Value([_mask_block(reader, params_of(section, "mask_block"), items[:1], items[1:2], name, section.line)])


def _stack(reader: Reader, section: Section, value: Value, name: str) -> Ref | None:
    """One reference to a stack of vectors."""
    if value.form == "stack":
        return value.items[0]
    if value.form == "list":
        return reader.draw.add(f"{name}_list", value.items, merge="stack", line=section.line)
    section.refused("class_name", "it reads features one by one; let its input have only_output_feature_list: true")
    return None


def _senet_of(reader: Reader, params: Section, ref: Ref, name: str, line: int) -> str:
    ratio = params.whole("reduction_ratio", 4, to="reduction") or 4
    at = reader.draw.add(f"{name}_weighed", [ref], {"name": "senet", "reduction": ratio}, line=line)
    params.approximated("reduction_ratio", "reduction; a feature is squeezed to its mean")
    params.approximated("num_squeeze_group", "a feature is squeezed to its mean")
    if params.flag("use_skip_connection", True, to="merge: sum"):
        at = reader.draw.add(f"{name}_kept", [ref, at], merge="sum", line=line)
    if params.flag("use_output_layer_norm", True, to="layer: layer_norm"):
        params.approximated("use_output_layer_norm", "each feature's vector is normalised by itself")
        at = reader.draw.add(f"{name}_normed", [at], {"name": "layer_norm"}, line=line)
    return at


def _senet(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    ref = _stack(reader, section, value, name)
    if ref is None:
        return value
    return Value([_senet_of(reader, params_of(section, "senet"), ref, name, section.line)], "stack", None)


def _bilinear_of(reader: Reader, params: Section, ref: Ref, name: str, line: int) -> str:
    kind = params.text("type", "interaction", to="weights").lower()
    weights = {"all": "all", "each": "each", "interaction": "pair", "pair": "pair"}.get(kind)
    if weights is None:
        params.refused("type", f"there is no '{kind}'; all, each and interaction are there")
        weights = "all"
    params.approximated("use_plus", "a pair is its product by element, as in FiBiNET")
    at = reader.draw.add(f"{name}_pairs", [ref], {"name": "bilinear", "weights": weights}, line=line)
    width = params.whole("num_output_units", 0, to="width of a linear block")
    return reader.draw.add(f"{name}_linear", [at], {"name": "linear", "width": width}, line=line) if width else at


def _bilinear(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    ref = _stack(reader, section, value, name)
    params = params_of(section, "bilinear")
    return value if ref is None else Value([_bilinear_of(reader, params, ref, name, section.line)])


def _fibinet(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, "fibinet")
    ref = _stack(reader, section, value, name)
    if ref is None:
        return value
    made: list[Ref] = [_senet_of(reader, params.section("senet"), ref, f"{name}_senet", section.line)]
    if params.has("bilinear"):
        made.append(_bilinear_of(reader, params.section("bilinear"), ref, f"{name}_bilinear", section.line))
    mlp = dnn(params.section("mlp"), keras=True) if params.has("mlp") else Mlp()
    return Value([reader.draw.mlp(name, made, mlp, section.line)])


def _fm(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    variant = params_of(section, "fm").flag("use_variant", to="layer: bi_interaction where it is true, else fm")
    ref = _stack(reader, section, value, name)
    if ref is None:
        return value
    return Value([reader.draw.add(name, [ref], {"name": "bi_interaction" if variant else "fm"}, line=section.line)])


def _dot(reader: Reader, section: Section, value: Value, name: str) -> Value | None:
    params = params_of(section, None)
    for key in ("self_interaction", "skip_gather"):
        if params.flag(key):
            section.approximated("class_name", "layer: dot, of pairs of different vectors, each once")
    ref = _stack(reader, section, value, name)
    return value if ref is None else Value([reader.draw.add(name, [ref], {"name": "dot"}, line=section.line)])


def _one_cross(reader: Reader, section: Section, value: Value, name: str) -> Value:
    return reader.cross(section, value, name, 1)


def _highway(reader: Reader, section: Section, value: Value, name: str) -> Value:
    params = params_of(section, "highway")
    width = params.whole("emb_size", 0, to="width of a linear block") or 64
    act = activation(params, "activation", "relu")
    carry = params.number("init_gate_bias", -3.0, to="carry")
    rate = params.number("dropout_rate", 0.0, to="layer: dropout")
    at = reader.draw.add(f"{name}_linear", reader.flat(value), {"name": "linear", "width": width}, line=section.line)
    at = reader.draw.add(name if not rate else f"{name}_highway", [at], {
        "name": "highway", "carry": carry, **({"activation": act} if act != "relu" else {})},
        chain=n if (n := params.whole("num_layers", 1, to="chain") or 1) > 1 else None, line=section.line)
    return Value([reader.draw.add(name, [at], {"name": "dropout", "rate": rate}) if rate else at])


def _numbers(kind: str, key: str) -> Callable[[Reader, Section, Value, str], Value]:
    def make(reader: Reader, section: Section, value: Value, name: str) -> Value:
        params = params_of(section, key)
        layer: dict[str, Any] = {"name": kind, "width": params.whole("embedding_dim", 16, to="width") or 16}
        if kind == "autodis":
            layer |= {"buckets": params.whole("num_bins", 16, to="buckets") or 16,
                      "keep": params.number("keep_prob", 0.8, to="keep"),
                      "temperature": params.number("temperature", 1.0, to="temperature") or 1.0}
        else:
            layer |= {"sigma": params.number("sigma", 0.1, to="sigma") or 0.1,
                      "frequencies": max(1, layer["width"] // 2)}
            params.approximated("add_linear_layer", "a linear layer with relu behind the waves")
            params.approximated("linear_activation", "relu")
        params.ignored(SHAPED, "output_3d_tensor", "output_tensor_list")
        return Value([reader.draw.add(name, reader.flat(value), layer, line=section.line)], "stack", None)
    return make


def _plain(layer: str, **rename: str) -> Callable[[Reader, Section, Value, str], Value]:
    """A layer on one vector, whose settings have other names."""
    def make(reader: Reader, section: Section, value: Value, name: str) -> Value:
        params = params_of(section, None)
        keys = {ours: params.number(theirs, to=ours) for theirs, ours in rename.items() if params.has(theirs)}
        if layer == "dropout" and not 0 < keys.get("rate", 0) < 1:
            return value
        ref = reader.single(value)
        return Value([reader.draw.add(name, [ref], {"name": layer, **keys}, line=section.line)], value.form
                     if value.form == "stack" and layer != "batch_norm" else "vector", value.size)
    return make


def _joined(how: str) -> Callable[[Reader, Section, Value, str], Value]:
    def make(reader: Reader, section: Section, value: Value, name: str) -> Value:
        params_of(section, None).ignored("along the last axis", "axis")
        if how == "concat":
            return Value(reader.flat(value))
        return reader.entries(value, how, name, section.line) or value
    return make


KERAS: dict[str, Callable[[Reader, Section, Value, str], Value | None]] = {
    "MLP": _mlp, "Dense": _dense, "MMoE": _mmoe, "AITMTower": _aitm, "DIN": _din, "BST": _bst, "PPNet": _ppnet,
    "MaskNet": _masknet, "MaskBlock": _mask, "SENet": _senet, "Bilinear": _bilinear, "FiBiNet": _fibinet, "FM": _fm,
    "DotInteraction": _dot, "Cross": _one_cross, "Highway": _highway, "AutoDisEmbedding": _numbers("autodis",
    "auto_dis_embedding"), "PeriodicEmbedding": _numbers("periodic", "periodic_embedding"),
    "Dropout": _plain("dropout", rate="rate"), "BatchNormalization": _plain("batch_norm"),
    "LayerNormalization": _plain("layer_norm"), "Add": _joined("sum"), "Multiply": _joined("product"),
    "Average": _joined("mean"), "Concatenate": _joined("concat"),
}
