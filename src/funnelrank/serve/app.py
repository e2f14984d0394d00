"""The HTTP side, as one ASGI application: the Open Inference Protocol v2, rank, metrics.

    GET   /v2  /v2/health/live  /v2/health/ready  /v2/models/NAME[/versions/V][/ready]  /metrics  /openapi.json
    POST  /v2/models/NAME[/versions/V]/infer  .../rank      /v2/repository/models/NAME/load: look for a new version now

A name in a path is looked up among the models that were given at start; no path reaches the disk. Every error is
{"error": a sentence}.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from funnelrank.errors import did_you_mean, listing
from funnelrank.serve.batching import Batcher, Done
from funnelrank.serve.metrics import Metrics
from funnelrank.serve.openapi import document
from funnelrank.serve.protocol import VERSION, Limits, RequestError, chosen, read_json, read_request, write_response
from funnelrank.serve.requests import Ranking, Rows, answer, from_rank, from_tensors
from funnelrank.serve.servable import Servable

EXTENSIONS = ("binary_tensor_data", "rank")
JSON, TEXT = b"application/json", b"text/plain; version=0.0.4; charset=utf-8"
HEADER = "inference-header-content-length"
AGAIN = 1                          # seconds of Retry-After
SLOW = 30.0                        # seconds in which a body must have come
LINGER = 2.0                       # seconds in which a body that is too large is taken in and thrown away
Scope, Message = dict[str, Any], dict[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]


@dataclass
class Reply:
    status: int
    body: bytes
    kind: bytes = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Models:
    """The names that are served, and what each says of itself. Shared by HTTP and gRPC."""

    def __init__(self, batchers: Mapping[str, Batcher], limits: Limits, timeout: float):
        self.batchers, self.limits, self.timeout, self.stopping = dict(batchers), limits, timeout, False

    @property
    def ready(self) -> bool:
        return not self.stopping

    def find(self, name: str, version: str = "") -> Batcher:
        batcher = self.batchers.get(name)
        if batcher is None:
            raise RequestError(f"no model '{name[:100]}'; models are {listing(self.batchers)}"
                               + did_you_mean(name[:100], self.batchers), 404)
        if version and version != batcher.current.version:
            raise RequestError(f"model '{name}': no version '{version[:40]}'; it is {batcher.current.version}", 404)
        return batcher

    def deadline(self, parameters: Mapping[str, Any], since: float) -> float:
        """`timeout` of a request is in microseconds, as Triton has it."""
        asked = parameters.get("timeout")
        if asked is None:
            return since + self.timeout
        if type(asked) is not int or asked < 1:
            raise RequestError("parameters.timeout: a whole number of microseconds above 0 is needed")
        return since + min(self.timeout, asked / 1e6)


class App:
    """ASGI. `reload` looks for a new version of a name; None where nothing can be reloaded."""

    def __init__(self, models: Models, metrics: Metrics, *, token: str | None = None, most: int = 256,
                 log: Callable[[dict[str, Any]], None] | None = None,
                 reload: Callable[[str], Awaitable[dict[str, Any]]] | None = None):
        self.models, self.metrics, self.token, self.most, self.log, self.reload = (models, metrics, token, most, log,
                                                                                   reload)
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        clock, said = time.perf_counter(), {"way": "other", "model": ""}
        self.running += 1
        try:
            reply = await self._reply(scope, receive, said)
        except RequestError as error:
            reply = _error(error)
        except Exception as error:        # a fault of ours: one sentence outside, the whole in the log
            said["fault"] = f"{type(error).__name__}: {error}"
            reply = _error(RequestError("a fault of the server; its log says more", 500))
        finally:
            self.running -= 1
        wrote = time.perf_counter()
        headers = [(b"content-type", reply.kind), (b"content-length", str(len(reply.body)).encode()), *reply.headers]
        if reply.status in (401, 408, 413):                  # what is left of the body is not read
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})
        done = time.perf_counter()
        self.metrics.requests.labels(said["model"], said["way"], str(reply.status)).inc()
        if said["way"] in ("infer", "rank"):
            self.metrics.stages.labels("write").observe(done - wrote)
            self.metrics.whole.labels(said["model"], said["way"]).observe(done - clock)
        if self.log and (said["way"] != "other" or reply.status >= 400):
            self.log({"method": scope["method"], "path": scope["path"][:200], "status": reply.status,
                      "ms": round(1e3 * (done - clock), 3), "bytes_out": len(reply.body), **said})

    async def _reply(self, scope: Scope, receive: Receive, said: dict[str, Any]) -> Reply:
        method, parts = scope["method"], scope["path"].strip("/").split("/")
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if parts[:2] != ["v2", "health"]:
            self._check_token(headers)
        match parts:
            case ["v2"]:
                return _get(method, {"name": "funnelrank", "version": VERSION, "extensions": list(EXTENSIONS),
                                     "models": list(self.models.batchers)})
            case ["v2", "health", "live"]:
                return _get(method, {"live": True})
            case ["v2", "health", "ready"]:
                return _get(method, {"ready": self.models.ready}, 200 if self.models.ready else 503)
            case ["metrics"]:
                reply = _get(method, None)
                return Reply(200, self.metrics.text(), TEXT) if reply.status == 200 else reply
            case ["openapi.json"]:
                return _get(method, document(b.current for b in self.models.batchers.values()))
            case ["v2", "repository", "models", name, "load"] if self.reload:
                self.models.find(name)
                return _json(await self.reload(name)) if method == "POST" else _not_allowed("POST")
            case ["v2", "models", name, *rest]:
                version = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else ""
                rest = rest[2:] if version else rest
                batcher = self.models.find(name, version)
                match rest:
                    case []:
                        return _get(method, batcher.current.metadata())
                    case ["ready"]:
                        return _get(method, {"name": name, "ready": self.models.ready},
                                    200 if self.models.ready else 503)
                    case ["infer" | "rank" as way]:
                        said |= {"way": way, "model": name}
                        if method != "POST":
                            return _not_allowed("POST")
                        return await self._answer(way, batcher, headers, receive, said)
        raise RequestError("no such path; /openapi.json lists what there is", 404)

    async def _answer(self, way: str, batcher: Batcher, headers: Mapping[str, str], receive: Receive,
                      said: dict[str, Any]) -> Reply:
        if self.running > self.most:
            raise RequestError(f"{self.most} requests are being answered; try again", 503)
        since = time.perf_counter()
        body = await self._body(headers, receive)
        read = time.perf_counter()
        servable, limits = batcher.current, self.models.limits
        ranking = Ranking()
        if way == "rank":
            asked = read_json(body)
            rows, ranking = from_rank(asked, servable.columns, servable.outputs, limits)
            parameters = asked.get("parameters", {})
            deadline = self.models.deadline(parameters if isinstance(parameters, dict) else {}, since)
        else:
            request = read_request(memoryview(body), headers.get(HEADER), limits)
            names = chosen(request.outputs, servable.outputs)
            rows = from_tensors(request.inputs, servable.columns, limits)
            deadline = self.models.deadline(request.parameters, since)
        parsed = time.perf_counter()
        done = await scored(batcher, servable, rows, deadline, ranking.counts)
        said |= {"rows": rows.rows, "bytes_in": len(body), "queue_ms": round(1e3 * done.waited, 3),
                 "together": done.together, "version": done.version}
        for stage, seconds in (("read", read - since), ("parse", parsed - read), ("queue", done.waited),
                               ("encode", done.encode), ("score", done.score)):
            self.metrics.stages.labels(stage).observe(seconds)
        if way == "rank":
            return _json(answer(servable.name, done.version, rows, ranking, done.scored.outputs,
                                done.counts if ranking.counts else None))
        body, length = write_response(servable.name, done.version, request,
                                      {n: done.scored.outputs[n] for n in names})
        if length is None:
            return Reply(200, body)
        return Reply(200, body, b"application/octet-stream", [(HEADER.encode(), str(length).encode())])

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """RequestError 413 before more than the limit is held, 408 where it does not come."""
        most = self.models.limits.body
        said = headers.get("content-length", "0")
        if said.isdigit() and int(said[:19]) > most:
            await _discard(receive, 4 * most)
            raise RequestError(f"the body has {said[:19]} bytes; a request has at most {most}", 413)
        if headers.get("content-encoding", "identity") != "identity":
            raise RequestError("Content-Encoding: bodies are taken as they are, not compressed", 415)
        parts, size = [], 0
        try:
            async with asyncio.timeout(SLOW):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError("the connection ended before the body did")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise RequestError(f"the body has more than {most} bytes, the most there may be", 413)
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise RequestError(f"the body did not come within {SLOW:g} seconds", 408) from None

    def _check_token(self, headers: Mapping[str, str]) -> None:
        if self.token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise RequestError("a token is needed: Authorization: Bearer TOKEN", 401)


async def _discard(receive: Receive, most: int) -> None:
    """What a client is sending anyway, unread, so that it comes to read the answer; for a moment and not for ever."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def scored(batcher: Batcher, servable: Servable, rows: Rows, deadline: float, alone: bool = False) -> Done:
    """The answer, or RequestError 504 where it does not come in time."""
    future = batcher.submit(servable, rows, deadline, alone)
    try:
        async with asyncio.timeout(max(deadline - time.perf_counter(), 0)):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise RequestError("its deadline passed", 504) from None


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))


def _get(method: str, value: Any, status: int = 200) -> Reply:
    return _json(value, status) if method in ("GET", "HEAD") else _not_allowed("GET, HEAD")


def _not_allowed(methods: str) -> Reply:
    reply = _json({"error": f"this path is for {methods}"}, 405)
    reply.headers.append((b"allow", methods.encode()))
    return reply


def _error(error: RequestError) -> Reply:
    reply = _json({"error": str(error)}, error.status)
    if error.status == 503:
        reply.headers.append((b"retry-after", str(AGAIN).encode()))
    if error.status == 401:
        reply.headers.append((b"www-authenticate", b"Bearer"))
    return reply
