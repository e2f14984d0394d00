"""Everything a config may say, one class a section: keys, types, defaults and what each is for.

    data       where rows are, which columns say who, where and when, and what to do about labels that disagree
    features   a name for each thing a model may see, and how a column becomes it
    tasks      what is predicted, and which task comes after which
    embedding  how wide each id space is, and how its rows learn
    model      a paper by name, or its five slots (the parts' own constructors define the keys; see models/)
    train      the run
    calibrate  what is done to probabilities after training
    evaluate   the numbers at the end
    tune       what a search tries

These classes are the only definition of a setting; the JSON Schema, the reference page and every error are made
from them. No torch here, so that `check` and `--help` answer at once.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from funnelrank.expression import parse

Name = Annotated[str, Field(pattern=r"^[^\s.:|/]+$", description="no spaces and none of . : | /")]
Proportion = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
MOST_IDS = 2**31 - 2     # values of one id space: ids are int32, and PAD and OOV take two
IdValue = str | int
Paths = str | list[str]

SIZE = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: Any) -> Any:
    """'2GB' -> 2_000_000_000; numbers pass unchanged."""
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in SIZE:
        raise ValueError("a size is a number of bytes or a text like '2GB', '500MB' or '1.5GiB'")
    return int(float(match[1]) * SIZE[match[2].lower()])


Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str), Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, use_attribute_docstrings=True,
                              validate_default=True, allow_inf_nan=False)


# ---- data

class Csv(Section):
    """How text files are cut into columns."""

    delimiter: str = Field(",", min_length=1, max_length=1)
    """Default for .tsv files: a tab."""
    header: bool = True
    """The first line of every file names the columns."""
    columns: list[str] | None = None
    """The columns' names, where files have no header line."""
    types: dict[str, Literal["int", "float", "text"]] = {}
    """Types of single columns. Default: what the values of the first rows are."""

    @field_validator("delimiter", mode="before")
    @classmethod
    def _one_character(cls, value):
        if isinstance(value, str) and not (len(value) == 1 and value.isascii() and value not in '"\r\n\0'):
            raise ValueError(f"found {value!r}; a delimiter is one ASCII character, and neither a quote nor a line end")
        return value

    @model_validator(mode="after")
    def _named_once(self):
        if self.header and self.columns is not None:
            raise ValueError("columns names the columns of files without a header line; set header: false, too")
        if not self.header and not self.columns:
            raise ValueError("files without a header line need their columns named; add columns: [...]")
        return self


class TableSettings(Section):
    """A dimension table: one row a key, attributes of users or items, looked up while encoding."""

    path: Paths
    key: str
    """The table's key column. A feature looks rows up by the log's column of the same name, unless it says `by`."""


class VectorSettings(Section):
    """Vectors of values that were made elsewhere, for `embedding.spaces.NAME.pretrained`."""

    path: Paths
    """As for `train`: two columns, a value and its vector. Or a matrix (.npy), or a text of a value and its numbers a
    line (.txt, .vec), as word vectors are."""
    id: str = "id"
    """The column of values."""
    vector: str = "vector"
    """The column of vectors: lists of numbers of one length, or texts that `separator` cuts."""
    separator: str | None = Field(None, min_length=1)
    """Cut texts here, as in '0.1|0.7'."""
    ids: str | None = None
    """Of a matrix: a text with the value of each row, one a line. Default: the rows are the values 0, 1 and so on."""


class Events(Section):
    """An event log: one row an event, of which `history` features take a user's earlier ones."""

    path: Paths
    """As for `train`; it may name the very files of train, valid and test."""
    user: str | None = None
    """The event log's column of users. Default: `data.user`."""
    time: str | None = None
    """Its column of times, of the kind that `data.time` has. Default: `data.time`."""
    delay: float = Field(0.0, ge=0)
    """So long after an event a row may see it: in seconds for times, in the column's unit for numbers."""


class CountedBy(Section):
    quantiles: Literal["exact", "approximate"] = "exact"
    """`approximate` cuts numbers into buckets by the engine's own sketch, without sorting their values: boundaries are
    then other ones on each engine."""


class DuckDBEngine(CountedBy):
    """DuckDB in this process, within half of `data.memory`; what is beyond goes to `data.cache`."""

    name: Literal["duckdb"] = "duckdb"
    connection: str | None = Field(None, min_length=1)
    """A database file to connect to. Default: none, in memory."""


class SparkEngine(CountedBy):
    """Spark. The files of train must be where its workers find them."""

    name: Literal["spark"] = "spark"
    connection: str | None = Field(None, min_length=1)
    """The master, as `spark://host:7077`, `yarn` or `local[4]`. Default: the session that runs, or what spark-submit
    and spark-defaults.conf say."""


AnyEngine = Annotated[DuckDBEngine | SparkEngine, Field(discriminator="name")]


class NegativesKept(Section):
    """Negatives of one task were down-sampled before training; served probabilities are corrected for it."""

    task: str
    rate: Proportion
    """The share of that task's negative rows that was kept (1 = all)."""
    splits: list[Literal["train", "valid", "test"]] = ["train"]
    """Which splits were sampled so. Metrics on the others use corrected probabilities."""


