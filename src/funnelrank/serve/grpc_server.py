"""The gRPC side: the same models behind the published service definition, raw contents or typed ones."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from funnelrank.serve.app import EXTENSIONS, Models, scored
from funnelrank.serve.metrics import Metrics
from funnelrank.serve.protocol import (
    DATATYPES,
    NUMPY,
    VERSION,
    RequestError,
    Tensor,
    checked_shape,
    chosen,
    flat,
    from_bytes,
)
from funnelrank.serve.requests import from_tensors
from funnelrank.serve.service import MESSAGES, METHODS, NAME

STATUS = {400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
          404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE,
          504: grpc.StatusCode.DEADLINE_EXCEEDED}
CONTENTS = {"BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
            "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
            "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"}
HEALTH = ("ServerLive", "ServerReady")


class Service:
    """`token`, where there is one, is asked for as for HTTP: metadata `authorization: Bearer TOKEN`."""

    def __init__(self, models: Models, metrics: Metrics, token: str | None = None,
                 log: Callable[[dict[str, Any]], None] | None = None):
        self.models, self.metrics, self.token, self.log = models, metrics, token, log

    def server(self) -> grpc.aio.Server:
        most = self.models.limits.body
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(NAME, {
            method: grpc.unary_unary_rpc_method_handler(
                self._method(method), request_deserializer=MESSAGES[f"{method}Request"].FromString,
                response_serializer=lambda message: message.SerializeToString()) for method in METHODS})])
        return server

    def _method(self, name: str) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]:
        do = {"ServerLive": self._live, "ServerReady": self._ready, "ModelReady": self._model_ready,
              "ServerMetadata": self._metadata, "ModelMetadata": self._model_metadata, "ModelInfer": self._infer}[name]

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            clock, status, said = time.perf_counter(), 200, {}
            try:
                if name not in HEALTH:
                    self._check_token(context)
                return MESSAGES[f"{name}Response"](**await do(request, context, said))
            except RequestError as error:
                status = error.status
                await context.abort(STATUS.get(status, grpc.StatusCode.INTERNAL), str(error))
            except Exception as error:
                status, said["fault"] = 500, f"{type(error).__name__}: {error}"
                await context.abort(grpc.StatusCode.INTERNAL, "a fault of the server; its log says more")
            finally:
                if name == "ModelInfer":
                    model = said.get("model", "")
                    self.metrics.requests.labels(model, "grpc", str(status)).inc()
                    self.metrics.whole.labels(model, "grpc").observe(time.perf_counter() - clock)
                    if self.log:
                        self.log({"method": "gRPC", "path": name, "status": status, "way": "grpc",
                                  "ms": round(1e3 * (time.perf_counter() - clock), 3), **said})
        return answer

    def _check_token(self, context: grpc.aio.ServicerContext) -> None:
        given = dict(context.invocation_metadata()).get("authorization", "")
        if self.token is not None and not hmac.compare_digest(str(given).encode(), f"Bearer {self.token}".encode()):
            raise RequestError("a token is needed: metadata authorization: Bearer TOKEN", 401)

    async def _live(self, request: Any, context: Any, said: dict[str, Any]) -> dict[str, Any]:
        return {"live": True}

    async def _ready(self, request: Any, context: Any, said: dict[str, Any]) -> dict[str, Any]:
        return {"ready": self.models.ready}

    async def _model_ready(self, request: Any, context: Any, said: dict[str, Any]) -> dict[str, Any]:
        self.models.find(request.name, request.version)
        return {"ready": self.models.ready}

    async def _metadata(self, request: Any, context: Any, said: dict[str, Any]) -> dict[str, Any]:
        return {"name": "funnelrank", "version": VERSION, "extensions": EXTENSIONS}

    async def _model_metadata(self, request: Any, context: Any, said: dict[str, Any]) -> dict[str, Any]:
        return self.models.find(request.name, request.version).current.metadata()

    async def _infer(self, request: Any, context: grpc.aio.ServicerContext, said: dict[str, Any]) -> dict[str, Any]:
        since = time.perf_counter()
        batcher = self.models.find(request.model_name, request.model_version)
        servable, said["model"] = batcher.current, request.model_name
        names = chosen([o.name for o in request.outputs], servable.outputs)
        rows = from_tensors(self._tensors(request), servable.columns, self.models.limits)
        left = context.time_remaining()
        deadline = self.models.deadline({k: p.int64_param for k, p in request.parameters.items() if k == "timeout"},
                                        since)
        done = await scored(batcher, servable, rows, deadline if left is None else min(deadline, since + left))
        said |= {"rows": rows.rows, "together": done.together, "version": done.version}
        outputs = [{"name": n, "datatype": "FP32", "shape": [rows.rows]} for n in names]
        return {"model_name": servable.name, "model_version": done.version, "id": request.id, "outputs": outputs,
                "raw_output_contents": [done.scored.outputs[n].astype("<f4").tobytes() for n in names]}

    def _tensors(self, request: Any) -> dict[str, Tensor]:
        limits, found = self.models.limits, {}
        if not 1 <= len(request.inputs) <= limits.inputs:
            raise RequestError(f"inputs: 1 to {limits.inputs} tensors are needed")
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise RequestError(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; one each is needed")
        for i, one in enumerate(request.inputs):
            if one.datatype not in DATATYPES:
                raise RequestError(f"input '{one.name[:100]}': datatype '{one.datatype[:20]}'; those are "
                                   f"{', '.join(DATATYPES)}")
            if one.name in found:
                raise RequestError(f"inputs: '{one.name[:100]}' stands there twice")
            shape = checked_shape(list(one.shape), one.name[:100], limits)
            if raw:
                found[one.name] = from_bytes(one.name, one.datatype, shape, memoryview(raw[i]), limits)
                continue
            if one.datatype not in CONTENTS:
                raise RequestError(f"input '{one.name}': {one.datatype} comes in raw_input_contents only")
            values = flat(list(getattr(one.contents, CONTENTS[one.datatype])), shape, one.name)
            found[one.name] = Tensor(one.name, one.datatype, shape, values if one.datatype == "BYTES" else
                                     np.array(values, NUMPY[one.datatype]).reshape(shape))
        return found
