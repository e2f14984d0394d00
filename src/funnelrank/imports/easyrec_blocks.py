"""EasyRec's backbone: named blocks of its own, in any order, as blocks of ours.

What EasyRec writes as Python in a text (`lambda x: ...`) is never run: the few forms that slice, join, add and multiply
are known by their words, and others are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from funnelrank.imports.drawing import Drawing, Ref, fields
from funnelrank.imports.easyrec_layers import KERAS, SHAPED, Value, params_of, taken
from funnelrank.imports.mlps import ACTIVATION, dnn
from funnelrank.imports.ranking import Ranking
from funnelrank.imports.source import Section, legal

REDUCE = re.compile(r"tf\.reduce_(sum|mean|max|prod)\(x,(?:axis=)?\[?(1|-1|0)\]?(?:,keep_?dims=(?:True|False))?\)")


def read(section: Section, ranking: Ranking, tasks: int) -> str | list[str]:
    """Draws the backbone and returns the block that all tasks share, or one for each task in their order."""
    packages = {p.text("name", "", to="blocks of its own"): p for p in section.sections("packages")}
    for package in [*packages.values(), section]:
        _pair_histories(package, ranking)
    reader = Reader(section, ranking, ranking.drawing, packages)
    out = reader.output(tasks)
    for name, package in packages.items():
        if name not in ranking.inlined and name not in ranking.packages:
            for entry in package.entries:
                entry.judge("ignored", "no block uses this package")
    if section.has("top_mlp"):
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
class Reader:
    """The blocks of a backbone, or of one of its packages, each drawn behind what it reads; `given` is what a package
    is handed.
    """

    section: Section
    ranking: Ranking
    draw: Drawing
    packages: dict[str, Section]
    given: Ref | None = None
    values: dict[str, Value] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)              # blocks that wait for what they read
    inside: tuple[str, ...] = ()                               # packages whose blocks these are, the outermost first
    depth: int = 0                                             # blocks outside that wait for these
    blocks: dict[str, Section] = field(default_factory=dict)
    read_by: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)              # blocks of which nothing could be made

    def __post_init__(self) -> None:
        for block in self.section.sections("blocks"):
            name = block.text("name", "", to="a block's name")
            if name in self.blocks:
                block.faults.append(f"{block.file}:{block.line}: {block.path}: a second block '{name}'; give each a "
                                    "name")
            self.blocks.setdefault(name, block)

    def output(self, tasks: int) -> str | list[str]:
        """Draws what comes out, and all that it depends on: one block, or one for each task."""
        joined = self.section.texts("concat_blocks", "the block that comes out")
        listed = self.section.texts("output_blocks", "outputs")
        for name in [*joined, *listed]:
            self._known(self.section, "concat_blocks" if name in joined else "output_blocks", name)
        for name in [*joined, *listed] or self.blocks:
            if name in self.blocks:
                self.value(name)
        for name, block in self.blocks.items() if joined or listed else ():
            if name not in self.values and name not in self.failed:
                for entry in block.entries:
                    entry.judge("ignored", "nothing that comes out depends on this block")
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
        refs = [r for v in values for r in self.flat(v)]
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
            return [self._block(f"output_{i + 1}", Value([taken(value.items[0], i)])) for i in range(tasks)]
        return self._block("backbone_output", value)

    def _block(self, wanted: str, value: Value) -> str:
        refs = self.flat(value)
        if len(refs) == 1 and isinstance(refs[0], str) and refs[0] in self.draw.blocks:
            return refs[0]
        return self.draw.add(wanted, refs)

    def flat(self, value: Value) -> list[Ref]:
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
        """What a block of the source gives; None where nothing can be made of it."""
        if name in self.values:
            return self.values[name]
        block = self.blocks[name]
        if name in self.open:
            ring = " > ".join([*self.open[self.open.index(name):], name])
            sentence = f"{block.file}:{block.line}: {block.path}: reads what it gives ({ring}); blocks have no cycles"
            if sentence not in block.faults:
                block.faults.append(sentence)
            return None
        if self.depth + len(self.open) > 200:
            block.faults.append(f"{block.file}:{block.line}: {block.path}: more than 200 blocks in a row; that is not "
                                "read")
            return None
        self.open.append(name)
        made = self._made(name, block)
        self.open.pop()
        if made is not None:
            self.values[name] = made
        else:
            self.failed.add(name)
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
                joined = flat[0] if len(flat) == 1 else self.draw.add(f"{group}_flat", flat, line=block.line)
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
        if name in self.inside:
            section.faults.append(f"{section.file}:{section.line}: {section.path}: package '{name}' uses itself")
            return None
        package, ranking = self.packages[name], self.ranking
        within = {"inside": (*self.inside, name), "depth": self.depth + len(self.open)}
        if given is None:
            kept = ranking.inlined.get(name)
            if kept is None:
                reader = Reader(package, ranking, self.draw, self.packages, None, **within)
                kept = ranking.inlined[name] = reader.output(1)
            return Value([kept])
        if name not in ranking.packages:
            inside = Drawing(taken=set(self.draw.taken))
            reader = Reader(package, ranking, inside, self.packages, "input", **within)
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
                items.append(self.single(value))
            return Value(items, "list")
        if len(inputs) == 1:
            return inputs[0]
        if any(v.form == "history" for v in inputs) and all(v.form == "history" for v in inputs):
            return inputs[0]
        refs = [r for v in inputs for r in self.flat(v)]
        if axis == 1 or all(v.form == "stack" for v in inputs):
            return Value([self.draw.add("stacked", refs, merge="stack", line=block.line)], "stack", None)
        return Value(refs)

    def single(self, value: Value) -> Ref:
        """One reference for a value, in a block of its own where it is several."""
        refs = self.flat(value)
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
            return Value([self.single(value)], "list")
        if found := re.fullmatch(r"x\[(-?\d{1,4})\]|x\[:,(-?\d{1,4})(?:,:)?\]", body):
            return value.entry(int(found[1] or found[2]))
        if found := re.fullmatch(r"x\[(-?\d{0,4}):(-?\d{0,4})\]", body):
            return value.part(*(int(g) if g not in ("", "-") else None for g in found.groups()))
        if (found := re.fullmatch(r"x\[:,(\d{0,6}):(\d{1,6})\]", body)) and value.form == "vector":
            ref = self.single(value)
            return Value([taken(ref, [int(found[1] or 0), int(found[2])])])
        if re.fullmatch(r"tf\.concat\((?:values=)?x,(?:axis=)?(-1|1)\)", body):
            return Value(self.flat(value))
        if re.fullmatch(r"tf\.stack\(x,(?:axis=)?1\)", body):
            return Value([self.draw.add(name, self.flat(value), merge="stack", line=line)], "stack", len(value.items))
        if body in ("tf.add_n(x)", "sum(x)", "x[0]+x[1]", "tf.add(x[0],x[1])"):
            return self.entries(value, "sum", name, line)
        if body in ("x[0]*x[1]", "tf.multiply(x[0],x[1])"):
            return self.entries(value, "product", name, line)
        if found := REDUCE.fullmatch(body):
            how = {"prod": "product"}.get(found[1], found[1])
            if value.form == "stack" and found[2] == "1" or value.form == "list" and found[2] == "0":
                ref = value.items[0]
                if value.form == "list":
                    ref = self.draw.add(f"{name}_list", value.items, merge="stack")
                return Value([self.draw.add(name, [ref], {"name": "reduce", "by": how}, line=line)])
        found = re.fullmatch(r"tf\.nn\.(\w+)\(x\)", body)
        if found and (kind := ACTIVATION.get(found[1])) and kind != "dice":
            return Value([self.draw.add(name, [self.single(value)], {"name": "activation", "activation": kind},
                                        line=line)])
        return None

    def entries(self, value: Value, how: str, name: str, line: int | None) -> Value | None:
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
            return self.cross(layer, value, name, steps)
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
            items.append(self.single(made))
        axis = section.whole("output_concat_axis", to="merge")
        return Value(items, "vector" if axis in (-1, 1) else "list")

    def _keras(self, section: Section, value: Value, name: str) -> Value | None:
        kind = section.text("class_name", "", to="layer")
        make = KERAS.get(kind)
        if make is None:
            section.refused("class_name", f"there is no layer {kind}; those that are carried are {', '.join(KERAS)}")
            return value
        return make(self, section, value, name)

    def cross(self, section: Section, value: Value, name: str, steps: int) -> Value:
        section.text("class_name", to="layer: cross_v2")
        params = params_of(section, None)
        rank = params.whole("projection_dim", to="rank")
        for key in ("diag_scale", "use_bias", "preactivation", "kernel_initializer", "bias_initializer"):
            if params.has(key):
                params.approximated(key, "layers are those of DCN-v2, with a bias")
        refs = value.items[:1] if value.form == "list" else self.flat(value)
        layer = {"name": "cross_v2", "layers": steps, **({"rank": rank} if rank else {})}
        return Value([self.draw.add(name, refs, layer, line=section.line)])


def _body(said: str) -> str | None:
    """The body of `lambda NAME: body`, with its argument called x."""
    found = re.fullmatch(r"\s*lambda\s+([A-Za-z_]\w*)\s*:\s*(.+)", said or "", re.DOTALL)
    if not found:
        return None
    return re.sub(rf"(?<![\w.]){found[1]}(?![\w(=])", "x", found[2].strip())
