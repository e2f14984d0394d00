"""Which columns the files of one split share, and what to say of the others."""

import re
from typing import Any, NamedTuple

import pyarrow as pa

from funnelrank.data.kinds import column_type, common, widened
from funnelrank.errors import did_you_mean


class Fault(NamedTuple):
    """Why a column cannot be read, and the file that stands apart from the others."""

    sentence: str
    file: Any


def agree(files: list[Any]) -> tuple[pa.Schema, dict[str, Fault]]:
    """The columns that all files share, and a fault for each other column, raised once it is asked for."""
    _type_partitions(files)
    kinds: dict[str, pa.DataType] = {}
    origin: dict[str, Any] = {}
    faults: dict[str, Fault] = {}
    for file in files:
        columns = dict(zip(file.schema.names, file.schema.types)) | {
            c: pa.scalar(v).type for c, v in file.partition.items() if c not in file.schema.names}
        for c in [*kinds, *columns]:
            if c in faults:
                continue
            if c not in columns:
                faults[c] = Fault(f"{file.name}: no column '{c}', which {origin[c].name} has; files of one split need "
                                  "the same columns" + did_you_mean(c, set(columns) - set(kinds)), file)
            elif c not in kinds and file is not files[0]:
                faults[c] = Fault(f"{files[0].name}: no column '{c}', which {file.name} has; files of one split need "
                                  "the same columns", files[0])
            else:
                kind = widened(columns[c])
                both = common(kinds.setdefault(c, kind), kind)
                if both is None:
                    faults[c] = Fault(f"{file.name}: column '{c}' is {column_type(kind)}, but in {origin[c].name} it "
                                      f"is {column_type(kinds[c])}; write it as one type in all files", file)
                    continue
                if c not in origin or both != kinds[c]:
                    origin[c] = file
                kinds[c] = both
        for c in {c for c in file.schema.names if file.schema.names.count(c) > 1}:
            faults[c] = Fault(f"{file.name}: has {file.schema.names.count(c)} columns named '{c}'; rename all but one",
                              file)
    return pa.schema([(c, k) for c, k in kinds.items() if c not in faults]), faults


def _type_partitions(files: list[Any]) -> None:
    """Values of key=value folders become whole numbers where all of a key's values are."""
    for key in dict.fromkeys(k for f in files for k in f.partition):
        values = [f.partition[key] for f in files if f.partition.get(key) is not None]
        if all(re.fullmatch(r"-?\d{1,18}", str(v)) for v in values):
            for f in files:
                if f.partition.get(key) is not None:
                    f.partition[key] = int(f.partition[key])
