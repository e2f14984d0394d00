"""What columns are: features and their id spaces, tasks and the tree they form, the columns of who, where and when.

A Schema is made once from the settings (`resolve`), with every default filled in and every automatic list number
spelled out. It is plain data: it can be saved, compared and hashed, and knows nothing of tensors, widths or files.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.expression import names_of
from funnelrank.settings import (
    AnyFeature,
    AnyLoss,
    Bag,
    Cross,
    FromColumns,
    Gap,
    History,
    Id,
    Length,
    Match,
    NegativesKept,
    Number,
    Rate,
    Sequence,
    Settings,
    Share,
    TaskKind,
    Within,
)

PAD, OOV = 0, 1          # in every id space, always
FIRST = 2                # the first id that stands for a value
USER = "user"            # the role whose features many rows share
DEFAULT_MIN_COUNT = 5
AUTO_LAST = (None, 10, 3)   # windows of automatic `share` numbers
AUTO_NTH = (1, 3, 10)       # events back to which automatic `gap` numbers reach
COMPUTED = ("cross", "length", "share", "match", "rate")      # kinds that read other features, not columns
MADE = "history:"           # begins the names of columns that are made from event logs


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Space(Frozen):
    """One set of ids: how a raw value becomes a number, whichever feature it came from."""

    name: str
    made: Literal["fitted", "hash", "range", "list"]
    min_count: int = DEFAULT_MIN_COUNT
    max_size: int | None = None
    size: int | None = None          # buckets of a hash, values of a range
    values: tuple[str | int, ...] | None = None
    file: str | None = None
    unknown: str | int | None = None     # the value that those it does not know are read as; None: OOV


class TaskColumn(Frozen):
    """A task with its place in the tree."""

    name: str
    label: str
    kind: TaskKind
    after: str | None
    weight: float
    loss: AnyLoss | None = None
    unserved: int = 0                # outputs that only its loss reads: an imputation, a counterfactual twin
    classes: tuple[str | int, ...] = ()      # of a multiclass task, in the order of its outputs
    within: Within | None = None             # what rows weigh, by another task's label

    @property
    def outputs(self) -> int:
        """How many of the model's outputs are this task's own."""
        own = 3 if self.kind == "ziln" else 2 if self.loss and self.loss.name == "jrc" else 1
        return (len(self.classes) or own) + self.unserved


class Served(Frozen):
    """A column that is served: `click`, or `buy|click` for a step given the one before."""

    name: str
    task: int                        # position among the tasks
    given: bool
    of_class: int | None = None      # of a multiclass task: the class whose probability it is


class TableColumns(Frozen):
    """A dimension table's key and the columns that features read."""

    key: str
    columns: tuple[str, ...]


class EventColumns(Frozen):
    """An event log's columns of who and when, and how long after an event rows may see it."""

    user: str
    time: str
    delay: float = 0.0


class MadeColumn(Frozen):
    """A column of rows that is made from an event log: the user's latest items, or the time of his nth latest."""

    of: str
    item: str
    where: tuple[tuple[str, tuple[str | int, ...]], ...] = ()       # column, and the values it may have
    max_len: int = 50
    nth: int | None = None                                          # the time of this one; None: the items


