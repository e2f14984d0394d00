"""Files that are damaged, unheard of, or lie: what benchmarks/chaos_files.py feeds to the command line.

Each maker takes (random, made, place): writes a case into `place`, an empty folder, from what is in `made`, and returns
its subject, 'artefact: flip in model.safetensors at 1234'. `act` runs the command that the subject is for.
"""

import contextlib
import csv
import hashlib
import importlib
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

SAME, OTHER = 10, 11              # exit codes of `act`, where the command's was 0


def imports(modules: list[str]) -> None:
    """Everything that a command imports, once, so that a child's start is a fork; nothing is read, no thread begins."""
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch
    torch.set_num_threads(1)


def act(subject: str, made: Path, place: Path) -> int:
    """The exit code of the command that reads the case; SAME or OTHER where it succeeds."""
    from funnelrank import api, cli, load_config
    from funnelrank.errors import FunnelrankError
    what = subject.split(":")[0]
    run = place / "run" if (place / "run").exists() else made / "run"
    rows = next((p for p in place.iterdir() if p.name.startswith("rows.")), made / "train.parquet")
    config = str(made / "shop.yaml")
    if what == "data checked":
        sets = ["--set", f"data.dir={made}", "--set", f"data.train={rows}"]
        return cli.main(["check", config, "--data", *sets]) or OTHER
    if what in ("checkpoint", "cache"):
        try:
            settings = load_config(config, [f"data.dir={made}", f"train.out={place / 'new'}",
                                            f"data.cache={place / 'cache'}"])
            read = _state if what == "checkpoint" else _encoded
            return SAME if read(api, settings, run) == (made / f"{what}.txt").read_text() else OTHER
        except FunnelrankError as error:
            print(error)
            return 2
    return cli.main(["predict", str(run), str(rows), "--out", str(place / "scores.parquet")]) or _compared(
        made / "scores.parquet", place / "scores.parquet")


def _state(api: Any, settings: Any, run: Path) -> str:
    """A digest of what a run that continues from `run` takes up."""
    before = api.before_of(run, settings, ())
    told = hashlib.sha256(json.dumps(before.state, sort_keys=True).encode())
    for name, tensor in sorted(before.tensors.items()):
        told.update(name.encode() + tensor.numpy().tobytes())
    return told.hexdigest()


def _encoded(api: Any, settings: Any, run: Path) -> str:
    """A digest of the encoded rows, from the cache or made again."""
    data = api.open_data(settings)
    split = api.encode(settings, data, api.prepare(settings, data))["train"]
    told = hashlib.sha256(json.dumps([split.counts, split.coverage], sort_keys=True).encode())
    lists = [a for listed in split.lists for a in listed if a is not None]
    for array in (split.ids, split.numbers, split.labels, *lists):
        told.update(array.tobytes())
    return told.hexdigest()


def baselines(made: Path) -> None:
    """What undamaged files come to."""
    from funnelrank import api, load_config
    settings = load_config(made / "shop.yaml", [f"train.out={made / 'new'}"])
    (made / "checkpoint.txt").write_text(_state(api, settings, made / "run"))
    (made / "cache.txt").write_text(_encoded(api, settings, made / "run"))
    (made / "modules.txt").write_text("\n".join(sorted(sys.modules)))


def _compared(a: Path, b: Path) -> int:
    return SAME if a.exists() and a.read_bytes() == b.read_bytes() else OTHER


def may_differ(subject: str) -> bool:
    """Whether other numbers are right: the content is new, or the format has no sum over what was changed."""
    return not subject.startswith(("artefact:", "checkpoint:", "cache:", "parquet pages:"))


# ---- flips

def flip(draw: random.Random, made: Path, place: Path) -> str:
    what = draw.choice(["artefact", "artefact", "checkpoint", "cache", "parquet pages", "parquet footer", "arrow"])
    if what in ("artefact", "checkpoint"):
        shutil.copytree(made / "run", place / "run")
        path = _file(draw, place / "run" / ("artefact" if what == "artefact" else "checkpoints/last"))
    elif what == "cache":
        shutil.copytree(made / ".funnelrank-cache", place / "cache")
        path = _file(draw, place / "cache")
    elif what == "arrow":
        path = Path(shutil.copy(made / "rows.arrow", place))
    else:
        path = Path(shutil.copy(made / "train.parquet", place / "rows.parquet"))
    content = bytearray(path.read_bytes())
    low, high = 0, len(content)
    if what.startswith("parquet"):
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        low, high = (0, footer) if what == "parquet pages" else (footer, len(content))
    if not high:
        return f"{what}: {path.name} is empty and stays"
    at = draw.randrange(low, high)
    content[at] ^= draw.choice([1 << draw.randrange(8), draw.randrange(1, 256)])
    path.write_bytes(content)
    return f"{what}: flip in {path.name} at {at}"


