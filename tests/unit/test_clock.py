"""Time stands still until a test moves it, and then happens in one order only."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.clock import Clock, FakeClock, SystemClock, Timeline


@given(st.lists(st.integers(0, 20), max_size=50))
def test_events_run_by_time_and_at_equal_times_by_arrival(delays: list[int]) -> None:
    timeline = Timeline()
    ran: list[tuple[int, int]] = []
    for order, delay in enumerate(delays):
        timeline.schedule(delay, partial(ran.append, (delay, order)))
    while timeline.step():
        assert timeline.now_s == ran[-1][0]
    assert ran == sorted((delay, order) for order, delay in enumerate(delays))


def test_stepping_an_empty_timeline_moves_nothing() -> None:
    timeline = Timeline()
    timeline.schedule(5, lambda: None).cancel()
    assert not timeline.step()
    assert timeline.now_s == 0


def test_advancing_runs_what_is_due_and_stands_at_the_end() -> None:
    timeline = Timeline()
    ran: list[tuple[str, float]] = []

    def note(name: str) -> None:
        ran.append((name, timeline.now_s))

    for name, delay_s in (("early", 1.0), ("due", 2.0), ("late", 2.000_1)):
        timeline.schedule(delay_s, partial(note, name))
    timeline.advance(2.0)
    assert ran == [("early", 1.0), ("due", 2.0)]
    assert timeline.now_s == 2.0
    timeline.advance(1.0)
    assert ran[-1] == ("late", 2.000_1)
    assert timeline.now_s == 3.0


def test_an_event_may_schedule_more_within_the_same_advance() -> None:
    timeline = Timeline()
    at: list[float] = []

    def tick() -> None:
        at.append(timeline.now_s)
        timeline.schedule(1.0, tick)

    tick()
    timeline.advance(3.5)
    assert at == [0.0, 1.0, 2.0, 3.0]
    assert timeline.now_s == 3.5


def test_an_event_without_delay_runs_in_its_turn_not_at_once() -> None:
    timeline = Timeline()
    ran: list[str] = []

    def outer() -> None:
        timeline.schedule(0, partial(ran.append, "inner"))

    timeline.schedule(0, outer)
    timeline.schedule(0, partial(ran.append, "second"))
    assert ran == []
    timeline.advance(0)
    assert ran == ["second", "inner"]


def test_a_cancelled_timer_never_runs() -> None:
    timeline = Timeline()
    ran: list[str] = []
    timer = timeline.schedule(1, lambda: ran.append("cancelled"))
    timeline.schedule(2, lambda: ran.append("kept"))
    timer.cancel()
    timer.cancel()
    timeline.advance(10)
    assert ran == ["kept"]


def test_an_event_may_cancel_one_of_the_same_moment() -> None:
    timeline = Timeline()
    ran: list[str] = []
    timeline.schedule(1, lambda: second.cancel())
    second = timeline.schedule(1, lambda: ran.append("second"))
    timeline.advance(1)
    assert ran == []


def test_cancelling_a_timer_that_ran_is_harmless() -> None:
    timeline = Timeline()
    ran: list[str] = []
    timer = timeline.schedule(1, lambda: ran.append("once"))
    timeline.advance(1)
    timer.cancel()
    timeline.advance(1)
    assert ran == ["once"]


def test_the_past_is_refused() -> None:
    with pytest.raises(ValueError, match=r"-0\.1 s lies in the past"):
        Timeline().schedule(-0.1, lambda: None)


def test_skew_moves_wall_time_only() -> None:
    timeline = Timeline()
    sane, ahead = FakeClock(timeline), FakeClock(timeline, skew_ms=700)
    timeline.advance(1.5)
    assert sane.wall_ms() == FakeClock.epoch_ms + 1_500
    assert ahead.wall_ms() == sane.wall_ms() + 700
    ahead.skew_ms = -5_000
    assert ahead.wall_ms() == sane.wall_ms() - 5_000
    assert ahead.monotonic_s() == sane.monotonic_s() == 1.5


def test_time_since_the_start_of_a_machine_goes_on_while_it_is_suspended() -> None:
    timeline = Timeline()
    clock, other = FakeClock(timeline), FakeClock(timeline)
    timeline.advance(5)
    clock.suspend(60)
    assert (clock.monotonic_s(), clock.boot_s()) == (5, 65)
    assert (other.monotonic_s(), other.boot_s()) == (5, 5)
    assert clock.wall_ms() == FakeClock.epoch_ms + 65_000


def test_the_machine_tells_the_time_since_its_start_if_it_can() -> None:
    clock = SystemClock()
    before_s = clock.monotonic_s()
    assert clock.boot_s() >= before_s, "it has been suspended, or has not"
    assert clock.boot_s() <= clock.boot_s()


def test_stopping_a_clock_silences_its_timers_and_no_others() -> None:
    timeline = Timeline()
    crashed, alive = FakeClock(timeline), FakeClock(timeline)
    ran: list[str] = []
    crashed.call_later(1, lambda: ran.append("before"))
    alive.call_later(1, lambda: ran.append("alive"))
    crashed.stop()
    crashed.call_later(1, lambda: ran.append("after"))
    timeline.advance(10)
    assert ran == ["alive"]


async def test_the_system_clock_agrees_with_the_machine_and_runs_timers() -> None:
    clock: Clock = SystemClock()
    before_ms = time.time_ns() // 1_000_000
    assert before_ms <= clock.wall_ms() <= time.time_ns() // 1_000_000
    first = clock.monotonic_s()
    assert first <= clock.monotonic_s()
    ran: list[str] = []
    finished = asyncio.Event()
    clock.call_later(0.001, lambda: ran.append("cancelled")).cancel()
    clock.call_later(0.002, lambda: ran.append("kept"))
    clock.call_later(0.003, finished.set)
    await asyncio.wait_for(finished.wait(), 10)
    assert ran == ["kept"]
    assert clock.monotonic_s() - first >= 0.002
