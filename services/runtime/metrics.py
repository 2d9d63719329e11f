"""Figures of a service: plain numbers on plain objects, read when somebody asks.

Whatever counts has an integer attribute and adds to it; nothing here is called then. A metric is
a name, a help text and a function that reads the number (or numbers by label). `/metrics`
renders all of them as flat JSON or as Prometheus text.

In Prometheus a name gets the prefix `ydht_`, and a counter the suffix `_total`; `process_*`
keeps the name that every dashboard knows.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.registry import Collector

from services.runtime.histogram import Histogram

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Number = int | float
Reading = Number | Mapping[str, Number] | Mapping[tuple[str, ...], Number]
Kind = Literal["counter", "gauge"]

# Labels hold operations, states and peers; a metric with more values than this labels by
# something clients choose. The rest is summed up under `other_label`.
series_max = 200
other_label = "other"


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    kind: Kind
    help: str
    read: Callable[[], Reading]
    labels: tuple[str, ...]

    def series(self) -> Iterator[tuple[tuple[str, ...], Number]]:
        """Label values and number, bounded; one without labels has the empty tuple."""
        reading = self.read()
        if not isinstance(reading, Mapping):
            yield (), reading
            return
        left_over: Number = 0
        for index, (label, number) in enumerate(reading.items()):
            if index < series_max:
                yield (label,) if isinstance(label, str) else tuple(label), number
            else:
                left_over += number
        if len(reading) > series_max:
            yield (other_label,) * len(self.labels), left_over


class Metrics(Collector):
    """The figures of one process, in the order they were added."""

    def __init__(self) -> None:
        self._figures: dict[str, _Figure] = {}
        self._histograms: dict[str, tuple[str, Histogram]] = {}
        self._facts: dict[str, Callable[[], object]] = {}

    def add(
        self,
        name: str,
        kind: Kind,
        help: str,  # noqa: A002  The word Prometheus uses.
        read: Callable[[], Reading],
        *,
        labels: tuple[str, ...] = (),
    ) -> None:
        """Show what `read` returns: a number, or a mapping of label values if there are labels."""
        self._claim(name)
        self._figures[name] = _Figure(name, kind, help, read, labels)

    def add_counters(self, prefix: str, whose: str, counters: DataclassInstance) -> None:
        """Show every field of a dataclass of integers that only ever grow."""
        for field in dataclasses.fields(counters):
            words = field.name.replace("_", " ")
            read = partial(getattr, counters, field.name)
            self.add(f"{prefix}_{field.name}", "counter", f"{words.capitalize()} {whose}", read)

    def add_histogram(self, name: str, help: str, histogram: Histogram) -> None:  # noqa: A002  As above.
        self._claim(name)
        self._histograms[name] = (help, histogram)

    def add_fact(self, name: str, read: Callable[[], object]) -> None:
        """Show something that is not a number, such as an id; only the JSON form has it."""
        self._claim(name)
        self._facts[name] = read

    def as_json(self) -> dict[str, object]:
        """One flat mapping; labels follow the name, a histogram is a count, a sum, quantiles."""
        flat: dict[str, object] = {name: read() for name, read in self._facts.items()}
        for figure in self._figures.values():
            for label, number in figure.series():
                flat[".".join((figure.name, *label))] = number
        for name, (_, histogram) in self._histograms.items():
            flat[f"{name}_count"] = histogram.count
            flat[f"{name}_sum"] = histogram.total
            flat[f"{name}_p50"] = histogram.quantile(0.5)
            flat[f"{name}_p99"] = histogram.quantile(0.99)
        return flat

    def as_prometheus(self) -> bytes:
        """Text of `text/plain; version=0.0.4`."""
        return plain_text(self)

    def as_openmetrics(self) -> bytes:
        """Text of `application/openmetrics-text; version=1.0.0`."""
        return bytes(openmetrics_text(self))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks of a collector."""
        for figure in self._figures.values():
            family = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
            metric = family(_prometheus_name(figure.name), figure.help, labels=figure.labels)
            for label, number in figure.series():
                metric.add_metric(label, number)
            yield metric
        for name, (help_text, histogram) in self._histograms.items():
            buckets = HistogramMetricFamily(_prometheus_name(name), help_text)
            ends = [*map(str, map(float, histogram.bounds)), "+Inf"]
            counts = accumulate(histogram.buckets)
            buckets.add_metric([], list(zip(ends, counts, strict=True)), sum_value=histogram.total)
            yield buckets

    def _claim(self, name: str) -> None:
        if name in self._figures or name in self._histograms or name in self._facts:
            raise ValueError(f"the metric {name} is there already")


def add_process_metrics(metrics: Metrics) -> None:
    """What the operating system says of this process."""
    started_s = time.time()
    metrics.add("process_pid", "gauge", "Process id", os.getpid)
    metrics.add("process_resident_memory_bytes", "gauge", "Memory in use", resident_bytes)
    metrics.add("process_cpu_seconds", "counter", "CPU time used", time.process_time)
    metrics.add("process_open_fds", "gauge", "Open file descriptors", open_descriptors)
    metrics.add(
        "process_max_fds",
        "gauge",
        "Limit of open file descriptors",
        lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )
    metrics.add(
        "process_start_time_seconds",
        "gauge",
        "When the process began to count, seconds since 1970",
        lambda: started_s,
    )


def open_descriptors() -> int:
    try:
        # The number itself, from Linux 6.2 on, and 0 before.
        told = Path("/proc/self/fd").stat().st_size
    except FileNotFoundError:
        told = 0
    return told or listed_descriptors()


def listed_descriptors() -> int:
    """For systems that do not tell the number: some milliseconds where there are thousands."""
    # The listing itself holds one open.
    with os.scandir("/dev/fd") as entries:
        return sum(1 for _ in entries) - 1


def resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        # Without /proc (macOS) only the peak is known, there in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()


def _prometheus_name(name: str) -> str:
    return name if name.startswith("process_") else f"ydht_{name}"
