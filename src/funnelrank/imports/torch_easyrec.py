"""TorchEasyRec's pipeline configs. Features know their kind by the name of their message, MLPs have no norm unless they
say so, tables and network have an optimiser each, and `user:age` is the column `age`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from funnelrank.expression import Name, parse
from funnelrank.imports import torch_easyrec_models
from funnelrank.imports.easyrec import ONE_MACHINE, PACE, ROWS_START, TYPES, name_in
from funnelrank.imports.networks import attention
from funnelrank.imports.optimisers import exponential, optimisers
from funnelrank.imports.ranking import Ranking
from funnelrank.imports.source import Section, legal, stop_at
from funnelrank.imports.target import Target
from funnelrank.imports.torch_easyrec_models import attention_unit

FG = "features are made while rows are read, as the config says"
SHARDS = "tables stand on one machine"
NUMBER = re.compile(r"-?\d{1,30}(\.\d{0,30})?(e-?\d{1,2})?")


def read(source: Section, target: Target) -> None:
    """Fills `target` with what `source`, a whole TorchEasyRec config, says."""
    ranking = Ranking(source, target)
    data = source.section("data_config")
    types = _data(source, data, target)
    for holder in source.sections("feature_configs"):
        for key in holder.names():
            for section in holder.sections(key):
                _feature(key, holder, section, ranking, types)
    model = source.section("model_config")
    _train(source, target)
    source.section("eval_config").ignored("all rows of valid are measured", "num_steps", "log_step_count_steps")
    source.ignored("exports are made by `funnelrank export`", "export_config")
    source.ignored("of retrieval alone", "item_input_path")
    _groups(model, ranking)
    stop_at(source.faults)
    torch_easyrec_models.read(model, ranking, data.texts("label_fields", "tasks, by name"))


# ---- data

def _data(source: Section, data: Section, target: Target) -> dict[str, str]:
    """Writes `data`; returns the declared types of columns."""
    kind = data.text("dataset_type", "OdpsDataset")
    for key, to in (("train_input_path", "train"), ("eval_input_path", "valid")):
        said = source.text(key, to=f"data.{to}")
        if said and (kind.startswith(("Odps", "Kafka")) or "odps://" in said):
            source.ignored(f"only its own system reads that place; name files in data.{to}", key)
        elif said:
            paths = [p.strip() for p in said.split(",") if p.strip()]
            target.put(f"data.{to}", paths[0] if len(paths) == 1 else paths, source.line_of(key))
    types = {}
    for f in data.sections("input_fields"):
        types[f.text("input_name", "", to="data.csv.columns")] = f.text("input_type", "", to="data.csv.types")
    for piece in (data.text("input_fields_str", "", to="data.csv.columns") or "").split(";"):
        name, _, said = piece.partition(":")
        if name.strip():
            types[name.strip()] = {"BIGINT": "INT64", "INT": "INT32"}.get(said.strip(), said.strip())
    if kind == "CsvDataset":
        target.put("data.format", "csv", data.line_of("dataset_type"))
        delimiter = data.text("delimiter", ",", to="data.csv.delimiter")
        if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0':
            data.refused("delimiter", "files are cut at one ASCII character that is no quote")
        elif delimiter != ",":
            target.put("data.csv.delimiter", delimiter, data.line_of("delimiter"))
        if not data.flag("with_header", to="data.csv.header"):
            target.put("data.csv.header", False)
            target.put("data.csv.columns", list(types), data.line_of("input_fields"))
        if known := {n: TYPES[t] for n, t in types.items() if t in TYPES}:
            target.put("data.csv.types", known, data.line_of("input_fields"))
    elif kind == "ParquetDataset":
        target.put("data.format", "parquet", data.line_of("dataset_type"))
    else:
        data.ignored("rows are read from CSV or Parquet files; name them in data.train", "dataset_type")
    data.ignored("of CSV files", "delimiter", "with_header") if kind != "CsvDataset" else None
    target.put("train.batch_size", data.whole("batch_size", 1024, to="train.batch_size"), data.line_of("batch_size"))
    target.put("evaluate.batch_size", data.whole("eval_batch_size", to="evaluate.batch_size"),
               data.line_of("eval_batch_size"))
    weights = data.texts("sample_weight_fields", "data.weight")
    if weights:
        target.put("data.weight", weights[0], data.line_of("sample_weight_fields"))
    if len(weights) > 1:
        data.approximated("sample_weight_fields", f"one column of weights for all tasks, '{weights[0]}'")
    if data.text("fg_mode", "FG_NONE") in ("FG_NONE", "FG_BUCKETIZE"):
        data.carried("fg_mode", "columns hold features as they are")
    else:
        data.carried("fg_mode", FG)
    data.ignored(FG, "fg_encoded")
    data.text("fg_encoded_multival_sep", to="features.*.separator")
    if data.flag("shuffle", True):
        data.ignored("rows of train are always shuffled, all of them", "shuffle")
    else:
        data.approximated("shuffle", "rows of train are always shuffled")
    data.ignored("rows of train are always shuffled, all of them", "shuffle_buffer_size")
    data.ignored(PACE, "num_workers", "pin_memory", "fg_threads", "drop_remainder", "min_batch_size", "in_order",
                 "batch_cost_size", "sample_cost_field", "force_base_data_group")
    data.ignored("of tables of their own system", "is_orderby_partition", "odps_data_quota_name",
                 "odps_data_compression")
    for key in ("sample_mask_prob", "negative_sample_mask_prob"):
        if data.number(key, 0.0):
            data.refused(key, "features are not masked while training; dropout is a key of layers")
        else:
            data.carried(key, "none")
    for key in data.names():
        if key.endswith(("sampler", "sampler_v2")):
            data.refused(key, "negatives are sampled before training here, not while reading; write them as rows")
    return types


# ---- features

def _feature(key: str, holder: Section, section: Section, ranking: Ranking, types: dict[str, str]) -> None:
    make = FEATURES.get(key)
    if key in ("sequence_feature",):
        _grouped(section, ranking, types)
    elif make is None:
        holder.refused(key, "there is no such feature here; compute it in a column and read that")
    else:
        name, said = make(section, "", types)
        if said is not None:
            _declare(section, name, said, ranking)


def _declare(section: Section, name: str, said: dict[str, Any], ranking: Ranking) -> None:
    own = legal(name)
    own = "lists_" if own == "lists" else own
    if own != name:
        section.approximated("feature_name", f"named '{own}' here")
    if space := section.text("embedding_name", to="features.*.space"):
        said["space"] = legal(space)
    section.approximated("init_fn", ROWS_START)
    section.ignored(SHARDS, "embedding_constraints", "data_type")
    section.ignored("files say what columns hold", "fg_value_type", "asset_dir", "sequence_fields")
    section.ignored("features are made while rows are read", "fg_encoded_default_value", "stub_type")
    if section.flag("use_mask"):
        section.refused("use_mask", "features are not masked while training; dropout is a key of layers")
    if not section.flag("trainable", True):
        section.refused("trainable", "all vectors learn")
    if said.get("column") == own:
        said.pop("column")
    ranking.declare(section, own, said, section.whole("embedding_dim",
                                                      to="embedding.width, or the width of its space"))


def _named(section: Section, prefix: str) -> tuple[str, str]:
    """The feature's name and its column."""
    name = section.text("feature_name", "", to="features, by name")
    said = section.text("expression", name, to="features.*.column, less its side") or name
    column = said.split(":", 1)[-1]
    return prefix + name, prefix + column


