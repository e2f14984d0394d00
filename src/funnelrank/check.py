"""What is well-formed and still cannot be meant: settings that can have no effect, or that no run could honour.

    refusals    no run can honour it, or someone asked for it by name and it can only do nothing: exit code 2
    notes       it does nothing, or less than it seems: printed by `funnelrank check`

Each is 'dotted.key: what was found; what would do'. Neither reads data (data/verify.py does) nor imports torch.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from funnelrank import blocks, together
from funnelrank.errors import did_you_mean, listing
from funnelrank.schema import Schema
from funnelrank.settings import LOOKING, LOSSES, Settings
from funnelrank.shapes import misfits
from funnelrank.sizes import known_sizes
from funnelrank.together import part_groups, slot_parts

# metrics on the valid split that a run can follow, per kind of task; those of binary tasks also as their mean.
# They are those of evaluate/table.py with a better and a worse (pcoc has none), which a test compares.
METRICS = {"binary": ("auc", "gauc", "gauc_unweighted", "pr_auc", "logloss", "ne", "ece"),
           "regression": ("rmse", "mae", "spearman"), "count": ("rmse", "mae", "spearman", "gini", "auc_positive"),
           "ziln": ("rmse", "mae", "spearman", "gini", "auc_positive"),
           "multiclass": ("accuracy", "logloss", "auc_ovr")}


def refusals(settings: Settings, schema: Schema, shipped: Mapping[str, Any]) -> list[str]:
    """Why no run can honour these settings; empty if one can. `shipped`, the JSON Schema, says what parts need."""
    return [*_calibrator(settings, schema), *_slots(settings, schema), *_drawing(settings, schema, shipped),
            *together.refusals(settings, schema, shipped), *_debias(settings, schema), *_outputs(settings, schema),
            *_early_stopping(settings, schema), *_task_names(settings, schema), *_losses(schema),
            *_within(settings, schema),
            *_balance(settings, schema), *_calibrate(settings, schema)]


def notes(settings: Settings, schema: Schema) -> list[str]:
    """What has no effect, or less than it seems."""
    return [*_funnel(settings, schema), *_groups(settings), *_embedding(settings), *unread(settings, schema),
            *_columns(settings, schema), *_lonely(settings, schema), *_training(settings)]


def calibrator_acts(reading: str, tasks: Mapping[str, Any]) -> bool:
    """Whether p(later) > p(earlier) can happen at all: joint reading, and a binary task after another."""
    return reading == "joint" and any(
        isinstance(t, dict) and t.get("after") and t.get("kind", "binary") == "binary" for t in tasks.values())


# ---- refusals

def _calibrator(settings: Settings, schema: Schema) -> Iterator[str]:
    weight = settings.model.get("calibrator")
    if weight and not calibrator_acts(schema.reading, {t.name: t.model_dump() for t in schema.tasks}):
        why = (f"under the {schema.reading} reading p(later) <= p(earlier) holds by construction"
               if schema.nested else "no binary task comes after another")
        yield f"model.calibrator: {weight} was asked for, but {why}, so it can only be zero; remove it"


def _slots(settings: Settings, schema: Schema) -> Iterator[str]:
    model, names = settings.model, schema.task_names
    for slot in ("represent", "predict"):
        if not model.get(slot) and not (model.get("side") and not model.get("represent")):
            yield f"model.{slot}: nothing stands in this slot; give `model` a name, or this slot a part"
    relations = model.get("relations")
    for child, parents in (relations or {}).items():
        for name in (child, *([parents] if isinstance(parents, str) else parents)):
            if name not in names:
                yield (f"model.relations.{child}: no task '{name}'; tasks are {listing(names)}"
                       + did_you_mean(name, names))
            elif name != child and child in names and names.index(name) > names.index(child):
                yield (f"model.relations.{child}: '{name}' stands behind '{child}'; information passes from earlier "
                       "tasks to later ones, so declare it first")
            elif parents == name == child or (not isinstance(parents, str) and child in parents and name == child):
                yield f"model.relations.{child}: a task cannot learn from itself"
    related = any(relations.values()) if relations is not None else any(t.after for t in schema.tasks)
    if model.get("transfer") and not related:
        yield ("model.transfer: no task comes after another, so there is nothing to transfer; declare `after` in "
               "tasks, or choose a model without a transfer, such as shared_bottom")


def _debias(settings: Settings, schema: Schema) -> Iterator[str]:
    said = settings.model.get("debias")
    if said and schema.reading != "conditional":
        yield (f"model.debias: {said['name']} is about a step given the one before, and under the {schema.reading} "
               "reading a logit is not that; say reading: conditional, or leave debias out")
    if said and not any(t.after and t.kind == "binary" for t in schema.tasks):
        yield (f"model.debias: {said['name']} was asked for, but no binary task comes after another, so there is "
               "nothing to debias; declare `after` in tasks, or remove it")
    elif said and not said["weight"] and not said["entire_space"]:
        yield "model.debias: weight and entire_space are both 0, so later steps would learn nothing; give one a weight"


def _outputs(settings: Settings, schema: Schema) -> Iterator[str]:
    several = [t for t in schema.tasks if t.outputs > 1]
    if several and several[0].unserved and any(p["name"] == "fm" for p in slot_parts(settings.model, ("side",))):
        yield (f"model.side: fm is one number a row, and debias: {settings.model['debias']['name']} reads two of task "
               f"'{several[0].name}'; leave fm out, or let its products into the network with represent: deepfm")
    elif several and any(p["name"] == "fm" for p in slot_parts(settings.model, ("side",))):
        yield (f"model.side: fm is one number a row, and task '{several[0].name}' ({several[0].kind}) reads "
               f"{several[0].outputs}; leave fm out, or let its products into the network with represent: deepfm")


def _drawing(settings: Settings, schema: Schema, shipped: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a network drawn as blocks, and where its widths cannot meet."""
    groups = {f.role for f in schema.features.values() if f.role} | set(settings.embedding.groups)
    sequences = [n for n, f in schema.of_kind("sequence", "history").items() if f.target]
    for part in slot_parts(settings.model, ("represent",)):
        if blocks.is_drawing(part):
            wrong = list(blocks.faults(part, schema.task_names, groups, sequences)) or misfits(
                part, known_sizes(settings, schema, shipped), len(schema.tasks))
            yield from (f"model.represent.{where}: {sentence}" for where, sentence in wrong)