class Data(Section):
    """Where rows are, and which columns say who, where and when."""

    dir: str | None = None
    """Where relative data paths start. Default: the config file's folder."""
    train: Paths | None = None
    """A file, a folder, a glob, a list of these, or any fsspec URL."""
    valid: Paths | None = None
    """Rows for early stopping and for choosing between runs."""
    test: Paths | None = None
    """Rows for the final numbers only."""
    format: Literal["parquet", "csv", "arrow"] | None = None
    """Default: from the files' suffix (.parquet .csv .tsv .csv.gz .arrow .feather .ipc)."""
    csv: Csv = Csv()
    memory: Size = 2_000_000_000
    """Budget in bytes for raw rows, statistics and dimension tables held while preparing and encoding."""
    cache: str | None = None
    """Folder of encoded rows, reused while files, schema and vocabularies stay the same.
    Default: `.funnelrank-cache` beside the run's folder."""
    engine: AnyEngine | None = None
    """Who counts train's vocabularies, statistics and rates; see [data.md](data.md#dataengine). Default: our own pass
    over the rows, which gives the same."""
    retire: int | None = Field(None, ge=1)
    """For `--continue-from`: a value that so many trainings in a row did not see leaves its vocabulary, and its row of
    the table is freed. Default: values stay."""
    tables: dict[Name, TableSettings] = {}
    events: dict[Name, Events] = {}
    vectors: dict[Name, VectorSettings] = {}
    scenario: str | None = None
    """The column that says which scenario (tab, channel, country, segment) a row belongs to."""
    user: str | None = None
    """The column to group by for GAUC, and whose earlier events a `history` holds."""
    time: str | None = None
    """When a row was: orders a user's rows for frozen histories (default there: file order), and says what is earlier
    for `history` and `rate`."""
    weight: str | None = None
    """A column with each row's weight in the loss. Metrics are unweighted."""
    contradictions: Literal["raise", "keep", "drop", "repair"] = "raise"
    """What to do with train rows where a task is 1 and the task before it is 0. `repair` sets the earlier one to 1."""
    fill_implied: bool | None = None
    """Fill unobserved train labels that the funnel implies: 1 for tasks before a 1, 0 for tasks after a 0.
    Default: under every reading but joint."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with rows that cannot be read or mean nothing (a damaged page, a label of 2). `skip` leaves out the
    row, the row group or the file, counts them and shows the first; prediction always raises."""
    negatives_kept: NegativesKept | None = None


# ---- features

class FeatureSettings(Section):
    column: str | None = None
    """A column of the log, or `table.column`. Default: the feature's name."""
    by: str | None = None
    """For `table.column`: the log's column that holds the key, or a list of keys; or a `history`. Default: the table's
    key."""
    role: Name | None = None
    """`user`, `item`, `context`, `scenario`, `prior` or your own: a group that parts of a model can name."""


class FromColumns(FeatureSettings):
    """What ids have in common: the id space they live in and how its vocabulary is made."""

    space: Name | None = None
    """Features of one space share ids and embedding rows. Default: the feature's own name."""
    min_count: int | None = Field(None, ge=1, lt=2**63)
    """Values seen less often in train become OOV (id 1). Default 5."""
    max_size: int | None = Field(None, ge=1, le=MOST_IDS)
    """Keep only so many values, the most frequent."""
    hash_buckets: int | None = Field(None, ge=1, le=MOST_IDS)
    """No vocabulary: a stable hash into so many buckets."""
    num_buckets: int | None = Field(None, ge=1, le=MOST_IDS)
    """No vocabulary: the column already holds 0 .. num_buckets - 1."""
    vocab_list: list[str | int] | None = None
    vocab_file: str | None = None
    """One value a line."""
    unknown: IdValue | None = None
    """With `num_buckets`, `vocab_list` or `vocab_file`: the value that all others are read as, such as 0. Default:
    they are OOV."""

    @model_validator(mode="after")
    def _one_way(self):
        ways = [k for k in ("hash_buckets", "num_buckets", "vocab_list", "vocab_file") if getattr(self, k) is not None]
        fitted = [k for k in ("min_count", "max_size") if getattr(self, k) is not None]
        if len(ways) > 1 or (ways and fitted):
            raise ValueError(f"an id space is made one way, but {' and '.join(ways + fitted)} are all given; keep one")
        if self.unknown is not None and self.hash_buckets is not None:
            raise ValueError("every value has a bucket of a hash, so none is unknown; remove unknown")
        return self


SPACE_KEYS = ("min_count", "max_size", "hash_buckets", "num_buckets", "vocab_list", "vocab_file", "unknown")


def one_cut(f: Any) -> None:
    """Raises ValueError unless a number is cut in one way, at rising values."""
    if f.buckets is not None and f.boundaries is not None:
        raise ValueError("buckets and boundaries are two ways to cut one number; keep one")
    if f.boundaries is not None and any(a >= b for a, b in zip(f.boundaries, f.boundaries[1:])):
        raise ValueError("boundaries must increase")


def one_lookup(f: Any) -> None:
    """Raises ValueError for a text that is cut without a use, or not where it must be."""
    if f.key_separator is not None and (f.key is None or f.separator is None):
        raise ValueError("key_separator cuts 'key:value' of a text that separator cuts into such pieces, for the value "
                         "at `key`; give key and separator, too")
    if f.separator is not None and f.key is not None and f.key_separator is None:
        raise ValueError("separator cuts a text into pieces 'key:value'; say in key_separator where those are cut")