class Schema(Frozen):
    features: dict[str, AnyFeature]
    spaces: dict[str, Space]
    tasks: tuple[TaskColumn, ...]    # a task stands behind the task it comes after
    tables: dict[str, TableColumns]
    reading: Literal["joint", "conditional", "ordinal"]
    scenario: str | None = None
    user: str | None = None
    time: str | None = None
    weight: str | None = None
    negatives_kept: NegativesKept | None = None
    events: dict[str, EventColumns] = {}          # event logs in use
    made: dict[str, MadeColumn] = {}              # columns that are made from them; all begin with 'history:'

    @property
    def task_names(self) -> list[str]:
        return [t.name for t in self.tasks]

    @property
    def nested(self) -> bool:
        """Whether no later step can be likelier than the one before, by construction."""
        return self.reading != "joint"

    @property
    def parents(self) -> list[int | None]:
        """Per task, the position of the task it comes after."""
        place = {t.name: i for i, t in enumerate(self.tasks)}
        return [place[t.after] if t.after else None for t in self.tasks]

    @property
    def outputs(self) -> list[tuple[str, int]]:
        """The model's outputs in order: the task, and which of its own it is."""
        return [(t.name, k) for t in self.tasks for k in range(t.outputs)]

    @property
    def served(self) -> list[Served]:
        """What is served, in order. A value under the joint reading has one meaning only, whatever it comes after."""
        found = []
        for t, task in enumerate(self.tasks):
            columns = [(f"{task.name}={c}", k) for k, c in enumerate(task.classes)] or [(task.name, None)]
            found += [Served(name=name, task=t, given=False, of_class=k) for name, k in columns]
            if task.after and (task.kind == "binary" or self.nested):
                found += [Served(name=f"{name}|{task.after}", task=t, given=True, of_class=k) for name, k in columns]
        return found

    def of_kind(self, *kinds: str) -> dict[str, Any]:
        return {n: f for n, f in self.features.items() if f.kind in kinds}

    def log_columns(self, labels: bool = True) -> list[str]:
        """Columns of rows that encoding reads, each once, in a stable order; those made from event logs included."""
        columns: list[str | None] = [c for name in self.features for c in self.columns_of(name)]
        columns += [self.scenario, self.user]
        if labels:
            columns += [self.time, self.weight, *(t.label for t in self.tasks)]
        return list(dict.fromkeys(c for c in columns if c))

    def columns_of(self, name: str) -> dict[str, str]:
        """Columns of rows that a feature itself reads -> the key that names each; what it is computed from reads its
        own."""
        f = self.features[name]
        if f.kind == "gap":
            return {f.since: "since", f.until: "until"}
        if f.kind == "rate":
            return {self.time: "period"} if f.task else {}
        if f.kind == "cross":
            return dict.fromkeys(f.columns or (), "columns")
        if f.kind in COMPUTED:
            return {}
        if computed := getattr(f, "expression", None):
            return dict.fromkeys([n for n in names_of(computed) if not is_number(n, name, self.features)], "expression")
        keyed = {f.key: "key"} if getattr(f, "key", None) else {}
        return ({f.by: "by"} if table_of(f.column) else {f.column: "column"}) | keyed

    def cut_as(self, name: str) -> str | None:
        """The feature whose boundaries cut this feature's numbers into ids: itself, or the one that its space is of."""
        return _cut_as(name, self.features)

    def reads(self, name: str) -> set[str]:
        """Columns of rows that a feature reads, or that what it is computed from reads."""
        found = set(self.columns_of(name))
        for other in self.read_by(name):
            found |= self.reads(other)
        return found

    def read_by(self, name: str) -> list[str]:
        """The features that a feature is computed from."""
        f = self.features[name]
        said = [getattr(f, key, None) for key in ("of", "within", "among")] if f.kind in COMPUTED else []
        found = [n for one in said if one for n in ([one] if isinstance(one, str) else one)]
        return found + [n for n in names_of(getattr(f, "expression", None) or "") if is_number(n, name, self.features)]

    def of_files(self) -> "Schema":
        """The same without features that read columns made from event logs, for who looks at files alone."""
        made = {n for n in self.features if set(self.columns_of(n)) & set(self.made)}
        return self.model_copy(update={"events": {}, "made": {}, "features": {
            n: f for n, f in self.features.items() if n not in made and not made.intersection(self.read_by(n))}})


def is_number(name: str, within: str, features: Mapping[str, AnyFeature]) -> bool:
    """Whether a name in the expression of `within` is another number of the config, and no column."""
    return name != within and isinstance(features.get(name), Number)


def _cut_as(name: str, features: Mapping[str, AnyFeature]) -> str | None:
    f = features[name]
    if _is_cut(f):
        return name
    return f.space if f.kind in ("bag", "sequence") and _is_cut(features.get(f.space)) else None


