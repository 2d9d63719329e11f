"""Usage as charts show it: sums of each step, and of each operation, status and API key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from services.core.usage_report import count_max, latency_bits_least, latency_buckets
from services.usermanager.usage_spans import Step
from services.usermanager.usage_store import latencies

step_lengths: Final[Mapping[Step, timedelta]] = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
# Less than a millisecond of the loop.
rows_per_turn: Final = 1_000
# What a row is a sum of, as PostgreSQL's grouping(start, operation, status, key_id) tells.
_of_step: Final = 0b0111
_of_operation: Final = 0b0011
_of_status: Final = 0b0101


class Sums(NamedTuple):
    """What was asked, and how it went. `failed` has a status from 400 on, `limited` has 429."""

    requests: int = 0
    failed: int = 0
    limited: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    latency_us: int = 0
    # By buckets, as gateways count them.
    latency_counts: tuple[int, ...] = (0,) * latency_buckets

    @property
    def average_ms(self) -> float | None:
        """None if there was nothing to measure."""
        return self.latency_us / self.requests / 1000 if self.requests else None

    def percentile_ms(self, share: float) -> float | None:
        """How long so many of the requests took at most, about: as if those of a bucket lay evenly
        in it. None if there is nothing to tell it by."""
        rank = share * sum(self.latency_counts)
        if not rank:
            return None
        low_us = 0
        for bucket, count in enumerate(self.latency_counts):
            high_us = 1 << (latency_bits_least + bucket)
            if rank <= count:
                # Of the last one nobody knows where it ends.
                part = 0 if bucket == latency_buckets - 1 else rank / count
                return (low_us + part * (high_us - low_us)) / 1000
            rank -= count
            low_us = high_us
        return low_us / 1000

    def plus(self, other: Sums) -> Sums:
        plain = _added(self[:-1], other[:-1])
        return Sums._make((*plain, tuple(_added(self.latency_counts, other.latency_counts))))


def total_of(parts: Iterable[Sums]) -> Sums:
    total = Sums()
    for part in parts:
        total = total.plus(part)
    return total


@dataclass(slots=True)
class UsageSeries:
    """A period by steps. A step, operation, status or key without requests is in none of them."""

    start: datetime
    end: datetime
    step: Step
    by_step: dict[datetime, Sums] = field(default_factory=dict)
    by_operation: dict[str, dict[datetime, Sums]] = field(default_factory=dict)
    by_status: dict[int, dict[datetime, Sums]] = field(default_factory=dict)
    by_key: dict[int, dict[datetime, Sums]] = field(default_factory=dict)

    @property
    def total(self) -> Sums:
        return total_of(self.by_step.values())

    def times(self) -> list[datetime]:
        """Where each step of the period begins, also those in which there was nothing."""
        length = step_lengths[self.step]
        first = step_beginning(self.start, length)
        count = -(-(self.end - first) // length)
        return [first + number * length for number in range(count)]

    def points(self, of: Mapping[datetime, Sums] | None = None) -> list[Sums]:
        """One for each of the times; of all there is, unless somebody says."""
        found = self.by_step if of is None else of
        return [found.get(time, Sums()) for time in self.times()]


async def series_of(
    start: datetime, end: datetime, step: Step, rows: Sequence[Mapping[str, Any]]
) -> UsageSeries:
    series = UsageSeries(start, end, step)
    for number, row in enumerate(rows, 1):
        _enter(series, row)
        if number % rows_per_turn == 0:
            await asyncio.sleep(0)
    return series


def _enter(series: UsageSeries, row: Mapping[str, Any]) -> None:
    plain = (row[name] for name in Sums._fields[:-1])
    sums = Sums._make((*plain, tuple(row[name] for name in latencies)))
    sum_of = row["sum_of"]
    if sum_of == _of_step:
        series.by_step[row["start"]] = sums
    elif sum_of == _of_operation:
        series.by_operation.setdefault(row["operation"], {})[row["start"]] = sums
    elif sum_of == _of_status:
        series.by_status.setdefault(row["status"], {})[row["start"]] = sums
    else:
        series.by_key.setdefault(row["key_id"], {})[row["start"]] = sums


def _added(one: Iterable[int], other: Iterable[int]) -> list[int]:
    return [min(first + second, count_max) for first, second in zip(one, other, strict=True)]


def step_beginning(time: datetime, length: timedelta) -> datetime:
    """Of the step that a time is in: steps begin at full minutes, hours and days of UTC."""
    midnight = time.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + (time - midnight) // length * length