def _ids(section: Section) -> dict[str, Any]:
    hashed = section.whole("hash_bucket_size", to="features.*.hash_buckets; by a hash of ours")
    counted = section.whole("num_buckets", to="features.*.num_buckets")
    listed, file = section.scalars("vocab_list", "features.*.vocab_list"), section.text("vocab_file",
                                                                                       to="features.*.vocab_file")
    for key in ("zch", "dynamicemb"):
        if section.has(key):
            section.approximated(key, "a vocabulary is fitted on train, instead of rows made on the fly")
            inner = section.section(key)
            most = inner.whole("zch_size" if key == "zch" else "max_capacity", to="features.*.max_size")
            for entry in inner.entries:
                if entry.verdict is None:
                    entry.judge("approximated", "a vocabulary is fitted on train")
            return {"min_count": 1, **({"max_size": min(most, 2**31 - 2)} if most else {})}
    if section.has("vocab_dict"):
        section.refused("vocab_dict", "values get ids of their own; say vocab_list, or a value for each id in the data")
    if section.has("default_bucketize_value"):
        section.approximated("default_bucketize_value", "values that are not listed share a vector of their own")
    if hashed:
        return {"hash_buckets": hashed}
    if counted:
        return {"num_buckets": counted}
    return {"vocab_list": listed} if listed else {"vocab_file": file} if file else {"min_count": 1}


