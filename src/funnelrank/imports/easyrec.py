"""EasyRec's pipeline configs: data, features, groups, tasks and the run; easyrec_models.py has the model classes.

What differs from what one expects, and is written out: an MLP has batch norm unless it says otherwise; cells that are
empty are 0 or the field's default_val; ids are pooled by their sum; one optimiser moves tables and network.
"""

from __future__ import annotations

import re
from typing import Any

from funnelrank.expression import FUNCTIONS, Name, parse
from funnelrank.imports import easyrec_models
from funnelrank.imports.optimisers import optimisers, schedule
from funnelrank.imports.ranking import Ranking
from funnelrank.imports.source import Section, legal, stop_at
from funnelrank.imports.target import Target
from funnelrank.imports.towers import metric

TYPES = {"INT32": "int", "INT64": "int", "STRING": "text", "FLOAT": "float", "DOUBLE": "float", "BOOL": "int"}
CSV = ("CSVInput", "CSVInputV2", "CSVInputEx")
ONE_MACHINE = "it says how several machines work together; this is one"
ROWS_START = "all rows start from N(0, embedding.init)"
PACE = "it changes how fast rows are read, not which"


def read(source: Section, target: Target) -> None:
    """Fills `target` with what `source`, a whole EasyRec config, says."""
    ranking = Ranking(source, target)
    fields = _data(source, target)
    features = [*source.section("feature_config").sections("features"), *source.sections("feature_configs")]
    source.section("feature_config").ignored(ONE_MACHINE, "embedding_on_cpu")
    for section in features:
        _feature(section, ranking, fields)
    model = source.section("model_config")
    model.ignored("a name for people", "model_name")
    _groups(model, ranking)
    _train(source, target)
    _evaluation(source, target)
    labels = source.section("data_config").texts("label_fields", "tasks, by name")
    stop_at(source.faults)                       # a drawing of features that are not there would say nothing new
    easyrec_models.read(model, ranking, labels)
    if width := target["embedding"].get("width"):
        target["embedding"]["init"] = round(width ** -0.5, 4)      # as TensorFlow's columns start where nothing is said
    source.ignored("exports are made by `funnelrank export`", "export_config")
    source.ignored("notes for people", "description", "version")


# ---- data

def _data(source: Section, target: Target) -> dict[str, dict[str, Any]]:
    """Writes `data` and returns the declared fields: name -> type, default."""
    data = source.section("data_config")
    for key, to in (("train_input_path", "train"), ("eval_input_path", "valid")):
        said = source.text(key, to=f"data.{to}")
        if said is None:
            continue
        paths = [p.strip() for p in said.split(",") if p.strip()]
        if any(re.match(r"odps://|datahub://|kafka", p, re.IGNORECASE) for p in paths):
            source.ignored(f"only its own system reads that place; name files in data.{to}", key)
        elif paths:
            target.put(f"data.{to}", paths if len(paths) > 1 else paths[0], source.line_of(key))
    kind = data.text("input_type", "CSVInput")
    if kind == "ParquetInput":
        target.put("data.format", "parquet", data.line_of("input_type"))
    elif kind in CSV:
        target.put("data.format", "csv", data.line_of("input_type"))
    else:
        data.refused("input_type", f"rows are read from CSV or Parquet files, not by {kind}; write them to files and "
                                   "say CSVInput or ParquetInput")
    fields = _fields(data)
    if kind in CSV:
        _csv(data, target, fields)
    batch = data.whole("batch_size", 32, to="train.batch_size")
    target.put("train.batch_size", batch, data.line_of("batch_size"))
    target.put("data.weight", data.text("sample_weight", to="data.weight"), data.line_of("sample_weight"))
    if data.text("sample_weight") == "":
        target["data"].pop("weight")
    if not data.flag("shuffle", True):
        data.approximated("shuffle", "rows of train are always shuffled")
    else:
        data.ignored("rows of train are always shuffled, all of them", "shuffle")
    data.ignored("rows of train are always shuffled, all of them", "shuffle_buffer_size")
    data.ignored(PACE, "prefetch_size", "num_parallel_calls", "file_shard", "shard", "chief_redundant",
                 "pai_worker_queue", "pai_worker_slice_num", "drop_remainder")
    data.ignored("of other kinds of input", "selected_cols", "selected_col_types", "rtp_separator",
                 "data_compression_type", "n_data_batch_tfrecord", "hive_train_input", "hive_eval_input")
    if data.flag("ignore_error", to="data.on_error"):
        target.put("data.on_error", "skip", data.line_of("ignore_error"))
    for key in data.names():
        if key.endswith("sampler") or key.startswith(("negative_sampler", "hard_negative")):
            data.refused(key, "negatives are sampled before training here, not while reading; write them as rows")
    return fields


