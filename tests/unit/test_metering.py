"""Usage in memory: all of it is reported once, in its minute, whatever becomes of the way there."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest

from services.core.errors import FixRequest, RetryLater
from services.core.usage_report import (
    Rollup,
    UsageReport,
    UsageTaken,
    latency_buckets,
    report_bytes_max,
    rows_per_report_max,
)
from services.runtime.clock import FakeClock, Timeline
from services.runtime.metering import Meters, Tally, rows_at_once
from services.runtime.metrics import Metrics
from tests.waiting import wait_until

operations = (
    "get put delete patch incr head list delete_prefix batch ids namespaces".split()  # noqa: SIM905  As it is told.
)


@dataclass(slots=True)
class Caller:
    tenant: int = 7
    key_id: int = 1
    tally: Tally | None = field(default_factory=dict)


class MemoryIntake:
    """Counts each report of each sender once, as a user manager does. It can be away, lose its
    answers, and refuse."""

    def __init__(self) -> None:
        self.away = False
        self.deaf = False
        self.answers_lost = 0
        self.refusing = False
        self.sent: list[UsageReport] = []
        self.counted: dict[tuple[str, int], UsageReport] = {}

    async def take_usage(self, report: UsageReport) -> UsageTaken:
        self.sent.append(report)
        await asyncio.sleep(3_600 if self.deaf else 0)
        if self.away:
            raise RetryLater("auth_unavailable", "it is away")
        # What is sent has to survive its way, and to be what the intake takes.
        sent = msgspec.json.encode(report)
        assert len(sent) <= report_bytes_max
        report = msgspec.json.decode(sent, type=UsageReport)
        if self.refusing:
            raise FixRequest("invalid_body", "not this one")
        name = (report.sender, report.sequence)
        known = self.counted.setdefault(name, report)
        assert known == report, "one number stands for two reports"
        if self.answers_lost:
            self.answers_lost -= 1
            raise RetryLater("auth_unavailable", "the answer was lost")
        return UsageTaken(known is report, 0)

    def rows(self) -> list[Rollup]:
        return [row for report in self.counted.values() for row in report.rollups]

    def requests(self) -> int:
        return sum(row.requests for row in self.rows())


class MeterWorld:
    def __init__(self, **options: int) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.intake = MemoryIntake()
        self.meters = Meters(self.intake, self.clock, "gateway-1:abc", **options)

    def count(self, caller: Caller, operation: str = "get", status: int = 200) -> None:
        self.meters.count(caller, operation, status, 10, 100, 1_000)


async def test_what_was_counted_is_reported_when_it_closes() -> None:
    world = MeterWorld()
    caller, other = Caller(7, 1), Caller(8, 2)
    for _ in range(3):
        world.count(caller)
    world.count(caller, "put", 503)
    world.count(other)
    await world.meters.close()
    (report,) = world.intake.sent
    assert (report.sender, report.sequence) == ("gateway-1:abc", 1)
    rows = {(row.user_id, row.key_id, row.operation, row.status): row for row in report.rollups}
    assert rows.keys() == {(7, 1, "get", 200), (7, 1, "put", 503), (8, 2, "get", 200)}
    row = rows[7, 1, "get", 200]
    assert (row.requests, row.bytes_in, row.bytes_out, row.latency_us) == (3, 30, 300, 3_000)
    assert row.minute.timestamp() * 1000 == FakeClock.epoch_ms
    assert world.meters.rows_waiting == 0


async def test_latencies_are_counted_by_buckets_whose_bounds_double() -> None:
    world = MeterWorld()
    caller = Caller(7, 1)
    bounds = [64 << number for number in range(latency_buckets - 1)]
    latencies_us = [0, *(near for bound in bounds for near in (bound - 1, bound)), 10**12]
    for latency_us in latencies_us:
        world.meters.count(caller, "get", 200, 0, 0, latency_us)
    await world.meters.close()
    ((row,),) = [report.rollups for report in world.intake.sent]
    assert row.latency_counts == [2] * latency_buckets
    assert sum(row.latency_counts) == row.requests == len(latencies_us)


async def test_every_operation_can_be_reported() -> None:
    world = MeterWorld()
    caller = Caller()
    for operation in operations:
        world.count(caller, operation)
    await world.meters.close()
    assert {row.operation for row in world.intake.rows()} == set(operations)


async def test_the_console_is_not_counted() -> None:
    world = MeterWorld()
    world.count(Caller(tally=None))
    await world.meters.close()
    assert world.intake.sent == []


async def test_nothing_is_reported_of_nothing() -> None:
    world = MeterWorld()
    await world.meters.collect()
    await world.meters.collect()
    await world.meters.close()
    assert world.intake.sent == []


async def test_what_is_counted_is_of_the_minute_in_which_it_was() -> None:
    world = MeterWorld()
    caller = Caller()
    for seconds in (0, 55, 5, 59, 1, 600):
        world.timeline.advance(seconds)
        await world.meters.collect()
        world.count(caller)
        world.count(caller)
    await world.meters.close()
    minutes = Counter[int]()
    for row in world.intake.rows():
        minutes[round(row.minute.timestamp() - FakeClock.epoch_ms / 1000) // 60] += row.requests
    assert minutes == {0: 4, 1: 4, 2: 2, 12: 2}


async def test_a_long_tally_goes_in_parts_of_what_the_intake_takes() -> None:
    world = MeterWorld()
    for key_id in range(2_500):
        world.count(Caller(key_id=key_id))
    await world.meters.close()
    assert [len(report.rollups) for report in world.intake.sent] == [1_000, 1_000, 500]
    assert [report.sequence for report in world.intake.sent] == [1, 2, 3]
    assert rows_per_report_max == 1_000
    assert world.intake.requests() == 2_500


async def test_a_report_is_sent_again_unchanged_and_what_came_later_is_in_the_next() -> None:
    world = MeterWorld()
    caller = Caller()
    world.count(caller)
    world.intake.answers_lost = 1
    await world.meters.collect()
    with pytest.raises(RetryLater):
        await world.meters.send()
    world.count(caller)
    await world.meters.collect()
    await world.meters.close()
    first, again, last = world.intake.sent
    assert first is again
    assert [first.sequence, last.sequence] == [1, 2]
    assert world.intake.requests() == 2


async def test_while_the_user_manager_is_away_rows_are_added_up_by_minute() -> None:
    world = MeterWorld()
    world.intake.away = True
    caller = Caller()
    for _ in range(24):
        for _ in range(100):
            world.count(caller)
        await world.meters.collect()
        with pytest.raises(RetryLater):
            await world.meters.send()
        world.timeline.advance(5)
    # The one that is on its way, and one for each of two minutes.
    assert world.meters.rows_waiting == 3
    world.intake.away = False
    await world.meters.close()
    assert world.intake.requests() == 2_400


async def test_past_the_bound_old_minutes_are_merged_and_nothing_is_lost() -> None:
    world = MeterWorld(rows_max=50)
    callers = [Caller(key_id=key_id) for key_id in range(20)]
    for _ in range(30):
        for caller in callers:
            world.count(caller)
        await world.meters.collect()
        world.timeline.advance(60)
        assert world.meters.rows_waiting <= 50
    counters = world.meters.counters
    # Of 29 minutes, as two collections are of the first.
    assert (counters.merged, counters.dropped) == (29 * 20 - 50, 0)
    await world.meters.close()
    assert world.intake.requests() == 600
    by_key = Counter[int]()
    for row in world.intake.rows():
        by_key[row.key_id] += row.requests
    assert by_key == dict.fromkeys(range(20), 30)


async def test_days_are_never_merged_and_what_does_not_fit_then_is_dropped_and_counted() -> None:
    world = MeterWorld(rows_max=10)
    for _ in range(3):
        for key_id in range(8):
            world.count(Caller(key_id=key_id))
        await world.meters.collect()
        world.timeline.advance(86_400)
    counters = world.meters.counters
    # Two collections are of the first day, in which six rows of two requests each did not fit.
    assert (world.meters.rows_waiting, counters.merged, counters.dropped) == (10, 0, 6)
    await world.meters.close()
    assert world.intake.requests() == 24 - 6 * 2


async def test_one_minute_that_is_too_much_by_itself_is_cut() -> None:
    world = MeterWorld(rows_max=100)
    for key_id in range(5_000):
        world.count(Caller(key_id=key_id))
    await world.meters.collect()
    assert world.meters.rows_waiting == 100
    assert world.meters.counters.dropped == 4_900


async def test_a_collection_that_is_broken_off_is_ended_by_the_next() -> None:
    world = MeterWorld()
    callers = [Caller(key_id=key_id) for key_id in range(3 * rows_at_once)]
    for caller in callers:
        world.count(caller)
    collecting = asyncio.create_task(world.meters.collect())
    await asyncio.sleep(0)
    collecting.cancel()
    await asyncio.wait([collecting])
    assert 0 < world.meters.rows_waiting < len(callers)
    for caller in callers:
        world.count(caller)
    await world.meters.close()
    assert world.intake.requests() == 2 * len(callers)


async def test_a_report_that_can_never_be_counted_is_given_up_and_counted() -> None:
    world = MeterWorld()
    world.intake.refusing = True
    world.count(Caller())
    await world.meters.collect()
    await world.meters.send()
    assert world.meters.counters.refused == 1
    world.intake.refusing = False
    world.count(Caller())
    await world.meters.close()
    assert world.intake.requests() == 1


async def test_closing_ends_in_time_whatever_the_user_manager_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.runtime.metering.flush_s_max", 0.05)
    for trouble in ("away", "deaf"):
        world = MeterWorld()
        setattr(world.intake, trouble, True)
        world.count(Caller())
        await world.meters.close()
        assert world.meters.rows_waiting == 1


@pytest.mark.parametrize("wall_ms", [0, -(1 << 40), 1 << 43, 2_000_000_000])
async def test_a_clock_that_is_far_off_breaks_nothing(wall_ms: int) -> None:
    timeline = Timeline()
    clock = FakeClock(timeline, skew_ms=wall_ms - FakeClock.epoch_ms)
    intake = MemoryIntake()
    meters = Meters(intake, clock, "gateway-1")
    meters.count(Caller(), "get", 200, 1, 1, 1)
    await meters.close()
    assert intake.requests() == 1


async def test_the_loops_report_by_themselves_and_an_end_amid_one_counts_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.runtime.metering.report_s", 0.02)
    monkeypatch.setattr("services.runtime.metering.pause_s_min", 0.01)
    rng = random.Random(7)
    world = MeterWorld()
    callers = [Caller(tenant=tenant, key_id=tenant) for tenant in range(5)]
    counted = 0
    for _ in range(4):
        running = asyncio.create_task(world.meters.run())
        for _ in range(40):
            for _ in range(rng.randint(0, 30)):
                world.count(rng.choice(callers), rng.choice(operations), rng.choice((200, 404)))
                counted += 1
            world.intake.away = rng.random() < 0.3
            world.intake.answers_lost = rng.randint(0, 1)
            await asyncio.sleep(0.003)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    world.intake.away, world.intake.answers_lost = False, 0
    running = asyncio.create_task(world.meters.run())
    world.count(callers[0])
    await wait_until(lambda: world.intake.requests() == counted + 1, "everything is reported")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await world.meters.close()
    assert world.intake.requests() == counted + 1
    sequences = [report.sequence for report in world.intake.sent]
    assert sequences == sorted(sequences)


async def test_the_figures_name_no_tenant() -> None:
    world = MeterWorld()
    metrics = Metrics()
    world.meters.add_to(metrics)
    world.count(Caller(tenant=4_711))
    await world.meters.collect()
    shown = metrics.as_json()
    assert shown["usage_rows_waiting"] == 1
    assert b"4711" not in metrics.as_prometheus()
