"""A server under what the world does to it: make chaos-serve, or

    python benchmarks/chaos_serve.py [--bodies 50000] [--reloads 200] [--kills 5] [--seconds 600] [--only PART] [--run]

fuzz      bodies that are cut off, changed, deep, huge, of wrong types and shapes, in bad UTF-8, with sizes that do not
          add up, clients that are slow or go away: no 5xx, no hang, memory back to its level, right answers afterwards
reloads   new versions under load, a third of them broken: every answer is right, by the old version or the new one
kills     SIGKILL and SIGTERM under load, of a model with a table of a million rows: ready again, and on SIGTERM every
          request that came is answered
soak      requests at a steady rate: memory stays level, no error
schema    with --schemathesis PATH, its program in an environment of its own (pip install schemathesis): requests drawn
          from /openapi.json; no 5xx, no status or body that the document does not have, no hang

Served are folders that `export --to serve` wrote; with --run, runs' own folders, by torch. Everything on loopback.
Prints counts; exit code 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import atexit
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "serve")]

from serving import body_of, rows, tensors, train  # noqa: E402
from test_serve import one_user, rank_body  # noqa: E402

from funnelrank import Ranker, api  # noqa: E402
from funnelrank.serve.servable import Servable  # noqa: E402

WORDS = [None, True, -1, 0, 2**63, 2**64, 10**400, 1e308, -0.0, "", "x" * 3000, "\ud800", [], [[]], {}, {"a": {}},
         "NaN", "FP64", "BYTES", [10**9, 10**9], [-1], [2, 2, 2]]
PATHS = ["/v2/models/shop/infer", "/v2/models/shop/rank"]


class Process:
    """A server of a folder, and how to ask it."""

    def __init__(self, folder: Path, log: bool = False):
        clock = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, "-m", "funnelrank", "serve", f"shop={folder}", "--port", "0",
                                         "--access-log" if log else "--no-access-log", "--max-body-mb", "2"],
                                        stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)               # whatever ends us, it does not stay
        self.port = int(json.loads(self.process.stdout.readline())["http"].rsplit(":", 1)[1])
        self.seconds = time.perf_counter() - clock
        spent = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        self.cpu = (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")
        self.said: list[str] = []
        self.reader = threading.Thread(target=lambda: self.said.extend(self.process.stdout), daemon=True)
        self.reader.start()                              # so that it never waits for us

    def ask(self, body: bytes, path: str = PATHS[1], headers: dict | None = None, timeout: float = 30.0):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def memory(self) -> float:
        """Resident megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.reader.join(60)
        return code


