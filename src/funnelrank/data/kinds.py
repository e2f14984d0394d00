"""Column types, few of them; and what pyarrow and the disk raise, as one sentence each.

    int64, double, bool, large_string, timestamp[us], date32, time64[us], duration[us], and large_list of these
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.errors import DataError


def widened(kind: pa.DataType) -> pa.DataType:
    """The type that a column of this type is read as."""
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return widened(kind.storage_type)
    if t.is_dictionary(kind):
        return widened(kind.value_type)
    if t.is_integer(kind) or (t.is_decimal(kind) and kind.scale == 0):
        return pa.int64()
    if t.is_floating(kind) or t.is_decimal(kind):
        return pa.float64()
    if any(is_text(kind) for is_text in (t.is_string, t.is_large_string, t.is_string_view,
                                         t.is_binary, t.is_large_binary, t.is_binary_view)):
        return pa.large_string()
    if t.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if t.is_date(kind):
        return pa.date32()
    if t.is_time(kind):
        return pa.time64("us")
    if t.is_duration(kind):
        return pa.duration("us")
    if any(is_list(kind) for is_list in (t.is_list, t.is_large_list, t.is_fixed_size_list,
                                         t.is_list_view, t.is_large_list_view)):
        return pair_map(kind.value_type) or pa.large_list(widened(kind.value_type))
    return kind


def pair_map(kind: pa.DataType) -> pa.DataType | None:
    """The map type that lists of such structs are read as: a struct of two is a key and its value."""
    if not pa.types.is_struct(kind) or kind.num_fields != 2:
        return None
    return pa.map_(pa.field("key", widened(kind.field(0).type), False), widened(kind.field(1).type))


def common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds values of both (widened) types, or None where they are of different families."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    numbers = [pa.bool_(), pa.int64(), pa.float64()]
    if a in numbers and b in numbers:
        return max(a, b, key=numbers.index)
    if pa.types.is_large_list(a) and pa.types.is_large_list(b):
        value = common(a.value_type, b.value_type)
        return value and pa.large_list(value)
    return None


def whole(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array, without a copy where there is one chunk."""
    if isinstance(array, pa.Array):
        return array
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()


def conform(array: pa.Array, kind: pa.DataType, where: str) -> pa.Array:
    """Values as a wider type, exactly: DataError where one does not survive (nanoseconds are cut to microseconds)."""
    if array.type == kind:
        return array
    if pa.types.is_map(kind) and not pa.types.is_map(array.type) and not pa.types.is_null(array.type):
        return _as_map(array, kind, where)
    try:
        if pa.types.is_temporal(kind):
            return array.cast(kind, safe=False)
        return array.cast(kind)
    except (pa.ArrowException, ValueError) as e:
        remedy = "write text as UTF-8" if "string" in str(kind) else "write such values as text" if (
            "int64" in str(kind)) else "write it as one type"
        raise DataError(f"{where}: {column_type(array.type)} does not fit {column_type(kind)}: {sentence(e)}; "
                        f"{remedy}") from e


def pairs_as_map(array: pa.Array, where: str) -> pa.Array:
    """Lists of structs of two as maps; any other column as it is."""
    if pa.types.is_primitive(array.type):
        return array
    kind = widened(array.type)
    return conform(array, kind, where) if pa.types.is_map(kind) and not pa.types.is_map(array.type) else array


def _as_map(lists: pa.Array, kind: pa.DataType, where: str) -> pa.Array:
    """Lists of structs of two as maps. Structs that are null, or whose key is, are left out."""
    pairs = lists.flatten()
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64)
    keys, values = pairs.flatten()
    known = keys.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(known)])[np.concatenate([[0], np.cumsum(lengths)])].astype(np.int32)
    null = np.append(lists.is_null().to_numpy(zero_copy_only=False), False)
    keys, values = (conform(v.filter(pa.array(known)), t, where) for v, t in
                    ((keys, kind.key_type), (values, kind.item_type)))
    return pa.MapArray.from_arrays(pa.array(offsets, mask=null), keys, values).cast(kind)


def column_type(kind: pa.DataType) -> str:
    names = {pa.int64(): "int", pa.float64(): "float", pa.large_string(): "string", pa.bool_(): "bool"}
    if pa.types.is_large_list(kind):
        return f"list of {column_type(kind.value_type)}"
    return names.get(kind, str(kind))


def own(array: pa.Array) -> pa.Array:
    """The same values in buffers that hold nothing else: offset 0, and lists without hidden values."""
    if pa.types.is_large_list(array.type) and len(array):
        offsets = array.offsets.to_numpy()
        hidden = offsets[0] != 0 or offsets[-1] != len(array.values)
        if array.null_count and not hidden:
            hidden = bool((offsets[1:] - offsets[:-1])[array.is_null().to_numpy(zero_copy_only=False)].any())
        return array.take(pa.array(np.arange(len(array)))) if hidden or array.offset else array
    return pa.concat_arrays([array, array.slice(0, 0)]) if array.offset else array


@contextmanager
def reading(where: str) -> Iterator[None]:
    """What pyarrow, the disk or a remote store raises inside becomes one DataError sentence about `where`."""
    try:
        yield
    except MemoryError as e:
        raise DataError(f"{where}: the memory does not hold it ({sentence(e)}); lower data.memory") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{where}: byte {e.start} is not UTF-8; write text as UTF-8") from e
    except (pa.ArrowException, OSError, EOFError) as e:
        if getattr(e, "errno", None) is not None:              # the disk's own words need no addition
            raise DataError(f"{where}: cannot be read: {os.strerror(e.errno)}") from e
        raise DataError(f"{where}: cannot be read: {sentence(e)}; is the file complete, and of this format?") from e


def sentence(e: BaseException) -> str:
    text = " ".join(str(e).split("\n")[0].split(". Detail:")[0].split()).rstrip(".")
    return (text[:200] + " ..." if len(text) > 200 else text) or type(e).__name__
