"""Makes docs/config.md: every key of a config, its type, default and meaning.

    python -m funnelrank.reference > docs/config.md

Keys, types, defaults and most meanings come from the settings' classes and the parts' constructors, through the JSON
Schema that is made of them. `SAID` holds the meanings that those leave out. A test compares the page with what this
makes, and so finds a key that nobody explains.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from funnelrank.fill import CHAINS, SLOTS
from funnelrank.models import MODELS, PARTS
from funnelrank.models.layers import LAYERS
from funnelrank.schema_file import config_schema
from funnelrank.settings import DEBIAS, FEATURE_KINDS, FeatureSettings, FromColumns

INTRO = """\
# Config

<!-- Made by `python -m funnelrank.reference > docs/config.md`; change the settings, not this page. -->

One YAML file with up to nine sections: [data](#data), [features](#features), [tasks](#tasks),
[embedding](#embedding), [model](#model), [train](#train), [calibrate](#calibrate), [evaluate](#evaluate),
[tune](#tune). Only `features` and `tasks` must be
there; to train, `data.train` as well. A key that is not on this page is an error, and so is a key written twice.

`funnelrank check FILE` says everything that is wrong with a config, each with line and column, and which settings do
nothing. `funnelrank describe FILE` shows it with every default filled in, and with `--network` or `--svg` draws the
model. Every command that takes a config edits
single keys of it: `--set train.batch_size=512`, by position in lists: `--set 'model.represent.hidden[0]=64'`.

*Name* is a text without spaces and without `.` `:` `|` `/`. A default of *none* means that the key is off or does not
apply. What becomes of the values is in [features.md](features.md), what tasks mean in [tasks.md](tasks.md).
"""

SECTIONS = {
    "data": """\
Relative paths start at `dir`. A path may be a file, a folder (every file below it of the data's format), a glob, a
list of these, or an fsspec URL. Folders named `key=value` become a column of that name.""",
    "features": """\
A mapping from names of your own to what becomes of a column. `tab: id` is short for `tab: {kind: id}`, and a mapping
without `kind` is an id. One name is reserved: `lists`.""",
    "tasks": """\
A mapping from names of your own to what is predicted; `click: {}` is a binary task whose label is the column `click`.
See [tasks.md](tasks.md).""",
    "embedding": "How wide each id space is, and how its rows learn.",
    "model": """\
A paper by name, or five slots of parts. `model: aitm` is short for `model: {name: aitm}`. A part's key changes that
key alone (`represent: {hidden: [64]}`); another `name` swaps the part (`predict: towers`). Without this section the
model is `auto`.""",
    "train": "The run.",
    "calibrate": """\
What is done to probabilities after training, fitted on valid and shipped in the artefact. See
[calibration.md](calibration.md).""",
    "evaluate": "What is measured at the end, and how. See [metrics.md](metrics.md).",
    "tune": "What `funnelrank tune` tries. See [tune.md](tune.md)."}

EXAMPLES = {
    "id": "item_id: id                                  # or {kind: id}, or {min_count: 10}\n"
          "brand: {column: items.brand}                 # a column of the table `items`\n"
          "tier: {column: tiers, key: brand, separator: \",\", key_separator: \":\"}    # 'acme:gold,zen:tin' at the "
          "row's brand\n"
          "weekday: {num_buckets: 7, unknown: 0, default: 0}",
    "number": "price: number\nhour: {kind: number, buckets: 24}\nage: {kind: number, boundaries: [18, 25, 40, 65]}\n"
              "ctr: {kind: number, column: category_ctrs, key: category}     # a map column at the row's category\n"
              "dwell: {kind: number, column: dwell_times, pool: mean}        # of a list of numbers\n"
              "discount: {kind: number, expression: \"1 - price / list_price\"}",
    "vector": "image: {kind: vector, size: 64, column: items.image_vector}\n"
              "scores: {kind: vector, size: 3, separator: \",\"}                # '0.2,0.7,0.1'",
    "bag": "tags: {kind: bag, separator: \"|\"}            # 'new|sale'\n"
           "topics: {kind: bag, separator: \"|\", weight_separator: \":\"}    # 'sport:0.5|news:2'",
    "sequence": "viewed: {kind: sequence, column: viewed_item_ids, space: item_id, max_len: 30}\n"
                "viewed_brand: {kind: sequence, column: items.brand, by: viewed_item_ids, space: brand}\n"
                "viewed_price: {kind: sequence, column: items.price, by: viewed_item_ids, buckets: 20}",
    "history": "read: {kind: history, of: log, item: item_id}\n"
               "paid: {kind: history, of: log, item: item_id, where: {event: [buy, subscribe]}, max_len: 20}",
    "cross": "tab_x_device: {kind: cross, of: [tab, device]}\n"
             "site_x_app: {kind: cross, columns: [site_id, app_id], hash_buckets: 10000}",
    "length": "views: {kind: length, of: viewed}",
    "share": "bought_of_viewed: {kind: share, of: viewed, within: bought, last: 10}",
    "match": "seen_before: {kind: match, of: item_id, within: viewed}",
    "gap": "since_last_visit: {kind: gap, since: last_visit, until: time}\n"
           "since_third_event: {kind: gap, since: log, nth: 3}          # `log` is an event log, or a history",
    "rate": "brand_bought: {kind: rate, of: brand, among: viewed, within: bought}\n"
            "item_clicked: {kind: rate, of: item_id, task: click}      # on earlier days"}

SAID = {
    "role": "The feature's group: `user`, `item`, `context`, `scenario`, `prior` or a name of your own, for parts of a "
            "model that read a group. Default: see [features.md](features.md#roles).",
    "Data.format": "How the files are written.",
    "Data.csv": "How text files are cut; see below.",
    "Data.tables": "Dimension tables by name; see below.",
    "Data.events": "Event logs by name, for histories; see below.",
    "Data.negatives_kept": "Down-sampled negatives; see below.",
    "TableSettings.path": "As for `train`.",
    "NegativesKept.task": "The task whose negatives were sampled.",
    "FromColumns.vocab_list": "No fitted vocabulary: these values, in this order.",
    "Number.scale": "`standard`: minus the mean, divided by the standard deviation. `minmax`: to 0 .. 1 of train.",
    "Bag.max_len": "Longer bags keep so many ids, the last of them.",
    "Bag.pool": "How the ids' vectors become one; with weights, a weighted mean or sum.",
    "Sequence.separator": "Cut texts here, as in '17 4 92'.",
    "Sequence.pool": "How the ids' vectors become one, where no part of the model asks for them singly.",
    "Share.of": "The list whose ids are counted: a `sequence` or `bag`.",
    "Share.within": "The list they are looked for in: a `sequence` or `bag`.",
    "Gap.since": "The column with the earlier time or number; or a `history`, or an event log of `data.events`.",
    "Gap.until": "The column with the later one, or a `history`. Default after an event: `data.time`.",
    "History.pool": "How the ids' vectors become one, where no part of the model asks for them singly.",
    "Embedding.width": "Numbers in a vector, for spaces that say nothing else.",
    "Embedding.optimiser": "See below.",
    "Data.vectors": "Vectors of values by name, for `embedding.spaces`; see below.",
    "SpaceWidth.width": "Numbers in a vector of this space. Default: `embedding.width`.",
    "RowOptimiser.name": "`rowwise_adagrad` keeps one number a row instead of one a weight.",
    "RowOptimiser.lr": "Step size.",
    "RowOptimiser.eps": "Keeps the division of adagrad and adam finite.",
    "CrossOptimiser.name": "As those of `embedding.optimiser`.",
    "CrossOptimiser.lr": "Step size.",
    "CrossOptimiser.eps": "Keeps the division finite.",
    "DenseOptimiser.name": "As torch has them.",
    "DenseOptimiser.lr": "Step size.",
    "DenseOptimiser.betas": "For adam and adamw only.",
    "DenseOptimiser.eps": "Keeps the division of adam and adagrad finite.",
    "Schedule.name": "From 1 after the warm-up to `final` at the end, along a line or a cosine. `constant` stays at 1.",
    "EarlyStopping.min_delta": "An improvement must be larger than this.",
    "Train.batch_size": "Rows a step.",
    "Train.optimiser": "See below.",
    "Train.schedule": "See below.",
    "Train.early_stopping": "See below.",
    "Train.log_every": "Steps between lines of losses in events.jsonl.",
    "Train.seed": "Decides the first weights, the order of rows and dropout.",
    "Train.threads": "Threads that torch computes with, and that read and encode rows.",
    "Train.device": "As torch names it, such as `cuda:0`.",
    "Range.low": "The least.",
    "Range.high": "The most.",
    "Limits.rows": "Rows of a request, for `latency_ms`.",
    "Tune.sampler": "`tpe`: where the best so far were, by a tree of Parzen estimators. `random`: anywhere.",
    "Tune.limits": "See below.",
    "Tune.seed": "Decides what is tried.",
    "Evaluate.batch_size": "Rows scored at a time; decides memory and speed, no number.",
    "model.relations": "Who learns from whom in `transfer`, as `{task: [tasks]}`. Default: each task from the one in "
                       "its `after`.",
    "model.hidden": "Widths of the layers, first to last.",
    "model.width": "Numbers in each vector that comes out.",
    "model.layers": "How many layers.",
    "model.heads": "How many attentions side by side.",
    "model.gamma": "The most that a gate can say; at half of it nothing changes.",
    "model.sees": "The first input itself opens the gates, too, without learning through them.",
    "model.softmax": "Weigh by a softmax over a history instead (not the paper).",
    "model.bias": "Add b.",
    "model.rate": "Share of numbers set to 0 while training.",
    "model.by": "How entries become one.",
    "model.residual": "W_res; false leaves it out.",
    "model.rank": "Of W = U V^T; none for a full matrix.",
    "model.tasks": "How many tasks have experts of their own.",
    "model.own": "Experts of each task.",
    "model.shared": "Experts that all tasks share.",
    "model.stop_gradient": "What is read does not learn through it.",
    "model.gate": "Widths of the gate's hidden layers.",
    "model.experts": "How many experts.",
    "model.activation": "After each layer.",
    "model.dropout": "Share of a layer's outputs set to 0 while training.",
    "model.norm": "Normalisation before each activation.",
    "model.per": "One for all tasks, or one each. A recipe that says `task` keeps it when the part is swapped.",
    "model.variant": "Who asks the attention's question; see [aitm.md](models/aitm.md).",
    "model.gate_activation": "After each of the info gate's layers.",
    "model.share": "All steps share h1, h2, h3; false gives each step its own."}


def page() -> str:
    """The text of docs/config.md."""
    schema = config_schema()
    defs = schema["$defs"]
    lines = [INTRO]
    for name, words in SECTIONS.items():
        lines += [f"## {name}\n", words + "\n"]
        match name:
            case "features":
                lines += _features(schema, defs)
            case "model":
                lines += _model(schema["properties"]["model"], defs)
            case "tasks":
                lines += [_table("Task", defs["Task"]), "### tasks.*name*.loss\n",
                          *_choice(defs["Task"]["properties"]["loss"]["anyOf"][0]["discriminator"]["mapping"], defs),
                          f"### tasks.*name*.within\n\n{defs['Within']['description']}\n",
                          _table("Within", defs["Within"])]
            case _:
                lines += _section(name, schema["properties"][name]["$ref"].split("/")[-1], defs)
    return "\n".join(lines).rstrip() + "\n"


def _section(path: str, name: str, defs: Mapping[str, Any]) -> Iterator[str]:
    """A section's table, then those of the sections inside it."""
    yield _table(name, defs[name])
    for key, node in defs[name]["properties"].items():
        inner = re.search(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(node))
        nodes = (node, node.get("items", {}), *node.get("anyOf", ()))
        if chosen := next((n["discriminator"] for n in nodes if "discriminator" in n), None):
            yield f"### {path}.{key}\n"
            yield from _choice(chosen["mapping"], defs)
        elif inner:
            many = ".*name*" if "additionalProperties" in node else ""
            yield f"### {path}.{key}{many}\n"
            if said := defs[inner[1]].get("description"):
                yield f"{said}\n"
            yield from _section(f"{path}.{key}", inner[1], defs)


def _choice(mapping: Mapping[str, str], defs: Mapping[str, Any]) -> Iterator[str]:
    """Sections of which one is chosen by its name: what each is for, and its keys."""
    for name, ref in mapping.items():
        node = defs[ref.split("/")[-1]]
        own = {k: v for k, v in node["properties"].items() if k != "name"}
        yield f"**`{name}`** {node['description']}\n"
        if own:
            yield _table(ref.split("/")[-1], {**node, "properties": own})


def _features(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[str]:
    lists = schema["properties"]["features"]["properties"]["lists"]
    yield _rows([("`lists`", type_words(lists), _code(lists["default"]),
                  "`auto`: also feed the numbers that can be read off every history of the log; see "
                  "[features.md](features.md#lists-auto).")])
    yield "### Every feature\n"
    yield "`column` and `by` are for kinds that read a column: id, number, vector, bag, sequence.\n"
    every = _only(defs["Id"], FeatureSettings, ())
    every["properties"]["role"] = {**every["properties"]["role"], "description": SAID["role"]}
    yield _table("FeatureSettings", every)
    yield "### Every id space\n"
    yield ("For the kinds id, bag, sequence, history and cross. Said once is enough where features share a space. One "
           "way at most:\n`min_count` and `max_size` (the default), `hash_buckets`, `num_buckets`, `vocab_list` or "
           "`vocab_file`.\n")
    yield _table("FromColumns", _only(defs["Id"], FromColumns, (FeatureSettings,)))
    for kind, section in FEATURE_KINDS.items():
        node = defs[section.__name__]
        yield f"### {kind}\n"
        yield f"{node['description']}\n"
        yield f"```yaml\n{EXAMPLES[kind]}\n```\n"
        own = _only(node, section, (FromColumns, FeatureSettings))
        del own["properties"]["kind"]
        if own["properties"]:
            yield _table(section.__name__, own)


def _model(node: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[str]:
    keys = {k: v for k, v in node["properties"].items() if k not in SLOTS}
    keys["reading"] = {**keys["reading"], "description": keys["reading"]["description"] + " Default: the paper's."}
    keys["relations"] = {**keys["relations"], "description": SAID["model.relations"]}
    yield _table("model", {"properties": keys})
    for name, section in DEBIAS.items():
        yield f"### debias: {name}\n"
        yield f"{inspect.getdoc(section)}\n"
        own = {k: v for k, v in defs[f"debias.{name}"]["properties"].items() if k != "name"}
        yield _table(section.__name__, {"properties": own})
    yield "### Slots\n"
    yield ("`prepare` and `side` take a list of parts, the others one part. A part may also be a class of your own,\n"
           "named `module:Class`; see [own_models.md](own_models.md).\n")
    yield _rows([(f"`{slot}`", ", ".join(_code(p) for p in PARTS[slot]) or "none yet",
                  ", ".join(f"{_code(m)}: {_code(r[slot]['name'])}" for m, r in MODELS.items() if slot in r
                            and slot not in CHAINS) or "-") for slot in SLOTS], ("slot", "parts", "in recipes"))
    for name, recipe in MODELS.items():
        yield f"- `{name}`: `{_flow(recipe)}`"
    yield ""
    for slot in SLOTS:
        for name, part in PARTS[slot].items():
            yield f"### {slot}: {name}\n"
            yield from _part(part, defs[f"{slot}.{name}"])
    for section, what in (("Block", "A block of a `backbone`"), ("Input", "What a block reads"),
                          ("Package", "A package of a `backbone`")):
        yield f"### {what}\n"
        yield f"{defs[f'represent.backbone.{section}']['description']}\n"
        yield _table(section, defs[f"represent.backbone.{section}"])
    yield "### Layers of blocks\n"
    yield "What a block's `layer` may be; `layer: ait` is short for `layer: {name: ait}`.\n"
    for name, layer in LAYERS.items():
        yield f"#### layer: {name}\n"
        yield from _part(layer, defs[f"layer.{name}"])


def _part(part: type, node: Mapping[str, Any]) -> Iterator[str]:
    """What a constructor is for, and a table of its keys."""
    doc = inspect.getdoc(part) or ""
    yield f"{doc.split(chr(10) * 2)[0]}\n"
    own = {k: v for k, v in node["properties"].items() if k != "name"}
    listed = dict(re.findall(r"^(\w+) {2,}(\S.*(?:\n {8,}\S.*)*)", doc, re.M))
    for key in own.keys() & listed.keys():
        words = listed[key][0].upper() + listed[key][1:].rstrip(".") + "."
        own[key] = {**own[key], "description": words}
    yield _table("model", {"properties": own, "required": node.get("required", ())}) if own else "It has no keys.\n"


def _only(node: Mapping[str, Any], owner: type, without: tuple[type, ...]) -> dict[str, Any]:
    """The node with the keys that `owner` has and `without` have not."""
    inherited = {k for w in without for k in w.model_fields}
    return {**node, "properties": {k: v for k, v in node["properties"].items()
                                   if k in owner.model_fields and k not in inherited}}


# ---- tables

def _table(name: str, node: Mapping[str, Any]) -> str:
    rows = []
    for key, inner in node["properties"].items():
        said = inner.get("description") or SAID.get(f"{name}.{key}", "")
        default = _default(inner) if "default" in inner else "required" if key in node.get("required", ()) else "none"
        if default in ("none", "empty") and (found := re.search(r"\s*Default:? (.*)\.$", said, re.S)):
            said, default = said[:found.start()] or SAID.get(f"{name}.{key}", ""), found[1]
        kind = "bytes, or a text such as `2GB`" if (name, key) == ("Data", "memory") else type_words(inner)
        rows.append((f"`{key}`", kind, default, said))
    return _rows(rows)


def _rows(rows: list[tuple[str, ...]], head: tuple[str, ...] = ("key", "type", "default", "meaning")) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def type_words(node: Mapping[str, Any]) -> str:
    """A JSON Schema node in words: 'integer >= 1', 'one of `mean`, `sum`', 'list of text'."""
    if "discriminator" in node:
        return type_words({"enum": list(node["discriminator"]["mapping"])}) + ", or a mapping with `name`"
    if "anyOf" in node:
        words = [type_words(n) for n in node["anyOf"] if n.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "$ref" in node:
        return "mapping"
    if "const" in node:
        return _code(node["const"])
    if "enum" in node:
        return ", ".join(_code(v) for v in node["enum"][:-1]) + f" or {_code(node['enum'][-1])}"
    match node.get("type"):
        case "array":
            if "prefixItems" in node:
                return f"list of {len(node['prefixItems'])}: {type_words(node['prefixItems'][0])}"
            few = f", {node['minItems']} to {node['maxItems']} of them" if "maxItems" in node else ""
            return f"list of {type_words(node['items']) if node['items'] else 'values'}{few}"
        case "object":
            value = type_words(node["additionalProperties"]) if node.get("additionalProperties") else "anything"
            return f"mapping of names to {value}s" if value == "mapping" else f"mapping of names to {value}"
        case "string":
            return "name" if "pattern" in node else "text"
        case "boolean":
            return "true or false"
        case kind:
            bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
            limits = [f"{sign} {_number(node[k])}" for k, sign in bounds.items() if k in node]
            return " ".join([kind, ", ".join(limits)]).strip()


def _default(node: Mapping[str, Any]) -> str:
    value = node["default"]
    if "discriminator" in node:
        return _code(value["name"])
    if "$ref" in node or node.get("anyOf", [{}])[0].get("$ref"):
        return "see below" if value is not None else "none"
    if isinstance(value, list) and value:
        return f"`[{', '.join(map(str, value))}]`"
    return "none" if value is None else "empty" if value in ({}, []) else _code(value)


def _code(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{_number(value)}`"


def _number(value: Any) -> str:
    if isinstance(value, int) and value >= 10**5:
        return f"{value:_}" if value < 10**12 else f"2^{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flow(value: Any) -> str:
    """As YAML would write it on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    return str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