def _is_cut(f: AnyFeature | None) -> bool:
    return bool(getattr(f, "buckets", None) or getattr(f, "boundaries", None))


def table_of(column: str | None) -> str | None:
    """'items' of 'items.author_id'; None for a column of the log, and for what is computed."""
    return column.split(".", 1)[0] if column and "." in column else None


def who_reads(schema: Schema) -> dict[str, str]:
    """Column of the log -> the key of the config that asks for it."""
    who: dict[str, str] = {}
    for name in schema.features:
        for column, key in schema.columns_of(name).items():
            who.setdefault(column, f"features.{name}.{key}")
    for key in ("scenario", "user", "time", "weight"):
        if column := getattr(schema, key):
            who.setdefault(column, f"data.{key}")
    return who | {task.label: f"tasks.{task.name}.label" for task in schema.tasks}


def resolve(settings: Settings) -> Schema:
    """The schema of a config. Collects every fault it finds and raises them together as one ConfigError."""
    faults: list[str] = []
    made: dict[str, MadeColumn] = {}
    features = _with_defaults(settings, made, faults)
    if not faults and settings.features.lists == "auto":
        features |= {n: f for n, f in automatic_list_numbers(features, settings).items() if n not in features}
        features |= {n: f for n, f in _automatic_gaps(settings, made, faults).items() if n not in features}
    spaces = _spaces(features, faults)
    if not faults:
        _check_references(features, settings, faults)
    debias = settings.model.get("debias") or {}
    tasks = _order_tasks(settings.tasks, debias.get("name") in ("dr", "dcmt"), faults)
    _check_labels(settings, features, faults)
    kept = settings.data.negatives_kept
    if kept and kept.task not in settings.tasks:
        faults.append(f"data.negatives_kept.task: no task '{kept.task}'; tasks are {listing(settings.tasks)}"
                      + did_you_mean(kept.task, settings.tasks))
    if faults:
        raise ConfigError(*faults)
    used: dict[str, list[str]] = {t: [] for t in settings.data.tables}
    for f in features.values():
        if f.column and (table := table_of(f.column)):
            used[table].append(f.column.split(".", 1)[1])
    return Schema(
        features=features, spaces=spaces, tasks=tuple(tasks),
        tables={t: TableColumns(key=settings.data.tables[t].key, columns=tuple(dict.fromkeys(c)))
                for t, c in used.items()},
        reading=settings.model.get("reading") or "joint",
        scenario=settings.data.scenario, user=settings.data.user, time=settings.data.time,
        weight=settings.data.weight, negatives_kept=kept, made=made,
        events={n: EventColumns(user=e.user or settings.data.user, time=e.time or settings.data.time, delay=e.delay)
                for n, e in settings.data.events.items() if any(m.of == n for m in made.values())})


def _with_defaults(settings: Settings, made: dict[str, MadeColumn], faults: list[str]) -> dict[str, AnyFeature]:
    data, features = settings.data, {}
    declared = settings.features.columns
    histories = {n: _made_column(n, f, settings, faults) for n, f in declared.items() if isinstance(f, History)}
    made |= {MADE + n: column for n, column in histories.items()}
    for name, f in declared.items():
        where = f"features.{name}"
        if isinstance(f, History):
            # from here on it is a sequence like any other, whose column is made while rows are read
            features[name] = Sequence(
                column=MADE + name, space=f.space or _space_of(f.item, declared) or name, max_len=f.max_len,
                **f.model_dump(include={"role", "min_count", "max_size", "hash_buckets", "num_buckets", "vocab_list",
                                        "vocab_file", "unknown", "target", "pool"}))
            continue
        if isinstance(f, Gap):
            f = _gap(where, f, histories, made, settings, faults)
        if f.kind in ("gap", *COMPUTED):
            for key in ("column", "by"):
                if getattr(f, key) is not None:
                    faults.append(f"{where}.{key}: a {f.kind} is computed from other features; remove {key}")
            update: dict[str, Any] = {}
        elif getattr(f, "expression", None):
            update = {}
        else:
            column = f.column or name
            update = {"column": column}
            table = table_of(column)
            if table and table not in data.tables:
                faults.append(f"{where}.column: no table '{table}' in data.tables; tables are {listing(data.tables)}"
                              + did_you_mean(table, data.tables))
            elif table:
                update["by"] = MADE + f.by if f.by in histories else f.by or data.tables[table].key
            elif f.by:
                faults.append(f"{where}.by: only a `table.column` is looked up by a key; '{column}' is of the log")
        if isinstance(f, FromColumns):
            update["space"] = f.space or name
        features[name] = f.model_copy(update=update)
    _targets(features, faults)
    lists = {f.column for f in features.values() if isinstance(f, Sequence)}
    items = {features[f.target].column for f in features.values() if isinstance(f, Sequence) and f.target}
    for name, f in features.items():
        if f.role is None:
            features[name] = f.model_copy(update={"role": _role(f, features, settings, items, lists)})
    return features


