"""The messages of the Open Inference Protocol's gRPC service, from its published definition (package `inference`).

A table of fields instead of generated code: name, number and type of each, as in the .proto. The classes live in a pool
of their own, so that a client's generated ones may be imported beside them.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

NAME = "inference.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
MAP = "map<string, InferParameter>"
FIELDS = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ModelReadyRequest": "string name = 1; string version = 2",
    "ModelReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name = 1; string version = 2; repeated string extensions = 3",
    "ModelMetadataRequest": "string name = 1; string version = 2",
    "ModelMetadataResponse": "string name = 1; repeated string versions = 2; string platform = 3; "
                             "repeated ModelMetadataResponse.TensorMetadata inputs = 4; "
                             "repeated ModelMetadataResponse.TensorMetadata outputs = 5",
    "ModelMetadataResponse.TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3",
    "InferParameter": "oneof bool bool_param = 1; oneof int64 int64_param = 2; oneof string string_param = 3; "
                      "oneof double double_param = 4; oneof uint64 uint64_param = 5",
    "InferTensorContents": "repeated bool bool_contents = 1; repeated int32 int_contents = 2; "
                           "repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4; "
                           "repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6; "
                           "repeated double fp64_contents = 7; repeated bytes bytes_contents = 8",
    "ModelInferRequest": f"string model_name = 1; string model_version = 2; string id = 3; {MAP} parameters = 4; "
                         "repeated ModelInferRequest.InferInputTensor inputs = 5; "
                         "repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6; "
                         "repeated bytes raw_input_contents = 7",
    "ModelInferRequest.InferInputTensor": f"string name = 1; string datatype = 2; repeated int64 shape = 3; "
                                          f"{MAP} parameters = 4; InferTensorContents contents = 5",
    "ModelInferRequest.InferRequestedOutputTensor": f"string name = 1; {MAP} parameters = 2",
    "ModelInferResponse": f"string model_name = 1; string model_version = 2; string id = 3; {MAP} parameters = 4; "
                          "repeated ModelInferResponse.InferOutputTensor outputs = 5; "
                          "repeated bytes raw_output_contents = 6",
    "ModelInferResponse.InferOutputTensor": f"string name = 1; string datatype = 2; repeated int64 shape = 3; "
                                            f"{MAP} parameters = 4; InferTensorContents contents = 5",
}
_Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {name: getattr(_Field, f"TYPE_{name.upper()}") for name in (
    "bool", "string", "bytes", "int32", "int64", "uint32", "uint64", "float", "double")}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    for full, fields in FIELDS.items():
        outer, _, name = full.rpartition(".")
        made[full] = (made[outer].nested_type if outer else file.message_type).add(name=name)
        for one in filter(None, fields.split("; ")):
            _add(made[full], one, full)
    return file


def _add(message: Any, said: str, full: str) -> None:
    """One field, as 'repeated string versions = 2'."""
    left, number = said.rsplit(" = ", 1)
    kind, name = left.rsplit(" ", 1)
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind == MAP:                                     # a map is repeated pairs
        pair = message.nested_type.add(name="".join(w.title() for w in name.split("_")) + "Entry")
        pair.options.map_entry = True
        _add(pair, "string key = 1", full)
        _add(pair, "InferParameter value = 2", full)
        kind = f"repeated {full}.{pair.name}"
    if kind.startswith("oneof "):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index, kind = 0, kind.removeprefix("oneof ")
    if kind.startswith("repeated "):
        field.label, kind = _Field.LABEL_REPEATED, kind.removeprefix("repeated ")
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".inference.{kind}"


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())
MESSAGES: dict[str, Any] = {name: message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))
                            for name in FIELDS}