def _fields(data: Section) -> dict[str, dict[str, Any]]:
    """The declared columns in their order: their type, what an empty cell stands for, their line."""
    fields: dict[str, dict[str, Any]] = {}
    expands = data.flag("auto_expand_input_fields")
    for section in data.sections("input_fields"):
        name = section.text("input_name", "")
        kind = section.text("input_type", "STRING", to="data.csv.types, and what empty cells are")
        default = section.text("default_val") if not _is_number(section, "default_val") else str(
            section.number("default_val"))
        for key in ("input_dim", "input_shape"):
            if (section.whole(key, 1) or 1) != 1:
                section.refused(key, "a label of several numbers is several tasks; write a column for each")
            else:
                section.ignored("1 is what a column is", key)
        if kind not in TYPES:
            section.refused("input_type", f"a column is INT32, INT64, STRING, FLOAT, DOUBLE or BOOL, not {kind}")
        for one in expanded(name) if expands else [name]:
            if one in fields:
                section.faults.append(f"{section.file}:{section.line}: {section.path}: '{one}' is declared before")
            fields[one] = {"type": TYPES.get(kind, "text"), "default": default, "line": section.line}
    return fields


def _is_number(section: Section, key: str) -> bool:
    return any(e.key == key and isinstance(e.value, int | float) for e in section.entries)


def expanded(name: str) -> list[str]:
    """'f[1-3]' -> f1, f2, f3; other names stand for themselves."""
    found = re.fullmatch(r"(.*)\[(\d{1,6})-(\d{1,6})\](.*)", name)
    if not found or int(found[3]) - int(found[2]) > 10_000:
        return [name]
    return [f"{found[1]}{i}{found[4]}" for i in range(int(found[2]), int(found[3]) + 1)]


def _csv(data: Section, target: Target, fields: dict[str, dict[str, Any]]) -> None:
    separator = data.text("separator", ",", to="data.csv.delimiter")
    if octal := re.fullmatch(r"\\(\d{3})", separator):
        separator = chr(int(octal[1], 8) & 127)
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n\0':
        data.refused("separator", "files are cut at one ASCII character that is no quote; rewrite them with ',' or a "
                                  "tab")
        separator = ","
    if separator != ",":
        target.put("data.csv.delimiter", separator, data.line_of("separator"))
    if not data.flag("with_header", to="data.csv.header"):
        target.put("data.csv.header", False)
        target.put("data.csv.columns", list(fields), data.line_of("input_fields"))
    if fields:
        target.put("data.csv.types", {name: f["type"] for name, f in fields.items()}, data.line_of("input_fields"))


# ---- features