def _made_column(name: str, f: History, settings: Settings, faults: list[str]) -> MadeColumn:
    where, events = f"features.{name}", settings.data.events
    if f.of not in events:
        faults.append(f"{where}.of: no event log '{f.of}' in data.events; event logs are {listing(events)}"
                      + did_you_mean(f.of, events))
    _check_who_and_when(where, settings, faults)
    said = {f.where: 1} if isinstance(f.where, str) else f.where
    return MadeColumn(of=f.of, item=f.item, max_len=f.max_len, where=tuple(
        (column, tuple(values) if isinstance(values, list) else (values,)) for column, values in said.items()))


def _check_who_and_when(where: str, settings: Settings, faults: list[str]) -> None:
    for key in ("user", "time"):
        if getattr(settings.data, key) is None and not any(f"data.{key}:" in fault for fault in faults):
            faults.append(f"data.{key}: {where} reads what a user did before a row; name the column that says "
                          f"{'who' if key == 'user' else 'when'}")


def _space_of(item: str, declared: Mapping[str, AnyFeature]) -> str | None:
    """The space of the `id` feature that reads a column of this name."""
    return next((f.space or n for n, f in declared.items() if isinstance(f, Id) and (f.column or n) == item), None)


def _gap(where: str, f: Gap, histories: Mapping[str, MadeColumn], made: dict[str, MadeColumn], settings: Settings,
         faults: list[str]) -> Gap:
    """A gap whose ends are columns: times of events, of a history or of a whole event log, become made columns."""
    events = {n: e.time or settings.data.time for n, e in settings.data.events.items()}

    def end(name: str, nth: int) -> str:
        if name in histories:
            made[f"{MADE}{name}:{nth}"] = histories[name].model_copy(update={"nth": nth})
        elif name in events and settings.data.time:
            made[f"{MADE}{name}:{nth}"] = MadeColumn(of=name, item=events[name], nth=nth)
        return f"{MADE}{name}:{nth}" if name in histories or name in events else name

    known = f.since in histories or f.since in events
    if not known and (f.nth or f.until is None):
        faults.append(f"{where}.{'nth' if f.nth else 'until'}: " + (
            f"'{f.since}' is no history and no event log; remove nth" if f.nth else
            "name the column with the later time; only a gap since an event ends at the row by itself"))
    if known:
        _check_who_and_when(where, settings, faults)
    return f.model_copy(update={"since": end(f.since, f.nth or 1), "until": end(f.until or settings.data.time, 1),
                                "nth": None})


def _targets(features: dict[str, AnyFeature], faults: list[str]) -> None:
    ids: dict[str, list[str]] = {}
    for name, f in features.items():
        if isinstance(f, Id):
            ids.setdefault(f.space, []).append(name)
    for name, f in features.items():
        if not isinstance(f, Sequence):
            continue
        cut = _cut_as(name, features)
        same = [cut] if isinstance(features.get(cut), Number) else [] if cut else ids.get(f.space, [])
        if f.target is None:
            features[name] = f.model_copy(update={"target": same[0] if same else None})
        elif f.target not in same:
            faults.append(f"features.{name}.target: '{f.target}' is no id feature of space '{f.space}'; "
                          f"those are {listing(same)}")


