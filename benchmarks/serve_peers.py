"""Other servers of the Open Inference Protocol beside ours, on the same model.onnx:

    python benchmarks/serve_peers.py [--mlserver PYTHON] [--kserve PYTHON] [--seconds 20] [--clients 8]

PYTHON is that of an environment of the peer's own, made by python -m venv NAME and NAME/bin/pip install mlserver
onnxruntime (1.7.1), or kserve onnxruntime (0.21.0).

The model and the requests are those of serve.py: one user x 500 candidates. Peers are given encoded ids, which they
cannot make of raw values, and run the graph; funnelrank is given raw columns, holds each against what the model says,
encodes them and runs the same graph. Each is asked in every way that it takes: KServe's SDK takes binary tensors,
MLServer JSON alone. Prints requests per second of the clock and per CPU second of the server, p50 and p99.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from serve import DATATYPES, Body, artefact, asked, binary, clients, cpu_of, tensors

from funnelrank import api
from funnelrank.data.loader import pack
from funnelrank.onnx_runtime import session
from funnelrank.serve.requests import Rows
from funnelrank.serve.servable import Servable, Told

HERE = Path(__file__).parent / "peers"


def as_json(body: dict[str, np.ndarray]) -> Body:
    return json.dumps({"inputs": [{"name": n, "datatype": DATATYPES[str(a.dtype)], "shape": list(a.shape),
                                   "data": a.ravel().tolist()} for n, a in body.items()]}).encode(), {
        "Content-Type": "application/json"}


def fed(graph: Path, servable: Servable, request: Rows) -> dict[str, np.ndarray]:
    """A request as the graph's inputs: ids that the Encoder has mapped."""
    rows, users, row_user = servable._apart([request], Told())
    given = servable.engine.scorer.feed(pack(rows, slice(None)), pack(users, slice(None)), torch.from_numpy(row_user))
    return {i.name: given[i.name].numpy() for i in session(graph / "model.onnx", 1).get_inputs()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def ready(port: int, process: subprocess.Popen) -> bool:
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/models/bench/ready")
            if connection.getresponse().status == 200:
                return True
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    return False


def measure(name: str, command: list[str], port: int, ways: dict[str, list[Body]], seconds: float, many: int) -> None:
    clock = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if not ready(port, process):
            print(f"{name:<12} did not start")
            return
        print(f"{name:<12} ready after {time.perf_counter() - clock:.1f} s")
        for way, bodies in ways.items():
            clients(port, bodies, 2, many)                                  # warm
            clock, cpu = time.perf_counter(), cpu_of(process.pid)
            latencies = clients(port, bodies, seconds, many)
            wall, cpu = time.perf_counter() - clock, cpu_of(process.pid) - cpu
            p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
            print(f"  {way:<24} {len(latencies) / wall:7.1f} requests/s   {len(latencies) / cpu:7.1f} per CPU second   "
                  f"p50 {p50:6.1f} ms   p99 {p99:6.1f} ms", flush=True)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mlserver")
    parser.add_argument("--kserve")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=8)
    said = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        trained, served, graph = artefact(Path(folder), 1_000_000, rng), Path(folder) / "served", Path(folder) / "graph"
        api.export(trained, "serve", served)
        api.export(trained, "onnx", graph)
        servable = Servable.load(served, "bench")
        requests = [asked(500, rng, servable) for _ in range(16)]
        raw = [tensors(r, servable) for r in requests]
        encoder = Servable.load(trained, "bench")
        encoded = [fed(graph, encoder, r) for r in requests]
        port = free_port()
        measure("funnelrank", [sys.executable, "-m", "funnelrank", "serve", f"bench={served}", "--port", str(port),
                               "--no-access-log"], port,
                {"raw columns, binary": [binary(r) for r in raw], "raw columns, JSON": [as_json(r) for r in raw]},
                said.seconds, said.clients)
        if said.kserve:
            port = free_port()
            measure("KServe SDK", [said.kserve, str(HERE / "serve_kserve.py"), str(graph), str(port)], port,
                    {"encoded ids, binary": [binary(e) for e in encoded]}, said.seconds, said.clients)
        if said.mlserver:
            port = free_port()
            measure("MLServer", [said.mlserver, str(HERE / "serve_mlserver.py"), str(graph), str(port)], port,
                    {"encoded ids, JSON": [as_json(e) for e in encoded]}, said.seconds, said.clients)


if __name__ == "__main__":
    main()