class Id(FromColumns):
    """One id a row: strings and integers alike, 64-bit exact. Null is PAD (id 0, a vector of zeros)."""

    kind: Literal["id"] = "id"
    default: IdValue | None = None
    """The value of rows that have none. Default: they are PAD."""
    key: str | None = None
    """The column maps keys to values, and this column of the log holds the row's key: its value is read."""
    separator: str | None = Field(None, min_length=1)
    """With `key`, where a text is no map yet: cut 'a:1|b:2' here, at '|'."""
    key_separator: str | None = Field(None, min_length=1)
    """And each piece here, at ':', the last one."""

    @model_validator(mode="after")
    def _one_lookup(self):
        one_lookup(self)
        if self.separator is not None and self.key is None:
            raise ValueError("an id is one value; a text that separator cuts is a bag or a sequence, or has a key")
        return self


class Number(FeatureSettings):
    """One number a row. Null, NaN and infinities count as missing: the mean, plus an indicator."""

    kind: Literal["number"] = "number"
    default: float | None = None
    """The number of rows that have none; then nothing is missing."""
    key: str | None = None
    """The column maps keys to numbers, and this column of the log holds the row's key: its number is read."""
    pool: Literal["mean", "sum", "min", "max", "first", "last"] | None = None
    """The column holds lists of numbers, and this is what is read of each."""
    expression: str | None = None
    """Computed instead of read, as `log1p(price) / max(age, 1)`, of columns and of other numbers of the config; see
    [features.md](features.md#expressions)."""
    separator: str | None = Field(None, min_length=1)
    """With `key` or `pool`: cut texts here, as in 'a:0.5|b:2' or '3|1|4'."""
    key_separator: str | None = Field(None, min_length=1)
    """With `key`: cut each piece into key and number, as in 'a:0.5', at the last one."""
    log: bool = True
    """sign(x) log(1 + |x|) before scaling."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    clip: float | None = Field(6.0, gt=0)
    """Scaled values are kept within -clip .. clip."""
    indicator: bool | Literal["auto"] = "auto"
    """A second number that is 1 where the value is missing. `auto`: only if train has missing values."""
    buckets: int | None = Field(None, ge=2, le=65536)
    """Cut into at most so many buckets of about equal count, as an embedded id instead of a number. A frequent value
    has one of its own."""
    boundaries: list[float] | None = Field(None, min_length=1)
    """Cut at these values instead: x < b0, b0 <= x < b1, ..."""

    @model_validator(mode="after")
    def _one_source(self):
        one_cut(self)
        one_lookup(self)
        read = [k for k in ("column", "by", "key", "pool", "separator") if getattr(self, k) is not None]
        if self.expression is not None and read:
            raise ValueError(f"an expression names what it reads; remove {' and '.join(read)}")
        if self.key is not None and self.pool is not None:
            raise ValueError("key reads one number of a map, pool one of a list; keep one")
        if self.separator is not None and self.key is None and self.pool is None:
            raise ValueError("a number is not cut; say with pool which of a list's numbers is read, or what is made of "
                             "them")
        return self


    @field_validator("expression")
    @classmethod
    def _parses(cls, value):
        if value is not None:
            parse(value)
        return value


class Vector(FeatureSettings):
    """So many numbers a row, such as an embedding made elsewhere: a list column, or a text with a separator."""

    kind: Literal["vector"] = "vector"
    size: int = Field(ge=1, le=65536)
    """How many numbers every list has; a list of another length is an error."""
    separator: str | None = Field(None, min_length=1)
    """Cut texts here, as in '0.1|0.7'."""
    default: float | None = None
    """Each number of rows that have no list, and of places that have none. Default: they are missing."""
    log: bool = False
    """sign(x) log(1 + |x|) before scaling."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    """As for a number, each place for itself."""
    clip: float | None = Field(6.0, gt=0)
    """Scaled values are kept within -clip .. clip."""
    indicator: bool | Literal["auto"] = "auto"
    """One more number that is 1 where the whole list is missing. `auto`: only if it is in train."""


def of_numbers(f: Any) -> Any:
    """A list of numbers that are cut makes its own id space. Raises ValueError where it is told how."""
    one_cut(f)
    cut = "buckets" if f.buckets is not None else "boundaries" if f.boundaries is not None else None
    if cut and (said := [k for k in SPACE_KEYS if getattr(f, k) is not None]):
        raise ValueError(f"{cut} make an id space of their own; remove {' and '.join(said)}")
    if cut and f.default is not None and not isinstance(f.default, int):
        raise ValueError(f"default: {f.default!r} stands in a list of numbers; write a number")
    return f


class Bag(FromColumns):
    """Several ids a row, in no order: a list column, or a text with a separator."""

    kind: Literal["bag"] = "bag"
    separator: str | None = Field(None, min_length=1)
    """Cut texts here, as in 'red|blue'."""
    weight_separator: str | None = Field(None, min_length=1)
    """Cut each piece into an id and its weight, as in 'red:0.5|blue:2' (needs `separator` for texts)."""
    default: IdValue | None = None
    """The one value of a list that is null or empty."""
    buckets: int | None = Field(None, ge=2, le=65536)
    """The list holds numbers, each cut into at most so many buckets of about equal count."""
    boundaries: list[float] | None = Field(None, min_length=1)
    """Cut them at these values instead: x < b0, b0 <= x < b1, ..."""
    max_len: int | None = Field(None, ge=1)
    pool: Literal["mean", "sum"] = "mean"

    @model_validator(mode="after")
    def _of_numbers(self):
        return of_numbers(self)


class Sequence(FromColumns):
    """A history: ids in time order."""

    kind: Literal["sequence"] = "sequence"
    separator: str | None = Field(None, min_length=1)
    default: IdValue | None = None
    """The one value of a list that is null or empty."""
    buckets: int | None = Field(None, ge=2, le=65536)
    """The list holds numbers, such as prices or seconds, each cut into at most so many buckets of about equal count."""
    boundaries: list[float] | None = Field(None, min_length=1)
    """Cut them at these values instead: x < b0, b0 <= x < b1, ..."""
    max_len: int = Field(50, ge=1)
    """Longer histories keep their latest ids."""
    latest: Literal["last", "first"] = "last"
    """Which end of the column's list is the latest."""
    target: str | None = None
    """The id feature that attention compares the history with. Default: the `id` feature of the same space."""
    pool: Literal["mean", "sum"] = "mean"

    @model_validator(mode="after")
    def _of_numbers(self):
        return of_numbers(self)


