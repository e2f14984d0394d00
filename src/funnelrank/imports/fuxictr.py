"""FuxiCTR's two files: dataset_config.yaml says what columns are, model_config.yaml has experiments over a common "
  "Base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from funnelrank import config, document
from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.imports.fuxictr_models import MODELS
from funnelrank.imports.mlps import ACTIVATION
from funnelrank.imports.overlaid import Overlaid, holds
from funnelrank.imports.source import Section, legal, of_mapping
from funnelrank.imports.target import Target

FILES = ("dataset_config", "model_config")
START = 1e-4                     # the spread that its vectors start with where nothing is said
CLIP = 10.0                      # what its trainer clips the gradients' norm to where nothing is said
POOLING = re.compile(r"(layers\.)?Masked(Average|Sum)Pooling\(\)")
RUN = "it says how its own program runs, not what is learnt"


def find(paths: Sequence[Path]) -> list[Path]:
    """Dataset and model files of a folder, or of one of the two beside the other."""
    found: list[Path] = []
    for path in paths:
        folder = path if path.is_dir() else path.parent if len(paths) == 1 else None
        if folder is None:
            found.append(path)
            continue
        for name in FILES:
            found += sorted([*folder.glob(f"{name}.y*ml"), *folder.glob(f"{name}/*.y*ml")])
        found += [path] if path.is_file() and path not in found else []
    return found


def sections(paths: Sequence[Path], faults: list[str]) -> list[Section]:
    """Each file as a section. Raises ConfigError for what is no YAML mapping."""
    found = []
    for path in find(paths):
        said = document.read(config.read_text(path), path.name)
        faults += said.faults
        if not isinstance(said.value, dict):
            raise ConfigError(f"{path}:1: is no mapping; FuxiCTR's files have datasets or experiments by name")
        lines = {at: int(place.split(":")[-2]) for at, place in said.places.items()}
        found.append(of_mapping(said.value, lines, path.name, faults))
    if not found:
        raise ConfigError(f"{paths[0]}: holds no dataset_config.yaml and model_config.yaml; name the folder that has "
                          "them, or both files")
    return found


def read(sources: Sequence[Section], target: Target, experiment: str | None) -> str:
    """Fills `target` with an experiment and its dataset; returns the experiment's name."""
    models = [(s, e) for s in sources for e in s.entries if isinstance(e.value, Section) and (
        e.value.has("model") or e.key == "Base" or e.value.has("model_root"))]
    names = [e.key for _, e in models if e.key != "Base"]
    if experiment is None and len(names) == 1:
        experiment = names[0]
    if experiment not in names:
        where = f"{sources[-1].file}:1"
        if not names:
            raise ConfigError(f"{where}: no experiment says which `model` it is of; name model_config.yaml, too")
        if experiment is None:
            raise ConfigError(f"{where}: there are the experiments {listing(names)}; choose one with --expid")
        raise ConfigError(f"{where}: no experiment '{experiment}'; there are {listing(names)}"
                          + did_you_mean(experiment, names))
    own = next(e.value for _, e in models if e.key == experiment)
    base = next((e.value for _, e in models if e.key == "Base"), Section("Base", 1, own.file, own.faults))
    for source, e in models:
        if e.key not in (experiment, "Base"):
            source.ignored("another experiment", e.key)
        else:
            source.carried(e.key)
    said = Overlaid(own, base)
    wanted = said.text("dataset_id", to="data") or ""
    dataset = _dataset(sources, wanted, own)
    made = Import(said, dataset, target)
    made.data()
    made.run()
    made.model()
    return experiment


def _dataset(sources: Sequence[Section], wanted: str, own: Section) -> Section:
    found, names = None, []
    for source in sources:
        for e in source.entries:
            if isinstance(e.value, Section) and e.value.has("feature_cols"):
                names.append(e.key)
                if e.key == wanted:
                    found = e.value
                    source.carried(e.key)
                else:
                    source.ignored("another dataset", e.key)
    if found is None:
        own.faults.append(f"{own.file}:{own.line_of('dataset_id')}: {own.path}.dataset_id: no dataset '{wanted}' with "
                          f"feature_cols; there are {listing(names)}" + did_you_mean(wanted, names))
        return Section(wanted, 1, own.file, own.faults)
    return found