def _feature(section: Section, ranking: Ranking, fields: dict[str, dict[str, Any]]) -> None:
    kind = section.text("feature_type", "IdFeature")
    inputs = section.texts("input_names")
    if not inputs:
        section.faults.append(f"{section.file}:{section.line}: {section.path}: input_names is missing")
        return
    name = section.text("feature_name") or inputs[0]
    for column in inputs:
        if fields and column not in fields and not any(column in expanded(f) for f in fields):
            section.faults.append(f"{section.file}:{section.line_of('input_names')}: {section.path}.input_names: no "
                                  f"input field '{column}' is declared")
    width = section.whole("embedding_dim", to="embedding.width, or the width of its space in embedding.spaces")
    if section.has("initializer"):
        section.section("initializer")
        section.approximated("initializer", ROWS_START)
        for _, entry in section.section("initializer").all_entries():
            entry.judge("approximated", ROWS_START)
    section.ignored("tables stand on one machine", "max_partitions")
    section.ignored("numbers stay numbers", "precision")
    field = fields.get(inputs[0], {"type": "text", "default": None})
    make = {"IdFeature": _id, "RawFeature": _raw, "TagFeature": _tag, "SequenceFeature": _sequence,
            "ComboFeature": _combo, "LookupFeature": _lookup, "ExprFeature": _expression}.get(kind)
    if make is None:
        section.refused("feature_type", f"{kind} has no counterpart here; compute it in a column and read that")
        return
    said = make(section, name, inputs, field)
    if said is None:
        return
    own = legal(name)
    if own != name or own == "lists":
        own = own + "_" if own == "lists" else own
        section.approximated("feature_name" if section.has("feature_name") else "input_names", f"named '{own}' here")
    if embedding := section.text("embedding_name", to="features.*.space"):
        said["space"] = legal(embedding)
    shared = [n for pattern in section.texts("shared_names", to="features.*.space") for n in expanded(pattern)]
    if shared and "kind" in said and said["kind"] not in ("id", "bag", "sequence"):
        section.refused("shared_names", "only ids, tags and sequences share vectors; declare each feature by itself")
        shared = []
    if shared:
        said.setdefault("space", own)
    ranking.declare(section, own, _spelt(own, said, inputs[0]), width)
    for other in shared:
        ranking.declare(section, legal(other), _spelt(legal(other), said, other), None)


def _spelt(name: str, said: dict[str, Any], column: str) -> dict[str, Any]:
    """The feature with its column where that is not its name, and its kind where it is no id."""
    kind, column = said.get("kind", "id"), said.get("column", column)
    reads = {} if kind == "cross" or "expression" in said or column == name else {"column": column}
    rest = {k: v for k, v in said.items() if k not in ("kind", "column")}
    return {**({"kind": kind} if kind != "id" else {}), **reads, **rest}


def _ids(section: Section, to: str = "features.*") -> dict[str, Any]:
    """How values become ids."""
    hashed = section.whole("hash_bucket_size", 0, to=f"{to}.hash_buckets; by a hash of ours") or 0
    counted = section.whole("num_buckets", 0, to=f"{to}.num_buckets") or 0
    listed = section.scalars("vocab_list", to=f"{to}.vocab_list")
    file = section.text("vocab_file", to=f"{to}.vocab_file")
    dynamic = section.section("ev_params") if section.has("ev_params") else None
    if dynamic:
        least = dynamic.whole("filter_freq", 0) or 0
        dynamic.ignored("a vocabulary is fitted on train and has no slots to free", "steps_to_live", "use_cache",
                        "init_capacity", "max_capacity")
        section.approximated("ev_params", "a vocabulary is fitted on train, instead of rows made on the fly")
        if not (hashed or counted or listed or file):
            return {"min_count": max(1, least)}
    if hashed:
        return {"hash_buckets": hashed}
    if counted:
        return {"num_buckets": counted, "unknown": 0}
    if listed:
        return {"vocab_list": listed, "unknown": listed[0]}
    if file:
        section.approximated("vocab_file", "values that it does not hold are OOV; there they are its first")
    return {"vocab_file": file} if file else {}


def _missing(field: dict[str, Any], number: bool) -> dict[str, Any]:
    """What an empty cell stands for: the field's default, 0 in a column of numbers, no value in one of texts."""
    default = field["default"]
    if number:
        try:
            return {"default": float(default) if default not in (None, "") else 0.0}
        except ValueError:
            return {"default": 0.0}
    if field["type"] == "int":
        return {"default": int(default) if default and re.fullmatch(r"-?\d{1,18}", default) else 0}
    return {"default": default} if default else {}


def _id(section: Section, name: str, inputs: list[str], field: dict[str, Any]) -> dict[str, Any] | None:
    combiner = section.text("combiner", "sum")
    section.ignored("a row has one value, so there is nothing to pool" if combiner else "", "combiner", "separator")
    ids = _ids(section)
    if not ids:
        section.approximated("feature_type", "no size is declared, so a vocabulary is fitted on train")
        ids = {"min_count": 1}
    return {**ids, **_missing(field, False)}


