"""The tensors of the Open Inference Protocol v2, as JSON and with the binary tensor extension. No model, no names.

    JSON      {"name": "price", "shape": [3], "datatype": "FP64", "data": [1.0, 2.0, null]}
    binary    the same without data and with {"parameters": {"binary_data_size": 24}}; bytes follow the JSON, whose
              length is the header Inference-Header-Content-Length. BYTES: each element behind its length, uint32.

Whatever is wrong with a request becomes one RequestError, before memory is spent on what it says of itself.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from funnelrank.errors import listing

VERSION = version("funnelrank")
NUMPY = {"BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
         "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
         "FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
RAW = {name: np.dtype(np.uint8 if name == "BOOL" else kind).newbyteorder("<") for name, kind in NUMPY.items()}
DATATYPES = (*NUMPY, "BYTES")
LENGTH = struct.Struct("<I")
MOST_DIMS = 2


class RequestError(Exception):
    """What a client asked for cannot be answered: a sentence and the HTTP status that says whose fault it is."""

    def __init__(self, said: str, status: int = 400):
        super().__init__(said)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body: int = 32 << 20         # bytes
    rows: int = 10_000
    length: int = 10_000         # ids of one list
    text: int = 1_000            # bytes of one text
    inputs: int = 1_000


@dataclass
class Tensor:
    """Numbers as an array of `shape`; texts, and JSON's values with their nulls, as a flat list."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: np.ndarray | list[Any]


@dataclass
class Request:
    inputs: dict[str, Tensor]
    outputs: list[str] = field(default_factory=list)       # none: all
    binary: set[str] = field(default_factory=set)          # outputs that are wanted as bytes
    all_binary: bool = False
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def wants_bytes(self, output: str) -> bool:
        return self.all_binary or output in self.binary


def read_json(text: bytes | memoryview) -> Any:
    """Plain JSON: no NaN, no infinities, nothing too deep. RequestError otherwise."""
    def refuse(word: str) -> Any:
        raise RequestError(f"{word} is no number of JSON; say null where a value is missing")

    def number(word: str) -> float:
        value = float(word)
        return value if math.isfinite(value) else refuse(word[:20])

    try:
        return json.loads(bytes(text), parse_constant=refuse, parse_float=number)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        said = "too deeply nested" if isinstance(error, RecursionError) else str(error)[:120]
        raise RequestError(f"the body is not JSON: {said}") from None


def read_request(body: memoryview, header: str | None, limits: Limits) -> Request:
    """An infer request. `header` is Inference-Header-Content-Length, None where the body is JSON alone."""
    length = len(body)
    if header is not None:
        if not header.isascii() or not header.isdigit() or len(header) > 18 or int(header) > length:
            raise RequestError(f"Inference-Header-Content-Length: '{header[:20]}'; the body has {length} bytes")
        length = int(header)
    said = an_object(read_json(body[:length]), "the body")
    inputs = said.get("inputs")
    if not isinstance(inputs, list) or not inputs or len(inputs) > limits.inputs:
        raise RequestError(f"inputs: a list of 1 to {limits.inputs} tensors is needed")
    request = Request({}, id=_text(said.get("id", ""), "id"), parameters=an_object(said.get("parameters", {}),
                                                                                   "parameters"))
    request.all_binary = request.parameters.get("binary_data_output") is True
    at = length
    for i, one in enumerate(inputs):
        tensor, at = _read_input(an_object(one, f"inputs[{i}]"), body, at, limits)
        if tensor.name in request.inputs:
            raise RequestError(f"inputs: '{tensor.name}' stands there twice")
        request.inputs[tensor.name] = tensor
    if at != len(body):
        raise RequestError(f"{len(body) - at} bytes follow the last tensor; binary_data_size does not add up")
    outputs = said.get("outputs", [])
    if not isinstance(outputs, list) or len(outputs) > limits.inputs:
        raise RequestError("outputs: a list of tensors is needed")
    for i, one in enumerate(outputs):
        one = an_object(one, f"outputs[{i}]")
        name = _text(one.get("name"), f"outputs[{i}].name")
        request.outputs.append(name)
        if an_object(one.get("parameters", {}), f"outputs[{i}].parameters").get("binary_data") is True:
            request.binary.add(name)
    return request