def _early_stopping(settings: Settings, schema: Schema) -> Iterator[str]:
    said = settings.train.early_stopping.metric
    where, parts = "train.early_stopping.metric", said.split("/")
    kinds = {t.name: t.kind for t in schema.tasks}
    if len(parts) not in (2, 3) or parts[0] != "valid":
        yield f"{where}: found '{said}'; must be valid/METRIC or valid/TASK/METRIC, as in valid/auc"
    elif len(parts) == 3 and parts[1] not in kinds:
        yield f"{where}: no task '{parts[1]}'; tasks are {listing(kinds)}" + did_you_mean(parts[1], kinds)
    else:
        known = METRICS[kinds[parts[1]] if len(parts) == 3 else "binary"]
        of = f"task '{parts[1]}'" if len(parts) == 3 else "the mean over tasks"
        if len(parts) == 2 and "binary" not in kinds.values():
            if said != type(settings.train.early_stopping)().metric or settings.data.valid is not None:
                first = schema.tasks[0].name
                yield f"{where}: only binary tasks have a mean; name one task, as in valid/{first}/rmse"
        elif parts[-1] not in known:
            yield f"{where}: no metric '{parts[-1]}' to follow for {of}; there are {listing(known)}" + did_you_mean(
                parts[-1], known)
        elif parts[-1].startswith("gauc") and schema.user is None:
            yield f"{where}: '{parts[-1]}' groups rows by user; set data.user to the column that names them"


def _task_names(settings: Settings, schema: Schema) -> Iterator[str]:
    for task in settings.evaluate.truth:
        if task not in schema.task_names:
            yield (f"evaluate.truth.{task}: no task '{task}'; tasks are {listing(schema.task_names)}"
                   + did_you_mean(task, schema.task_names))
    kept = schema.negatives_kept
    if kept and next(t.kind for t in schema.tasks if t.name == kept.task) != "binary":
        yield f"data.negatives_kept.task: '{kept.task}' is not binary, so it has no negatives"
    elif kept and {t.name: t.after for t in schema.tasks}[kept.task]:
        yield (f"data.negatives_kept.task: '{kept.task}' comes after another task; rows are kept or left out by the "
               "first step of a funnel")
    if all(t.weight == 0 for t in schema.tasks):
        yield f"tasks.{schema.tasks[0].name}.weight: every task has weight 0, so nothing would be learnt"


def _losses(schema: Schema) -> Iterator[str]:
    for task in schema.tasks:
        where, known = f"tasks.{task.name}.loss", LOSSES.get(task.kind, ())
        if not task.loss:
            continue
        if not known:
            yield f"{where}: a {task.kind} has one loss, its likelihood; leave loss out"
        elif task.loss.name not in known:
            yield f"{where}: {task.loss.name} is no loss of a {task.kind} task; there are {listing(known)}"
        elif getattr(task.loss, "by", None) == "user" and schema.user is None:
            yield (f"{where}: {task.loss.name} compares rows of one user; set data.user to the column that names them, "
                   "or write by: batch")
        elif task.loss.name == "jrc" and task.after and schema.nested:
            yield (f"{where}: jrc compares the logits of all rows, and under the {schema.reading} reading those of "
                   f"'{task.name}' are of rows with '{task.after}'; choose pairwise, or the joint reading")


