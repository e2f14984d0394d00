"""What Prometheus reads: requests and where their time goes, batches, and what drifts: nulls, unseen values, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily

from funnelrank.serve.batching import Done
from funnelrank.serve.servable import Scored, Servable

SECONDS = (.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10)
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
SCORES = np.array([1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, .01, .02, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, .95, .99, 1])
STAGES = ("read", "parse", "queue", "encode", "score", "write")


class Scores:
    """How often each output was how large. Counted a batch at a time, so that a row costs nanoseconds."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], np.ndarray] = {}
        self._sums: dict[tuple[str, str], float] = {}
        self._lock = Lock()

    def add(self, model: str, outputs: Mapping[str, np.ndarray]) -> None:
        with self._lock:
            for name, values in outputs.items():
                places = np.bincount(np.searchsorted(SCORES, values), minlength=len(SCORES) + 1)
                key = (model, name)
                self._counts[key] = self._counts.get(key, 0) + places
                self._sums[key] = self._sums.get(key, 0.0) + float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily("funnelrank_score", "Served values of each output", labels=("model", "output"))
        bounds = [*(f"{b:g}" for b in SCORES), "+Inf"]
        with self._lock:
            for key, counts in self._counts.items():
                family.add_metric(key, list(zip(bounds, np.cumsum(counts).tolist())), self._sums[key])
        yield family


class Metrics:
    """`waiting` says how many rows wait, per model."""

    def __init__(self, waiting: Callable[[], Mapping[str, int]]):
        self.registry = CollectorRegistry()
        made = lambda kind, name, text, *labels, **more: kind(
            f"funnelrank_{name}", text, labels, registry=self.registry, **more)
        self.requests = made(Counter, "requests", "Requests answered", "model", "way", "status")
        self.stages = made(Histogram, "stage_seconds", "Time of a request's stages", "stage", buckets=SECONDS)
        self.whole = made(Histogram, "request_seconds", "Time of a whole request", "model", "way", buckets=SECONDS)
        self.batches = made(Histogram, "batch_rows", "Rows that go through the model at once", "model", buckets=ROWS)
        self.values = made(Counter, "feature_values", "Values seen", "model", "feature")
        self.nulls = made(Counter, "feature_nulls", "Values that were null", "model", "feature")
        self.unseen = made(Counter, "feature_oov", "Values that train did not have", "model", "feature")
        self.reloads = made(Counter, "reloads", "New versions, loaded or refused", "model", "result")
        self.version = made(Gauge, "model_version", "1 for the version that answers", "model", "version")
        self.queue = made(Gauge, "queue_rows", "Rows that wait", "model")
        self._feature: dict[tuple[str, str], list[tuple[str, Counter]]] = {}     # what to count, and where
        self.scores, self._waiting = Scores(), waiting
        self.registry.register(self.scores)

    def batch(self, servable: Servable, done: Done, scored: Sequence[Scored]) -> None:
        """What the model thread says of a batch."""
        model = servable.name
        self.batches.labels(model).observe(done.together)
        for one in scored:
            self.scores.add(model, one.outputs)
        for feature, said in done.counts.items():
            for key, counter in self._counters(model, feature, "ids" if "ids" in said else "rows"):
                if many := said.get(key):
                    counter.inc(many)

    def _counters(self, model: str, feature: str, values: str) -> list[tuple[str, Counter]]:
        if (model, feature) not in self._feature:
            self._feature[model, feature] = [(key, counter.labels(model, feature)) for key, counter in (
                (values, self.values), ("nulls", self.nulls), ("oov", self.unseen))]
        return self._feature[model, feature]

    def switched(self, old: str | None, servable: Servable) -> None:
        if old is not None:
            self.version.remove(servable.name, old)
        self.version.labels(servable.name, servable.version).set(1)

    def text(self) -> bytes:
        for model, rows in self._waiting().items():
            self.queue.labels(model).set(rows)
        return generate_latest(self.registry)
