"""What is spent in records or bytes has to be waited for, and no more than that."""

from __future__ import annotations

import pytest

from services.replicator.pace import Pace, burst_s
from services.runtime.clock import FakeClock, Timeline


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


def pace_of(timeline: Timeline) -> Pace:
    return Pace(FakeClock(timeline), 1_000, 1 << 20)


def test_nothing_is_waited_for_at_first(timeline: Timeline) -> None:
    assert pace_of(timeline).wait_s == 0.0


@pytest.mark.parametrize(("records", "size"), [(500, 0), (0, 1 << 19), (500, 1 << 10)])
def test_whichever_rate_is_the_lower_one_counts(
    timeline: Timeline, records: int, size: int
) -> None:
    pace = pace_of(timeline)
    pace.spend(records, size)
    assert pace.wait_s == pytest.approx(0.5)
    timeline.advance(0.4)
    assert pace.wait_s == pytest.approx(0.1)
    timeline.advance(0.1)
    assert pace.wait_s == 0.0


def test_a_little_ahead_is_no_reason_to_wait(timeline: Timeline) -> None:
    pace = pace_of(timeline)
    pace.spend(round(burst_s * 1_000), 0)
    assert pace.wait_s == 0.0
    pace.spend(1, 0)
    assert pace.wait_s > burst_s


def test_time_that_passed_in_idleness_is_not_saved_up(timeline: Timeline) -> None:
    pace = pace_of(timeline)
    timeline.advance(1_000.0)
    pace.spend(1_000, 0)
    assert pace.wait_s == pytest.approx(1.0)


def test_over_a_long_time_the_rate_is_kept(timeline: Timeline) -> None:
    pace = pace_of(timeline)
    spent = 0
    while timeline.now_s < 60.0:
        while not pace.wait_s:
            pace.spend(7, 100)
            spent += 7
        timeline.advance(pace.wait_s)
    assert spent == pytest.approx(60_000, rel=0.01)