def _file(draw: random.Random, folder: Path) -> Path:
    return draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))


# ---- generated data files

TEXTS = ["", "a", "nan", "NaN", "-1", "0", "1e999", "0x10", "1.5", "true", "null", "\x00", "\u202e", "é", "😀",
         "a|b", "|", "u" * 5000, "2026-01-01", "12:30", '"', "'", "\n", ",", "9" * 30]
NUMBERS = [0, 1, -1, 2, 127, 255, 2**31, -2**31, 2**53 + 1, 2**63 - 1, -2**63, 0.5, -0.0, 1e308, -1e308, float("nan"),
           float("inf"), -float("inf")]


def data_file(draw: random.Random, made: Path, place: Path) -> str:
    """Rows that look like the log, with some columns replaced by others of any kind, missing, twice or renamed."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    rows = pq.read_table(made / "train.parquet").slice(draw.randrange(300), draw.choice([0, 1, 2, 7, 60]))
    columns = dict(zip(rows.column_names, rows.columns))
    used = ["item_id", "scenario", "price", "hour", "badges", "hist_shown", "click", "buy", "user_id"]
    told = []
    for name in draw.sample(used, draw.choice([1, 1, 2, 3])):
        how = draw.choice(["missing", "any", "any", "any", "nulls", "twice"])
        told.append(f"{name} {how}")
        if how == "missing":
            columns.pop(name, None)
        elif how == "nulls":
            columns[name] = pa.nulls(len(rows), draw.choice([pa.null(), pa.int64(), pa.string(), pa.list_(pa.int8())]))
        elif how == "any":
            columns[name] = column(draw, len(rows))
    table = pa.Table.from_arrays(list(columns.values()), names=[
        *(n if draw.random() > 0.01 else draw.choice(TEXTS) for n in columns)])
    if any("twice" in t for t in told) and len(columns) > 1:
        table = table.append_column(draw.choice(used), table.column(0))
    form = draw.choice(["parquet", "csv", "arrow", "feather", "tsv"])
    path = place / f"rows.{form}"
    try:
        _write(draw, table, form, path)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):
        path.write_bytes(bytes(draw.randrange(256) for _ in range(draw.randrange(200))))
        told = ["random bytes"]
    if draw.random() < 0.1:
        content = path.read_bytes()
        path.write_bytes(content[:draw.randrange(len(content) + 1)])
        told.append("cut off")
    return f"{draw.choice(['data scored', 'data checked'])}: {form}, {'; '.join(told)}"


def column(draw: random.Random, n: int, like: Any = None) -> Any:
    """An Arrow column of n values, of any type and shape; or of the type `like`, with any values."""
    import pyarrow as pa
    if like is not None and pa.types.is_list(like):
        lengths = [draw.choice([0, 0, 1, 2, 5, 40]) for _ in range(n)]
        offsets = pa.array([sum(lengths[:i]) for i in range(n + 1)], pa.int32())
        return pa.ListArray.from_arrays(offsets, _values(draw, like.value_type, sum(lengths)))
    if like is not None:
        return _values(draw, like, n)
    kinds = [pa.int8(), pa.uint64(), pa.int32(), pa.float16(), pa.float32(), pa.float64(), pa.string(),
             pa.large_string(), pa.binary(), pa.bool_(), pa.date32(), pa.date64(),
             pa.timestamp("ns", "Europe/Paris"),
             pa.timestamp("s"), pa.time32("ms"), pa.duration("ns"), pa.decimal128(20, 3), pa.decimal256(40,
             0), pa.null(),
             pa.dictionary(pa.int8(), pa.string()), pa.binary(4), pa.string_view(), pa.month_day_nano_interval()]
    kind = draw.choice(kinds)
    shape = draw.choice(["flat", "flat", "flat", "list", "list of lists", "struct", "map", "fixed"])
    if pa.types.is_dictionary(kind) or shape == "flat":
        return _values(draw, kind, n)
    if shape == "struct":
        return pa.StructArray.from_arrays([_values(draw, kind, n)], names=["x"])
    lengths = [draw.choice([0, 0, 1, 2, 5]) for _ in range(n)]
    if shape == "fixed":
        return pa.FixedSizeListArray.from_arrays(_values(draw, kind, 2 * n), 2)
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    values = _values(draw, kind, offsets[-1])
    if shape == "map":
        return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), pa.array([str(i) for i in range(offsets[-1])]),
                                       values)
    if shape == "list of lists":
        values = pa.ListArray.from_arrays(pa.array(range(offsets[-1] + 1), pa.int32()), values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _values(draw: random.Random, kind: Any, n: int) -> Any:
    import pyarrow as pa
    if pa.types.is_null(kind):
        return pa.nulls(n)
    found = []
    for _ in range(n):
        for _ in range(20):
            value = draw.choice([*NUMBERS, *TEXTS, None, True, b"\xff\xfe", b"abcd"])
            try:
                found.append(pa.scalar(value, pa.string() if pa.types.is_dictionary(kind) else kind).as_py())
                break
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                continue
        else:
            found.append(None)
    try:
        return pa.array(found, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.nulls(n, kind)


def _write(draw: random.Random, table: Any, form: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    if form == "parquet":
        pq.write_table(table, path, row_group_size=draw.choice([1, 10, 1000]), compression=draw.choice(
            ["none", "snappy", "zstd", "gzip"]), data_page_version=draw.choice(["1.0", "2.0"]),
            use_dictionary=draw.random() < 0.5)
    elif form in ("arrow", "feather"):
        options = pa.ipc.IpcWriteOptions(compression=draw.choice([None, "zstd", "lz4"]))
        make = pa.ipc.new_file if draw.random() < 0.7 else pa.ipc.new_stream
        with make(str(path), table.schema, options=options) as file:
            file.write_table(table, max_chunksize=draw.choice([1, 1000]))
    else:
        mark = "," if form == "csv" else "\t"
        with open(path, "w", newline="", encoding=draw.choice(["utf-8", "utf-8", "utf-16", "latin-1"]),
                  errors="replace") as file:
            write = csv.writer(file, delimiter=mark, quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
            write.writerow(table.column_names)
            for row in zip(*(column.to_pylist() for column in table.columns)):
                row = ["|".join(map(str, v)) if isinstance(v, list) else v for v in row]
                write.writerow(row[:draw.randrange(len(row))] if draw.random() < 0.02 else row)


# ---- artefacts that were changed and sealed again

LEAVES: list[Any] = [None, True, False, 0, -1, 1, 2, 10**9, 2**63, 10**30, 0.5, -1e308, "", "x", "../../x",
                     "/etc/passwd", "item_id", [], {}, [[]], ["x"], {"x": 1}, "\x00", "click", "fitted", "hash",
                     [1, 2, 3], "a" * 10_000]
YAML = ["features: {a: &a [x, x], b: &b [*a, *a], c: [*b, *b]}", "a: " + "[" * 5000,
        "!!python/object/apply:os.system ['x']",
        "model: {name: os.system}", "features: 1\nfeatures: 2", "", "- 1", "\x00", "data: {train: !!binary aGk=}",
        "model: {name: 'os:system'}", "a: &a {<<: *a}", "? [a]\n: b"]


def artefact(draw: random.Random, made: Path, place: Path) -> str:
    shutil.copytree(made / "run", place / "run")
    folder = place / "run" / "artefact"
    how = draw.choice(["json", "json", "json", "yaml", "yaml", "arrow", "arrow", "tensors", "tensors", "manifest",
                       "name", "swap"])
    if how == "json":
        path = folder / draw.choice(["encoder/encoder.json", "encoder/encoder.json", "schema.json", "metrics.json"])
        value = json.loads(path.read_text())
        said = _change_value(draw, value)
        path.write_text(json.dumps(value))
        if draw.random() < 0.1:
            path.write_text(draw.choice(["[" * 100_000, '{"a": NaN}', "", "{", '{"format": 1, "format": 1}', "nul"]))
    elif how == "yaml":
        path = folder / "config.yaml"
        lines = path.read_text().splitlines()
        at = draw.randrange(len(lines))
        key, colon, _ = lines[at].partition(":")
        said = f"line {at + 1}"
        lines[at] = f"{key}: {json.dumps(draw.choice(LEAVES))}" if colon and draw.random() < 0.8 else draw.choice(YAML)
        path.write_text("\n".join(lines) if draw.random() < 0.9 else draw.choice(YAML))
    elif how == "arrow":
        path = draw.choice(sorted(folder.rglob("*.arrow")))
        said = _change_arrow(draw, path)
    elif how == "tensors":
        path = folder / "model.safetensors"
        said = _change_tensors(draw, path)
    elif how == "swap":
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
        path, other = draw.choice(files), draw.choice(files)
        said = f"with {other.name}"
        path.write_bytes(other.read_bytes())
    else:
        path, said = folder / "manifest.json", ""
    seal(folder)
    if how in ("manifest", "name"):
        manifest = json.loads(path.read_text())
        if how == "manifest":
            said = _change_value(draw, manifest)
        else:
            said = draw.choice(["../../x", "/etc/passwd", "a/../../b", "", ".", "C:\\x", "a\x00b", "x" * 5000,
                                "./config.yaml"])
            manifest["files"][said] = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        path.write_text(json.dumps(manifest))
    return f"sealed again, {how}: {path.name}, {said[:100]!r}"


def seal(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {p.relative_to(folder).as_posix(): {
        "size": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _change_value(draw: random.Random, value: Any) -> str:
    """One place of a JSON value: replaced, removed, or a key added. Says where."""
    path = []
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        if not keys:
            return "nothing"
        key = draw.choice(list(keys))
        path.append(str(key))
        inner = value[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
            value = inner
            continue
        how = draw.random()
        if how < 0.7:
            value[key] = draw.choice(LEAVES)
        elif how < 0.9 or isinstance(value, list):
            del value[key]
        else:
            value[draw.choice(["x", "../x", "item_id", ""])] = draw.choice(LEAVES)
        return ".".join(path)


def _change_arrow(draw: random.Random, path: Path) -> str:
    """Bytes of an Arrow file, its compression, or its values: none, nulls, one twice, another type, another column or
    no metadata."""
    import pyarrow as pa
    if draw.random() < 0.6:
        content = bytearray(path.read_bytes())
        for _ in range(draw.choice([1, 1, 4, 64])):
            content[draw.randrange(len(content))] = draw.choice([0, 255, 127, 128, draw.randrange(256)])
        path.write_bytes(content)
        return "bytes"
    with pa.ipc.open_file(str(path)) as file:
        table = file.read_all()
    said, name = draw.choice(["empty", "nulls", "twice", "type", "renamed", "bare", "packed"]), table.column_names[0]
    first = table.column(0)
    if said == "empty":
        table = table.slice(0, 0)
    elif said == "nulls":
        table = table.set_column(0, name, pa.nulls(len(table), first.type))
    elif said == "twice":
        table = pa.concat_tables([table, table])
    elif said == "type":
        table = table.set_column(0, name, pa.array([0.5] * len(table)))
    elif said == "renamed":
        table = table.rename_columns([f"{n}!" for n in table.column_names])
    elif said == "bare":
        table = table.replace_schema_metadata(None)
    options = pa.ipc.IpcWriteOptions(compression="zstd" if said == "packed" else None)
    with pa.ipc.new_file(str(path), table.schema, options=options) as file:
        file.write_table(table)
    return said


def _change_tensors(draw: random.Random, path: Path) -> str:
    """The header of a safetensors file: its length, a shape, a type, offsets; or a name."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:8 + size]), content[8 + size:]
    name = draw.choice([k for k in header if k != "__metadata__"])
    said = draw.choice(["length", "shape", "dtype", "offsets", "name", "cut", "values", "metadata"])
    if said == "shape":
        header[name]["shape"] = draw.choice([[2**62], [10**12, 10**12], [-1], [0], [], ["x"], [1] * 100_000])
    elif said == "dtype":
        header[name]["dtype"] = draw.choice(["F64", "I8", "XYZ", None, 1])
    elif said == "offsets":
        header[name]["data_offsets"] = draw.choice([[0, 2**62], [5, 1], [-1, 4], [], [0, 0]])
    elif said == "name":
        header[draw.choice(["x", "../x", name + "x"])] = header.pop(name)
    elif said == "cut":
        body = body[:draw.randrange(len(body))]
    elif said == "values":
        body = bytes([255]) * len(body)
    elif said == "metadata":
        header["__metadata__"] = draw.choice([{"a": 1}, [], "x", {"a": "b" * 10**6}])
    text = json.dumps(header).encode()
    length = draw.choice([0, 2**63, len(text) + 1, len(text) - 1, 10**9]) if said == "length" else len(text)
    path.write_bytes((length % 2**64).to_bytes(8, "little") + text + body)
    return said


KINDS = {"flips": flip, "files": data_file, "artefacts": artefact}

if __name__ == "__main__":
    sys.exit(f"{os.path.basename(__file__)} makes files for chaos_files.py; run that")