def _within(settings: Settings, schema: Schema) -> Iterator[str]:
    for task in (t for t in schema.tasks if t.within):
        where, of = f"tasks.{task.name}.within", task.within.task
        if of == task.name and not task.within.outside:
            yield f"{where}: inside its own label every row is a positive; give outside a weight, or name another task"
        elif task.after and schema.nested:
            yield (f"{where}: under the {schema.reading} reading a step's loss teaches the steps before it, which must "
                   "see all rows; choose the joint reading, or remove within")
        elif settings.model.get("debias"):
            yield (f"{where}: model.debias says itself what rows weigh, by how likely they were to be seen; keep one "
                   "of the two")


def _balance(settings: Settings, schema: Schema) -> Iterator[str]:
    said, tasks, where = settings.train.balance, schema.tasks, "train.balance"
    if said.name == "fixed":
        return
    if said.name == "equal":
        yield from (f"{where}: equal was asked for, but tasks.{t.name}.weight is {t.weight:g}; write fixed, or leave "
                    "the weight out" for t in tasks if t.weight != 1)
        return
    if len(tasks) == 1:
        yield f"{where}: {said.name} balances tasks, and '{tasks[0].name}' is the only one; leave it out"
    for task in tasks:
        if task.weight == 0:
            yield (f"{where}: {said.name} compares all tasks, and tasks.{task.name}.weight is 0; remove the task, or "
                   "write fixed")
        if said.name in ("uncertainty", "dwa", "gradnorm") and task.kind in ("count", "ziln"):
            yield (f"{where}: {said.name} compares losses that stay above 0, and that of task '{task.name}' (a "
                   f"{task.kind}) need not; choose pcgrad, metabalance or fixed")
    if said.name == "metabalance" and said.target not in (None, *schema.task_names):
        yield (f"{where}.target: no task '{said.target}'; tasks are {listing(schema.task_names)}"
               + did_you_mean(said.target, schema.task_names))
    if said.name in LOOKING and settings.train.compile:
        yield (f"train.compile: {said.name} goes backward through one graph several times, which compiled code cannot; "
               "set it to false")


def _calibrate(settings: Settings, schema: Schema) -> Iterator[str]:
    method = settings.calibrate.method
    if method != "none" and all(t.kind != "binary" for t in schema.tasks):
        yield f"calibrate.method: {method} is for binary tasks, and there is none; set it to none"


# ---- notes

def _funnel(settings: Settings, schema: Schema) -> Iterator[str]:
    edges = any(t.after and t.kind == "binary" for t in schema.tasks)
    for task in schema.tasks:
        if task.loss and task.loss.name == "focal" and settings.calibrate.method == "none":
            yield (f"tasks.{task.name}.loss: probabilities that focal learns are no rates; calibrate.method: platt "
                   "brings them back")
        if task.within and not task.within.outside and task.within.task != task.name:
            yield (f"tasks.{task.name}.within: learnt from rows with '{task.within.task}' alone, so its probability is "
                   "given that; model.reading: conditional answers both, given it and over all rows")
        if task.weight == 0:
            yield f"tasks.{task.name}.weight: 0, so this task learns nothing; remove the task, or give it a weight"
    if schema.nested and not any(t.after for t in schema.tasks):
        yield f"model.reading: {schema.reading}, but no task comes after another; all readings are the same here"
    if settings.data.fill_implied and not edges:
        yield "data.fill_implied: no binary task comes after another, so no label implies another"
    if settings.data.contradictions != "raise" and not edges:
        yield "data.contradictions: no binary task comes after another, so no labels can contradict each other"
    kept = schema.negatives_kept
    if kept and kept.rate == 1:
        yield "data.negatives_kept.rate: 1, so nothing was sampled and nothing is corrected"
    if kept and edges:
        chain = {n for t in schema.tasks if t.after and t.kind == "binary" for n in (t.name, t.after)}
        if kept.task not in chain:
            yield (f"data.negatives_kept.task: '{kept.task}' stands beside the funnel {listing(sorted(chain))}; its "
                   "sampling does not say how the funnel's rows were sampled")


def _groups(settings: Settings) -> Iterator[str]:
    asked = asked_groups(settings.model)
    for group in settings.embedding.groups:
        if group not in asked:
            yield (f"embedding.groups.{group}: no part of the model reads this group; name it in a part's `group`, "
                   "or remove it")


def _embedding(settings: Settings) -> Iterator[str]:
    rows = settings.embedding
    names = {p["name"] for p in slot_parts(settings.model)}
    if "fnn" in names and not rows.init_from:
        yield ("embedding.init_from: fnn is meant to start from a trained FM, and no run is named; without one it is a "
               "plain deep model")
    if "wide" not in names and rows.crosses != type(rows.crosses)():
        yield ("embedding.crosses: no part reads crosses as weights, so they are embedded and learn by "
               "embedding.optimiser; add `wide` to model.side")