def _raw(section: Section, name: str, inputs: list[str], field: dict[str, Any]) -> dict[str, Any] | None:
    bounds = section.numbers("boundaries", to="features.*.boundaries")
    size = section.whole("raw_input_dim", 1, to="features.*.size") or 1
    least, most = section.number("min_val", 0.0), section.number("max_val", 0.0)
    normal = section.text("normalizer_fn")
    plain: dict[str, Any] = {"log": False, "scale": "none", "clip": None}
    if size == 1:
        section.ignored("a number is not cut", "separator")
    section.ignored("numbers are not pooled", "combiner")
    section.ignored("numbers have no ids", "hash_bucket_size")
    formula = name_in(inputs[0], _missing(field, True)["default"])
    scaled = most > least
    if scaled:
        formula = f"({formula} - {least}) / {most - least}"
        for key in ("min_val", "max_val"):
            section.carried(key, "features.*.expression")
    if normal:
        called = re.sub(r"^(tf\.)?(math\.)?", "", normal)
        if called in ("log1p", "sqrt", "sigmoid", "tanh", "exp", "abs", "sign"):
            formula, scaled = f"{called}({formula})", True
            section.carried("normalizer_fn", "features.*.expression")
        else:
            section.refused("normalizer_fn", "code in a config is not run; write the normalised number as a column")
    if scaled and size > 1:
        section.refused("min_val" if most > least else "normalizer_fn", "each place of a vector is read as it is; "
                                                                        "write the scaled numbers as the column")
    if size > 1:
        separator = section.text("separator", "|", to="features.*.separator")
        return {"kind": "vector", "size": size, "separator": separator, **plain, "indicator": False,
                **_missing(field, True)}
    if bounds:
        if any(a >= b for a, b in zip(bounds, bounds[1:])):
            section.approximated("boundaries", "sorted, each once")
            bounds = sorted(set(bounds))
        read = {"expression": formula} if scaled else {}
        return {"kind": "number", **read, "boundaries": bounds, **_missing(field, True)}
    if section.has("embedding_dim"):
        section.approximated("embedding_dim", "the number is read as it is, without a vector of its own")
    if scaled:
        return {"kind": "number", "expression": formula, **plain, "indicator": False, "default": 0.0}
    return {"kind": "number", **plain, "indicator": False, **_missing(field, True)}


def name_in(column: str, default: float | None = None) -> str:
    """A column in an expression, with what its empty cells stand for."""
    name = column if re.fullmatch(r"[^\W\d]\w*", column) and column not in ("and", "or", "not", *FUNCTIONS) else (
        f"`{column}`")
    return name if default is None else f"coalesce({name}, {default})"


def _expression(section: Section, name: str, inputs: list[str], field: dict[str, Any]) -> dict[str, Any] | None:
    said = section.text("expression", "", to="features.*.expression")
    section.ignored("a number is not cut", "separator")
    section.ignored("numbers are not pooled", "combiner")
    try:
        for step in parse(said):
            if isinstance(step, Name) and step.name not in inputs:
                section.refused("expression", f"reads '{step.name}', which is none of its input_names")
                return None
    except ValueError as error:
        section.refused("expression", f"{error}; what an expression may say is in docs/features.md")
        return None
    whole = re.sub(r"(?<![\w.`])[^\W\d]\w*(?![\w(`])", lambda m: name_in(m[0], 0.0) if m[0] in inputs else m[0], said)
    bounds = section.numbers("boundaries", to="features.*.boundaries")
    if bounds:
        return {"kind": "number", "expression": whole, "boundaries": sorted(set(bounds)), "default": 0.0}
    if section.has("embedding_dim"):
        section.approximated("embedding_dim", "the number is read as it is, without a vector of its own")
    section.ignored("a number has no ids", "num_buckets", "hash_bucket_size")
    return {"kind": "number", "expression": whole, "log": False, "scale": "none", "clip": None, "indicator": False,
            "default": 0.0}


def _pool(section: Section) -> str:
    how = section.text("combiner", "sum", to="features.*.pool")
    if how not in ("sum", "mean"):
        section.approximated("combiner", f"mean stands for {how}")
        how = "mean"
    return how