class History(FromColumns):
    """The user's earlier events, strictly before the row's time: a `sequence` made from an event log."""

    kind: Literal["history"] = "history"
    of: str
    """An event log of `data.events`."""
    item: str
    """The event log's column of ids. `space` is by default that of the `id` feature that reads a column so named."""
    where: str | dict[str, str | int | list[str | int]] = {}
    """Events to take, as `{event: [cart, buy]}`: all conditions must hold. A column's name alone stands for
    `{column: 1}`. Default: every event with an item."""
    max_len: int = Field(50, ge=1)
    """The latest so many events; list numbers are of these, too."""
    target: str | None = None
    """The id feature that attention compares the history with. Default: the `id` feature of the same space."""
    pool: Literal["mean", "sum"] = "mean"

    @model_validator(mode="after")
    def _of_events(self):
        if given := [k for k in ("column", "by") if getattr(self, k) is not None]:
            raise ValueError(f"a history is made from the event log; remove {given[0]}, and name its ids in `item`")
        return self


class Cross(FromColumns):
    """Two or more values of the row as one id."""

    kind: Literal["cross"] = "cross"
    of: list[str] | None = Field(None, min_length=2, max_length=16)
    """Names of `id` features, and of `number` features that are cut: at `boundaries`, or into `buckets` where the
    cross has `hash_buckets`."""
    columns: list[str] | None = Field(None, min_length=2, max_length=16)
    """Columns of the log instead, which the model need not see by themselves. Their values are compared as texts."""
    default: IdValue | None = None
    """What a part without a value counts as. Default: then the cross has none."""

    @model_validator(mode="after")
    def _one_list(self):
        if (self.of is None) == (self.columns is None):
            raise ValueError("a cross is of features, `of`, or of columns, `columns`; give one of them")
        return self


class Length(FeatureSettings):
    """How many ids a list holds, before any cut to max_len, as log1p + standardised."""

    kind: Literal["length"] = "length"
    of: str
    """A `sequence` or `bag` feature."""


class Share(FeatureSettings):
    """Which share of the last ids of one list stands in another list of the same id space; 0 if the first is empty."""

    kind: Literal["share"] = "share"
    of: str
    within: str
    last: int | None = Field(None, ge=1)
    """Look at the latest so many only. Default: all."""


class Match(FeatureSettings):
    """How often the row's id, or bag of ids, stands in a list, and how recently.

    Two numbers: log1p of the count, and 1 / (1 + steps back to the last match), 0 without a match.
    """

    kind: Literal["match"] = "match"
    of: str
    """An `id` or `bag` feature of the row, such as the item's own id, its author or its tags."""
    within: str
    """A `sequence` feature of the same id space."""


class Rate(FeatureSettings):
    """How often something good came of a value, smoothed: log-odds of its rate minus those of the mean rate.

    Counted in train, either in lists (`among`, `within`) or in labels of earlier periods (`task`, `period`). No row
    adds to its own number.
    """

    kind: Literal["rate"] = "rate"
    of: str
    """An `id`, `bag`, `cross` or bucketed `number` whose values have rates."""
    among: str | None = None
    """A `sequence`: in the list of each user's first train row, elements of the value are counted."""
    within: str | None = None
    """A `sequence` or `bag` of the same id space: the elements that stand here too are the good ones."""
    task: str | None = None
    """A binary task: the value's earlier rows are counted, and those with label 1 are the good ones."""
    period: float | None = Field(None, gt=0)
    """With `task`: only rows of earlier periods of `data.time` count, each so long: in seconds for times, in the
    column's unit for numbers. Default: a day, for times."""
    strength: float = Field(20.0, gt=0)
    """The mean rate weighs as much as so many rows."""

    @model_validator(mode="after")
    def _one_source(self):
        lists, task = (self.among is not None, self.within is not None), self.task is not None
        if lists not in ((True, True), (False, False)) or (lists[0] == task):
            raise ValueError("a rate is counted in lists, with `among` and `within`, or in labels, with `task`")
        if self.period is not None and not task:
            raise ValueError("period is for rates of labels; rates of lists are not ordered in time")
        return self


class Gap(FeatureSettings):
    """Time from one column, or an event of the user's, to another, as log1p + standardised; missing where either is."""

    kind: Literal["gap"] = "gap"
    since: str
    until: str | None = None
    nth: int | None = Field(None, ge=1)
    """Where `since` is a `history`, or an event log: since its nth latest event. Default: the latest."""


