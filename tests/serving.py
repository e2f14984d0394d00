"""What tests of the server share: a small trained artefact, requests of its rows, and a server in a thread."""

import asyncio
import contextlib
import http.client
import json
import threading
import time

import numpy as np
import pyarrow as pa
import uvicorn

from funnelrank import api
from funnelrank.config import load
from funnelrank.serve.app import App, Models
from funnelrank.serve.batching import Batcher
from funnelrank.serve.connection import Connection
from funnelrank.serve.metrics import Metrics
from funnelrank.serve.protocol import Limits
from funnelrank.serve.server import listen


def rows(n: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    lists = [rng.integers(0, 40, k).tolist() for k in rng.integers(0, 6, n)]
    click = rng.random(n) < 0.4
    return pa.table({
        "user": rng.integers(0, 20, n), "item": rng.integers(0, 40, n),
        "tab": pa.array([["home", "mail", "søk"][k] for k in rng.integers(0, 3, n)]).cast(pa.large_string()),
        "price": rng.lognormal(1, 1, n), "fresh": rng.random(n) < 0.5,
        "shown": pa.array(lists, pa.large_list(pa.int64())),
        "tags": pa.array([[f"t{k}" for k in one[:3]] for one in lists], pa.large_list(pa.large_string())),
        "when": pa.array(rng.integers(0, 10**12, n), pa.timestamp("us")),
        "since": pa.array(rng.integers(0, 10**12, n), pa.timestamp("us")),
        "click": click.astype(np.int64), "buy": (click & (rng.random(n) < 0.5)).astype(np.int64)})


def train(folder, seed: int = 0, **more):
    config = load({
        "data": {"scenario": "tab", "user": "user"},
        "features": {"user": {"min_count": 1}, "item": {"min_count": 1}, "tab": "id", "price": "number",
                     "fresh": "number", "shown": {"kind": "sequence", "space": "item"},
                     "tags": {"kind": "bag", "role": "item", "min_count": 1},
                     "age": {"kind": "gap", "since": "since", "until": "when"},
                     "item_x_tab": {"kind": "cross", "of": ["item", "tab"], "min_count": 1}},
        "tasks": {"click": {}, "buy": {"after": "click"}}, "embedding": {"width": 4, "init": 0.3},
        "model": {"name": "aitm", "represent": {"hidden": [16, 8], "norm": "batch"}},
        "train": {"threads": 1, "epochs": 1, "seed": seed, "out": str(folder)}, **more})
    return api.train(config, train=rows(400, seed), valid=rows(100, seed + 1))


def tensors(table: pa.Table, columns) -> dict[str, tuple[str, np.ndarray]]:
    """A table's columns as tensorclients send them: name -> (datatype, array), lists padded beside their lengths."""
    found = {}
    for c in columns.values():
        column = table[c.name].combine_chunks()
        if c.is_list:
            lists = [v or [] for v in column.to_pylist()]
            width = max(map(len, lists), default=0) or 1
            fill = b"" if c.datatype == "BYTES" else 0
            kind = object if c.datatype == "BYTES" else np.int64
            entries = [[v.encode() if isinstance(v, str) else v for v in one] + [fill] * (width - len(one))
                       for one in lists]
            found[c.name] = (c.datatype, np.array(entries, kind).reshape(len(lists), width))
            found[f"{c.name}.length"] = ("INT64", np.array([len(v) for v in lists], np.int64))
        elif c.datatype == "BYTES":
            found[c.name] = ("BYTES", np.array([v.encode() for v in column.to_pylist()], object))
        else:
            array = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
            found[c.name] = (c.datatype, array.to_numpy(zero_copy_only=False))
    return found


def body_of(sent) -> dict:
    """The same as JSON."""
    text = lambda v: [text(x) for x in v] if isinstance(v, list) else v.decode() if isinstance(v, bytes) else v
    return {"inputs": [{"name": n, "datatype": d, "shape": list(a.shape), "data": text(a.ravel().tolist())}
                       for n, (d, a) in sent.items()]}


class Server:
    """HTTP on a port of its own, in a thread; batchers end with it."""

    def __init__(self, *servables, limits: Limits | None = None, token: str | None = None, timeout: float = 10.0,
                 **batching):
        self.metrics = Metrics(lambda: {n: b.waiting_rows for n, b in self.models.batchers.items()})
        self.models = Models({s.name: Batcher(s, told=self.metrics.batch, **batching) for s in servables},
                             limits or Limits(), timeout)
        self.log: list[dict] = []
        self.app = App(self.models, self.metrics, token=token, log=self.log.append)

    def __enter__(self):
        config = uvicorn.Config(self.app, http=Connection, loop="asyncio", lifespan="off", log_level="error",
                                access_log=False, server_header=False)
        self.server = uvicorn.Server(config)
        self.server.capture_signals = contextlib.nullcontext
        sockets = [listen("127.0.0.1", 0)]
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets)), daemon=True)
        self.thread.start()
        until = time.monotonic() + 60
        while not self.server.started:
            assert time.monotonic() < until and self.thread.is_alive()
            time.sleep(0.005)
        self.port = sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(30)
        for batcher in self.models.batchers.values():
            batcher.close()

    def ask(self, method: str, path: str, body=None, headers=None):
        """Status, what the JSON says, headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            connection.request(method, path, data, headers or {})
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        kind = reply.getheader("content-type") or ""
        return reply.status, json.loads(text) if "json" in kind else text.decode(), dict(reply.getheaders())