def _tag(section: Section, name: str, inputs: list[str], field: dict[str, Any]) -> dict[str, Any] | None:
    if len(inputs) > 1:
        section.refused("input_names", "weights stand beside their tags, as in 'a:0.5|b:2' (kv_separator), not in a "
                                       "second column; join the two")
        return None
    weights = section.text("kv_separator", to="features.*.weight_separator")
    return {"kind": "bag", "separator": section.text("separator", "|", to="features.*.separator"),
            **({"weight_separator": weights} if weights else {}), **(_ids(section) or {"min_count": 1}),
            "pool": _pool(section)}


def _sequence(section: Section, name: str, inputs: list[str], field: dict[str, Any]) -> dict[str, Any] | None:
    of = section.text("sub_feature_type", "IdFeature")
    bounds = section.numbers("boundaries", to="features.*.boundaries")
    if section.has("seq_multi_sep"):
        section.refused("seq_multi_sep", "an entry of a sequence is one id; write a sequence for each of its values")
    if section.has("sequence_combiner"):
        _attention_pooling(section)
    else:
        section.ignored("what pools a sequence is in sequence_combiner", "combiner")
    section.ignored("of raw values of several numbers", "sequence_length", "raw_input_dim")
    ids: dict[str, Any] = _ids(section)
    if of == "RawFeature":
        if not bounds:
            section.refused("sub_feature_type", "a sequence of numbers without boundaries has no vectors to pool; give "
                                                "it boundaries, or write its mean as a column")
            return None
        ids = {"boundaries": bounds}
    most = section.whole("max_seq_len", to="features.*.max_len, its first so many")
    return {"kind": "sequence", "separator": section.text("separator", "|", to="features.*.separator"),
            **(ids or {"min_count": 1}), "max_len": most or 10_000, "latest": "first"}


def _attention_pooling(section: Section) -> None:
    section.approximated("sequence_combiner", "a sequence is pooled as the mean of its entries; for attention, read it "
                                              "in a block with layer: target_attention")
    for inner in section.sections("sequence_combiner"):
        for entry in inner.entries:
            entry.judge("approximated", "pooled as the mean")


def _combo(section: Section, name: str, inputs: list[str], field: dict[str, Any]) -> dict[str, Any] | None:
    section.ignored("one value of the row is made of the columns' values, however they are joined", "combo_join_sep")
    section.ignored("a row has one value, so there is nothing to pool", "combiner", "separator")
    if section.has("combo_input_seps"):
        section.refused("combo_input_seps", "columns of a cross hold one value each; leave out the columns with "
                                            "several")
    if not 2 <= len(inputs) <= 16:
        section.refused("input_names", f"a cross is of 2 to 16 columns, not {len(inputs)}")
        return None
    return {"kind": "cross", "columns": inputs, **(_ids(section) or {"min_count": 1})}


def _lookup(section: Section, name: str, inputs: list[str], field: dict[str, Any]) -> dict[str, Any] | None:
    if len(inputs) != 2:
        section.refused("input_names", "a look-up reads two columns, the key and the map")
        return None
    section.approximated("feature_type", "an id, the value of its key in a map; of a key that stands there several "
                                         "times, the last value")
    section.ignored("one value is read, so there is nothing to pool", "combiner", "lookup_max_sel_elem_num")
    return {"column": inputs[1], "key": inputs[0],
            "separator": section.text("separator", "|", to="features.*.separator"),
            "key_separator": section.text("kv_separator", ":", to="features.*.key_separator"),
            **(_ids(section) or {"min_count": 1})}


def _groups(model: Section, ranking: Ranking) -> None:
    for section in model.sections("feature_groups"):
        name = section.text("group_name", "")
        ranking.group(section, name, [legal(f) for pattern in section.texts("feature_names", "embedding.groups")
                                      for f in expanded(pattern)])
        wide = section.text("wide_deep", "DEEP")
        section.ignored("the model class says which part reads the group" if wide != "WIDE_AND_DEEP" else
                        "the group is read as a deep one", "wide_deep")
        if section.flag("negative_sampler"):
            section.refused("negative_sampler", "negatives are sampled before training here; write them as rows")


# ---- the run

