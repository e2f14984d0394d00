"""What EasyRec and TorchEasyRec have in common: features in groups, a network that reads groups, towers of tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from funnelrank.imports.drawing import Drawing, Mlp, Ref, history
from funnelrank.imports.source import Entry, Section, legal, stop_at
from funnelrank.imports.target import Target


@dataclass
class Tower:
    """A task's own part of a network."""

    task: str
    mlp: Mlp
    line: int
    relation: Mlp = Mlp()
    parents: tuple[str, ...] = ()
    ait: bool = False
    project: int | None = None


@dataclass
class Ranking:
    """A config of features, groups and a network as it is read; `finish` writes it down."""

    source: Section
    target: Target
    drawing: Drawing = field(default_factory=Drawing)
    features: dict[str, dict[str, Any]] = field(default_factory=dict)       # by name, as our config says them
    sections: dict[str, Section] = field(default_factory=dict)              # where each was read
    widths: dict[str, int] = field(default_factory=dict)                    # of its space
    groups: dict[str, list[str]] = field(default_factory=dict)              # by the source's name
    group_sections: dict[str, Section] = field(default_factory=dict)
    attended: set[str] = field(default_factory=set)                         # sequences that a block reads by entry
    beside: dict[str, list[Ref]] = field(default_factory=dict)              # blocks that are read with a group
    used: list[str] = field(default_factory=list)                           # groups that a block reads
    names: dict[str, str] = field(default_factory=dict)                     # of the source's groups in our config
    packages: dict[str, tuple[str, Drawing, str]] = field(default_factory=dict)      # our name, blocks, the output
    spaces: list[tuple[str, Section, bool]] = field(default_factory=list)   # a task, its tower, weights made to mean 1
    inlined: dict[str, str] = field(default_factory=dict)                   # packages drawn in place: the output

    # ---- features

    def declare(self, section: Section, name: str, said: dict[str, Any], width: int | None) -> None:
        """A feature, as our config says it, and the width of its vectors."""
        if name in self.features:
            section.faults.append(f"{section.file}:{section.line}: {section.path}: a feature '{name}' is declared "
                                  f"before, on line {self.sections[name].line}; give one another name")
            return
        self.features[name], self.sections[name] = said, section
        embedded = said.get("kind", "id") not in ("number", "vector") or "boundaries" in said
        if width and embedded:
            space = said.get("space", name)
            if self.widths.setdefault(space, width) != width:
                section.approximated("embedding_dim", "features of one space have one width, here "
                                                      f"{self.widths[space]}")

    def attend(self, section: Section, sequence: str, key: str) -> bool:
        """Let blocks read a sequence against the row's `key`: both share one id space from here on."""
        where, said_in = f"{section.file}:{section.line}: {section.path}", next(
            (k for k in ("hist_seq", "feature_names", "output_seq_and_normal_feature") if section.has(k)), "inputs")
        for name in (sequence, key):
            if name not in self.features:
                section.faults.append(f"{where}: no feature '{name}' is declared")
                return False
        said, target = self.features[sequence], self.features[key]
        if target.get("kind", "id") != "id":
            section.refused(said_in, f"'{key}' is no id feature, and a history is compared with one")
            return False
        if said.get("target", key) != key:
            section.refused(said_in, f"'{sequence}' is already compared with '{said['target']}'; declare the sequence "
                                     "twice, once for each")
            return False
        space = target.get("space", key)
        if said.get("space", sequence) != space:
            section.approximated(said_in, "a history shares the id space and the vectors of what it is compared with; "
                                          "there each had its own")
        kept = {k: v for k, v in said.items() if k not in ("kind", "space", "hash_buckets", "num_buckets", "vocab_list",
                                                           "vocab_file", "unknown", "pool", "max_len", "latest",
                                                           "min_count")}
        most = {"max_len": said["max_len"]} if "max_len" in said else {"max_len": 10_000}
        self.features[sequence] = {"kind": "sequence", **kept, "space": space, "target": key, **most, "latest": "first"}
        self.attended.add(sequence)
        return True

    def targeted(self, name: str) -> bool:
        """Whether a feature is a sequence with a target, which stands in no flat vector once blocks read histories."""
        said = self.features[name]
        if said.get("kind") != "sequence" or not self.attended:
            return False
        space = said.get("space", name)
        return "target" in said or any(other.get("kind", "id") == "id" and other.get("space", n) == space
                                       for n, other in self.features.items())

    # ---- groups

    def group(self, section: Section, name: str, features: Iterable[str]) -> None:
        """A group of declared features; one that blocks read stands in embedding.groups."""
        known = [f for f in dict.fromkeys(features)]
        for f in known:
            if f not in self.features:
                section.faults.append(f"{section.file}:{section.line_of('feature_names')}: "
                                      f"{section.path}.feature_names: no feature '{f}' is declared")
        if not known and not any(section.has(k) for k in ("sequence_features", "sequence_groups")):
            section.faults.append(f"{section.file}:{section.line}: {section.path}: group '{name}' has no features; "
                                  "name some, or remove it")
        self.groups[name] = [f for f in known if f in self.features]
        self.group_sections[name] = section
        wanted = own = legal(name)
        if own in ("all", "input"):
            wanted = own = f"{own}_features"
        k = 1
        while own in self.names.values():
            k += 1
            own = f"{wanted}_{k}"
        self.names[name] = own
        self.drawing.taken.add(own)

    def there(self, section: Section, key: str, name: str) -> bool:
        """Whether the source has the group; a fault where it has not."""
        if name in self.groups:
            return True
        section.faults.append(f"{section.file}:{section.line_of(key)}: {section.path}: no feature group '{name}'; "
                              f"there are {', '.join(self.groups) or 'none'}")
        return False

    def refer(self, group: str) -> str:
        """The name by which blocks read a group."""
        if group not in self.used:
            self.used.append(group)
        return self.names[group]

    def reads(self, group: str) -> list[Ref]:
        """All of a group, flat: its features, its sequences pooled where they are no longer among them, and what the
        source reads with it."""
        members = self.groups[group]
        refs: list[Ref] = []
        apart = [f for f in members if self.targeted(f)]
        if len(apart) < len(members):
            refs.append(self.refer(group))
        elif group not in self.used:
            self.used.append(group)
        refs += [self.pooled(f) for f in apart]
        if not (refs := refs + self.beside.get(group, [])):
            section = self.group_sections[group]
            section.faults.append(f"{section.file}:{section.line}: {section.path}: group '{group}' comes to nothing "
                                  "that can be read; name features")
            stop_at(section.faults)
        return refs

    def pooled(self, sequence: str) -> str:
        """The block that pools a sequence, drawn once."""
        name = f"{legal(sequence)}_pooled"
        if name in self.drawing.blocks:
            return name
        how = self.features[sequence].get("pool", "mean")
        return self.drawing.add(name, [history(sequence)], {"name": "pool", **({"by": how} if how != "mean" else {})})

    # ---- the end

    def finish(self, *, model: str = "backbone", outputs: dict[str, str] | str | None = None, **keys: Any) -> None:
        """Writes features, groups and widths, and the drawing where the model is one."""
        for task, section, normalised in self.spaces:
            self._within(task, section, normalised)
        seen = {f for g in self.used for f in self.groups[g]}
        seen |= {self.features[f]["target"] for f in self.attended if f in seen or self._read_as_history(f)}
        seen |= {f for f in self.attended if self._read_as_history(f)}
        kept = {id(self.sections[f]) for f in seen}              # one section may declare several features
        for name in [f for f in self.features if f not in seen]:
            if id(self.sections[name]) not in kept:
                _all(self.sections[name], "ignored", "the model reads no group that has this feature")
            del self.features[name]
        for name, section in self.group_sections.items():
            if name not in self.used:
                _all(section, "ignored", "the model does not read this group")
        whole = [g for g in self.used if set(self.groups[g]) == set(self.features)]
        rename = {self.names[g]: "all" for g in whole}
        groups = {self.names[g]: self.groups[g] for g in self.used if g not in whole}
        self.target.config["features"] = {"lists": "off", **self.features}
        for name in self.features:
            self.target.note(("features", name), self.sections[name].line)
        self._embedding(groups)
        if model == "backbone":
            for block in self._blocks():
                block["inputs"] = _renamed(block["inputs"], rename)
            self._prune(outputs)
            drawn: dict[str, Any] = {"blocks": self.drawing.blocks}
            if self.packages:
                drawn["packages"] = {name: {"blocks": inside.blocks, "output": out, "shared": True}
                                     for name, inside, out in self.packages.values()}
            if outputs is not None:
                drawn["outputs"] = self._outputs(outputs)
            keys["represent"] = drawn
            for name, line in self.drawing.lines.items():
                self.target.note(("model", "represent", "blocks", name), line)
        self.target.config["model"] = {"name": model, **self.target["model"], **keys}
        self.target.note(("model",), self.source.section("model_config").line)

    def _within(self, task: str, section: Section, normalised: bool) -> None:
        """A task's rows, which weigh by another label. EasyRec divides their sum by how many weigh anything, so that
        weights make a loss larger; TorchEasyRec brings them to a mean of 1."""
        keys = ("task_space_indicator_label", "in_task_space_weight", "out_task_space_weight")
        label = section.text(keys[0], to="tasks.*.within.task")
        inside, outside = (section.number(k, 1.0, to=f"tasks.*.within.{where}")
                           for k, where in zip(keys[1:], ("inside", "outside")))
        tasks = self.target["tasks"]
        of = next((name for name, said in tasks.items() if said.get("label", name) == label), None)
        if of is None:
            section.refused(keys[0], f"no tower learns '{label}'; add one, of weight 0 if it should teach nothing")
        elif tasks[of].get("kind") == "multiclass":
            section.refused(keys[0], f"'{label}' has classes, which are not above 0 or at it; write a label of 0 "
                                     "and 1")
        elif min(inside, outside) < 0 or not inside:
            section.refused(keys[1] if inside <= 0 else keys[2], "rows inside weigh more than 0, those outside 0 or "
                                                                 "more")
        else:
            tasks[task]["within"] = of if (inside, outside) == (1, 0) else {"task": of, "inside": inside,
                                                                           "outside": outside}
            if not normalised and outside:
                section.approximated(keys[2], "a mean with these weights, whose scale they do not change")
            elif not normalised and inside != 1:
                tasks[task]["weight"] = tasks[task].get("weight", 1.0) * inside

    def _prune(self, outputs: dict[str, str] | str | None) -> None:
        """Without blocks that were drawn for something that then read another."""
        waiting = [outputs] if isinstance(outputs, str) else list((outputs or {}).values())
        needed: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in self.drawing.blocks and name not in needed:
                needed.add(name)
                waiting += [r if isinstance(r, str) else r["of"] for r in _listed(self.drawing.blocks[name]["inputs"])]
        self.drawing.blocks = {n: b for n, b in self.drawing.blocks.items() if n in needed}
        self.drawing.lines = {n: at for n, at in self.drawing.lines.items() if n in needed}

    def _outputs(self, outputs: dict[str, str] | str) -> dict[str, str] | str:
        """By task where a shared block might be a stack, whose entries would be taken for the tasks'."""
        tasks = list(self.target["tasks"])
        if isinstance(outputs, str) and (len(tasks) == 1 or "layer" not in self.drawing.blocks.get(outputs, {})):
            return {t: outputs for t in tasks}
        return outputs

    def _blocks(self) -> list[dict[str, Any]]:
        return [b for drawing in (self.drawing, *(inside for _, inside, _ in self.packages.values()))
                for b in drawing.blocks.values()]

    def _read_as_history(self, sequence: str) -> bool:
        return any(isinstance(r, dict) and r["of"] == sequence and r.get("form") == "history"
                   for b in self._blocks() for r in _listed(b["inputs"]))

    def _embedding(self, groups: dict[str, list[str]]) -> None:
        embedding = self.target["embedding"]
        spaces = {said.get("space", name) for name, said in self.features.items()}
        widths = {s: w for s, w in self.widths.items() if s in spaces}
        if widths:
            usual = Counter(widths.values()).most_common(1)[0][0]
            embedding["width"] = usual
            if others := {s: {"width": w} for s, w in widths.items() if w != usual}:
                embedding["spaces"] = others
        if groups:
            embedding["groups"] = groups


def _listed(inputs: Any) -> Sequence[Ref]:
    return [inputs] if isinstance(inputs, str) else inputs


def _renamed(inputs: Any, names: dict[str, str]) -> Any:
    def one(ref: Ref) -> Ref:
        return names.get(ref, ref) if isinstance(ref, str) else {**ref, "of": names.get(ref["of"], ref["of"])}
    return one(inputs) if isinstance(inputs, str) else [one(ref) for ref in inputs]


def _all(section: Section, verdict: str, said: str) -> None:
    for entry in section.entries:
        if entry.verdict != "refused":
            Entry.judge(entry, verdict, said)