FEATURE_KINDS = {"id": Id, "number": Number, "vector": Vector, "bag": Bag, "sequence": Sequence, "history": History,
                 "cross": Cross, "length": Length, "share": Share, "match": Match, "gap": Gap, "rate": Rate}


def _spell_out(value: Any) -> Any:
    """`price: number` is short for `price: {kind: number}`."""
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "id", **value} if value else {"kind": "id"}
    return value


AnyFeature = Annotated[
    Annotated[Id | Number | Vector | Bag | Sequence | History | Cross | Length | Share | Match | Gap | Rate,
              Field(discriminator="kind")],
    BeforeValidator(_spell_out)]


# ---- tasks

class CrossEntropy(Section):
    """Cross entropy, the likelihood of a label: the usual loss of a binary task."""

    name: Literal["bce"] = "bce"


class Focal(Section):
    """Cross entropy times (1 - p of the label)^gamma: rows that are told well already weigh little (Lin et al., ICCV
    2017). Probabilities are then no rates; see [calibration.md](calibration.md)."""

    name: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0)
    """Higher: rows that are told well weigh less; 0: all alike."""
    alpha: float | None = Field(0.25, gt=0, lt=1)
    """Weight of positives; that of negatives is 1 - alpha. null: 1 for both."""


class Pairwise(Section):
    """alpha of cross entropy, and 1 - alpha of the mean over pairs of log(1 + e^-(s_i - s_j)), i positive, j negative:
    RankNet's loss (Burges et al., ICML 2005), mixed as Li et al. (KDD 2015) do."""

    name: Literal["pairwise"] = "pairwise"
    alpha: float = Field(0.5, ge=0, le=1)
    """The share of cross entropy, which calibrates; the rest ranks."""
    by: Literal["user", "batch"] = "user"
    """Whose rows are compared within a batch: each user's own, or all."""


class JRC(Section):
    """Joint ranking and calibration (Sheng et al., KDD 2023): a logit for each class; alpha of cross entropy, and 1 -
    alpha of telling, within a context, which rows are of a class."""

    name: Literal["jrc"] = "jrc"
    alpha: float = Field(0.5, ge=0, le=1)
    """The share of cross entropy, which calibrates; the rest ranks."""
    by: Literal["user", "batch"] = "user"
    """The context: each user's rows in a batch, or the batch."""


class Squared(Section):
    """Half the squared error in units of the label's spread: the usual loss of a regression."""

    name: Literal["squared"] = "squared"


class Huber(Section):
    """Half the squared error up to delta, and a line beyond, so that outliers pull no harder (Huber 1964)."""

    name: Literal["huber"] = "huber"
    delta: float = Field(1.0, gt=0)
    """In standard deviations of the label."""


AnyLoss = Annotated[CrossEntropy | Focal | Pairwise | JRC | Squared | Huber, Field(discriminator="name")]
LOSSES = {"binary": ("bce", "focal", "pairwise", "jrc"), "regression": ("squared", "huber")}      # others have one
TaskKind = Literal["binary", "regression", "count", "ziln", "multiclass"]


class Within(Section):
    """What rows weigh in a task's loss, by another task's label. Only the ratio of the two matters, for a loss is a
    mean."""

    task: str
    """The task whose label it is."""
    inside: float = Field(1.0, gt=0, le=1e6)
    """What rows weigh where that label is above 0."""
    outside: float = Field(0.0, ge=0, le=1e6)
    """And where it is not, or was not observed; 0 leaves them out."""

    @model_validator(mode="after")
    def _differ(self):
        if self.inside == self.outside:
            raise ValueError("inside and outside are the same, so all rows weigh alike; change one, or remove within")
        return self


AnyWithin = Annotated[Within, BeforeValidator(lambda said: {"task": said} if isinstance(said, str) else said,
                                              json_schema_input_type=str | Within)]


class Task(Section):
    """One thing to predict."""

    label: str | None = None
    """The label's column. Default: the task's name."""
    kind: TaskKind = "binary"
    """binary: 0, 1 or null (not observed). regression: squared error. count: Poisson. ziln: an amount that is mostly 0,
    such as spend, as a zero-inflated lognormal. multiclass: one of `classes`, by a softmax."""
    classes: Annotated[int, Field(ge=2, le=1000)] | list[str | int] | None = None
    """Of a multiclass task: the label's values, as `[mobile, desktop, tv]`, or how many there are, 0, 1, and so on."""
    after: str | None = None
    """The binary task that must happen first, as `after: click`."""
    weight: float = Field(1.0, ge=0)
    """This task's weight in the loss."""
    loss: AnyLoss | None = None
    """What is minimised, of a binary task or a regression; see below. Default: minus the log likelihood of the kind."""
    within: AnyWithin | None = None
    """Rows to learn from, as `within: click`: those with a click. Default: all whose label was observed."""

    @model_validator(mode="after")
    def _classes(self):
        if (self.kind == "multiclass") != (self.classes is not None):
            raise ValueError("multiclass needs classes: the label's values, or how many there are"
                             if self.classes is None else f"classes are of kind multiclass, and this is {self.kind}")
        if isinstance(self.classes, list) and len(set(map(str, self.classes))) < max(len(self.classes), 2):
            raise ValueError("classes are at least two values, each written once")
        return self


# ---- embedding