@dataclass
class Import:
    said: Overlaid
    dataset: Section
    target: Target
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    numeric: list[str] = field(default_factory=list)

    # ---- rows

    def data(self) -> None:
        d, put = self.dataset, self.target.put
        for key, to in (("train_data", "train"), ("valid_data", "valid"), ("test_data", "test")):
            if d.has(key):
                put(f"data.{to}", d.text(key, to=f"data.{to}"), d.line_of(key))
        kind = d.text("data_format", "csv", to="data.format")
        if kind in ("csv", "parquet"):
            put("data.format", kind, d.line_of("data_format"))
        else:
            d.refused("data_format", f"rows are read from csv or parquet files, not from {kind}; name the files that "
                                     "it was made from")
        d.ignored("paths stand by themselves", "data_root")
        d.ignored(RUN, "rebuild_dataset", "data_block_size", "block_size", "data_loader", "num_workers", "preprocess")
        least = d.whole("min_categr_count", 1, to="features.*.min_count") or 1
        for section in d.sections("feature_cols"):
            for name in section.texts("name", "features, by name"):
                self._feature(section, name, least)
        self._labels()
        if self.said.has("feature_specs"):
            self.said.refused("feature_specs", "a feature is one feature to all parts; say it in feature_cols")
        if self.said.has("use_features"):
            chosen = [str(f) for f in self.said.scalars("use_features", to="features")]
            self.features = {n: f for n, f in self.features.items() if n in map(legal, chosen)}
        self.said.ignored("feature_cols say it", "feature_config")
        config_features: dict[str, Any] = {"lists": "off", **self.features}
        self.target.config["features"] = config_features
        width = self.said.whole("embedding_dim", 10, to="embedding.width")
        put("embedding.width", width, self.said.line("embedding_dim"))

    def _feature(self, section: Section, name: str, least: int) -> None:
        if not section.flag("active", True):
            section.ignored("the column is not active", *section.names())
            return
        own = legal(name) + ("_" if name == "lists" else "")
        kind = section.text("type", "categorical", to="features.*.kind")
        section.ignored("columns are read as their values are", "dtype")
        section.ignored("groups are named by the parts that read them", "source")
        for key in ("preprocess", "feature_encoder", "feature_processor"):
            self._code(section, key)
        said: dict[str, Any] | None = None
        if kind == "numeric":
            said = self._numeric(section, own)
        elif kind in ("categorical", "sequence"):
            said = self._categorical(section, name, own, kind, least)
        elif kind == "meta":
            section.ignored("the model does not see it", *section.names())
            return
        else:
            section.refused("type", f"there is no type '{kind}'; numeric, categorical and sequence are there")
        if said is None:
            return
        if own != name:
            said = {"column": name, **said}
        self.features[own] = said
        self.target.note(("features", own), section.line)

    def _numeric(self, section: Section, own: str) -> dict[str, Any]:
        self.numeric.append(own)
        plain: dict[str, Any] = {"kind": "number", "log": False, "scale": "none", "clip": None, "indicator": False}
        normal = section.text("normalizer") if holds(section, "normalizer") else None
        if normal in ("StandardScaler", "MinMaxScaler"):
            plain["scale"] = "standard" if normal == "StandardScaler" else "minmax"
            section.carried("normalizer", "features.*.scale, fitted on train")
        elif normal:
            section.refused("normalizer", f"there is no {normal}; StandardScaler and MinMaxScaler are there")
        default = section.number("fill_na", 0.0, to="features.*.default") if holds(section, "fill_na") else 0.0
        section.ignored("numbers have no ids", "min_categr_count", "vocab_size", "embedding_dim")
        return {**plain, "default": default}

    def _categorical(self, section: Section, name: str, own: str, kind: str, least: int) -> dict[str, Any] | None:
        count = section.whole("min_categr_count", least, to="features.*.min_count") or 1
        said: dict[str, Any] = {}
        if section.has("category_processor"):
            how = section.text("category_processor")
            buckets = section.whole("num_buckets", 1000, to="features.*.hash_buckets")
            if how == "hash_bucket":
                section.carried("category_processor", "features.*.hash_buckets")
                said["hash_buckets"] = buckets
            elif how == "quantile_bucket":
                section.carried("category_processor", "features.*.buckets")
                return {"kind": "number", "buckets": max(2, min(65536, buckets))}
            else:
                section.refused("category_processor", f"there is no {how}; hash_bucket and quantile_bucket are there")
        if not said:
            said["min_count"] = count
        if not section.flag("remap", True):
            section.approximated("remap", "a vocabulary is fitted on train")
        for key in ("vocab_size", "oov_idx", "padding_idx"):
            section.ignored("vocabularies are counted", key)
        if section.has("pretrained_emb"):
            section.refused("pretrained_emb", "vectors made elsewhere are named in data.vectors, and read by "
                                              "embedding.spaces.NAME.pretrained")
            section.ignored("there are no such vectors yet", "freeze_emb")
        if section.has("embedding_dim") and (width := section.whole("embedding_dim", to="embedding.spaces.*.width")):
            self.target["embedding"].setdefault("spaces", {})[own] = {"width": width}
        if section.has("share_embedding"):
            shared = legal(section.text("share_embedding", to="features.*.space"))
            said = {"space": shared}
            self.target["embedding"].get("spaces", {}).pop(own, None)
        fill = section.scalars("fill_na", to="features.*.default") if holds(section, "fill_na") else []
        if fill and fill != [""]:
            said["default"] = fill[0] if isinstance(fill[0], int) else str(fill[0])
        section.ignored("an empty cell has no value", "fill_na") if "default" not in said else None
        if kind == "categorical":
            return said
        before = section.text("padding", "pre", to="features.*.latest")
        length = section.whole("max_len", 0, to="features.*.max_len")
        return {"kind": "sequence", "separator": section.text("splitter", " ", to="features.*.separator"), **said,
                "max_len": length or 10_000, **({"latest": "first"} if before == "post" else {}),
                **({"pool": "sum"} if "Sum" in self._pooling(section) else {})}

    def _code(self, section: Section, key: str) -> None:
        """Python in a text is known by its words or refused."""
        if not section.has(key):
            return
        texts = [str(e.value) for e in section.entries if e.key == key and e.value is not None]
        if key == "feature_encoder" and all(POOLING.fullmatch(t) for t in texts):
            section.carried(key, "features.*.pool")
        elif texts:
            section.refused(key, f"'{texts[0][:60]}' is code, and is not run; write its result as a column")
        else:
            section.carried(key, "nothing: the sequence is read entry by entry, or pooled as its mean")

    def _pooling(self, section: Section) -> str:
        return next((str(e.value) for e in section.entries if e.key == "feature_encoder"), "")

    def _labels(self) -> None:
        kinds = [str(t) for t in self.said.scalars("task", to="tasks.*.kind")] or ["binary_classification"]
        names: list[str] = []
        for section in self.dataset.sections("label_col"):
            names.append(section.text("name", "label", to="tasks, by name"))
            section.ignored("labels are read as their values are", "dtype", "preprocess", "fill_na")
        weights = [w for w in self.said.scalars("loss_weight", to="tasks.*.weight") if w != "EQ"]
        losses = self.said.scalars("loss", to="tasks.*.kind")
        for i, name in enumerate(names):
            kind = kinds[i] if i < len(kinds) else kinds[-1]
            made: dict[str, Any] = {} if legal(name) == name else {"label": name}
            if kind == "regression":
                made["kind"] = "regression"
                self.said.approximated("task", "half the squared error, in units of the label's spread")
            elif kind != "binary_classification":
                self.said.refused("task", f"there is no {kind}; binary_classification and regression are there")
            if i < len(weights) and isinstance(weights[i], int | float) and weights[i] != 1:
                made["weight"] = weights[i]
            self.target["tasks"][legal(name)] = made
        if any(not isinstance(w, int | float) for w in weights):
            chosen = {"UW": "uncertainty", "GN": "gradnorm"}.get(str(weights[0]))
            if chosen:
                self.target.put("train.balance", chosen, self.said.line("loss_weight"))
            else:
                self.said.refused("loss_weight", "train.balance has fixed, uncertainty, gradnorm and others")
        for loss in losses:
            if loss not in ("binary_crossentropy", "binary_cross_entropy", "mse", "mean_squared_error",
                            "mean_squared_loss"):
                self.said.refused("loss", f"there is no {loss}; a task's loss is bce, focal, pairwise, jrc, squared or "
                                          "huber")
        if not names:
            self.dataset.faults.append(f"{self.dataset.file}:{self.dataset.line}: {self.dataset.path}: label_col is "
                                       "missing; name the labels' columns")
        self.said.ignored("tasks are counted", "num_tasks")

    # ---- the run

    def run(self) -> None:
        said, put = self.said, self.target.put
        put("train.batch_size", said.whole("batch_size", 10_000, to="train.batch_size"), said.line("batch_size"))
        put("train.epochs", said.whole("epochs", 100, to="train.epochs"), said.line("epochs"))
        put("train.seed", said.whole("seed", to="train.seed"), said.line("seed"))
        put("train.evaluate_every", said.whole("eval_steps", to="train.evaluate_every"), said.line("eval_steps"))
        name = (said.text("optimizer", "adam", to="train.optimiser, embedding.optimiser") or "adam").lower()
        dense, rows = {"adam": ("adam", "adam"), "adamw": ("adamw", "adam"), "adagrad": ("adagrad", "adagrad"),
                       "sgd": ("sgd", "sgd")}.get(name, ("adam", "adam"))
        if name not in ("adam", "adamw", "adagrad", "sgd"):
            said.refused("optimizer", f"there is no {name}; adam, adamw, adagrad and sgd are there")
        elif name.startswith("adam"):
            said.approximated("optimizer", "rows of tables move only when a batch has them (a lazy Adam)")
        rate = said.number("learning_rate", 1e-3, to="train.optimiser.lr, embedding.optimiser.lr")
        for section, kind in (("train", dense), ("embedding", rows)):
            put(f"{section}.optimiser.name", kind, said.line("optimizer"))
            put(f"{section}.optimiser.lr", rate, said.line("learning_rate"))
        self._regularizer("net_regularizer", "train.optimiser.l2")
        self._regularizer("embedding_regularizer", "embedding.optimiser.l2")
        clip = said.number("max_gradient_norm", CLIP, to="train.clip_norm")
        put("train.clip_norm", clip or None, said.line("max_gradient_norm") if said.has("max_gradient_norm") else None)
        self.target["train"]["average"] = None
        started = said.text("embedding_initializer", to="embedding.init")
        put("embedding.init", START)
        if started and (spread := re.search(r"std\s*=\s*([0-9.]+(?:e-?[0-9]+)?)", started)):
            put("embedding.init", float(spread[1]), said.line("embedding_initializer"))
        elif started:
            said.approximated("embedding_initializer", "rows start from N(0, embedding.init)")
        stopping: dict[str, Any] = {}
        if patience := said.whole("early_stop_patience", 2, to="train.early_stopping.patience"):
            stopping["patience"] = patience
        group = said.text("group_id", to="data.user")
        if group:
            put("data.user", group, said.line("group_id"))
        watched = [str(e.value) if not isinstance(e.value, Section) else ", ".join(e.value.names())
                   for e in said.of("monitor").entries if e.key == "monitor"] if said.has("monitor") else []
        self._watch(watched, stopping)
        if "valid" in self.target["data"] and stopping:
            put("train.early_stopping", stopping)
        if said.flag("reduce_lr_on_plateau"):
            said.approximated("reduce_lr_on_plateau", "the rate stays; train.schedule has courses that fall")
        for metric in said.scalars("metrics", to="every report"):
            if str(metric) not in ("AUC", "logloss", "binary_crossentropy", "gAUC", "avgAUC"):
                said.approximated("metrics", "reports have metrics of their own; none is trained by it")
        said.ignored("rows of train are always shuffled", "shuffle")
        said.ignored(RUN, "model_root", "num_workers", "verbose", "pickle_feature_encoder", "save_best_only",
                     "debug_mode", "version", "gpu", "ordered_features", "model_id", "every_x_epochs", "patience",
                     "partition_block_size")
        said.ignored("better is higher or lower by the metric", "monitor_mode")

    def _watch(self, watched: list[str], stopping: dict[str, Any]) -> None:
        if not watched:
            return
        known = {"AUC": "valid/auc", "gAUC": "valid/gauc", "logloss": None, "binary_crossentropy": None}
        name = watched[0]
        if name in known and len(watched) == 1:
            first = next(iter(self.target["tasks"]), "label")
            metric = known[name] or f"valid/{first}/logloss"
            if metric.endswith("gauc") and "user" not in self.target["data"]:
                metric = "valid/auc"
            if metric != "valid/auc":
                stopping["metric"] = metric
            self.said.of("monitor").carried("monitor", "train.early_stopping.metric")
            return
        section = self.said.of("monitor")
        section.approximated("monitor", "weights are chosen by the mean AUC on valid")
        for inner in section.sections("monitor") if any(
                isinstance(e.value, Section) for e in section.entries if e.key == "monitor") else []:
            for entry in inner.entries:
                entry.judge("approximated", "weights are chosen by the mean AUC on valid")

    def _regularizer(self, key: str, to: str) -> None:
        if not self.said.has(key):
            return
        found = self.said.scalars(key)
        value = found[0] if found else 0
        if isinstance(value, str) and (l2 := re.fullmatch(r"l2\(([-0-9.e]+)\)", value)):
            value = float(l2[1])
        if not isinstance(value, int | float):
            self.said.refused(key, f"'{value}' is no L2; write its weight as a number")
        elif value:
            self.target.put(to, value, self.said.line(key))
            self.said.approximated(key, f"{to}: of weights that a batch touches" if "embedding" in key else
                                   f"{to}: of matrices, not of biases")
        else:
            self.said.of(key).carried(key, "none")

    # ---- models

    def model(self) -> None:
        name = self.said.text("model", "", to="model") or ""
        make = MODELS.get(name)
        if make is None:
            self.said.refused("model", f"there is no importer for {name}; models that are carried are "
                                       f"{', '.join(MODELS)}")
            self.target["model"]["name"] = "shared_bottom"
            return
        made = make(self, self.said)
        if self.numeric and name not in ("LR", "FM", "DeepFM", "NFM", "AFM", "AutoInt", "PNN"):
            self.said.of("model").approximated("model", f"numbers ({', '.join(self.numeric[:4])}) are read as they "
                                                        "are, without vectors of their own")
        self.target.config["model"] = made
        self.target.note(("model",), self.said.own.line)
        if not any(f.get("kind") == "sequence" for f in self.features.values()):
            return
        read = any(p == "din" or isinstance(p, dict) and p["name"] == "din" for p in made.get("prepare", []))
        if read:
            self._histories()

    def mlp(self, units: str, activations: str | None = None, default: Sequence[int] = (64, 64, 64)) -> dict[str, Any]:
        """Keys of an MLP, as the experiment says its widths, activations, dropout and norm."""
        said = self.said
        keys: dict[str, Any] = {"hidden": said.wholes(units, default, to="hidden")}
        named = activations or next((k for k in ("hidden_activations", "dnn_activations") if said.has(k)), "")
        acts = [str(a) for a in said.scalars(named, to="activation")] if named else []
        if acts:
            act = ACTIVATION.get(acts[0].lower())
            if act is None:
                said.refused(named, f"there is no activation '{acts[0]}'; write relu, gelu, silu, tanh or dice")
            elif act != "relu":
                keys["activation"] = act
            if len(set(acts)) > 1:
                said.approximated(named, "all layers have the first one's")
        rates = [r for r in said.scalars("net_dropout", to="dropout") if isinstance(r, int | float) and 0 <= r < 1]
        if rates and rates[0]:
            keys["dropout"] = rates[0]
        if len(set(rates)) > 1:
            said.approximated("net_dropout", "all layers have the first one's")
        if said.flag("batch_norm", to="norm"):
            keys["norm"] = "batch"
        return keys

    def fields_of(self, key: str) -> list[str]:
        """Names of features in a list, or in lists that stand for features side by side."""
        found: list[str] = []
        for value in self.said.scalars(key, to="features"):
            found += [legal(str(v)) for v in (value if isinstance(value, list | tuple) else [value])]
        return found

    def _histories(self) -> None:
        """Sequences share the space of the field that DIN compares them with."""
        items, lists = self.fields_of("din_target_field"), self.fields_of("din_sequence_field")
        for item, sequence in zip(items, lists):
            if item not in self.features or self.features.get(sequence, {}).get("kind") != "sequence":
                self.said.refused("din_sequence_field", f"'{sequence}' is no sequence, or '{item}' no feature; declare "
                                                        "them")
                continue
            feature = self.features[sequence]
            space = self.features[item].get("space", item)
            if feature.get("space", sequence) != space:
                self.said.approximated("din_sequence_field", "a sequence shares the vectors of what it is compared "
                                                             "with")
            for made in ("min_count", "hash_buckets", "default"):
                feature.pop(made, None)
            feature |= {"space": space, "target": item}
        if len(items) != len(lists):
            self.said.approximated("din_target_field", "a sequence is compared with the field at its place")
        if any(isinstance(v, list) for v in self.said.scalars("din_sequence_field")):
            self.said.approximated("din_sequence_field", "an attention for each sequence, instead of one over all of "
                                                         "them side by side")
        others = [n for n, f in self.features.items() if f.get("kind") == "sequence" and n not in lists and any(
            o.get("kind", "id") == "id" and o.get("space", m) == f.get("space", n) for m, o in self.features.items())]
        if others:
            self.said.approximated("din_sequence_field", f"{', '.join(others)}: read against the row's own id, too")
