"""EasyRec's backbone: named blocks of its own, in any order, as blocks of ours.

What EasyRec writes as Python in a text (`lambda x: ...`) is never run: the few forms that slice, join, add and multiply
are known by their words, and others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from funnelrank.imports.drawing import Drawing, Mlp, Ref, fields
from funnelrank.imports.ranking import ACTIVATION, Ranking, activation
from funnelrank.imports.source import Section, legal

SHAPED = "what reads it says in which form"
REDUCE = re.compile(r"tf\.reduce_(sum|mean|max|prod)\(x,(?:axis=)?\[?(1|-1|0)\]?(?:,keep_?dims=(?:True|False))?\)")


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
            return Value([self.items[i]])
        if self.form == "stack" and self.size is not None and -self.size <= i < self.size:
            return Value([_taken(self.items[0], i % self.size)])
        return Value([_taken(self.items[0], i)]) if self.form == "stack" and i >= 0 else None

    def part(self, start: int | None, stop: int | None) -> Value | None:
        if self.form == "list":
            return Value(self.items[start:stop], "list")
        if self.form == "stack" and self.size is not None:
            a, b, _ = slice(start, stop).indices(self.size)
            return Value([_taken(self.items[0], [a, b])], "stack", b - a) if a < b else None
        return None


def _taken(ref: Ref, what: int | list[int]) -> Ref:
    return {**(ref if isinstance(ref, dict) else {"of": ref}), "take": what}


def read(section: Section, ranking: Ranking, tasks: int) -> str | list[str]:
    """Draws the backbone and returns the block that all tasks share, or one for each task in their order."""
    packages = {p.text("name", "", to="blocks of its own"): p for p in section.sections("packages")}
    for package in [*packages.values(), section]:
        _pair_histories(package, ranking)
    reader = _Reader(section, ranking, ranking.drawing, packages)
    out = reader.output(tasks)
    if section.has("top_mlp"):
        from funnelrank.imports.easyrec import dnn
        mlp = dnn(section.section("top_mlp"), keras=True)
        if isinstance(out, list):
            return [reader.draw.mlp(f"top_{i + 1}", [o], mlp) for i, o in enumerate(out)]
        return reader.draw.mlp("top", [out], mlp)
    return out


def _pair_histories(section: Section, ranking: Ranking) -> None:
    """Sequences of groups that are read entry by entry, each with the feature of the group that stands for its item."""
    for block in section.sections("blocks"):
        layer = block.section("input_layer") if block.has("input_layer") else None
        if layer is None or not layer.flag("output_seq_and_normal_feature", to="form: history"):
            continue
        for group in [i.text("feature_group_name") for i in block.sections("inputs") if i.has("feature_group_name")]:
            members = ranking.groups.get(group, [])
            lists = [f for f in members if ranking.features[f].get("kind") in ("sequence", "bag")]
            items = [f for f in members if ranking.features[f].get("kind", "id") == "id"]
            if not lists or len(lists) > len(items):
                layer.refused("output_seq_and_normal_feature",
                              f"group '{group}' has {len(lists)} sequences and {len(items)} ids to compare them with; "
                              "name an id for each sequence, in their order")
                continue
            if len(lists) > 1:
                layer.approximated("output_seq_and_normal_feature", "an attention for each sequence with the id at its "
                                   f"place ({', '.join(f'{a} with {b}' for a, b in zip(lists, items))})")
            for sequence, item in zip(lists, items):
                ranking.attend(layer, sequence, item)


@dataclass
class _Reader:
    section: Section
    ranking: Ranking
    draw: Drawing
    packages: dict[str, Section]
    given: Ref | None = None
    values: dict[str, Value] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    blocks: dict[str, Section] = field(default_factory=dict)
    read_by: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for block in self.section.sections("blocks"):
            name = block.text("name", "", to="a block's name")
            if name in self.blocks:
                block.faults.append(f"{block.file}:{block.line}: {block.path}: a second block '{name}'; give each a "
                                    "name")
            self.blocks.setdefault(name, block)

    def output(self, tasks: int) -> str | list[str]:
        joined = self.section.texts("concat_blocks", "the block that comes out")
        listed = self.section.texts("output_blocks", "outputs")
        for name in [*joined, *listed]:
            self._known(self.section, "concat_blocks" if name in joined else "output_blocks", name)
        for name in self.blocks:
            self.value(name)
        joined, listed = ([n for n in names if n in self.values] for names in (joined, listed))
        if listed and not joined:
            values = [self.values[n] for n in listed]
            if len(values) == 1:
                return self._tasks(values[0], tasks)
            return [self._block(f"output_{n}", v) for n, v in zip(listed, values)]
        ends = joined or [n for n in self.blocks if n in self.values and n not in self.read_by]
        values = [self.values[n] for n in ends]
        if len(values) == 1:
            return self._tasks(values[0], tasks)
        refs = [r for v in values for r in self._flat(v)]
        if not refs:
            self.section.faults.append(f"{self.section.file}:{self.section.line}: {self.section.path}: no block comes "
                                       "out; name it in concat_blocks or output_blocks")
            return "all"
        return self.draw.add("backbone_output", refs)

    def _tasks(self, value: Value, tasks: int) -> str | list[str]:
        """A stack or list with an entry for each task, or one block that all share."""
        if tasks > 1 and value.form == "list" and len(value.items) == tasks:
            return [self._block(f"output_{i + 1}", Value([item])) for i, item in enumerate(value.items)]
        if tasks > 1 and value.form == "stack" and value.size == tasks:
            return [self._block(f"output_{i + 1}", Value([_taken(value.items[0], i)])) for i in range(tasks)]
        return self._block("backbone_output", value)

    def _block(self, wanted: str, value: Value) -> str:
        refs = self._flat(value)
        if len(refs) == 1 and isinstance(refs[0], str) and refs[0] in self.draw.blocks:
            return refs[0]
        return self.draw.add(wanted, refs)

    def _flat(self, value: Value) -> list[Ref]:
        """What is read side by side."""
        if value.form == "history":
            return self.ranking.reads(value.group)
        return value.items

    # ---- blocks

    def _known(self, section: Section, key: str, name: str) -> bool:
        if name in self.blocks:
            return True
        section.faults.append(f"{section.file}:{section.line_of(key)}: {section.path}.{key}: no block '{name}'; there "
                              f"are {', '.join(self.blocks) or 'none'}")
        return False

    def value(self, name: str) -> Value | None:
        if name in self.values:
            return self.values[name]
        block = self.blocks[name]
        if name in self.open:
            ring = " > ".join([*self.open[self.open.index(name):], name])
            sentence = f"{block.file}:{block.line}: {block.path}: reads what it gives ({ring}); blocks have no cycles"
            if sentence not in block.faults:
                block.faults.append(sentence)
            return None
        if len(self.open) > 200:
            block.faults.append(f"{block.file}:{block.line}: {block.path}: more than 200 blocks in a row; that is not "
                                "read")
            return None
        self.open.append(name)
        made = self._made(name, block)
        self.open.pop()
        if made is not None:
            self.values[name] = made
        return made

    def _made(self, name: str, block: Section) -> Value | None:
        inputs = []
        for section in block.sections("inputs"):
            if section.flag("ignore_input"):
                section.carried("ignore_input", "the input is left out")
                for key in ("block_name", "feature_group_name"):
                    if section.has(key):
                        self.read_by.add(section.text(key))
                continue
            value = self._input(section, block)
            if value is None:
                return None
            inputs.append(value)
        if not inputs:
            block.refused("inputs", "the block reads nothing; name a feature group or another block") if block.has(
                "inputs") else block.faults.append(f"{block.file}:{block.line}: {block.path}: reads nothing; name "
                                                   "inputs")
            return None
        if block.has("extra_input_fn"):
            block.refused("extra_input_fn", "code in a config is not run; slice and join with blocks")
        value = self._merged(block, inputs)
        layers = block.sections("layers")
        if not layers:
            return self._layer(block, value, name)
        for i, layer in enumerate(layers):
            value = self._layer(layer, value, name if i == len(layers) - 1 else f"{name}_{i + 1}")
            if value is None:
                return None
        return value

    def _input(self, section: Section, block: Section) -> Value | None:
        group, other = section.text("feature_group_name", to="inputs"), section.text("block_name", to="inputs")
        package = section.text("package_name", to="inputs")
        if group is not None:
            if not self.ranking.there(section, "feature_group_name", group):
                return None
            layer = block.section("input_layer") if block.has("input_layer") else Section("", 0, block.file, [])
            if section.has("reset_input"):
                layer = section.section("reset_input")
            value = self._features(group, layer, block)
        elif other is not None:
            if not self._known(section, "block_name", other):
                return None
            self.read_by.add(other)
            value = self.value(other)
        elif package is not None:
            value = self._package(section, package)
        elif section.flag("use_package_input", to="input"):
            value = Value([self.given]) if self.given is not None else None
        else:
            section.faults.append(f"{section.file}:{section.line}: {section.path}: names no feature group and no block")
            value = None
        for key in ("input_slice", "input_fn"):
            if value is not None and section.has(key):
                value = self._operated(section, key, value)
        return value

    def _features(self, group: str, layer: Section, block: Section) -> Value:
        """A feature group in the form that an input_layer asks for."""
        separate = [layer.flag(k, to="form: fields") for k in ("only_output_feature_list", "only_output_3d_tensor")]
        both = layer.flag("output_2d_tensor_and_feature_list", to="form: fields, and flat")
        layer.ignored(SHAPED, "concat_seq_feature")
        if layer.flag("output_seq_and_normal_feature"):
            return Value([], "history", group=group)
        if layer.has("wide_output_dim"):
            layer.approximated("wide_output_dim", "values have their vectors here, and a weight each in side: lr")
        if rate := layer.number("feature_dropout_rate", 0.0):
            layer.approximated("feature_dropout_rate", "numbers are left out one by one, not feature by feature")
        if any(separate) or both:
            refs: list[Ref] = [fields(self.ranking.refer(group))]
            flat = self.ranking.reads(group)
            for key in ("do_batch_norm", "do_layer_norm"):
                if layer.flag(key):
                    layer.approximated(key, "left out where features are read one by one")
            if both:
                joined = self.draw.add(f"{group}_flat", flat, line=block.line)
                return Value([joined, refs[0]], "list")
            return Value(refs, "stack", None)
        refs = self.ranking.reads(group)
        for key, name in (("do_batch_norm", "batch_norm"), ("do_layer_norm", "layer_norm")):
            if layer.flag(key, to=f"layer: {name}"):
                refs = [self.draw.add(f"{group}_norm", refs if name == "batch_norm" else
                                      [self.draw.add(f"{group}_flat", refs)], {"name": name}, line=block.line)]
        if rate := layer.number("dropout_rate", 0.0, to="layer: dropout") or rate:
            joined = [self.draw.add(f"{group}_joined", refs)] if len(refs) > 1 else refs
            refs = [self.draw.add(f"{group}_dropout", joined, {"name": "dropout", "rate": rate}, line=block.line)]
        return Value(refs)

    def _package(self, section: Section, name: str) -> Value | None:
        """A package's blocks, drawn in place, once for each thing that it is given."""
        if name not in self.packages:
            section.faults.append(f"{section.file}:{section.line_of('package_name')}: {section.path}: no package "
                                  f"'{name}'; there are {', '.join(self.packages) or 'none'}")
            return None
        given = None
        if section.has("package_input"):
            other = section.text("package_input", to="inputs of its block")
            if not self._known(section, "package_input", other):
                return None
            self.read_by.add(other)
            inner = self.value(other)
            if inner is None:
                return None
            given = self._block(f"{name}_input", inner)
        if section.has("package_input_fn"):
            section.refused("package_input_fn", "code in a config is not run; slice and join with blocks")
        place = legal(f"package:{name}")
        if place in self.open:
            section.faults.append(f"{section.file}:{section.line}: {section.path}: package '{name}' uses itself")
            return None
        package, ranking = self.packages[name], self.ranking
        if given is None:
            kept = ranking.inlined.get(name)
            if kept is None:
                reader = _Reader(package, ranking, self.draw, self.packages, None, open=[*self.open, place])
                kept = ranking.inlined[name] = reader.output(1)
            return Value([kept])
        if name not in ranking.packages:
            inside = Drawing(taken=set(self.draw.taken))
            reader = _Reader(package, ranking, inside, self.packages, "input", open=[*self.open, place])
            ranking.packages[name] = (legal(name), inside, reader.output(1))
        return Value([self.draw.add(f"{name}_{given}", [given], package=ranking.packages[name][0], line=section.line)])

    # ---- joining

    def _merged(self, block: Section, inputs: list[Value]) -> Value:
        axis = block.whole("input_concat_axis", -1, to="merge")
        if block.flag("merge_inputs_into_list", to="merge: list"):
            items: list[Ref] = []
            for value in inputs:
                if len(inputs) == 1:
                    return value
                items.append(self._single(value))
            return Value(items, "list")
        if len(inputs) == 1:
            return inputs[0]
        if any(v.form == "history" for v in inputs) and all(v.form == "history" for v in inputs):
            return inputs[0]
        refs = [r for v in inputs for r in self._flat(v)]
        if axis == 1 or all(v.form == "stack" for v in inputs):
            return Value([self.draw.add("stacked", refs, merge="stack", line=block.line)], "stack", None)
        return Value(refs)

    def _single(self, value: Value) -> Ref:
        """One reference for a value, in a block of its own where it is several."""
        refs = self._flat(value)
        return refs[0] if len(refs) == 1 else self.draw.add("joined", refs)

    def _operated(self, section: Section, key: str, value: Value) -> Value | None:
        said = section.text(key, to="take, or merge")
        body = said if key == "input_slice" else _body(said)
        made = self._operation(body if key == "input_fn" else f"x{said.strip()}", value, "part") if body else None
        if made is None:
            section.refused(key, f"'{said[:60]}' is code, and is not run; entries [1], slices [0:2], sums, products "
                                 "and stacks are known by their words")
            return value
        return made

    def _operation(self, body: str | None, value: Value, name: str, line: int | None = None) -> Value | None:
        """What a lambda's body comes to, where it is one of the forms that are known; x is what it is given."""
        if body is None:
            return None
        body = re.sub(r"\s+", "", body)
        if body in ("x", "list(x)", "tf.identity(x)"):
            return value
        if body == "[x]":
            return Value([self._single(value)], "list")
        if found := re.fullmatch(r"x\[(-?\d{1,4})\]|x\[:,(-?\d{1,4})(?:,:)?\]", body):
            return value.entry(int(found[1] or found[2]))
        if found := re.fullmatch(r"x\[(-?\d{0,4}):(-?\d{0,4})\]", body):
            return value.part(*(int(g) if g not in ("", "-") else None for g in found.groups()))
        if (found := re.fullmatch(r"x\[:,(\d{0,6}):(\d{1,6})\]", body)) and value.form == "vector":
            ref = self._single(value)
            return Value([_taken(ref, [int(found[1] or 0), int(found[2])])])
        if re.fullmatch(r"tf\.concat\((?:values=)?x,(?:axis=)?(-1|1)\)", body):
            return Value(self._flat(value))
        if re.fullmatch(r"tf\.stack\(x,(?:axis=)?1\)", body):
            return Value([self.draw.add(name, self._flat(value), merge="stack", line=line)], "stack", len(value.items))
        if body in ("tf.add_n(x)", "sum(x)", "x[0]+x[1]", "tf.add(x[0],x[1])"):
            return self._entries(value, "sum", name, line)
        if body in ("x[0]*x[1]", "tf.multiply(x[0],x[1])"):
            return self._entries(value, "product", name, line)
        if found := REDUCE.fullmatch(body):
            how = {"prod": "product"}.get(found[1], found[1])
            if value.form == "stack" and found[2] == "1" or value.form == "list" and found[2] == "0":
                ref = value.items[0]
                if value.form == "list":
                    ref = self.draw.add(f"{name}_list", value.items, merge="stack")
                return Value([self.draw.add(name, [ref], {"name": "reduce", "by": how}, line=line)])
        found = re.fullmatch(r"tf\.nn\.(\w+)\(x\)", body)
        if found and (kind := ACTIVATION.get(found[1])) and kind != "dice":
            return Value([self.draw.add(name, [self._single(value)], {"name": "activation", "activation": kind},
                                        line=line)])
        return None

    def _entries(self, value: Value, how: str, name: str, line: int | None) -> Value | None:
        if value.form == "stack":
            return Value([self.draw.add(name, value.items, {"name": "reduce", "by": how}, line=line)])
        if value.form == "list" and len(value.items) > 1:
            return Value([self.draw.add(name, value.items, merge=how, line=line)])
        return None

    # ---- layers

    def _layer(self, section: Section, value: Value, name: str) -> Value | None:
        for key in ("input_layer", "raw_input"):
            if section.has(key):
                section.carried(key, "inputs")
                section.section(key)
        if section.has("embedding_layer"):
            section.refused("embedding_layer", "vectors are those of features; give the feature an embedding_dim")
            return None
        if section.has("lambda"):
            inner = section.section("lambda")
            said = inner.text("expression", "", to="take, merge or layer")
            made = self._operation(_body(said), value, name, section.line)
            if made is None:
                inner.refused("expression", f"'{said[:60]}' is code, and is not run; sums, means, products and stacks "
                                            "of blocks are known by their words")
                return value
            return made
        if section.has("recurrent"):
            return self._recurrent(section.section("recurrent"), value, name)
        if section.has("repeat"):
            return self._repeat(section.section("repeat"), value, name)
        if section.has("keras_layer"):
            return self._keras(section.section("keras_layer"), value, name)
        return value

    def _recurrent(self, section: Section, value: Value, name: str) -> Value | None:
        """The same kind of layer again and again, on what the last one gave."""
        steps, layer = section.whole("num_steps", 1, to="layers, or chain") or 1, section.section("keras_layer")
        fixed = section.whole("fixed_input_index", to="x_0 of the cross")
        if layer.text("class_name") == "Cross":
            return self._cross(layer, value, name, steps)
        if fixed is not None:
            section.refused("fixed_input_index", "only Cross is repeated beside its first input; write the steps as "
                                                 "blocks")
        for i in range(min(steps, 100)):
            made = self._keras(layer, value, f"{name}_{i + 1}" if i < steps - 1 else name)
            if made is None:
                return None
            value = made
        return value

    def _repeat(self, section: Section, value: Value, name: str) -> Value | None:
        """So many of a layer side by side: each with its own entry, where a slice says so."""
        count, layer = section.whole("num_repeat", 1, to="repeat") or 1, section.section("keras_layer")
        for key in ("input_slice", "input_fn"):
            if section.has(key):
                section.refused(key, "each of the repeated layers would read something else; write them as blocks")
        items: list[Ref] = []
        for i in range(min(count, 200)):
            made = self._keras(layer, value, f"{name}_{i + 1}")
            if made is None:
                return None
            items.append(self._single(made))
        axis = section.whole("output_concat_axis", to="merge")
        return Value(items, "vector" if axis in (-1, 1) else "list")

    def _keras(self, section: Section, value: Value, name: str) -> Value | None:
        kind = section.text("class_name", "", to="layer")
        make = KERAS.get(kind)
        if make is None:
            section.refused("class_name", f"there is no layer {kind}; those that are carried are {', '.join(KERAS)}")
            return value
        return make(self, section, value, name)

    def _cross(self, section: Section, value: Value, name: str, steps: int) -> Value:
        section.text("class_name", to="layer: cross_v2")
        params = _params(section, None)
        rank = params.whole("projection_dim", to="rank")
        for key in ("diag_scale", "use_bias", "preactivation", "kernel_initializer", "bias_initializer"):
            if params.has(key):
                params.approximated(key, "layers are those of DCN-v2, with a bias")
        refs = value.items[:1] if value.form == "list" else self._flat(value)
        layer = {"name": "cross_v2", "layers": steps, **({"rank": rank} if rank else {})}
        return Value([self.draw.add(name, refs, layer, line=section.line)])