def _read_input(said: Mapping[str, Any], body: memoryview, at: int, limits: Limits) -> tuple[Tensor, int]:
    name = _text(said.get("name"), "name of an input")
    datatype, shape = said.get("datatype"), checked_shape(said.get("shape"), name, limits)
    if datatype not in DATATYPES:
        raise RequestError(f"input '{name}': datatype {json.dumps(datatype)[:40]}; those are {', '.join(DATATYPES)}")
    size = an_object(said.get("parameters", {}), f"parameters of '{name}'").get("binary_data_size")
    if size is None:
        if "data" not in said:
            raise RequestError(f"input '{name}': has neither data nor binary_data_size")
        return Tensor(name, datatype, shape, flat(said["data"], shape, name)), at
    if "data" in said:
        raise RequestError(f"input '{name}': has both data and binary_data_size; one of them is right")
    if type(size) is not int or size < 0 or at + size > len(body):
        raise RequestError(f"input '{name}': binary_data_size {str(size)[:20]}; {len(body) - at} bytes are left")
    return from_bytes(name, datatype, shape, body[at:at + size], limits), at + size


def checked_shape(shape: Any, name: str, limits: Limits) -> tuple[int, ...]:
    """[rows] or [rows, length], within the limits."""
    if (not isinstance(shape, list | tuple) or not 1 <= len(shape) <= MOST_DIMS
            or any(type(d) is not int or d < 0 for d in shape)):
        raise RequestError(f"input '{name}': shape {str(shape)[:60]}; [rows], or [rows, length] of a list, is needed")
    if shape[0] > limits.rows:
        raise RequestError(f"input '{name}': {shape[0]} rows; a request has at most {limits.rows}", 413)
    if len(shape) > 1 and shape[1] > limits.length:
        raise RequestError(f"input '{name}': lists of {shape[1]}; a list has at most {limits.length}", 413)
    return tuple(shape)


def flat(data: Any, shape: Sequence[int], name: str) -> list[Any]:
    """JSON data, nested as the shape or flat, as one list of as many values as the shape says."""
    if not isinstance(data, list):
        raise RequestError(f"input '{name}': data is no list")
    if len(shape) == 2 and data and all(isinstance(row, list) for row in data):
        if len(data) != shape[0] or any(len(row) != shape[1] for row in data):
            raise RequestError(f"input '{name}': its rows are not {shape[0]} of {shape[1]} values, as its shape says")
        data = [value for row in data for value in row]
    if len(data) != math.prod(shape):
        raise RequestError(f"input '{name}': {len(data)} values; its shape {list(shape)} has {math.prod(shape)}")
    return data


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview, limits: Limits) -> Tensor:
    count = math.prod(shape)
    if datatype != "BYTES":
        kind = RAW[datatype]
        if len(raw) != count * kind.itemsize:
            raise RequestError(f"input '{name}': {len(raw)} bytes; {datatype} of shape {list(shape)} has "
                               f"{count * kind.itemsize}")
        values = np.frombuffer(raw, kind).reshape(shape)
        return Tensor(name, datatype, shape, values.astype(np.bool_) if datatype == "BOOL" else values)
    values, at, whole = [], 0, bytes(raw)
    for _ in range(count):
        if at + 4 > len(whole):
            break
        size, = LENGTH.unpack_from(whole, at)
        if size > limits.text:
            raise RequestError(f"input '{name}': a text of {size} bytes; a text has at most {limits.text}", 413)
        values.append(whole[at + 4:at + 4 + size])
        at += 4 + size
    if len(values) != count or at != len(whole):
        raise RequestError(f"input '{name}': its bytes are not {count} texts, each behind its length in 4 bytes")
    return Tensor(name, datatype, shape, values)


def write_response(model: str, number: str, request: Request,
                   outputs: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where bytes follow it."""
    said, binary = [], []
    for name, values in outputs.items():
        one: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if request.wants_bytes(name):
            raw = np.ascontiguousarray(values, "<f4").tobytes()
            one["parameters"] = {"binary_data_size": len(raw)}
            binary.append(raw)
        else:
            one["data"] = json_numbers(values)
        said.append(one)
    head = json.dumps({"model_name": model, "model_version": number, **({"id": request.id} if request.id else {}),
                       "outputs": said}).encode()
    return (b"".join([head, *binary]), len(head)) if binary else (head, None)


def json_numbers(values: np.ndarray) -> list[float | None]:
    """Whatever a model gives has a word in JSON: an overflow is null."""
    numbers = values.tolist()
    return numbers if np.isfinite(values).all() else [v if math.isfinite(v) else None for v in numbers]


def an_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what}: a JSON object is needed")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > 500:
        raise RequestError(f"{what}: a text of at most 500 characters is needed")
    return value


def chosen(outputs: Sequence[str], known: Sequence[str]) -> list[str]:
    """The outputs a request asks for, once each; all where it names none."""
    if unknown := [name for name in outputs if name not in known]:
        raise RequestError(f"outputs: no output {listing(unknown[:3])}; outputs are {listing(known, 50)}")
    return list(dict.fromkeys(outputs)) or list(known)
