"""What Prometheus reads at `/metrics`: requests, latency, verdicts, batches, queues and the request log."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from defended.class_names import BOTTOM
from defended.serving.clients.logged_answers import Arrays

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ANSWERED, REJECTED = "answered", "rejected"
REASONS = ("", "not certified", "not finite", "adversarial")

# Seconds: from a bare call of a small network to the default timeout.
_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_WINDOW = 1000


@dataclass
class _Window:
    """The rejections among the last `_WINDOW` inputs, kept as (inputs, rejected) of the last requests."""

    requests: collections.deque[tuple[int, int]] = field(default_factory=collections.deque)
    inputs: int = 0
    rejected: int = 0

    def add(self, inputs: int, rejected: int) -> None:
        self.requests.append((inputs, rejected))
        self.inputs += inputs
        self.rejected += rejected
        while self.inputs - self.requests[0][0] >= _WINDOW:
            gone = self.requests.popleft()
            self.inputs -= gone[0]
            self.rejected -= gone[1]


class Metrics:
    """The metrics of one server, in a registry of their own.

    `queued_rows` and `log_losses` are called when the metrics are read; set them to functions that return numbers by
    (model, version), and by reason.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queued_rows: Callable[[], Mapping[tuple[str, int], int]] = dict
        self.log_losses: Callable[[], Mapping[str, int]] = dict
        self.log_written: Callable[[], int] = lambda: 0
        self.requests = Counter(
            "defended_requests",
            "Requests by their canonical status.",
            ("model", "version", "protocol", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "defended_request_seconds",
            "Seconds from a request's arrival to its answer.",
            ("model", "protocol"),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.verdicts = Counter(
            "defended_verdicts",
            "Inputs judged: answered, or rejected and why.",
            ("model", "version", "verdict", "reason"),
            registry=self.registry,
        )
        self.out_of_range = Counter(
            "defended_out_of_range",
            "Inputs outside of the range that the model was trained on, by more than epsilon.",
            ("model", "version"),
            registry=self.registry,
        )
        self.batches = Histogram(
            "defended_batch_size",
            "Inputs of each run of a model.",
            ("model", "signature"),
            buckets=_BATCHES,
            registry=self.registry,
        )
        self._windows: dict[tuple[str, int], _Window] = {}
        self.registry.register(self)

    def observe_request(
        self, protocol: str, method: str, model: str, version: int | None, status: str, seconds: float
    ) -> None:
        """Count one finished request; names and versions that clients make up are not kept, but are "" and None."""
        known = "" if version is None else str(version)
        self.requests.labels(model, known, protocol, method, status).inc()
        self.seconds.labels(model, protocol).observe(seconds)

    def observe_batch(self, model: str, signature: str, rows: int) -> None:
        """Count one run of a model."""
        self.batches.labels(model, signature).observe(rows)

    def observe_verdicts(self, model: str, version: int, inputs: Arrays, outputs: Arrays) -> None:
        """Count the verdicts of one answered request, from the outputs of a signature that gives them."""
        reasons = verdict_reasons(inputs, outputs)
        if reasons is None or not len(reasons):
            return
        counts = np.bincount(reasons, minlength=len(REASONS))
        for reason, count in enumerate(counts):
            if count:
                verdict = REJECTED if reason else ANSWERED
                self.verdicts.labels(model, str(version), verdict, REASONS[reason]).inc(int(count))
        window = self._windows.setdefault((model, version), _Window())
        window.add(len(reasons), int(counts[1:].sum()))

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics whose values are computed when they are read; the registry asks for them."""
        labels = ("model", "version")
        depth = GaugeMetricFamily("defended_queue_depth", "Inputs that wait for a free model.", labels=labels)
        rate = GaugeMetricFamily(
            "defended_rejection_rate",
            f"Share of the last {_WINDOW} inputs, or of all where there are fewer, that were rejected.",
            labels=labels,
        )
        rates = {key: window.rejected / window.inputs for key, window in dict(self._windows).items() if window.inputs}
        for gauge, values in ((depth, self.queued_rows()), (rate, rates)):
            for (model, version), value in values.items():
                gauge.add_metric((model, str(version)), value)
            yield gauge
        losses = CounterMetricFamily(
            "defended_log_losses", "Answers missing from the request log, by what stopped them.", labels=("reason",)
        )
        for reason, count in self.log_losses().items():
            losses.add_metric((reason,), count)
        yield losses
        yield CounterMetricFamily("defended_log_records", "Answers in the request log.", self.log_written())

    def page(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self.registry)


def verdict_reasons(inputs: Arrays, outputs: Arrays) -> np.ndarray | None:
    """Return the index into `REASONS` of each row, int64 `[batch]`; None where the outputs hold no verdicts.

    The model's own `reason` counts where there is one. Else a rejected input that is not finite was rejected for that,
    and any other because it could not be certified. An unknown reason counts as not certified.
    """
    if "rejected" not in outputs:
        classes = outputs.get("classes")  # of `classify`: the first column names the answer, or ⊥
        if classes is None or classes.ndim != 2 or classes.dtype != object:
            return None
        bottom = BOTTOM.encode()
        return np.asarray([int(row[0] == bottom) for row in classes], np.int64)
    rejected = np.asarray(outputs["rejected"], bool)
    if "reason" in outputs:
        given = np.asarray(outputs["reason"], np.int64)
        known = (given >= 0) & (given < len(REASONS)) & ((given > 0) == rejected)
        return np.where(known, given, rejected.astype(np.int64))
    reasons = rejected.astype(np.int64)
    for array in inputs.values():
        if array.dtype.kind == "f" and rejected.any():
            finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            reasons[rejected & ~finite] = 2
    return reasons