def _body(said: str) -> str | None:
    """The body of `lambda NAME: body`, with its argument called x."""
    found = re.fullmatch(r"\s*lambda\s+([A-Za-z_]\w*)\s*:\s*(.+)", said or "", re.DOTALL)
    if not found:
        return None
    return re.sub(rf"(?<![\w.]){found[1]}(?![\w(=])", "x", found[2].strip())


def _params(section: Section, key: str | None) -> Section:
    """A layer's settings: of its own message, or the free ones of `st_params`, as one section."""
    if key and section.has(key):
        return section.section(key)
    inner = Section(f"{section.path}.st_params", section.line, section.file, section.faults)
    if section.has("st_params"):
        from funnelrank.imports.source import Entry
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


# ---- layers of EasyRec, by class_name

def _mlp(reader: _Reader, section: Section, value: Value, name: str) -> Value:
    from funnelrank.imports.easyrec import dnn
    mlp = dnn(_params(section, "mlp"), keras=True)
    return Value([reader.draw.mlp(name, reader._flat(value), mlp, section.line)])


def _dense(reader: _Reader, section: Section, value: Value, name: str) -> Value:
    params = _params(section, None)
    width = params.whole("units", 1, to="width") or 1
    act = activation(params, "activation", "linear")
    layer: dict[str, Any] = {"name": "linear", "width": width}
    if act != "linear":
        layer = {"name": "mlp", "hidden": [width], **({"activation": act} if act != "relu" else {})}
    elif not params.flag("use_bias", True, to="bias"):
        layer["bias"] = False
    return Value([reader.draw.add(name, reader._flat(value), layer, line=section.line)])