def _train(source: Section, target: Target) -> None:
    data, train = source.section("data_config"), source.section("train_config")
    target.put("train.out", source.text("model_dir", to="train.out"), source.line_of("model_dir"))
    if not target["train"].get("out"):
        target["train"].pop("out", None)
    steps = train.whole("num_steps", 0, to="train.steps")
    epochs = data.whole("num_epochs", 0, to="train.epochs")
    if epochs and epochs < 10_000 or not steps:
        target.put("train.epochs", epochs or None, data.line_of("num_epochs"))
    elif epochs:
        data.ignored("num_steps ends training long before", "num_epochs")
    target.put("train.steps", steps or None, train.line_of("num_steps"))
    every = train.whole("save_checkpoints_steps", to="train.evaluate_every, or checkpoint_every without valid rows")
    if every:
        valid = "valid" in target["data"]
        target.put("train.evaluate_every" if valid else "train.checkpoint_every", every,
                   train.line_of("save_checkpoints_steps"))
        if valid and steps:
            train.approximated("save_checkpoints_steps", "train.evaluate_every; the weights that are best on valid are "
                                                         "kept, instead of the last")
            target.put("train.early_stopping", {"patience": steps // every + 1})
    target.put("train.checkpoint_seconds", train.whole("save_checkpoints_secs", to="train.checkpoint_seconds"),
               train.line_of("save_checkpoints_secs"))
    target.put("train.log_every", train.whole("log_step_count_steps", to="train.log_every") or None,
               train.line_of("log_step_count_steps"))
    target.put("train.clip_norm", train.number("gradient_clipping_by_norm", to="train.clip_norm") or None,
               train.line_of("gradient_clipping_by_norm"))
    _optimiser(train, target)
    for key in ("fine_tune_checkpoint", "fine_tune_ckpt_var_map"):
        if train.text(key):
            train.refused(key, "weights of another system are not read; train from the start, or --continue-from a run "
                               "of funnelrank")
    if train.has("freeze_gradient"):
        train.refused("freeze_gradient", "no parameters are held still; remove it")
    train.ignored(ONE_MACHINE, "sync_replicas", "sparse_accumulator_type", "startup_delay_steps", "train_distribute",
                  "num_gpus_per_worker", "protocol", "inter_op_parallelism_threads", "intra_op_parallelism_threads",
                  "tensor_fuse", "enable_oss_stop_signal", "dead_line")
    train.ignored("it changes what is written down beside training, not what is learnt", "keep_checkpoint_max",
                  "save_summary_steps", "is_profiling", "summary_model_vars", "write_graph", "incr_save_config",
                  "force_restore_shape_compatible")


def _optimiser(train: Section, target: Target) -> None:
    sections = train.sections("optimizer_config")
    if len(sections) > 2:
        train.refused("optimizer_config", "there are two optimisers at most here, of tables and of the network; keep "
                                          "two")
        sections = sections[:1]
    for i, section in enumerate(sections):
        tables, network = i == 0, i == len(sections) - 1                 # of two, the first is that of the tables
        found = optimisers(section, tables=tables, network=network)
        for to, said in found.items():
            target.put(to, said, section.line)
        inner = next((section.section(k) for k in section.names() if k.endswith("_optimizer")), section)
        if network:
            rate, course = schedule(inner.section("learning_rate"))
            target.put("train.optimiser.lr", rate)
            target.put("train.schedule", course, inner.line_of("learning_rate"))
            if len(sections) == 1:
                scale = section.number("embedding_learning_rate_multiplier", 1.0, to="embedding.optimiser.lr")
                target.put("embedding.optimiser.lr", rate * scale if rate else None)
        else:
            rate, course = schedule(inner.section("learning_rate"))
            target.put("embedding.optimiser.lr", rate)
            if course:
                inner.approximated("learning_rate", "one schedule moves both learning rates, that of the network")
        average = section.flag("use_moving_average", to="train.average")
        decay = section.number("moving_average_decay", 0.9999, to="train.average")
        if network:
            target.put("train.average", decay) if average else target["train"].update(average=None)


def _evaluation(source: Section, target: Target) -> None:
    section = source.section("eval_config")
    for metrics in section.sections("metrics_set"):
        metric(metrics, target)
    section.ignored("all rows of valid are measured", "num_examples")
    section.ignored("it says how evaluation is run, not what is measured", "eval_interval_secs", "max_evals",
                    "save_graph", "visualization", "metrics_write_dir", "eval_online", "eval_export_path")