def _role(f: AnyFeature, features: Mapping[str, AnyFeature], settings: Settings, items: Collection[str],
          lists: Collection[str]) -> str:
    """What a feature is of that does not say so, given the columns of what sequences are of and those of sequences."""
    data = settings.data
    if f.kind in ("length", "share"):
        return "user"
    if f.kind == "rate":
        return _role(features[f.of], features, settings, items, lists) if f.of in features else "context"
    if f.kind in ("match", "cross", "gap"):
        return "context"
    if f.column is None:
        return "context"                                  # computed by an expression
    if f.column == data.scenario:
        return "scenario"
    if f.kind == "sequence" or f.column == data.user or (f.by and f.by == data.user):
        return "user"
    if f.by and f.by in lists:
        return "user"
    if f.column in items or (f.by and f.by in items):
        return "item"
    return "context"


def automatic_list_numbers(features: Mapping[str, AnyFeature], settings: Settings) -> dict[str, AnyFeature]:
    """The numbers that `lists: auto` reads off every history of the log.

    length(list); share(a,b[,last]) for each ordered pair of lists of one space over all, the last 10 and the last 3;
    match(x,list) for the row's own id of that space, and for each attribute of it looked up in a dimension table.
    """
    lists = {n: f for n, f in features.items() if isinstance(f, Sequence) and not table_of(f.column)}
    numbers: dict[str, AnyFeature] = {}
    for a in lists:
        numbers[f"length({a})"] = Length(of=a, role="user")
    for a, fa in lists.items():
        for b, fb in lists.items():
            if a != b and fa.space == fb.space:
                for last in AUTO_LAST:
                    numbers[f"share({a},{b}{f',{last}' if last else ''})"] = Share(of=a, within=b, last=last,
                                                                                   role="user")
    for a, fa in lists.items():
        if fa.target is None:
            continue
        key = features[fa.target].column
        for x, fx in features.items():
            if isinstance(fx, Id | Bag) and (x == fa.target or (fx.by == key and table_of(fx.column or ""))):
                numbers[f"match({x},{a})"] = Match(of=x, within=a, role="context")
    return numbers


def _automatic_gaps(settings: Settings, made: dict[str, MadeColumn], faults: list[str]) -> dict[str, AnyFeature]:
    """gap(history[,nth]): how long before the row a history's latest, third and tenth latest event was."""
    histories = {n.removeprefix(MADE): column for n, column in made.items() if column.nth is None}
    return {f"gap({n}{f',{nth}' if nth > 1 else ''})": _gap("", Gap(since=n, nth=nth, role="context"), histories, made,
                                                             settings, faults)
            for n in list(histories) for nth in AUTO_NTH if nth <= histories[n].max_len}


def _spaces(features: Mapping[str, AnyFeature], faults: list[str]) -> dict[str, Space]:
    """One space per distinct name; settings given on several of its features must agree."""
    said: dict[str, dict[str, Any]] = {}
    for name, f in features.items():
        cut = _cut_as(name, features)
        if cut == name:
            said.setdefault(name, {})["num_buckets"] = f.buckets or len(f.boundaries) + 1
        if not isinstance(f, FromColumns):
            continue
        if cut == name != f.space:
            faults.append(f"features.{name}.space: numbers that are cut here make a space of their own; remove space, "
                          f"or leave the cutting to '{f.space}'")
        if cut is None and _is_cut(features.get(f.space)):
            faults.append(f"features.{name}.space: '{f.space}' is a number cut into buckets, and a {f.kind} holds "
                          "none; give it a space of its own")
            continue
        space = said.setdefault(f.space, {})
        for key in ("min_count", "max_size", "hash_buckets", "num_buckets", "vocab_list", "vocab_file", "unknown"):
            value = getattr(f, key)
            if value is not None and space.setdefault(key, value) != value:
                faults.append(f"features.{name}.{key}: {value!r}, but another feature of space '{f.space}' says "
                              f"{space[key]!r}; say it once")
    spaces: dict[str, Space] = {}
    members: dict[str, dict[str, AnyFeature]] = {name: {} for name in said}
    for name, f in features.items():
        if (space := getattr(f, "space", None)) in members:
            members[space][name] = f
    for name, s in said.items():
        ways = [k for k in ("hash_buckets", "num_buckets", "vocab_list", "vocab_file") if k in s]
        if len(ways) > 1:
            faults.append(f"features: space '{name}' is made two ways, {listing(ways)}; keep one")
        made = {"hash_buckets": "hash", "num_buckets": "range", "vocab_list": "list", "vocab_file": "list"}
        spaces[name] = Space(
            name=name, made=made[ways[0]] if ways else "fitted", min_count=s.get("min_count", DEFAULT_MIN_COUNT),
            max_size=s.get("max_size"), size=s.get("hash_buckets") or s.get("num_buckets"),
            values=tuple(s["vocab_list"]) if "vocab_list" in s else None, file=s.get("vocab_file"),
            unknown=s.get("unknown"))
        faults += _unknown_faults(spaces[name], members[name], features)
    return spaces


