"""What is downloaded of usage: pages that come late, cells that a spreadsheet would run, times."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from services.core.errors import FixRequest, RetryLater
from services.core.usage_report import UsageReport
from services.runtime.request_body import decode_struct
from services.usermanager.pages.console_usage import (
    UsageView,
    patiently,
    period_of,
    turns_waited_max,
    unformulated,
)
from services.usermanager.usage_query import UsagePage

now = datetime(2026, 3, 1, tzinfo=UTC)


class Busy:
    """A reader of usage that refuses the first so many questions."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked = 0

    async def __call__(self) -> UsagePage:
        self.asked += 1
        if self.asked <= self.refusals:
            raise RetryLater("rate_limited", "Others are asking", retry_after_s=0)
        return UsagePage([], None)


async def test_a_download_waits_for_its_turn_and_not_for_ever() -> None:
    for refusals in (0, 1, turns_waited_max):
        busy = Busy(refusals)
        assert await patiently(busy) == UsagePage([], None)
        assert busy.asked == refusals + 1
    endless = Busy(10_000)
    with pytest.raises(RetryLater):
        await patiently(endless)
    assert endless.asked == turns_waited_max + 1


@pytest.mark.parametrize(
    "text",
    ["  =1+1", "\u3000=1", "\uff1d1+1", "\uff0b1", " \uff0d1", "\uff20sum", "\u00a0@a", "\t=1"],
)
def test_a_formula_is_one_also_behind_blanks_and_in_full_width(text: str) -> None:
    assert unformulated(text) == f"'{text}"


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-01T00:00+05:00",
        "2026-02-01T00:00Z",
        "2026-W01",
        "2026-W01-1T00:00",
        "20260201",
        "2026-02-01",
        "\u0662026-02-01T00:00",
    ],
)
def test_a_time_of_another_zone_or_form_is_refused_and_not_shifted(text: str) -> None:
    view = UsageView("custom", "2026-01-01T00:00", text)
    with pytest.raises(FixRequest) as caught:
        period_of(view, now)
    assert [one["member"] for one in caught.value.members["errors"]] == ["to"]


@pytest.mark.parametrize(
    "text", ["2026-02-01T00:00", "2026-02-01T00:00:00", "2026-02-01T00:00:00.000"]
)
def test_a_time_as_a_form_sends_it_is_one_in_utc(text: str) -> None:
    view = UsageView("custom", "2026-01-01T00:00", text)
    assert period_of(view, now).end == datetime(2026, 2, 1, tzinfo=UTC)


def test_a_report_of_a_newer_gateway_is_taken_with_what_is_known_of_it() -> None:
    rollup = {
        "minute": "2026-02-01T00:00:00Z",
        "user_id": 1,
        "key_id": 2,
        "operation": "get",
        "status": 200,
        "requests": 3,
        "bytes_in": 4,
        "bytes_out": 5,
        "latency_us": 6,
        "colours": ["of", "tomorrow"],
    }
    report = {"sender": "g", "sequence": 1, "rollups": [rollup], "moon": {"is": "full"}}
    found = decode_struct(msgspec.json.encode(report), UsageReport)
    assert [(one.requests, one.latency_us) for one in found.rollups] == [(3, 6)]