def _mmoe(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    from funnelrank.imports.easyrec import dnn
    from funnelrank.imports.easyrec_models import experts_layer
    params = _params(section, "mmoe")
    if not params.has("expert_mlp"):
        section.refused("mmoe", "experts are MLPs here; say expert_mlp")
        return None
    gates, count = params.whole("num_task", 1, to="gates") or 1, params.whole("num_expert", 3, to="experts") or 3
    layer = experts_layer(params, gates, count, dnn(params.section("expert_mlp"), keras=True))
    return Value([reader.draw.add(name, reader._flat(value), layer, line=section.line)], "stack", gates)


def _aitm(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    from funnelrank.imports.easyrec import dnn
    params = _params(section, "aitm")
    if value.form != "list" or len(value.items) < 2:
        section.refused("class_name", "AITMTower takes its own tower and those before it; name two inputs or more, "
                                      "with merge_inputs_into_list: true")
        return value
    own, *others = value.items
    if project := params.whole("project_dim", to="linear blocks before the transfer"):
        linear = {"name": "linear", "width": project}
        own, *others = [reader.draw.add(f"{name}_of_{i}", [ref], linear, line=section.line)
                        for i, ref in enumerate((own, *others))]
    layer: dict[str, Any] = {"name": "ait"}
    if params.has("transfer_mlp"):
        mlp = dnn(params.section("transfer_mlp"), keras=True)
        params.approximated("transfer_mlp", "gate: its last layer is as wide as a tower, and has no batch norm")
        if mlp.hidden[:-1]:
            layer["gate"] = list(mlp.hidden[:-1])
        if mlp.activation and mlp.activation[0] != "relu":
            layer["gate_activation"] = mlp.activation[0]
        if mlp.dropout and mlp.dropout[0]:
            layer["dropout"] = mlp.dropout[0]
    if params.flag("stop_gradient", True, to="stop_gradient"):
        layer["stop_gradient"] = True
    section.approximated("class_name", "layer: ait, whose projections are shared by what is compared, as in the paper")
    return Value([reader.draw.add(name, [*others, own], layer, merge="list", line=section.line)])


def _histories(reader: _Reader, section: Section, value: Value) -> list[str] | None:
    if value.form != "history":
        section.refused("class_name", "it reads sequences with their items; let its input have "
                                      "output_seq_and_normal_feature")
        return None
    return [f for f in reader.ranking.groups[value.group] if f in reader.ranking.attended]


def _din(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    from funnelrank.imports.easyrec import dnn
    from funnelrank.imports.easyrec_models import UNIT, attention
    params = _params(section, "din")
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


def _bst(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    params = _params(section, "bst")
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


def _ppnet(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    from funnelrank.imports.easyrec import dnn
    params = _params(section, "ppnet")
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


def _mask_block(reader: _Reader, params: Section, refs: list[Ref], masks: list[Ref], name: str, line: int) -> str:
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
    inputs = [reader._single(Value(refs)), reader._single(Value(masks))]
    layer = {"name": "mask_block", "width": width, "hidden": hidden}
    if inputs[0] == inputs[1]:
        return reader.draw.add(name, inputs[:1], layer, line=line)
    return reader.draw.add(name, inputs, layer, merge="list", line=line)


def _masknet(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    from funnelrank.imports.easyrec import dnn
    params = _params(section, "masknet")
    blocks = params.sections("mask_blocks")
    if not blocks:
        section.refused("masknet", "mask_blocks is missing; name at least one")
        return None
    refs = [reader._single(Value(reader._flat(value)))]
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


def _mask(reader: _Reader, section: Section, value: Value, name: str) -> Value:
    items = value.items if value.form == "list" and len(value.items) > 1 else [reader._single(value)] * 2
    return Value([_mask_block(reader, _params(section, "mask_block"), items[:1], items[1:2], name, section.line)])


def _stack(reader: _Reader, section: Section, value: Value, name: str) -> Ref | None:
    """One reference to a stack of vectors."""
    if value.form == "stack":
        return value.items[0]
    if value.form == "list":
        return reader.draw.add(f"{name}_list", value.items, merge="stack", line=section.line)
    section.refused("class_name", "it reads features one by one; let its input have only_output_feature_list: true")
    return None


def _senet_of(reader: _Reader, params: Section, ref: Ref, name: str, line: int) -> str:
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


def _senet(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    ref = _stack(reader, section, value, name)
    if ref is None:
        return value
    return Value([_senet_of(reader, _params(section, "senet"), ref, name, section.line)], "stack", None)


def _bilinear_of(reader: _Reader, params: Section, ref: Ref, name: str, line: int) -> str:
    kind = params.text("type", "interaction", to="weights").lower()
    weights = {"all": "all", "each": "each", "interaction": "pair", "pair": "pair"}.get(kind)
    if weights is None:
        params.refused("type", f"there is no '{kind}'; all, each and interaction are there")
        weights = "all"
    params.approximated("use_plus", "a pair is its product by element, as in FiBiNET")
    at = reader.draw.add(f"{name}_pairs", [ref], {"name": "bilinear", "weights": weights}, line=line)
    width = params.whole("num_output_units", 0, to="width of a linear block")
    return reader.draw.add(f"{name}_linear", [at], {"name": "linear", "width": width}, line=line) if width else at


def _bilinear(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    ref = _stack(reader, section, value, name)
    params = _params(section, "bilinear")
    return value if ref is None else Value([_bilinear_of(reader, params, ref, name, section.line)])


def _fibinet(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    from funnelrank.imports.easyrec import dnn
    params = _params(section, "fibinet")
    ref = _stack(reader, section, value, name)
    if ref is None:
        return value
    made: list[Ref] = [_senet_of(reader, params.section("senet"), ref, f"{name}_senet", section.line)]
    if params.has("bilinear"):
        made.append(_bilinear_of(reader, params.section("bilinear"), ref, f"{name}_bilinear", section.line))
    mlp = dnn(params.section("mlp"), keras=True) if params.has("mlp") else Mlp()
    return Value([reader.draw.mlp(name, made, mlp, section.line)])


def _fm(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    variant = _params(section, "fm").flag("use_variant", to="layer: bi_interaction where it is true, else fm")
    ref = _stack(reader, section, value, name)
    if ref is None:
        return value
    return Value([reader.draw.add(name, [ref], {"name": "bi_interaction" if variant else "fm"}, line=section.line)])


def _dot(reader: _Reader, section: Section, value: Value, name: str) -> Value | None:
    params = _params(section, None)
    for key in ("self_interaction", "skip_gather"):
        if params.flag(key):
            section.approximated("class_name", "layer: dot, of pairs of different vectors, each once")
    ref = _stack(reader, section, value, name)
    return value if ref is None else Value([reader.draw.add(name, [ref], {"name": "dot"}, line=section.line)])


def _one_cross(reader: _Reader, section: Section, value: Value, name: str) -> Value:
    return reader._cross(section, value, name, 1)


def _highway(reader: _Reader, section: Section, value: Value, name: str) -> Value:
    params = _params(section, "highway")
    width = params.whole("emb_size", 0, to="width of a linear block") or 64
    act = activation(params, "activation", "relu")
    carry = params.number("init_gate_bias", -3.0, to="carry")
    rate = params.number("dropout_rate", 0.0, to="layer: dropout")
    at = reader.draw.add(f"{name}_linear", reader._flat(value), {"name": "linear", "width": width}, line=section.line)
    at = reader.draw.add(name if not rate else f"{name}_highway", [at], {
        "name": "highway", "carry": carry, **({"activation": act} if act != "relu" else {})},
        chain=n if (n := params.whole("num_layers", 1, to="chain") or 1) > 1 else None, line=section.line)
    return Value([reader.draw.add(name, [at], {"name": "dropout", "rate": rate}) if rate else at])


def _numbers(kind: str, key: str) -> Callable[[_Reader, Section, Value, str], Value]:
    def make(reader: _Reader, section: Section, value: Value, name: str) -> Value:
        params = _params(section, key)
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
        return Value([reader.draw.add(name, reader._flat(value), layer, line=section.line)], "stack", None)
    return make


def _plain(layer: str, **rename: str) -> Callable[[_Reader, Section, Value, str], Value]:
    """A layer on one vector, whose settings have other names."""
    def make(reader: _Reader, section: Section, value: Value, name: str) -> Value:
        params = _params(section, None)
        keys = {ours: params.number(theirs, to=ours) for theirs, ours in rename.items() if params.has(theirs)}
        if layer == "dropout" and not 0 < keys.get("rate", 0) < 1:
            return value
        ref = reader._single(value)
        return Value([reader.draw.add(name, [ref], {"name": layer, **keys}, line=section.line)], value.form
                     if value.form == "stack" and layer != "batch_norm" else "vector", value.size)
    return make


def _joined(how: str) -> Callable[[_Reader, Section, Value, str], Value]:
    def make(reader: _Reader, section: Section, value: Value, name: str) -> Value:
        _params(section, None).ignored("along the last axis", "axis")
        if how == "concat":
            return Value(reader._flat(value))
        return reader._entries(value, how, name, section.line) or value
    return make


KERAS: dict[str, Callable[[_Reader, Section, Value, str], Value | None]] = {
    "MLP": _mlp, "Dense": _dense, "MMoE": _mmoe, "AITMTower": _aitm, "DIN": _din, "BST": _bst, "PPNet": _ppnet,
    "MaskNet": _masknet, "MaskBlock": _mask, "SENet": _senet, "Bilinear": _bilinear, "FiBiNet": _fibinet, "FM": _fm,
    "DotInteraction": _dot, "Cross": _one_cross, "Highway": _highway, "AutoDisEmbedding": _numbers("autodis",
    "auto_dis_embedding"), "PeriodicEmbedding": _numbers("periodic", "periodic_embedding"),
    "Dropout": _plain("dropout", rate="rate"), "BatchNormalization": _plain("batch_norm"),
    "LayerNormalization": _plain("layer_norm"), "Add": _joined("sum"), "Multiply": _joined("product"),
    "Average": _joined("mean"), "Concatenate": _joined("concat"),
}