def _unknown_faults(space: Space, members: Mapping[str, AnyFeature],
                    features: Mapping[str, AnyFeature]) -> Iterator[str]:
    """Values that stand for others, and are none of the space of its members."""
    if space.unknown is not None:
        where = f"features.{next(n for n, f in members.items() if f.unknown is not None)}.unknown"
        if space.made not in ("range", "list"):
            yield (f"{where}: space '{space.name}' has OOV for values that it does not know; give it num_buckets, "
                   "vocab_list or vocab_file, or remove unknown")
        elif not _holds(space, space.unknown):
            yield f"{where}: {space.unknown!r} is none of the values of space '{space.name}'; name one that it has"
    for name, f in members.items():
        given = getattr(f, "default", None)
        if f.kind != "cross" and given is not None and not _holds(space, given) and _cut_as(name, features) is None:
            yield (f"features.{name}.default: {given!r} is none of the values of space '{space.name}'; name one that "
                   "it has")


def _holds(space: Space, value: str | int) -> bool:
    """Whether a value is one of the space's, as far as that is known before data are read."""
    if space.made == "range":
        return re.fullmatch(r"\d+", str(value)) is not None and int(value) < space.size
    return space.values is None or str(value) in map(str, space.values)


def _check_references(features: Mapping[str, AnyFeature], settings: Settings, faults: list[str]) -> None:
    def named(where: str, name: str, kinds: tuple[type, ...], what: str) -> AnyFeature | None:
        found = features.get(name)
        if found is None:
            faults.append(f"{where}: no feature '{name}'" + did_you_mean(name, features))
        elif not isinstance(found, kinds):
            faults.append(f"{where}: '{name}' is of kind {found.kind}; it must be {what}")
        else:
            return found
        return None

    for name, f in features.items():
        where = f"features.{name}"
        if isinstance(f, Cross):
            for part in f.of or ():
                if isinstance(named(f"{where}.of", part, (Id, Number), "an id or a number that is cut"), Number):
                    _check_crossed(name, f, part, features, faults)
            for column in f.columns or ():
                if table_of(column):
                    faults.append(f"{where}.columns: '{column}' is of a table; make it an id feature and name that in "
                                  "`of`")
        elif isinstance(f, Length):
            named(f"{where}.of", f.of, (Sequence, Bag), "a sequence or a bag")
        elif isinstance(f, Share):
            a = named(f"{where}.of", f.of, (Sequence, Bag), "a sequence or a bag")
            b = named(f"{where}.within", f.within, (Sequence, Bag), "a sequence or a bag")
            if a and b and a.space != b.space:
                faults.append(f"{where}: '{f.of}' is of space '{a.space}' and '{f.within}' of '{b.space}'; "
                              "a share needs one space")
        elif isinstance(f, Match):
            a = named(f"{where}.of", f.of, (Id, Bag), "an id or a bag")
            b = named(f"{where}.within", f.within, (Sequence,), "a sequence")
            if a and b and not _comparable(a, b, features):
                faults.append(f"{where}: '{f.of}' is of space '{a.space}' and '{f.within}' of '{b.space}'; a match "
                              "needs one space, or an attribute looked up by the id that the list holds")
        elif isinstance(f, Number) and f.expression:
            if ring := _ring(name, features):
                faults.append(f"{where}.expression: reads itself ({' > '.join(ring)}); a number is computed of others")
        elif isinstance(f, Rate):
            _check_rate(name, f, features, settings, named, faults)
    for group, members in settings.embedding.groups.items():
        for member in members:
            if member not in features:
                faults.append(f"embedding.groups.{group}: no feature '{member}'" + did_you_mean(member, features))
    widths = {f.space for f in features.values() if isinstance(f, FromColumns)} | {
        n for n in features if _cut_as(n, features) == n}
    for space, said in settings.embedding.spaces.items():
        if said.pretrained is not None and said.pretrained not in settings.data.vectors:
            faults.append(f"embedding.spaces.{space}.pretrained: no '{said.pretrained}' in data.vectors; there "
                          f"{'are' if settings.data.vectors else 'is'} {listing(settings.data.vectors) or 'none'}"
                          + did_you_mean(said.pretrained, settings.data.vectors))
        if space not in widths:
            faults.append(f"embedding.spaces.{space}: no feature lives in space '{space}'; spaces are "
                          f"{listing(sorted(widths))}" + did_you_mean(space, widths))