class SpaceWidth(Section):
    width: int | None = Field(None, ge=1)
    pretrained: str | None = None
    """An entry of `data.vectors`, of this width, where vectors of its values start. Others start as ever, and learn."""
    frozen: bool = False
    """Vectors of `pretrained` stay as they are."""

    @model_validator(mode="after")
    def _frozen(self):
        if self.frozen and self.pretrained is None:
            raise ValueError("there is nothing to freeze; name in pretrained where vectors start, or remove frozen")
        return self


class RowOptimiser(Section):
    """How embedding rows learn: only rows a batch touches are read or written."""

    name: Literal["adagrad", "rowwise_adagrad", "adam", "ftrl", "sgd"] = "adagrad"
    lr: float = Field(0.05, gt=0)
    eps: float = Field(1e-8, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """For adam only."""
    l1: float = Field(0.0, ge=0)
    """For ftrl only: weights whose evidence stays below it are exactly 0."""
    l2: float = Field(0.0, ge=0, le=1e6)
    """Decay added to the gradient of touched rows."""

    @model_validator(mode="after")
    def _l1(self):
        if self.l1 and self.name != "ftrl":
            raise ValueError(f"{self.name} has no l1; ftrl has, and is adagrad without it")
        return self


class CrossOptimiser(RowOptimiser):
    """How the weights of declared crosses learn where a part reads them as weights (`wide`)."""

    name: Literal["adagrad", "rowwise_adagrad", "adam", "ftrl", "sgd"] = "ftrl"
    l1: float = Field(0.001, ge=0)
    """For ftrl only: weights whose evidence stays below it are exactly 0."""

    @model_validator(mode="before")
    @classmethod
    def _other(cls, value):
        """l1 is a default of ftrl alone."""
        return {"l1": 0.0, **value} if isinstance(value, dict) and value.get("name", "ftrl") != "ftrl" else value


class Sharding(Section):
    """Where rows of tables lie under torchrun; one process holds all of them. It changes no number but by rounding."""

    row_wise_from: int = Field(64_000_000, ge=0)
    """Bytes of a table's weights from which each process holds an equal part of its rows."""
    below: Literal["replicated", "table_wise"] = "replicated"
    """Smaller tables: `replicated` on every process, or each whole on the process that holds least."""


class Embedding(Section):
    """How wide each id space is, and how its rows learn."""

    width: int = Field(16, ge=1)
    init: float = Field(0.01, ge=0)
    """Rows start from N(0, init)."""
    spaces: dict[str, SpaceWidth] = {}
    """Settings of single id spaces, as `spaces: {item: {width: 32}}`."""
    optimiser: RowOptimiser = RowOptimiser()
    crosses: CrossOptimiser = CrossOptimiser()
    """How weights of declared crosses learn; see below."""
    init_from: str | None = None
    """The run, or artefact, whose tables these start from: same space, same value, same width. Ids it does not know,
    and spaces it does not have, start as ever."""
    engine: Literal["auto", "native", "torch"] = "auto"
    """What gathers and moves rows. `auto`: the native engine on a CPU where the package was built with it, else
    torch's own operations; `native` refuses to start without it. Both give the same model."""
    sharding: Sharding = Sharding()
    """Where rows lie under torchrun; see below and [scale.md](scale.md)."""
    groups: dict[Name, list[str]] = {}
    """Named groups of features that parts of a model can read, beside the roles."""


# ---- model.debias

class Propensity(Section):
    """What all ways to debias a step have in common: its propensity, the model's p of the step before."""

    clip: float = Field(0.05, gt=0, lt=0.5)
    """Propensities are kept above it, so that no row weighs more than 1 / clip."""
    weight: float = Field(1.0, ge=0)
    """Of the debiased loss."""
    entire_space: float = Field(1.0, ge=0)
    """Of the step's loss over all impressions, which is all of ESMM's."""


class Ips(Propensity):
    """ESCM2-IPS: rows with the step before, weighted by 1 / propensity."""

    name: Literal["ips"] = "ips"


class Dr(Propensity):
    """ESCM2-DR: doubly robust, with an imputation head."""

    name: Literal["dr"] = "dr"
    imputes: Literal["error", "label"] = "error"
    """What the head imputes: the error itself, as in the paper, or the label, as in DR-JL, so that rows without the
    step before teach the step, too."""


class Dcmt(Propensity):
    """DCMT: a counterfactual twin of each step, in the rows without the step before."""

    name: Literal["dcmt"] = "dcmt"
    agree: float = Field(0.001, ge=0)
    """Weight of |1 - (r + r*)|: step and twin are to add up to one."""


DEBIAS = {"ips": Ips, "dr": Dr, "dcmt": Dcmt}


# ---- train

class DenseOptimiser(Section):
    """How everything that is not a table learns."""

    name: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    l2: float = Field(0.0, ge=0, le=1e6)
    """On weight matrices; never on biases. For adamw it is the decoupled decay."""


class Schedule(Section):
    """A factor on both learning rates over the run's steps."""

    name: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    warmup: int = Field(0, ge=0)
    """Steps over which the factor rises from 0 to 1."""
    final: float = Field(0.0, ge=0, le=1)
    """The factor at the end of `linear` and `cosine`, and the least of `exponential`."""
    decay: float = Field(0.5, gt=0, le=1)
    """Of `exponential`: what the factor is multiplied by after every so many steps."""
    every: int = Field(1000, ge=1)
    """Of `exponential`: how many."""


class EarlyStopping(Section):
    """Stop when a metric no longer improves, and keep the best weights."""

    metric: str = "valid/auc"
    """`valid/auc` (mean over tasks), `valid/buy/auc`, `valid/buy/logloss`. Better is higher or lower by the metric."""
    patience: int = Field(1, ge=1)
    """Evaluations without improvement before the run stops."""
    min_delta: float = Field(0.0, ge=0)


class FixedBalance(Section):
    """Losses are added, each with its task's weight (`tasks.NAME.weight`, 1 where none is said)."""

    name: Literal["fixed"] = "fixed"


class EqualBalance(Section):
    """As `fixed`, and a config that gives a task another weight than 1 is refused."""

    name: Literal["equal"] = "equal"


class UncertaintyBalance(Section):
    """Weights e^-s, with s learned so that e^s is twice the task's loss (Kendall, Gal & Cipolla, CVPR 2018)."""

    name: Literal["uncertainty"] = "uncertainty"
    lr: float = Field(0.01, gt=0)
    """Adam's step size for s."""


class DwaBalance(Section):
    """Tasks whose loss falls slowly weigh more (dynamic weight average; Liu, Johns & Davison, CVPR 2019)."""

    name: Literal["dwa"] = "dwa"
    temperature: float = Field(2.0, gt=0)
    """Higher: weights nearer to 1."""
    every: int = Field(100, ge=1)
    """Steps whose losses are averaged before they are compared; the paper's are an epoch."""


class GradNormBalance(Section):
    """Weights learned so that tasks pull equally hard at what they share (Chen et al., ICML 2018)."""

    name: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(1.5, ge=0)
    """How much harder a task pulls that is behind; 0: none."""
    lr: float = Field(0.025, gt=0)
    """Adam's step size for the weights."""


class PCGradBalance(Section):
    """What points against another task's gradient is taken out of a gradient (Yu et al., NeurIPS 2020)."""

    name: Literal["pcgrad"] = "pcgrad"


class MetaBalance(Section):
    """Other tasks' gradients are made as long as the target's, block by block (He et al., WWW 2022)."""

    name: Literal["metabalance"] = "metabalance"
    target: str | None = None
    """The task that the others are there to help. Default: the last one."""
    relax: float = Field(0.7, ge=0, le=1)
    """The share of a gradient that is rescaled; 0 changes nothing, 1 all."""
    beta: float = Field(0.9, ge=0, lt=1)
    """Decay per step of the averages of gradients' lengths."""


AnyBalance = Annotated[FixedBalance | EqualBalance | UncertaintyBalance | DwaBalance | GradNormBalance | PCGradBalance
                       | MetaBalance, Field(discriminator="name")]
LOOKING = ("gradnorm", "pcgrad", "metabalance")      # balances that ask each task for its gradient


class TensorBoard(Section):
    """Event files in the run's folder, for `tensorboard --logdir runs`."""

    name: Literal["tensorboard"] = "tensorboard"


class MLflow(Section):
    """A run of an MLflow experiment, with every value of the config as a parameter."""

    name: Literal["mlflow"] = "mlflow"
    uri: str | None = None
    """The tracking server, or where runs are kept, such as `sqlite:///mlflow.db`. Default: as MLflow finds it, in
    `MLFLOW_TRACKING_URI`."""
    experiment: str | None = None
    """Made where it is not there. Default: `MLFLOW_EXPERIMENT_NAME`, or MLflow's own `Default`."""


class Wandb(Section):
    """A run of a Weights & Biases project."""

    name: Literal["wandb"] = "wandb"
    project: str | None = None
    """Made where it is not there. Default: as wandb finds it, in `WANDB_PROJECT`."""
    entity: str | None = None
    """The team or user. Default: as wandb finds it."""
    mode: Literal["online", "offline"] | None = None
    """offline: only files in the run's folder, for `wandb sync`. Default: as wandb finds it, in `WANDB_MODE`."""


AnyTracker = Annotated[TensorBoard | MLflow | Wandb, Field(discriminator="name")]


class Train(Section):
    """The run."""

    out: str | None = None
    """The run's folder. Default: `runs/<config name>`."""
    epochs: int | Literal["auto"] = "auto"
    """`auto`: as many as the valid split rewards, at most 20; one where there is no valid split."""
    steps: int | None = Field(None, ge=1)
    """At most so many steps; with `epochs: auto` over as many epochs as they take."""
    batch_size: int = Field(1024, ge=1)
    optimiser: DenseOptimiser = DenseOptimiser()
    schedule: Schedule = Schedule()
    balance: AnyBalance = FixedBalance()
    """How the tasks' losses become one gradient; see [balance.md](balance.md)."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of all gradients together, table rows included."""
    average: float | None = Field(0.99, gt=0, lt=1)
    """Decay per step of the weight average that is evaluated and saved; null for the plain weights."""
    early_stopping: EarlyStopping = EarlyStopping()
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between evaluations on valid. Default: at the end of each epoch."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints, beside those at evaluations and by the clock."""
    checkpoint_seconds: int | None = Field(300, ge=1)
    """Seconds between checkpoints, or 20 times as long as the last one took; null: not by the clock."""
    log_every: int = Field(20, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    threads: int | None = Field(None, ge=1, le=4096)
    """Default: torch's own choice."""
    device: str = "cpu"
    compile: bool = False
    """Have torch.compile generate code for the network: some steps are faster, the first takes a minute or more."""
    track: list[AnyTracker] = []
    """Who is told of the run, beside `events.jsonl`: `[tensorboard, {name: mlflow, experiment: shop}]`. See
    [track.md](track.md)."""

    @model_validator(mode="after")
    def _epochs(self):
        if isinstance(self.epochs, int) and self.epochs < 1:
            raise ValueError("epochs must be at least 1, or 'auto'")
        return self

    @model_validator(mode="after")
    def _each_once(self):
        names = [t.name for t in self.track]
        if len(set(names)) < len(names):
            raise ValueError("track names each tracker once")
        return self


# ---- evaluate

class Evaluate(Section):
    """The numbers at the end."""

    batch_size: int = Field(8192, ge=1)
    min_positives: int = Field(10, ge=1)
    """Fewer positives or negatives than this, and a ranking metric is null with the note 'too few positives'. The same
    number of users, with a positive and with a negative, is the least for an interval."""
    frozen: bool = True
    """Also report GAUC with each user's lists held as at his first row of the split (needs `data.user` and a list)."""
    cold: list[str] | None = None
    """Columns of the log that cut cold-start slices: rows whose value train never had, 1-9, 10-99, 100 times and more.
    Default: `data.user` and the columns that histories are compared with."""
    gauc_by: list[str] = []
    """Columns of the log to also group GAUC by, such as a request or a session: `gauc_by:request_id`."""
    truth: dict[str, str] = {}
    """task: column with its true probability, as simulated logs have; adds the best value any model could reach."""
    bins: int = Field(20, ge=2, le=10_000)
    """Equal-mass bins of ECE and of the reliability diagrams."""
    intervals: Literal["user", "row", "none"] = "user"
    """What 95 % intervals take as drawn by chance: users with all their rows, or single rows (DeLong's AUC). Without
    `data.user` it is rows."""
    keep_scores: int = Field(5_000_000, ge=0)
    """Rows of the last split whose scores stay in the run's folder for `funnelrank compare`; of more rows, those of
    some users. 0 keeps none."""
    resamples: int = Field(1000, ge=100, le=100_000)
    """Draws of the bootstrap behind the intervals of metrics that are no AUC."""


# ---- calibrate

class Calibrate(Section):
    """What is done to probabilities after training, fitted on valid and shipped in the artefact."""

    method: Literal["none", "platt", "isotonic", "beta"] = "none"
    """platt: a line on the log-odds. beta: one more slope. isotonic: a broken line, for thousands of positives."""
    by: Literal["scenario", "all"] = "scenario"
    """scenario: each scenario also gets a line of its own, as far as scenarios differ by more than chance."""


# ---- tune

class Range(Section):
    """Numbers from `low` to `high`, both included; whole ones where both are written as whole numbers."""

    low: int | float
    high: int | float
    log: bool = False
    """Try as many between .001 and .01 as between .01 and .1."""
    step: Annotated[int | float, Field(gt=0)] | None = None
    """Only `low`, `low` + step, and so on."""

    @model_validator(mode="after")
    def _order(self):
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0 and no step")
        return self


class Limits(Section):
    """What a config may cost. One that costs more is not trained."""

    parameters: int | None = Field(None, ge=1)
    """The most numbers of a model, tables included."""
    latency_ms: float | None = Field(None, gt=0)
    """The longest that one thread may take to score `rows` encoded rows, median in milliseconds."""
    rows: int = Field(100, ge=1)


class Tune(Section):
    """What `funnelrank tune` tries; `train` does not look at it."""

    over: dict[str, Range | list[Any]] = {}
    """Keys of this config, as `--set` writes them, with a range or a list of values each."""
    trials: int = Field(40, ge=1)
    """How many are tried in all."""
    seconds: int | None = Field(None, ge=1)
    """Begin none after so long."""
    metric: str | None = None
    """What is best, on valid. Default: `train.early_stopping.metric`."""
    sampler: Literal["tpe", "random"] = "tpe"
    prune: bool = True
    """End a trial whose evaluations stay below the median of those before it at the same place."""
    limits: Limits = Limits()
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _values(self):
        for key, values in self.over.items():
            if isinstance(values, list) and len(values) < 2:
                raise ValueError(f"over: '{key}' may be {len(values)} thing; a choice is between two or more")
        return self


# ---- all

class Features(Section):
    """Not written by users: `features:` is this mapping with `lists` as its one reserved key."""

    lists: Literal["auto", "off"] = "auto"
    columns: dict[Name, AnyFeature]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value):
        if isinstance(value, dict) and not set(value) <= {"lists", "columns"} or (
                isinstance(value, dict) and not isinstance(value.get("columns"), dict)):
            rest = {k: v for k, v in value.items() if k != "lists"}
            return {"columns": rest, **({"lists": value["lists"]} if "lists" in value else {})}
        return value


class Settings(Section):
    """A whole config."""

    data: Data = Data()
    features: Features
    tasks: dict[Name, Task] = Field(min_length=1)
    embedding: Embedding = Embedding()
    model: dict[str, Any] = {"name": "auto"}
    """`name` of a paper and its slots; checked against the parts' constructors."""
    train: Train = Train()
    calibrate: Calibrate = Calibrate()
    evaluate: Evaluate = Evaluate()
    tune: Tune = Tune()
