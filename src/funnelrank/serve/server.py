"""The process: artefacts loaded and verified, ports, new versions taken up, and a stop that drains."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from funnelrank.artefact import artefact_folder
from funnelrank.errors import ConfigError, FunnelrankError
from funnelrank.sealed import MANIFEST
from funnelrank.serve.app import App, Models
from funnelrank.serve.batching import Batcher
from funnelrank.serve.connection import Connection
from funnelrank.serve.metrics import Metrics
from funnelrank.serve.protocol import Limits
from funnelrank.serve.servable import Servable

Log = Callable[[dict[str, Any]], None]
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Serving:
    """How artefacts are served; the defaults are those of the command line."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None     # none: no gRPC
    threads: int = 1                 # of the model
    wait: float = 0.0                # seconds a request may wait for company
    batch_rows: int = 2048
    queue_rows: int = 20_000
    timeout: float = 10.0            # seconds
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    tls: tuple[Path, Path] | None = None          # certificate, key
    watch: float = 0.0               # seconds between looks for a new version; 0: only when asked
    drain: float = 0.0               # seconds that a stopping server still takes requests
    access_log: bool = True
    allow_code: bool = False         # import parts of models that are named as module:Class


def load(artefacts: Mapping[str, Path], threads: int = 1, allow_code: bool = False) -> dict[str, Servable]:
    return {name: Servable.load(folder, name, threads, allow_code) for name, folder in artefacts.items()}


def serve(artefacts: Mapping[str, Path], serving: Serving) -> None:
    """Until SIGTERM or SIGINT. Raises ArtefactError or ConfigError before anything listens."""
    servables = load(artefacts, serving.threads, serving.allow_code)
    asyncio.run(_Process(artefacts, servables, serving).run())


def write_line(said: Mapping[str, Any]) -> None:
    """The log: one JSON object a line, on stdout."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
    with suppress(BrokenPipeError):              # who read the log has gone; requests go on
        sys.stdout.write(json.dumps({"time": stamp, **said}, ensure_ascii=True) + "\n")
        sys.stdout.flush()


class _Uvicorn(uvicorn.Server):

    def capture_signals(self) -> Any:            # the process has its own
        return nullcontext()


class _Process:

    def __init__(self, artefacts: Mapping[str, Path], servables: Mapping[str, Servable], serving: Serving):
        self.folders, self.serving = dict(artefacts), serving
        self.metrics = Metrics(lambda: {n: b.waiting_rows for n, b in self.models.batchers.items()})
        self.models = Models({name: Batcher(
            s, most_rows=serving.batch_rows, wait=serving.wait, queue_rows=serving.queue_rows,
            told=self.metrics.batch) for name, s in servables.items()},
            serving.limits, serving.timeout)
        for s in servables.values():
            self.metrics.switched(None, s)
        self.seen = {name: _stamp(folder) for name, folder in self.folders.items()}
        self.reloading = asyncio.Lock()

    async def run(self) -> None:
        serving, loop = self.serving, asyncio.get_running_loop()
        app = App(self.models, self.metrics, token=serving.token, reload=self.reload,
                  log=(lambda said: write_line({"event": "request", **said})) if serving.access_log else None)
        listener = listen(serving.host, serving.port)
        grpc_server, grpc_port = await self._grpc(app.log) if serving.grpc_port is not None else (None, None)
        tls = {"ssl_certfile": str(serving.tls[0]), "ssl_keyfile": str(serving.tls[1])} if serving.tls else {}
        try:
            config = uvicorn.Config(app, http=Connection, loop="asyncio", lifespan="off", log_level="error",
                                    access_log=False, server_header=False, timeout_keep_alive=30, **tls)
            config.load()
        except (OSError, ValueError) as error:
            raise ConfigError(f"--tls-cert: the certificate and its key cannot be used ({error})") from None
        server, stop = _Uvicorn(config), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(self.look()))
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        watching = asyncio.ensure_future(self._watch())
        try:
            while not server.started and not running.done():
                await asyncio.sleep(0.01)
            write_line({"event": "ready", "http": f"{'https' if tls else 'http'}://{serving.host}:"
                                                  f"{listener.getsockname()[1]}",
                        **({"grpc": f"{serving.host}:{grpc_port}"} if grpc_port else {}),
                        "models": {n: b.current.version for n, b in self.models.batchers.items()}})
            await asyncio.wait([running, asyncio.ensure_future(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
            self.models.stopping = True
            write_line({"event": "stopping", "running": app.running})
            await asyncio.sleep(serving.drain)
        finally:
            watching.cancel()
            server.should_exit = True
            await asyncio.gather(running, *([grpc_server.stop(serving.timeout)] if grpc_server else []))
            await loop.run_in_executor(None, self._close)
        write_line({"event": "stopped"})

    async def _grpc(self, log: Log | None) -> tuple[Any, int]:
        import grpc  # an extra of its own

        from funnelrank.serve.grpc_server import Service
        serving = self.serving
        server = Service(self.models, self.metrics, serving.token, log).server()
        place = f"{f'[{serving.host}]' if ':' in serving.host else serving.host}:{serving.grpc_port}"
        try:
            if serving.tls:
                certificate, key = (file.read_bytes() for file in serving.tls)
                port = server.add_secure_port(place, grpc.ssl_server_credentials([(key, certificate)]))
            else:
                port = server.add_insecure_port(place)
        except RuntimeError as error:
            raise ConfigError(f"--grpc-port: {place} cannot be listened on ({str(error)[:100]}); choose another"
                              ) from None
        await server.start()
        return server, port

    def _close(self) -> None:
        for batcher in self.models.batchers.values():
            batcher.close()

    async def _watch(self) -> None:
        while self.serving.watch:
            await asyncio.sleep(self.serving.watch)
            await self.look()

    async def look(self) -> None:
        """Take up every new version that is there."""
        for name, folder in self.folders.items():
            if _stamp(folder) != self.seen[name]:
                await self.reload(name)

    async def reload(self, name: str) -> dict[str, Any]:
        """Load the artefact of a name anew, beside the one that answers; switch if it answers its golden request."""
        async with self.reloading:
            batcher, folder = self.models.batchers[name], self.folders[name]
            old = batcher.current
            self.seen[name] = _stamp(folder)
            try:
                new = await asyncio.get_running_loop().run_in_executor(
                    None, Servable.load, folder, name, self.serving.threads, self.serving.allow_code)
            except FunnelrankError as error:
                self.metrics.reloads.labels(name, "refused").inc()
                said = {"name": name, "result": "refused", "version": old.version, "error": str(error)}
            else:
                batcher.current = new
                if new.version != old.version:
                    self.metrics.switched(old.version, new)
                self.metrics.reloads.labels(name, "loaded").inc()
                said = {"name": name, "result": "loaded", "version": new.version}
            write_line({"event": "reload", **said})
            return said


def listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError where the port cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                                    backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port: {host}:{port} cannot be listened on ({error}); choose another") from None


def _stamp(folder: Path) -> tuple[int, ...] | None:
    """What tells whether an artefact was replaced; None while it is away."""
    try:
        said = (artefact_folder(folder) / MANIFEST).stat()
    except (OSError, FunnelrankError):
        return None
    return said.st_ino, said.st_size, said.st_mtime_ns