def _ring(start: str, features: Mapping[str, AnyFeature]) -> list[str] | None:
    """The way from a number back to itself along what expressions read."""
    ways, seen = [[start]], {start}
    for way in ways:
        for other in names_of(features[way[-1]].expression or ""):
            if other == start and len(way) > 1:
                return [*way, start]
            if is_number(other, way[-1], features) and other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return None


def _comparable(a: Id | Bag, b: Sequence, features: Mapping[str, AnyFeature]) -> bool:
    """Whether values of a row's feature can be looked for in a list: of one space, or attributes of its elements."""
    return a.space == b.space or bool(table_of(a.column) and b.target and features[b.target].column == a.by)


def _check_crossed(name: str, f: Cross, part: str, features: Mapping[str, AnyFeature], faults: list[str]) -> None:
    where, number = f"features.{name}", features[part]
    hashed = any(getattr(other, "hash_buckets", None) for other in features.values()
                 if getattr(other, "space", None) == f.space)
    if not _is_cut(number):
        faults.append(f"{where}.of: '{part}' is a number as it is; give it boundaries, so that it has values to cross")
    elif number.buckets and not hashed:
        faults.append(f"{where}.of: where '{part}' is cut is known only when train has been read; give '{part}' "
                      "boundaries instead of buckets, or the cross hash_buckets")
    if f.default is not None:
        faults.append(f"{where}.default: stands for an id that is missing, and '{part}' is a number, which has a "
                      "`default` of its own; remove this one")


def _check_rate(name: str, f: Rate, features: Mapping[str, AnyFeature], settings: Settings,
                named: Callable[..., AnyFeature | None], faults: list[str]) -> None:
    where = f"features.{name}"
    if f.task is None:
        a = named(f"{where}.of", f.of, (Id, Bag), "an id or a bag")
        b = named(f"{where}.among", f.among, (Sequence,), "a sequence")
        c = named(f"{where}.within", f.within, (Sequence, Bag), "a sequence or a bag")
        if b and c and b.space != c.space:
            faults.append(f"{where}: '{f.among}' is of space '{b.space}' and '{f.within}' of '{c.space}'; a rate of "
                          "lists needs one space")
        if a and b and not _comparable(a, b, features):
            faults.append(f"{where}: '{f.of}' is of space '{a.space}' and '{f.among}' of '{b.space}'; a rate of lists "
                          "needs one space, or an attribute looked up by the id that the list holds")
        if settings.data.user is None:
            faults.append(f"{where}: lists are counted at each user's first row; set data.user to the column that says "
                          "who")
        return
    a = named(f"{where}.of", f.of, (Id, Bag, Cross, Number), "an id, a bag, a cross or a bucketed number")
    if isinstance(a, Number) and not (a.buckets or a.boundaries):
        faults.append(f"{where}.of: '{f.of}' is a number as it is; give it buckets or boundaries, so that it has "
                      "values to count")
    if f.task not in settings.tasks:
        faults.append(f"{where}.task: no task '{f.task}'; tasks are {listing(settings.tasks)}"
                      + did_you_mean(f.task, settings.tasks))
    elif settings.tasks[f.task].kind != "binary":
        faults.append(f"{where}.task: '{f.task}' is a {settings.tasks[f.task].kind}; only a binary task has a rate")
    if settings.data.time is None:
        faults.append(f"{where}: labels are counted over earlier periods; set data.time to the column that says when")