def changed(value, draw: random.Random):
    """The same JSON with one place in it replaced, doubled or left out."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        i = draw.randrange(len(value))
        if draw.random() < 0.1:
            return value + value[:1]
        return [*value[:i], changed(value[i], draw), *value[i + 1:]]
    return draw.choice(WORDS)


def hostile(good: list[tuple[str, dict]], draw: random.Random) -> tuple[str, bytes, dict]:
    path, said = draw.choice(good)
    body, headers = json.dumps(changed(said, draw)).encode(), {}
    match draw.randrange(8):
        case 0:
            body = body[:draw.randrange(len(body))]
        case 1:
            at = draw.randrange(len(body))
            body = body[:at] + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9))) + body[at + 1:]
        case 2:
            body = draw.choice([b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"", b"null", b"9" * 10_000, b'"' * 99])
        case 3:
            headers = {"Inference-Header-Content-Length": draw.choice(["0", "-1", "x", "9" * 30, str(len(body) // 2),
                                                                       str(len(body))])}
            body += draw.randbytes(draw.randrange(40))
        case 4:
            one = draw.choice(good[0][1]["inputs"])
            size = draw.choice([0, 1, 8, 16, 10**9, 2**40])
            binary = [{k: v for k, v in i.items() if k != "data"} | {"parameters": {"binary_data_size": size}}
                      if i is one else i for i in good[0][1]["inputs"]]
            head = json.dumps({"inputs": binary}).encode()
            path, body = PATHS[0], head + draw.randbytes(draw.choice([0, 1, 8, 16, 100]))
            headers = {"Inference-Header-Content-Length": str(len(head))}
    return path, body, headers


def fuzz(folder: Path, bodies: int, seed: int) -> bool:
    draw, server = random.Random(seed), Process(folder)
    table = one_user(6, 1)
    columns = Servable.load(folder, "shop").columns
    good = [(PATHS[0], body_of(tensors(rows(3, 2), columns))), (PATHS[1], rank_body(table))]
    whole = json.dumps(good[1][1]).encode()
    right = server.ask(whole)[1]
    found: Counter = Counter()
    ask_many(server, [hostile(good, draw) for _ in range(min(bodies, 500))], found)      # warm: caches fill
    before = server.memory()
    for start in range(0, bodies, 500):
        ask_many(server, [hostile(good, draw) for _ in range(min(500, bodies - start))], found)
        if (start + 500) % 5000 == 0 and start + 500 < bodies:
            print(f"fuzz: {start + 500:,} of {bodies:,} bodies, {dict(sorted(found.items()))}; memory "
                  f"{server.memory():.0f} MB", flush=True)
    for _ in range(max(2, bodies // 500)):               # who is slow, half closed, or gone
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            s.sendall(b"POST /v2/models/shop/rank HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{")
            if draw.random() < 0.5:
                s.shutdown(socket.SHUT_WR)
                s.recv(100)
        found["gone"] += 1
    time.sleep(1)
    after, again = server.memory(), server.ask(whole)
    ok = again == (200, right) and not any(k[0] == "5" for k in found) and after < before + 64 and not found["hang"]
    print(f"fuzz: {sum(found.values())} requests, {dict(sorted(found.items()))}; memory {before:.0f} -> {after:.0f} "
          f"MB; answers {'as before' if again == (200, right) else 'OTHERWISE'}; ended with {server.end()}", flush=True)
    return ok


def ask_many(server: Process, asked: list[tuple[str, bytes, dict]], found: Counter) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for path, body, headers in asked:
        try:
            connection.request("POST", path, body, headers)
            reply = connection.getresponse()
            reply.read()
            found[str(reply.status)] += 1
        except TimeoutError:
            found["hang"] += 1
            connection.close()
        except (OSError, http.client.HTTPException):
            found["closed"] += 1
            connection.close()
    connection.close()


def load(server: Process, body: bytes, stop: threading.Event, answers: list, faults: list) -> list[threading.Thread]:
    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(server.ask(body))
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException) as error:
                faults.append(error)
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads:
        t.start()
    return threads


def reloads(trained: list[Path], versions: list[Path], work: Path, many: int) -> bool:
    live = work / "live"
    shutil.copytree(versions[0], live)
    server, table = Process(live), one_user(20, 3)
    body = json.dumps(rank_body(table)).encode()
    right = [np.array(Ranker.load(v).predict(table)["buy"]) for v in trained]
    stop, answers, faults, results = threading.Event(), [], [], Counter()
    threads = load(server, body, stop, answers, faults)
    for k in range(many):
        shutil.rmtree(live)
        shutil.copytree(versions[(k + 1) % 2], live)
        if k % 3 == 2:
            victim = random.Random(k).choice(sorted(p for p in live.rglob("*") if p.is_file() and p.stat().st_size > 7))
            victim.write_bytes(victim.read_bytes()[:-7])
        status, said = server.ask(b"", "/v2/repository/models/shop/load", timeout=120)
        results[json.loads(said)["result"] if status == 200 else str(status)] += 1
    stop.set()
    for t in threads:
        t.join()
    wrong = sum(status != 200 or not any(np.allclose(json.loads(said)["outputs"]["buy"], r, atol=1e-6) for r in right)
                for status, said in answers)
    ok = not wrong and not faults and results == Counter(loaded=many - many // 3, refused=many // 3)
    print(f"reloads: {dict(results)}; {len(answers)} answers, {wrong} wrong, {len(faults)} lost; "
          f"ended with {server.end()}", flush=True)
    return ok


def kills(work: Path, many: int, form: Callable[[Path], Path]) -> bool:
    folder = form(train(work / "large", embedding={"width": 16}, features={
        "user": {"min_count": 1}, "item": {"kind": "id", "hash_buckets": 1_000_000}, "tab": "id", "price": "number",
        "fresh": "number", "shown": {"kind": "sequence", "space": "item"}, "tags": {"kind": "bag", "min_count": 1},
        "age": {"kind": "gap", "since": "since", "until": "when"}}).folder / "artefact")
    body, ok = json.dumps(rank_body(one_user(20, 3))).encode(), True
    for number in (signal.SIGKILL, signal.SIGTERM):
        ready, answered, lost, taken = [], 0, 0, 0
        for _ in range(many):
            server = Process(folder, log=True)
            ready.append((server.seconds, server.cpu))
            stop, answers, faults = threading.Event(), [], []
            threads = load(server, body, stop, answers, faults)
            time.sleep(0.5)
            server.end(number)
            stop.set()
            for t in threads:
                t.join()
            answered += len(answers)
            lost += len(faults)
            taken += sum('"event": "request"' in line for line in server.said)
            ok &= all(status == 200 for status, _ in answers)
        # whom the system had not yet handed over when the server stopped listening is reset, and may ask another
        ok &= number == signal.SIGKILL or taken == answered
        wall, cpu = np.median(ready, 0)
        print(f"{number.name}: {many} times under load; ready again in {wall:.2f} s (most {max(ready)[0]:.2f}), "
              f"{cpu:.2f} s of it CPU; {taken} requests taken, {answered} answered, {lost} connections reset",
              flush=True)
    return ok


def soak(folder: Path, seconds: float, share: float = 0.8) -> bool:
    server = Process(folder)
    body = json.dumps(rank_body(one_user(50, 3))).encode()
    clock = time.perf_counter()
    for _ in range(50):
        server.ask(body)
    pause = (time.perf_counter() - clock) / 50 / share
    found, memory, until = Counter(), [], time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.perf_counter()
        found[str(server.ask(body)[0])] += 1
        if sum(found.values()) % 50 == 1:
            memory.append(server.memory())
        time.sleep(max(0.0, pause - (time.perf_counter() - begun)))
    first, last = (float(np.median(part)) for part in (memory[:len(memory) // 3 + 1], memory[-(len(memory) // 3 + 1):]))
    print(f"soak: {seconds:g} s, {dict(found)}; memory {first:.0f} -> {last:.0f} MB; ended with {server.end()}",
          flush=True)
    return set(found) == {"200"} and last < first + 32


def schema(folder: Path, program: str, seconds: float, seed: int) -> bool:
    server = Process(folder)
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run([program, "run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", checks,
                           "--max-time", str(int(seconds)), "--request-timeout", "30", "--seed", str(seed),
                           "--no-color"], capture_output=True, text=True, cwd=folder.parent)
    said = [line.strip() for line in done.stdout.splitlines() if " generated, " in line]
    print(f"schema: {'; '.join(said) or done.stdout[-2000:]}; ended with {server.end()}", flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bodies", type=int, default=50_000)
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--only", choices=["fuzz", "reloads", "kills", "soak", "schema"])
    parser.add_argument("--schemathesis")
    said = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        trained = [train(work / f"v{i}", seed=i).folder / "artefact" for i in (1, 2)]

        def form(artefact: Path) -> Path:
            if said.run:
                return artefact
            api.export(artefact, "serve", artefact.parent / "served")
            return artefact.parent / "served"
        versions = [form(v) for v in trained]
        parts = {"fuzz": lambda: fuzz(versions[0], said.bodies, said.seed),
                 "reloads": lambda: reloads(trained, versions, work, said.reloads),
                 "kills": lambda: kills(work, said.kills, form), "soak": lambda: soak(versions[0], said.seconds)}
        if said.schemathesis:
            parts["schema"] = lambda: schema(versions[0], said.schemathesis, said.seconds, said.seed)
        held = {name: part() for name, part in parts.items() if said.only in (None, name)}
    print(", ".join(f"{name} {'held' if ok else 'DID NOT HOLD'}" for name, ok in held.items()))
    sys.exit(not all(held.values()))


if __name__ == "__main__":
    main()