def asked_groups(model: Mapping[str, Any]) -> list[str]:
    """Groups that some part names: in `group`, its whole input, or in `groups`, what it reads besides."""
    return list(dict.fromkeys(group for part in slot_parts(model) for group in part_groups(part)))


def unread(settings: Settings, schema: Schema) -> Iterator[str]:
    """Features outside every group that the model reads, where each of its reading parts is tied to a group."""
    readers = [p for p in slot_parts(settings.model, ("represent", "side"))]
    if not readers or not all(p.get("group") or blocks.is_drawing(p) and blocks.ALL not in blocks.groups_of(p)
                              for p in readers):
        return                                        # a part without a group reads everything
    groups, asked = settings.embedding.groups, asked_groups(settings.model)
    seen = {f for g in asked for f in groups.get(g, ())}
    used = {f.target for f in schema.features.values() if f.kind == "sequence"}
    for name in settings.features.columns:
        feature = schema.features[name]
        if name not in seen and feature.role not in asked and name not in used:
            yield (f"features.{name}: the model reads only {listing(sorted(asked))}, and this feature is in none of "
                   "them; remove it, or put it into a group")


def _lonely(settings: Settings, schema: Schema) -> Iterator[str]:
    """An id space that one feature alone names, and whose name is nearly that of another: a slip costs all sharing."""
    members = Counter(f.space for f in schema.features.values() if getattr(f, "space", None))
    for name, feature in settings.features.columns.items():
        said = getattr(feature, "space", None)
        if said and members[said] == 1 and (near := did_you_mean(said, set(members) - {said, name})):
            yield f"features.{name}.space: no other feature is of the space '{said}', so nothing is shared{near}"


def _columns(settings: Settings, schema: Schema) -> Iterator[str]:
    data, read = settings.data, {f.column for f in schema.features.values()}
    if data.scenario and data.scenario not in read:
        yield (f"data.scenario: no feature reads '{data.scenario}', so metrics are split by it but the model may not "
               f"see it; add features.{data.scenario}: id")
    if data.time and not (data.user and schema.of_kind("sequence", "bag")) and not (
            schema.events or schema.of_kind("rate")):
        yield "data.time: only orders the rows of a user for frozen lists, which need data.user and a list feature"
    for name in data.events:
        if name not in schema.events:
            yield f"data.events.{name}: no history is made from this event log"
    begun = {said.pretrained for said in settings.embedding.spaces.values()}
    for name in data.vectors:
        if name not in begun:
            yield f"data.vectors.{name}: no id space starts from these; name them in embedding.spaces.NAME.pretrained"
    for table, columns in schema.tables.items():
        if not columns.columns:
            yield f"data.tables.{table}: no feature reads a column of this table"
    for name, feature in settings.features.columns.items():
        if feature.kind == "number" and (feature.buckets or feature.boundaries):
            idle = [k for k in ("log", "scale", "clip") if k in feature.model_fields_set and getattr(feature, k) !=
                    type(feature).model_fields[k].default]
            if idle:
                yield f"features.{name}.{idle[0]}: a number cut into buckets is not scaled; remove it"


def _training(settings: Settings) -> Iterator[str]:
    train, plain = settings.train, type(settings.train.early_stopping)()
    if settings.data.valid is None and train.early_stopping != plain:
        yield "train.early_stopping: there is no data.valid to watch, so training never stops early"
    if settings.data.valid is None and train.evaluate_every:
        yield "train.evaluate_every: there is no data.valid to evaluate on"
    if (train.schedule.name in ("linear", "cosine") and train.epochs == "auto" and train.steps is None
            and settings.data.valid is not None):
        yield (f"train.schedule: with epochs: auto the run's length is not known, so a {train.schedule.name} schedule "
               "stays at 1 after its warm-up; give a number of epochs")
    if train.schedule.name == "constant" and train.schedule.final:
        yield "train.schedule.final: a constant schedule has no end value; choose linear or cosine, or remove it"
    if train.schedule.name != "exponential" and {"decay", "every"} & train.schedule.model_fields_set and (
            train.schedule.decay, train.schedule.every) != (0.5, 1000):
        yield f"train.schedule.decay: a {train.schedule.name} schedule does not decay by steps; choose exponential"
    for section, optimiser, adams in (("train.optimiser", train.optimiser, ("adam", "adamw")),
                                      ("embedding.optimiser", settings.embedding.optimiser, ("adam",))):
        if optimiser.name not in adams and optimiser.betas != (0.9, 0.999):
            yield f"{section}.betas: {optimiser.name} has no betas; only {' and '.join(adams)} use them"