def _order_tasks(tasks: Mapping[str, Any], twins: bool, faults: list[str]) -> list[TaskColumn]:
    """Tasks in the config's order, each moved behind the task it comes after.

    twins   each binary step after another has one more output, which only its loss reads
    """
    ordered: dict[str, TaskColumn] = {}
    for name, task in tasks.items():
        if task.after is not None and task.after not in tasks:
            faults.append(f"tasks.{name}.after: no task '{task.after}'; tasks are {listing(tasks)}"
                          + did_you_mean(task.after, tasks))
        elif task.after is not None and tasks[task.after].kind != "binary":
            faults.append(f"tasks.{name}.after: '{task.after}' is a {tasks[task.after].kind}; only a binary task can "
                          "come before another")
        if task.within is not None and task.within.task not in tasks:
            faults.append(f"tasks.{name}.within.task: no task '{task.within.task}'; tasks are {listing(tasks)}"
                          + did_you_mean(task.within.task, tasks))
        elif task.within is not None and tasks[task.within.task].kind == "multiclass":
            faults.append(f"tasks.{name}.within.task: '{task.within.task}' is a multiclass, whose label is never above "
                          "0 or not; name another task")
    if faults:
        return []

    def place(name: str, trail: tuple[str, ...] = ()) -> None:
        if name in ordered:
            return
        if name in trail:
            faults.append(f"tasks.{name}.after: the tasks {' > '.join((*trail, name))} come after one another in a "
                          "circle; a funnel needs a first task")
            return
        task = tasks[name]
        if task.after is not None:
            place(task.after, (*trail, name))
        if not faults:
            ordered[name] = TaskColumn(name=name, label=task.label or name, kind=task.kind, after=task.after,
                                       weight=task.weight, loss=task.loss, classes=_classes(task.classes),
                                       within=task.within,
                                       unserved=int(twins and task.kind == "binary" and task.after is not None))

    for name in tasks:
        place(name)
    return list(ordered.values())


def _classes(said: int | list[str | int] | None) -> tuple[str | int, ...]:
    return tuple(range(said)) if isinstance(said, int) else tuple(said or ())


def _check_labels(settings: Settings, features: Mapping[str, AnyFeature], faults: list[str]) -> None:
    labels: dict[str, str] = {}
    for name, task in settings.tasks.items():
        label = task.label or name
        if label in labels:
            faults.append(f"tasks.{name}.label: column '{label}' is already the label of task '{labels[label]}'")
        labels.setdefault(label, name)
    for name, f in features.items():
        reads = {f.since, f.until} if f.kind == "gap" else {f.column, f.by, getattr(f, "key", None),
                                                            *(getattr(f, "columns", None) or ()),
                                                            *names_of(getattr(f, "expression", None) or "")}
        for label in sorted(reads & set(labels) - {None}):
            faults.append(f"features.{name}: reads column '{label}', which is the label of task '{labels[label]}'; "
                          "a model that sees its label learns nothing else")
    if settings.data.weight in labels:
        faults.append(f"data.weight: column '{settings.data.weight}' is the label of task "
                      f"'{labels[settings.data.weight]}'")
