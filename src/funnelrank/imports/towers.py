"""Tasks of EasyRec's and TorchEasyRec's towers: labels, kinds, weights, losses, relations."""

from __future__ import annotations

from typing import Any

from funnelrank.imports.drawing import Mlp
from funnelrank.imports.mlps import dnn
from funnelrank.imports.ranking import Ranking, Tower
from funnelrank.imports.source import Section, legal
from funnelrank.imports.target import Target

PAIRS = ("PAIR_WISE_LOSS", "PAIRWISE_LOGISTIC_LOSS", "PAIRWISE_FOCAL_LOSS", "PAIRWISE_HINGE_LOSS")
CROSS_ENTROPY = ("CLASSIFICATION", "CROSS_ENTROPY_LOSS", "F1_REWEIGHTED_LOSS", "BINARY_CROSS_ENTROPY_LOSS")


def declared(section: Section, ranking: Ranking, name: str,
             label: str | None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The towers that this one names, which must stand before it; and its task in the config, to be filled."""
    parents = tuple(legal(p) for p in section.texts("relation_tower_names", "inputs of its blocks"))
    earlier = list(ranking.target["tasks"])
    for parent in [p for p in parents if p not in earlier]:
        section.faults.append(
            f"{section.file}:{section.line_of('relation_tower_names')}: {section.path}.relation_tower_names: no tower "
            f"'{parent}' stands before '{name}'; there are {', '.join(earlier) or 'none'}; declare it first")
    made: dict[str, Any] = {}
    ranking.target["tasks"][name] = made
    ranking.target.note(("tasks", name), section.line)
    if label and label != name:
        made["label"] = label
    return parents, made


def task(section: Section, ranking: Ranking, labels: list[str], position: int) -> Tower:
    """Writes the task of an EasyRec tower and returns what its network is."""
    said = section.text("tower_name", f"task_{position + 1}", to="tasks, by name")
    name = legal(said)
    if name != said:
        section.approximated("tower_name", f"named '{name}' here")
    if name in ranking.target["tasks"]:
        section.faults.append(f"{section.file}:{section.line}: {section.path}: a second tower '{name}'; give each a "
                              "name")
    label = section.text("label_name", to="tasks.*.label")
    if label is None and position < len(labels):
        label = labels[position]
        section.carried("tower_name", f"tasks, by name; its label by position, '{label}'")
    for metrics in section.sections("metrics_set"):
        metric(metrics, ranking.target)
    parents, made = declared(section, ranking, name, label)
    outcome(section, ranking, name, made, parents)
    weight = section.number("weight", 1.0, to="tasks.*.weight")
    if (weight := weight * made.pop("times", 1.0)) != 1:
        made["weight"] = weight
    if not section.flag("use_sample_weight", True):
        if ranking.target["data"].get("weight"):
            section.refused("use_sample_weight", "data.weight is of all tasks; write 1 into the weights, or train two "
                                                 "models")
        else:
            section.ignored("no column of weights is declared", "use_sample_weight")
    task_space(section, ranking, name, normalised=False)
    return Tower(task=name, mlp=dnn(section.section("dnn")) if section.has("dnn") else Mlp(), line=section.line,
                 relation=dnn(section.section("relation_dnn")) if section.has("relation_dnn") else Mlp(),
                 parents=tuple(p for p in parents if p != name and p in ranking.target["tasks"]),
                 ait=_ait(section, parents),
                 project=section.whole("ait_project_dim", to="a linear block before the transfer"))


def _ait(section: Section, parents: tuple[str, ...]) -> bool:
    asked = section.flag("use_ait_module")
    if asked and parents:
        section.carried("use_ait_module", "a block with layer: ait, variant: own_keys, gate: null")
    elif asked:
        section.carried("use_ait_module", "nothing: a tower without relations has nothing to transfer")
    return asked


def task_space(section: Section, ranking: Ranking, name: str, normalised: bool) -> None:
    """What rows weigh by another label, once all towers are known; `normalised`: weights come to a mean of 1 there."""
    inside, outside = (section.number(f"{k}_task_space_weight", 1.0) for k in ("in", "out"))
    if section.text("task_space_indicator_label") and inside != outside:
        ranking.spaces.append((name, section, normalised))
    else:
        section.ignored("rows in and outside its space weigh the same", "task_space_indicator_label",
                        "in_task_space_weight", "out_task_space_weight")


def single_task(model: Section, ranking: Ranking, labels: list[str]) -> None:
    """The one task of a model without towers: its label is the first."""
    name = legal(labels[0]) if labels else "label"
    if not labels:
        model.faults.append(f"{model.file}:{model.line}: data_config.label_fields is missing; name the label's column")
    made: dict[str, Any] = {}
    ranking.target["tasks"][name] = made
    if labels and labels[0] != name:
        made["label"] = labels[0]
    outcome(model, ranking, name, made, ())
    if (times := made.pop("times", 1.0)) != 1:
        made["weight"] = times
    if len(labels) > 1:
        ranking.source.section("data_config").approximated(
            "label_fields", f"a model of one task learns '{labels[0]}', the first")


def outcome(section: Section, ranking: Ranking, name: str, made: dict[str, Any], parents: tuple[str, ...]) -> None:
    """Kind and loss of a task from loss_type, losses and num_class."""
    classes = section.whole("num_class", 1, to="tasks.*.kind")
    losses = [(s.text("loss_type", "CLASSIFICATION"), s.number("weight", 1.0, to="shares of the task's loss"), s)
              for s in section.sections("losses")]
    if not losses:
        losses = [(section.text("loss_type", "CLASSIFICATION", to="tasks.*.kind and loss"), 1.0, section)]
    elif section.has("loss_type"):
        section.ignored("losses stand for it", "loss_type")
    shares = {"bce": 0.0, "pairwise": 0.0, "jrc": 0.0, "focal": 0.0}
    keys: dict[str, Any] = {}
    for kind, weight, inner in losses:
        if kind == "ORDER_CALIBRATE_LOSS":
            _calibrator(inner, ranking, name, made, parents, weight)
        elif kind in ("L2_LOSS", "SIGMOID_L2_LOSS"):
            made["kind"] = "regression"
            made["times"] = weight
            inner.approximated("loss_type", "a regression: half the squared error, in units of the label's spread"
                               + ("; the prediction is no probability" if kind == "SIGMOID_L2_LOSS" else ""))
        elif kind in CROSS_ENTROPY:
            shares["bce"] += weight
            if kind == "F1_REWEIGHTED_LOSS":
                inner.approximated("loss_type", "plain cross entropy; rows are not weighted by the batch's F1")
                f1 = inner.section("f1_reweighted_loss")
                f1.approximated("f1_beta_square", "plain cross entropy")
                f1.approximated("label_smoothing", "none")
        elif kind in PAIRS:
            shares["pairwise"] += weight
            keys |= _pairwise(kind, inner, ranking)
        elif kind == "JRC_LOSS":
            shares["jrc"] += weight
            keys |= _jrc(inner, ranking)
        elif kind == "BINARY_FOCAL_LOSS":
            shares["focal"] += weight
            focal = inner.section("binary_focal_loss")
            keys |= {"gamma": focal.number("gamma", 2.0, to="gamma"), "alpha": focal.number("alpha", to="alpha")}
            if focal.number("ohem_ratio", 1.0) != 1.0:
                focal.approximated("ohem_ratio", "all rows count")
        else:
            inner.refused("loss_type", f"there is no {kind}; losses of a task are bce, focal, pairwise, jrc, squared "
                                       "and huber")
    if made.get("kind") == "regression":
        return
    if classes > 2:
        made |= {"kind": "multiclass", "classes": classes}
        if any(shares[k] for k in ("pairwise", "jrc", "focal")):
            section.refused("num_class", "a task of several classes has the softmax's loss alone")
        return
    if classes == 2:
        section.carried("num_class", "a binary task: a softmax of two classes is one logit")
    mix(section, made, shares, keys)


def mix(section: Section, made: dict[str, Any], shares: dict[str, float], keys: dict[str, Any]) -> None:
    """One loss of ours for several of a task, with the weights that they have."""
    there = [k for k, w in shares.items() if w]
    if there in ([], ["bce"]):
        made["times"] = shares["bce"] or 1.0
    elif there == ["focal"]:
        made["loss"], made["times"] = {"name": "focal", **{k: keys[k] for k in ("gamma", "alpha")}}, shares["focal"]
    elif there in (["pairwise"], ["bce", "pairwise"]):
        total = shares["bce"] + shares["pairwise"]
        made["loss"] = {"name": "pairwise", "alpha": round(shares["bce"] / total, 6), "by": keys["by"]}
        made["times"] = total
    elif there in (["jrc"], ["bce", "jrc"]):
        total = shares["bce"] + shares["jrc"]
        alpha = (shares["bce"] + shares["jrc"] * keys["alpha"]) / total
        made["loss"], made["times"] = {"name": "jrc", "alpha": round(alpha, 6), "by": keys["by"]}, total
    else:
        section.refused("losses", f"no loss mixes {' and '.join(there)}; pairwise and jrc hold cross entropy, one of "
                                  "them is enough")


def _by(inner: Section, ranking: Ranking) -> str:
    """Whose rows are compared: a session's, by data.user, or the batch's."""
    session = inner.text("session_name", to="data.user, by: user")
    if not session:
        return "batch"
    data = ranking.target["data"]
    if data.setdefault("user", session) != session:
        inner.approximated("session_name", f"rows are compared within data.user, '{data['user']}'")
    return "user"


def _pairwise(kind: str, inner: Section, ranking: Ranking) -> dict[str, Any]:
    key = {"PAIR_WISE_LOSS": "pairwise_loss", "PAIRWISE_LOGISTIC_LOSS": "pairwise_logistic_loss",
           "PAIRWISE_FOCAL_LOSS": "pairwise_focal_loss", "PAIRWISE_HINGE_LOSS": "pairwise_hinge_loss"}[kind]
    section = inner.section(key)
    if kind in ("PAIRWISE_FOCAL_LOSS", "PAIRWISE_HINGE_LOSS"):
        inner.approximated("loss_type", "the logistic loss of pairs (RankNet)")
    for name, usual in (("margin", 0.0), ("temperature", 1.0), ("gamma", None), ("alpha", None), ("ohem_ratio", 1.0)):
        if section.has(name) and section.number(name) != usual:
            section.approximated(name, "pairs have the plain logistic loss")
    for name in ("hinge_margin", "label_is_logits", "use_label_margin", "use_exponent", "lower_bound", "upper_bound"):
        section.approximated(name, "pairs have the plain logistic loss")
    return {"by": _by(section, ranking)}


def _jrc(inner: Section, ranking: Ranking) -> dict[str, Any]:
    section = inner.section("jrc_loss")
    section.approximated("same_label_loss", "rows of one label are compared, too")
    section.approximated("loss_weight_strategy", "fixed")
    section.approximated("sample_weights", "data.weight")
    return {"alpha": section.number("alpha", 0.5, to="tasks.*.loss.alpha"), "by": _by(section, ranking)}


def _calibrator(inner: Section, ranking: Ranking, name: str, made: dict[str, Any], parents: tuple[str, ...],
                weight: float) -> None:
    """ORDER_CALIBRATE_LOSS: the behavioural expectation calibrator along `after`."""
    where = f"{inner.file}:{inner.line}: {inner.path}"
    earlier = [t for t in ranking.target["tasks"] if t != name]
    if not parents:
        fix = (f"add relation_tower_names: [\"{earlier[-1]}\"] to the tower '{name}'" if earlier else
               "declare the tower that comes before, and name it in relation_tower_names")
        inner.faults.append(f"{where}: ORDER_CALIBRATE_LOSS keeps '{name}' below the towers in its "
                            f"relation_tower_names, and there are none, so it would always be 0; {fix}, or remove the "
                            "loss")
        return
    if len(parents) > 1:
        inner.approximated("loss_type", f"'{name}' is kept below '{parents[-1]}' alone")
    else:
        inner.carried("loss_type", "model.calibrator, and tasks.*.after")
    made["after"] = parents[-1]
    model = ranking.target["model"]
    if model.setdefault("calibrator", weight) != weight:
        inner.approximated("weight", f"the calibrator has one weight, {model['calibrator']}")
    ranking.target.put("data.contradictions", "keep", inner.line)


def metric(section: Section, target: Target) -> None:
    """What a run is measured by: every report has AUC and more; groups are named."""
    for key in section.names():
        inner = section.sections(key)
        group = next((s.text(k) for s in inner for k in ("uid_field", "session_id_field", "session_name")
                      if s.has(k)), None)
        for s in inner:
            s.ignored("AUC is exact, without thresholds", "num_thresholds", "thresholds")
            s.ignored("GAUC is weighted by rows, and reported unweighted beside", "reduction")
            s.ignored("positives and negatives are those of the label", "negative_sampler_size")
        if key in ("auc", "AUC"):
            section.carried(key, "in every report")
        elif key in ("gauc", "session_auc", "grouped_auc"):
            if group and "user" not in target["data"]:
                target.put("data.user", group, section.line_of(key))
                section.carried(key, "gauc of every report, by data.user")
            elif group and group != target["data"].get("user"):
                target["evaluate"].setdefault("gauc_by", []).append(group)
                section.carried(key, "evaluate.gauc_by")
        elif key in ("root_mean_squared_error", "mean_absolute_error", "mean_squared_error"):
            section.carried(key, "rmse and mae of every regression's report")
        else:
            section.ignored("reports have metrics of their own; none is trained by it", key)