def _pool(section: Section) -> str:
    return "mean" if section.text("pooling", "sum", to="features.*.pool") == "mean" else "sum"


def _id(section: Section, prefix: str, types: dict[str, str]) -> tuple[str, dict[str, Any] | None]:
    name, column = _named(section, prefix)
    weighted = section.flag("weighted", to="features.*.weight_separator")
    one = section.whole("value_dim", 0, to="one value a row, or several") == 1
    several = not one and (weighted or section.has("separator") or section.has("pooling")
                           or types.get(column, "").startswith(("ARRAY_", "MAP_")))
    default = section.text("default_value", "", to="features.*.default")
    if not several:
        section.ignored("a row has one value, so there is nothing to pool", "pooling", "separator")
        return name, {"column": column, **_ids(section), **({"default": _value(default)} if default else {})}
    separator = section.text("separator", "\x1d", to="features.*.separator")
    return name, {"kind": "bag", "column": column, "separator": separator,
                  **({"weight_separator": ":"} if weighted else {}), **_ids(section), "pool": _pool(section)}


def _value(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else text


def _raw(section: Section, prefix: str, types: dict[str, str]) -> tuple[str, dict[str, Any] | None]:
    name, column = _named(section, prefix)
    plain: dict[str, Any] = {"log": False, "scale": "none", "clip": None}
    default = section.text("default_value", "0", to="features.*.default")
    missing = float(default) if NUMBER.fullmatch(default) else 0.0
    formula = _normalised(section, column, missing)
    section.ignored("numbers are not pooled", "pooling")
    size, bounds = section.whole("value_dim", 1, to="features.*.size") or 1, section.numbers(
        "boundaries", "features.*.boundaries")
    if size > 1:
        if formula:
            section.refused("normalizer", "each place of a vector is read as it is; write the scaled numbers as the "
                                          "column")
        return name, {"kind": "vector", "column": column, "size": size,
                      "separator": section.text("separator", "\x1d", to="features.*.separator"), **plain,
                      "indicator": False, "default": missing}
    section.ignored("a row has one number", "separator")
    for key in ("autodis", "mlp"):
        if section.has(key):
            section.approximated(key, "the number is read as it is; a block with layer: autodis gives it vectors")
            for entry in section.section(key).entries:
                entry.judge("approximated", "the number is read as it is")
            section.approximated("embedding_dim", "the number is read as it is")
    read = {"expression": formula} if formula else {"column": column}
    if bounds:
        return name, {"kind": "number", **read, "boundaries": sorted(set(bounds)), "default": missing}
    return name, {"kind": "number", **read, **plain, "indicator": False, "default": 0.0 if formula else missing}


def _normalised(section: Section, column: str, default: float) -> str | None:
    """The expression that a normaliser comes to, None without one."""
    normal = section.text("normalizer", to="features.*.expression")
    if not normal:
        return None
    x = name_in(column, default)
    said = dict(p.strip().split("=", 1) for p in normal.split(",") if "=" in p)
    number = lambda key, usual: float(said[key]) if NUMBER.fullmatch(said.get(key, "")) else usual
    method = said.get("method")
    if method == "zscore" and number("standard_deviation", 1.0):
        return f"({x} - {number('mean', 0.0)}) / {number('standard_deviation', 1.0)}"
    if method == "minmax" and number("max", 1.0) > number("min", 0.0):
        return f"({x} - {number('min', 0.0)}) / {number('max', 1.0) - number('min', 0.0)}"
    if method == "log10":
        return f"if({x} > {number('threshold', 1e-10)}, log10({x}), {number('default', -10.0)})"
    written = normal.partition("expr=")[2]
    try:
        names = {step.name for step in parse(written) if isinstance(step, Name)}
    except ValueError:
        names = {"?"}
    if method != "expression" or names - {"x"}:
        section.refused("normalizer", f"'{normal[:60]}' is no zscore, minmax, log10 or expression of x; write the "
                                      "number as a column")
        return None
    return re.sub(r"(?<![\w.`])x(?![\w(`])", x.replace("\\", ""), written)


def _expression(section: Section, prefix: str, types: dict[str, str]) -> tuple[str, dict[str, Any] | None]:
    name = section.text("feature_name", "", to="features, by name")
    columns = [v.split(":", 1)[-1] for v in section.texts("variables", "features.*.expression, less their sides")]
    written = section.text("expression", "", to="features.*.expression")
    section.ignored("a number is not cut", "separator", "pooling", "value_dim")
    section.ignored("what is missing is missing", "fill_missing")
    try:
        names = {step.name for step in parse(written) if isinstance(step, Name)}
    except ValueError as error:
        section.refused("expression", f"{error}; what an expression may say is in docs/features.md")
        return name, None
    if names - set(columns):
        section.refused("expression", f"reads {', '.join(sorted(names - set(columns)))}, which is none of its "
                                      "variables")
        return name, None
    default = section.text("default_value", "0", to="features.*.default")
    said: dict[str, Any] = {"kind": "number", "expression": written}
    if bounds := section.numbers("boundaries", "features.*.boundaries"):
        said["boundaries"] = sorted(set(bounds))
    else:
        said |= {"log": False, "scale": "none", "clip": None, "indicator": False}
        if section.has("embedding_dim"):
            section.approximated("embedding_dim", "the number is read as it is")
    return name, {**said, "default": float(default) if NUMBER.fullmatch(default) else 0.0}


def _combo(section: Section, prefix: str, types: dict[str, str]) -> tuple[str, dict[str, Any] | None]:
    name = section.text("feature_name", "", to="features, by name")
    columns = [e.split(":", 1)[-1] for e in section.texts("expression", "features.*.columns, less their sides")]
    section.ignored("a row has one value, so there is nothing to pool", "pooling", "separator", "value_dim")
    if not 2 <= len(columns) <= 16:
        section.refused("expression", f"a cross is of 2 to 16 columns, not {len(columns)}")
        return name, None
    return name, {"kind": "cross", "columns": columns, **_ids(section)}


def _lookup(section: Section, prefix: str, types: dict[str, str]) -> tuple[str, dict[str, Any] | None]:
    name = section.text("feature_name", "", to="features, by name")
    column, key = (section.text(k, "", to=f"features.*.{to}").split(":", 1)[-1] for k, to in (("map", "column"),
                                                                                             ("key", "key")))
    said: dict[str, Any] = {"column": column, "key": key}
    if not types.get(column, "").startswith("MAP_"):
        said |= {"separator": section.text("separator", "\x1d", to="features.*.separator"), "key_separator": ":"}
    section.ignored("one value is read, so there is nothing to pool", "pooling", "combiner", "need_discrete",
                    "need_key", "value_dim")
    if section.has("boundaries"):
        return name, {"kind": "number", **said, "boundaries": sorted(set(section.numbers(
            "boundaries", "features.*.boundaries"))), "default": 0.0}
    if not any(section.has(k) for k in ("hash_bucket_size", "num_buckets", "vocab_list", "vocab_file")):
        return name, {"kind": "number", **said, "log": False, "scale": "none", "clip": None, "indicator": False,
                      "default": 0.0}
    return name, {**said, **_ids(section)}


def _sequence(section: Section, name: str, column: str, of: str, length: int | None,
              delimiter: str) -> dict[str, Any] | None:
    """One list of a sequence: ids, or numbers cut at boundaries."""
    section.ignored("an entry of a sequence is one value", "value_dim", "separator", "pooling", "weighted")
    ids = _ids(section) if of == "id_feature" else {"boundaries": sorted(set(section.numbers(
        "boundaries", "features.*.boundaries")))}
    if not ids.get("boundaries", True):
        section.refused("feature_name", "a sequence of numbers without boundaries has no vectors; give it boundaries")
        return None
    for key in ("default_value", "normalizer"):
        section.ignored("empty lists have no entries", key)
    return {"kind": "sequence", "column": column, "separator": delimiter, **ids, "max_len": length or 10_000,
            "latest": "first"}


def _grouped(section: Section, ranking: Ranking, types: dict[str, str]) -> None:
    """sequence_feature: lists of one length side by side, a feature each."""
    prefix = f"{section.text('sequence_name', '', to='the first half of its features names')}__"
    length = section.whole("sequence_length", to="features.*.max_len, its first so many")
    delimiter = section.text("sequence_delim", ";", to="features.*.separator")
    section.ignored("lists are columns of the rows", "sequence_pk", "expression")
    for inner in section.sections("features"):
        for key in inner.names():
            for one in inner.sections(key):
                name, column = _named(one, prefix)
                if key not in ("id_feature", "raw_feature"):
                    inner.refused(key, "a sequence is of ids, or of numbers with boundaries")
                    continue
                said = _sequence(one, name, column, key, length, delimiter)
                if said is not None:
                    _declare(one, name, said, ranking)


def _one_sequence(of: str) -> Callable[[Section, str, dict[str, str]], tuple[str, dict[str, Any] | None]]:
    def make(section: Section, prefix: str, types: dict[str, str]) -> tuple[str, dict[str, Any] | None]:
        name, column = _named(section, prefix)
        length = section.whole("sequence_length", to="features.*.max_len, its first so many")
        delimiter = section.text("sequence_delim", ";", to="features.*.separator")
        return name, _sequence(section, name, column, of, length, delimiter)
    return make


FEATURES: dict[str, Callable[[Section, str, dict[str, str]], tuple[str, dict[str, Any] | None]]] = {
    "id_feature": _id, "raw_feature": _raw, "combo_feature": _combo, "lookup_feature": _lookup,
    "expr_feature": _expression,
    "sequence_id_feature": _one_sequence("id_feature"), "sequence_raw_feature": _one_sequence("raw_feature"),
}


# ---- groups

ATTENDING = ("din_encoder", "simple_attention")           # encoders that compare a sequence with the row's own id


def _groups(model: Section, ranking: Ranking) -> None:
    encoders: list[tuple[str, Section, dict[str, tuple[Section, list[str]]]]] = []
    for section in model.sections("feature_groups"):
        name = section.text("group_name", "", to="embedding.groups")
        names = [legal(f) for f in section.texts("feature_names", "embedding.groups")]
        kind = section.text("group_type", "DEEP")
        ranking.group(section, name, names)
        section.ignored("features of one name share their vectors", "embedding_name_suffix")
        if kind in ("SEQUENCE", "JAGGED_SEQUENCE"):
            section.carried("group_type", "form: history")
            ranking.beside[f"seq_att:{name}"] = list(_pair(section, ranking, ranking.groups[name]))
        else:
            section.ignored("the model's class says which part reads the group", "group_type")
        inner: dict[str, tuple[Section, list[str]]] = {}
        for group in section.sections("sequence_groups"):
            members = [legal(f) for f in group.texts("feature_names", "inputs of its encoder")]
            group.ignored("features of one name share their vectors", "embedding_name_suffix")
            inner[group.text("group_name", "", to="inputs of its encoder")] = group, members
        encoders += [(name, e, inner) for e in section.sections("sequence_encoders")]
    paired: dict[int, list[str]] = {}                         # all of them, before a block reads one
    for _, encoder, inner in encoders:
        for key in [k for k in encoder.names() if k in ATTENDING]:
            group, members = inner.get(encoder.section(key).text("input", ""), (None, []))
            if group is not None and id(group) not in paired:
                paired[id(group)] = _pair(group, ranking, members)
    for name, encoder, inner in encoders:
        _encoder(name, encoder, inner, ranking)


def _lists(ranking: Ranking, members: Sequence[str]) -> list[str]:
    return [f for f in members if ranking.features.get(f, {}).get("kind") == "sequence"]


def _pair(section: Section, ranking: Ranking, members: Sequence[str]) -> list[str]:
    """The sequences of a group, each compared with the id at its place."""
    lists = _lists(ranking, members)
    items = [f for f in members if ranking.features.get(f, {}).get("kind", "id") == "id" and f in ranking.features]
    if not lists or not items:
        section.refused("feature_names", f"{len(lists)} sequences and {len(items)} ids to compare them with; name "
                                         "sequences, and an id for each, in their order")
        return []
    if len(lists) > len(items):
        section.approximated("feature_names", f"{', '.join(lists[len(items):])}: the mean of its entries, for no id is "
                             f"at its place; {', '.join(f'{a}: attention with {b}' for a, b in zip(lists, items))}")
    elif len(lists) > 1:
        section.approximated("feature_names", "an attention for each sequence with the id at its place ("
                             + ", ".join(f"{a} with {b}" for a, b in zip(lists, items)) + ")")
    return [a for a, b in zip(lists, items) if ranking.attend(section, a, b)]


def _encoder(group: str, section: Section, inner: dict[str, tuple[Section, list[str]]], ranking: Ranking) -> None:
    for key in section.names():
        one = section.section(key)
        one.ignored("a name for people", "name")
        name = one.text("input", "", to="inputs of its blocks")
        if name not in inner:
            one.faults.append(f"{one.file}:{one.line_of('input')}: {one.path}.input: no sequence group '{name}'; there "
                              f"are {', '.join(inner) or 'none'}")
            continue
        if not (lists := _lists(ranking, inner[name][1])) and key == "pooling_encoder":
            one.refused("input", f"the group '{name}' has no sequence; name one")
        for sequence in lists:
            if key == "pooling_encoder":
                ranking.features[sequence]["pool"] = one.text("pooling_type", "mean", to="features.*.pool")
            elif key not in ATTENDING:
                section.refused(key, "there is no such encoder; din_encoder and pooling_encoder are there")
                continue
            elif key == "simple_attention":
                section.approximated(key, "an attention with a unit of its own (layer: target_attention)")
            if key in ATTENDING and sequence in ranking.attended:
                block = attention(ranking, f"{sequence}_attention", sequence, attention_unit(one), False, one.line)
                ranking.beside.setdefault(group, []).append(block)
            elif sequence not in ranking.groups[group]:
                ranking.groups[group].append(sequence)                          # read flat, it is pooled
        one.ignored("sequences are cut by their own length", "max_seq_length")


# ---- the run

def _train(source: Section, target: Target) -> None:
    train = source.section("train_config")
    out = source.text("model_dir", to="train.out")
    target.put("train.out", out or None, source.line_of("model_dir"))
    epochs, steps = train.whole("num_epochs", 0, to="train.epochs"), train.whole("num_steps", 0, to="train.steps")
    target.put("train.epochs", epochs or None, train.line_of("num_epochs"))
    target.put("train.steps", steps or None, train.line_of("num_steps"))
    every = train.whole("save_checkpoints_steps", to="train.checkpoint_every")
    target.put("train.checkpoint_every", every or None, train.line_of("save_checkpoints_steps"))
    target.put("train.log_every", train.whole("log_step_count_steps", to="train.log_every") or None,
               train.line_of("log_step_count_steps"))
    if train.flag("use_tensorboard", to="train.track"):
        target.put("train.track", ["tensorboard"], train.line_of("use_tensorboard"))
    rates = {}
    for key, tables in (("sparse_optimizer", True), ("dense_optimizer", False)):
        section = train.section(key)
        for to, said in optimisers(section, tables=tables, network=not tables).items():
            target.put(to, said, section.line)
        name = next((k for k in section.names() if k.endswith("_optimizer")), None)
        rates[key] = section.section(name).number("lr", 0.002, to="lr") if name else None
        target.put(f"{'embedding' if tables else 'train'}.optimiser.lr", rates[key], section.line)
        course = next((k for k in section.names() if k.endswith("_learning_rate")), None)
        if course == "exponential_decay_learning_rate":
            inner = section.section(course)
            if inner.flag("by_epoch"):
                section.refused(course, "the rate's course is in steps; write it as decay_size steps")
            elif tables:
                section.approximated(course, "one schedule moves both learning rates, that of dense_optimizer")
            else:
                target.put("train.schedule", exponential(inner, rates[key] or 0.002), section.line_of(course))
        elif course == "manual_step_learning_rate":
            section.refused(course, "there is no such course of the learning rate; constant and exponential are there")
        elif course:
            section.carried(course, "train.schedule: constant")
        if section.has("param_optimizers"):
            section.refused("param_optimizers", "the network has one optimiser")
    target["train"].setdefault("average", None)
    clipping = train.section("grad_clipping")
    if clipping.text("clipping_type", "none", to="train.clip_norm") == "norm":
        target.put("train.clip_norm", clipping.number("max_gradient", 1.0, to="train.clip_norm"), clipping.line)
    elif clipping.text("clipping_type", "none") == "value":
        clipping.refused("clipping_type", "gradients are clipped by their norm (train.clip_norm)")
    clipping.ignored("it is of the gradients' Euclidean norm", "norm_type", "enable_global_grad_clip", "max_gradient")
    for key in ("fine_tune_checkpoint", "fine_tune_ckpt_param_map"):
        if train.text(key):
            train.refused(key, "weights of another system are not read; train from the start, or --continue-from a run "
                               "of funnelrank")
    if (train.whole("gradient_accumulation_steps", 1) or 1) > 1:
        train.approximated("gradient_accumulation_steps", "a step is one batch; a larger batch_size does the same")
    train.ignored(ONE_MACHINE, "global_embedding_constraints")
    train.ignored("numbers have 32 bits here", "mixed_precision", "grad_scaler", "cudnn_allow_tf32",
                  "cuda_matmul_allow_tf32")
    train.ignored("it changes what is written down beside training, not what is learnt", "is_profiling",
                  "save_checkpoints_epochs", "tensorboard_summaries", "keep_checkpoint_max",
                  "delta_embedding_dump_config", "save_checkpoints_timestamp_interval", "save_checkpoints_timestamps",
                  "save_checkpoints_timestamp_quorum")
