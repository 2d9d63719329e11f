"""Usage as series and as figures of pages: steps that are empty, names, what is drawn as one."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis.strategies import integers, lists, sampled_from

from services.core.usage_report import count_max, latency_buckets
from services.usermanager.pages.console_usage import unformulated
from services.usermanager.pages.usage_figures import (
    chart_of,
    drawn_max,
    key_lines,
    operation_lines,
    operation_named,
)
from services.usermanager.usage_series import Sums, UsageSeries, total_of
from services.usermanager.usage_spans import Step

noon = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_every_step_of_a_period_has_its_time_also_parts_of_one() -> None:
    series = UsageSeries(noon + timedelta(minutes=30), noon + timedelta(hours=3), "hour")
    assert series.times() == [noon + timedelta(hours=number) for number in range(3)]
    later = UsageSeries(noon, noon + timedelta(hours=3, milliseconds=1), "hour")
    assert len(later.times()) == 4


@pytest.mark.parametrize(
    ("step", "length"),
    [("minute", timedelta(hours=1)), ("hour", timedelta(days=7)), ("day", timedelta(days=90))],
)
def test_steps_begin_where_the_database_lets_them_begin(step: Step, length: timedelta) -> None:
    times = UsageSeries(noon - length, noon, step).times()
    assert times[0] <= noon - length
    assert times[-1] < noon
    assert {later - earlier for earlier, later in pairwise(times)} == {
        {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}[step]
    }
    assert all(time.second == 0 for time in times)
    if step == "day":
        assert all(time.hour == 0 for time in times)


def test_nothing_measured_has_no_average_and_sums_stay_exact_integers_of_json() -> None:
    assert Sums().average_ms is None
    assert Sums(requests=4, latency_us=10_000).average_ms == 2.5
    total = total_of([Sums(requests=count_max), Sums(requests=1, failed=1)])
    assert total == Sums(requests=count_max, failed=1)


def bucket_of(latency_us: int) -> int:
    """The dumb version of what gateways do."""
    bounds = [64 << number for number in range(latency_buckets - 1)]
    return sum(latency_us >= bound for bound in bounds)


def sums_of(latencies_us: list[int]) -> Sums:
    counts = [0] * latency_buckets
    for latency_us in latencies_us:
        counts[bucket_of(latency_us)] += 1
    return Sums(requests=len(latencies_us), latency_counts=tuple(counts))


@given(lists(integers(0, 4_000_000), min_size=1, max_size=200), sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(
    latencies_us: list[int], share: float
) -> None:
    true_us = sorted(latencies_us)[math.ceil(share * len(latencies_us)) - 1]
    told = sums_of(latencies_us).percentile_ms(share)
    assert told is not None
    low_us = 0 if true_us < 64 else 1 << (true_us.bit_length() - 1)
    assert low_us <= told * 1000 <= max(64, 2 * low_us)


def test_percentiles_of_nothing_and_of_what_took_too_long_to_tell() -> None:
    assert Sums().percentile_ms(0.5) is None
    assert Sums(requests=3).percentile_ms(0.99) is None
    assert sums_of([3_600_000_000]).percentile_ms(0.99) == pytest.approx(4_194.304)
    both = sums_of([100] * 99).plus(sums_of([1_000_000]))
    assert both.percentile_ms(0.5) == pytest.approx(0.096, abs=0.001)
    assert both.percentile_ms(1.0) == pytest.approx(1_048.576)


def series_of_operations(count: int) -> UsageSeries:
    """The n-th has n requests."""
    series = UsageSeries(noon, noon + timedelta(hours=2), "hour")
    for number in range(1, count + 1):
        series.by_operation[f"operation_{'x' * number}"] = {noon: Sums(requests=number)}
    series.by_step[noon] = Sums(requests=count * (count + 1) // 2)
    return series


def test_what_has_few_requests_is_drawn_as_one_and_none_is_lost() -> None:
    for count in range(12):
        series = series_of_operations(count)
        lines = chart_of(series, {})["requests"]["operation"]
        assert len(lines) == min(count, drawn_max + 1)
        assert sum(sum(line["values"]) for line in lines) == series.total.requests
        assert all(len(line["values"]) == 2 for line in lines)
        assert any(line["label"] == "others" for line in lines) == (count > drawn_max + 1)


def test_shares_are_of_all_requests_and_the_most_stand_first() -> None:
    lines = operation_lines(series_of_operations(4))
    assert [line.sums.requests for line in lines] == [4, 3, 2, 1]
    assert sum(line.share for line in lines) == pytest.approx(1)


def test_a_key_that_is_gone_is_known_by_its_number() -> None:
    series = UsageSeries(noon, noon + timedelta(hours=1), "hour")
    series.by_key = {7: {noon: Sums(requests=1)}, 8: {noon: Sums(requests=2)}}
    assert [line.name for line in key_lines(series, {8: "robot"})] == ["robot", "API key 7"]


def test_keys_of_one_name_are_drawn_apart() -> None:
    series = UsageSeries(noon, noon + timedelta(hours=1), "hour")
    series.by_key = {number: {noon: Sums(requests=number)} for number in (0, 7, 8)}
    lines = chart_of(series, {0: "console", 7: "robot", 8: "robot"})["requests"]["key"]
    assert {line["label"]: line["values"] for line in lines} == {
        "console": [0],
        "robot (7)": [7],
        "robot (8)": [8],
    }


def test_an_operation_of_a_newer_gateway_is_shown_by_its_own_name() -> None:
    assert operation_named("get_strong") == "Get, strong"
    assert operation_named("move_all") == "Move all"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\n=1"])
def test_what_a_spreadsheet_would_run_is_shown_instead(text: str) -> None:
    assert unformulated(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "robot", "a=b", "1-2", "'=1"])
def test_other_names_stay_as_they_are(text: str) -> None:
    assert unformulated(text) == text
