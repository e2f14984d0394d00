"""How fast one user's candidates are scored: in process against plain eager code, and through HTTP on loopback.

    python benchmarks/serve.py [--seconds 20] [--candidates 500] [--ids 1000000] [--clients 8] [--onnx]

AITM with bottoms 256-128 and towers 64 under batch norm, two tasks, 23 id fields (11 of them the user's), three
histories of 13, 13 and 5 ids (the user's), 8 numbers (4 the user's), width 16, --ids in all spaces together. It is
trained for a few steps on made rows; what it learned does not matter here.

In process, one thread, variants one after another in every round, CPU p50:

    plain     a module per field, histories padded to their most (50, 50, 20) as libraries' loaders do, batch norm, a
              user's features repeated for every candidate; the same weights, so the same answers
    plain, tight     the same, histories padded to the request's own length
    torch     the Scorer, as the server runs a run's folder: encoded ids in
    onnx      the same exported (with --onnx: that takes half a minute), in ONNX Runtime, as the server runs an export
    rows      raw columns in: Encoder and Scorer, what the model thread does for one request; with --onnx of the export

HTTP: a server in a process of its own, with --onnx of the export, binary tensors, clients as threads of another
process. The bound is `rows`, one request after another, measured before and after. Shares of the bound: requests per
second of the clock, and requests per CPU second of the whole server process; the clients' CPU is in neither. How long
the server took until it was ready is printed as well. Under 3 minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from funnelrank import api
from funnelrank.config import load
from funnelrank.data.loader import pack
from funnelrank.serve.requests import Rows
from funnelrank.serve.servable import Servable, Told

USER, ITEM = [f"u{i}" for i in range(11)], [f"i{i}" for i in range(12)]
HISTORIES = {"h0": ("i0", 13, 50), "h1": ("i1", 13, 50), "h2": ("i2", 5, 20)}      # space, ids, most
NUMBERS = {f"n{i}": "user" if i < 4 else "item" for i in range(8)}
WIDTH = 16


def made(rows: int, rng: np.random.Generator) -> dict[str, pa.Array]:
    columns = {f: pa.array(rng.integers(0, 10**9, rows)) for f in (*USER, *ITEM)}
    columns |= {n: pa.array(rng.standard_normal(rows)) for n in NUMBERS}
    for h, (_, length, _) in HISTORIES.items():
        columns[h] = pa.LargeListArray.from_arrays(np.arange(rows + 1) * length,
                                                   pa.array(rng.integers(0, 10**9, rows * length)))
    return columns


def artefact(folder: Path, ids: int, rng: np.random.Generator) -> Path:
    buckets = ids // (len(USER) + len(ITEM))
    features = {f: {"kind": "id", "hash_buckets": buckets, "role": "user"} for f in USER}
    features |= {f: {"kind": "id", "hash_buckets": buckets, "role": "item"} for f in ITEM}
    features |= {h: {"kind": "sequence", "space": s, "max_len": most} for h, (s, _, most) in HISTORIES.items()}
    features |= {n: {"kind": "number", "role": role, "indicator": False} for n, role in NUMBERS.items()}
    config = load({"features": {"lists": "off", **features}, "tasks": {"click": {}, "buy": {"after": "click"}},
                   "embedding": {"width": WIDTH}, "model": {"name": "aitm", "represent": {
                       "hidden": [256, 128, 64], "norm": "batch"}},
                   "train": {"threads": 1, "epochs": 1, "out": str(folder / "run")}})
    rows = 2000
    table = pa.table({**made(rows, rng), "click": rng.integers(0, 2, rows)})
    table = table.append_column("buy", pa.array(table["click"].to_numpy() * rng.integers(0, 2, rows)))
    return api.train(config, train=table).folder / "artefact"


class Plain(nn.Module):
    """AITM as one writes it down: a module a field, a layer a line."""

    def __init__(self, servable: Servable):
        super().__init__()
        model, embedding = servable.engine.model, servable.engine.model.embedding
        self.layout, table = embedding.layout, embedding.tables[f"width_{WIDTH}"]
        self.order = [p.name for p in embedding.pieces]
        self.fields = nn.ModuleDict()
        for f in (*USER, *ITEM):
            start = table.offset[f]
            self.fields[f] = nn.Embedding.from_pretrained(table.weight[start:start + self.layout.size[f]].clone())
        mlp, transfer = model.slots.represent.mlp, model.slots.transfer
        self.towers = nn.ModuleList()
        for t in range(2):
            layers = []
            for layer in mlp.layers:
                linear, norm = layer["linear"], layer["norm"].norm
                own = slice(t * linear.out, (t + 1) * linear.out)
                dense, bn = nn.Linear(linear.width, linear.out), nn.BatchNorm1d(linear.out, eps=norm.eps)
                dense.weight.data, dense.bias.data = linear.weight[t].clone(), linear.bias[t].clone()
                for name in ("weight", "bias", "running_mean", "running_var"):
                    getattr(bn, name).data = getattr(norm, name).data[own].clone()
                layers += [dense, bn, nn.ReLU()]
            self.towers.append(nn.Sequential(*layers))
        self.gate, attention = transfer.gates["0_1"], transfer.attention["all"]
        self.h1, self.h2, self.h3 = attention.h1, attention.h2, attention.h3
        self.heads = model.slots.predict

    def forward(self, ids: dict[str, Tensor], lists: dict[str, Tensor], numbers: dict[str, Tensor]) -> list[Tensor]:
        found = {f: self.fields[f](ids[f]) for f in ids}
        for h, padded in lists.items():
            there = (padded > 0).unsqueeze(2).float()
            found[h] = (self.fields[HISTORIES[h][0]](padded) * there).sum(1) / there.sum(1).clamp(min=1)
        x = torch.cat([numbers[n] if n in NUMBERS else found[n] for n in self.order], 1)
        q = [tower(x) for tower in self.towers]
        u = torch.stack([self.gate(q[0]), q[1]], 1)
        weight = ((self.h2(u) * self.h3(u)).sum(2) / q[0].shape[1] ** 0.5).softmax(1)
        z = (weight.unsqueeze(2) * self.h1(u)).sum(1)
        return list(torch.sigmoid(self.heads(torch.stack([q[0], z], 1), None)).unbind(1))


def asked(n: int, rng: np.random.Generator, servable: Servable) -> Rows:
    """A request: the user's columns once, the candidates' each."""
    one, many = made(1, rng), made(n, rng)
    once = {c: one[c] for c in servable.of_users}
    return Rows(n, once, {c: many[c] for c in servable.columns if c not in once})


def plain_inputs(servable: Servable, request: Rows, tight: bool) -> tuple[dict, dict, dict]:
    layout = servable.encoder.layout
    batch = pack(servable.encoder.encode(servable._table(request, list(servable.columns)), "bench", labels=False),
                 slice(None))
    ids = {f: batch.ids[:, i].long().contiguous() for i, f in enumerate(layout.ids)}
    lists = {}
    for k, h in enumerate(layout.lists):
        values, offsets = batch.bags(k)
        length = int(offsets.diff().max())
        lists[h] = torch.zeros(len(batch), length if tight else HISTORIES[h][2], dtype=torch.int64)
        lists[h][:, :length] = values.view(len(batch), length)
    return ids, lists, {n: batch.numbers[:, i:i + 1].contiguous() for i, n in enumerate(layout.numbers)}


def in_process(servable: Servable, requests: list[Rows], seconds: float, served: Servable | None) -> dict[str, float]:
    """CPU p50 in ms of each variant, run in turn."""
    plain, scorer = Plain(servable).eval(), servable.engine.scorer
    loose, tight = ([plain_inputs(servable, r, t) for r in requests] for t in (False, True))
    encoded = [servable._apart([r], Told()) for r in requests]
    packed = [(pack(rows, slice(None)), pack(users, slice(None)), torch.from_numpy(row_user))
              for rows, users, row_user in encoded]
    variants = {"plain": lambda k: plain(*loose[k]), "plain, tight": lambda k: plain(*tight[k]),
                "torch": lambda k: scorer.answer(*packed[k])}
    if served:
        variants["onnx"] = lambda k: served.engine.shared(*encoded[k])
    variants["rows"] = lambda k: (served or servable).score([requests[k]])
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode():
        wanted = dict(zip(servable.outputs, scorer.answer(*packed[0])))
        apart = max(float((a - wanted[t]).abs().max()) for a, t in zip(plain(*loose[0]), ("click", "buy")))
        if served:
            apart = max([apart, *(float(np.abs(a - wanted[o].numpy()).max()) for a, o in zip(
                variants["onnx"](0), served.outputs))])
        print(f"all differ by {apart:.1e} at most")
        assert apart < 1e-5
        until, k = time.monotonic() + seconds, 0
        while time.monotonic() < until or k < 20:
            for name, f in variants.items():
                clock = time.thread_time()
                f(k % len(requests))
                times[name].append(time.thread_time() - clock)
            k += 1
    return {name: 1e3 * float(np.median(t[3:])) for name, t in times.items()}


Body = tuple[bytes, dict[str, str]]          # and its headers
DATATYPES = {"int64": "INT64", "float32": "FP32", "float64": "FP64"}


def tensors(request: Rows, servable: Servable) -> dict[str, np.ndarray]:
    """A request's columns as clients send them, the user's with a first dimension of 1."""
    found = {}
    for name, column in servable.columns.items():
        array = request.once[name] if name in request.once else request.each[name]
        found[name] = array.flatten().to_numpy().reshape(len(array), -1) if column.is_list else array.to_numpy()
    return found


def binary(arrays: Mapping[str, np.ndarray]) -> Body:
    raw = [np.ascontiguousarray(a).tobytes() for a in arrays.values()]
    inputs = [{"name": n, "datatype": DATATYPES[str(a.dtype)], "shape": list(a.shape),
               "parameters": {"binary_data_size": len(r)}} for (n, a), r in zip(arrays.items(), raw)]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(raw), {"Inference-Header-Content-Length": str(len(head)),
                                  "Content-Type": "application/octet-stream"}


def clients(port: int, bodies: list[Body], seconds: float, many: int) -> list[float]:
    """Latencies in seconds of every request that many clients got answered."""
    latencies: list[float] = []
    until = time.monotonic() + seconds

    def ask(k: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < until:
            body, headers = bodies[k % len(bodies)]
            clock = time.perf_counter()
            connection.request("POST", "/v2/models/bench/infer", body, headers)
            reply = connection.getresponse()
            reply.read()
            assert reply.status == 200, reply.status
            latencies.append(time.perf_counter() - clock)
            k += 1

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(many)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return latencies


def cpu_of(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bound(servable: Servable, requests: list[Rows], seconds: float) -> tuple[float, float]:
    """Requests per second and per CPU second of one after another, without HTTP."""
    until, k, clock, cpu = time.monotonic() + seconds, 0, time.perf_counter(), time.process_time()
    while time.monotonic() < until:
        servable.score([requests[k % len(requests)]])
        k += 1
    return k / (time.perf_counter() - clock), k / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20, help="of each part")
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--onnx", action="store_true")
    said = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = artefact(Path(folder), said.ids, rng)
        clock = time.perf_counter()
        servable = Servable.load(path, "bench")
        print(f"{said.ids:,} ids; loaded and verified in {time.perf_counter() - clock:.2f} s")
        requests, served = [asked(said.candidates, rng, servable) for _ in range(16)], None
        if said.onnx:
            api.export(path, "serve", Path(folder) / "served", verify=True)
            path = Path(folder) / "served"
            served = Servable.load(path, "bench")
        found = in_process(servable, requests, said.seconds, served)
        print(f"\n1 user x {said.candidates} candidates, in process, one thread, CPU p50")
        for name, ms in found.items():
            print(f"  {name:<14} {ms:7.2f} ms   {found['plain'] / ms:5.2f} x plain   "
                  f"{found['plain, tight'] / ms:5.2f} x plain, tight")

        before = bound(served or servable, requests, said.seconds / 4)
        clock = time.perf_counter()
        started = subprocess.Popen([sys.executable, "-m", "funnelrank", "serve", f"bench={path}", "--port", "0",
                                    "--no-access-log"], stdout=subprocess.PIPE, text=True)
        try:
            port = int(json.loads(started.stdout.readline())["http"].rsplit(":", 1)[1])
            print(f"\na server is ready after {time.perf_counter() - clock:.2f} s")
            bodies = [binary(tensors(r, servable)) for r in requests]
            clients(port, bodies, 2, said.clients)                         # warm
            own, its, clock = time.process_time(), cpu_of(started.pid), time.perf_counter()
            latencies = clients(port, bodies, said.seconds, said.clients)
            seconds, its, own = time.perf_counter() - clock, cpu_of(started.pid) - its, time.process_time() - own
        finally:
            started.terminate()
            started.wait()
        after = bound(served or servable, requests, said.seconds / 4)
        wall, cpu = (np.mean([a, b]) for a, b in zip(before, after))
        n = len(latencies)
        print(f"\nHTTP on loopback, binary bodies, {said.clients} clients, {n} requests in {seconds:.1f} s")
        print(f"  in-process bound     {wall:7.1f} requests/s   {cpu:7.1f} per CPU second   "
              f"(before {before[1]:.1f}, after {after[1]:.1f})")
        print(f"  through HTTP         {n / seconds:7.1f} requests/s   {n / its:7.1f} per CPU second of the server   "
              f"({its / seconds:.2f} CPUs; clients {own / seconds:.2f})")
        print(f"  share of the bound   {n / seconds / wall:7.2f} by the clock   {n / its / cpu:5.2f} per CPU second")
        p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
        print(f"  latency              p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    main()
