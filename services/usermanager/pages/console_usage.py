"""Usage of a period: totals, charts, tables, and all of its rows as CSV.

The period is one of a few, which end now, or whatever somebody enters, in UTC. What is counted is
what API keys ask for, and what people read and change by the pages of data.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response, StreamingResponse

from services.core.errors import FixRequest, RetryLater
from services.runtime.request_body import invalid_members
from services.usermanager.api_keys import ApiKeys
from services.usermanager.messages_api_keys import page_keys_max
from services.usermanager.messages_usage import UsageQuery, UsageRow
from services.usermanager.pages.key_names import names_of_all
from services.usermanager.pages.page import Page, Visit, errors_of
from services.usermanager.pages.render import iso_moment
from services.usermanager.pages.usage_figures import (
    chart_of,
    key_lines,
    operation_lines,
    status_lines,
)
from services.usermanager.row_ids import id_max
from services.usermanager.usage_query import UsagePage, UsageReader
from services.usermanager.usage_series import UsageSeries
from services.usermanager.usage_spans import Step

here: Final = "/console/usage"
columns: Final = (
    "start", "api_key_id", "api_key", "operation", "status",
    "requests", "bytes_in", "bytes_out", "average_latency_ms",
)  # fmt: skip
# With these a spreadsheet takes what follows for a formula, and runs it: some also behind blanks,
# or in the width of Chinese characters.
_formula_signs: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_formula_controls: Final = ("\t", "\r", "\n")
# As <input type="datetime-local"> has a time.
_local_time: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?", re.ASCII)
# A download waits this often for its turn before it breaks off: others have theirs by then.
turns_waited_max: Final = 20


@dataclass(slots=True, frozen=True)
class Range:
    name: str
    words: str
    length: timedelta
    step: Step


ranges: Final = (
    Range("1h", "1 hour", timedelta(hours=1), "minute"),
    Range("24h", "24 hours", timedelta(hours=24), "hour"),
    Range("7d", "7 days", timedelta(days=7), "hour"),
    Range("30d", "30 days", timedelta(days=30), "day"),
    Range("90d", "90 days", timedelta(days=90), "day"),
)


usual_range: Final = "24h"
# Whatever somebody enters.
custom: Final = "custom"
range_names: Final = frozenset((custom, *(each.name for each in ranges)))
range_chars_shown: Final = 20


class UsageView(msgspec.Struct, frozen=True, rename={"from_": "from", "until": "to"}):
    """What is looked at, as a form sends it: empty if nobody has filled it in. Without a range it
    is the times, if there are any."""

    range: str = ""
    from_: str = ""
    until: str = ""
    key: str = ""


@dataclass(slots=True, frozen=True)
class Period:
    start: datetime
    # None: now.
    end: datetime | None
    step: Step
    key_id: int | None


class UsagePages:
    def __init__(self, usage: UsageReader, api_keys: ApiKeys) -> None:
        self._usage = usage
        self._api_keys = api_keys

    def pages(self) -> list[Page]:
        return [
            Page("GET", here, self.show),
            Page("GET", f"{here}.csv", self.download),
        ]

    async def show(self, visit: Visit) -> Response:
        view = _told(visit.query(UsageView))
        names = await self._key_names(visit)
        try:
            wanted = period_of(view, self._usage.now())
            series = await self._usage.series(
                visit.user.id, wanted.start, wanted.end, wanted.step, wanted.key_id
            )
        except FixRequest as error:
            known: dict[str, Any] = {"series": None, "errors": errors_of(error)}
            return self._page(visit, view, names, error.status, **known)
        return self._page(visit, view, names, errors={}, **_figures(series, names))

    async def download(self, visit: Visit) -> Response:
        """Row by row, as they are read. What is wrong with the question is told before."""
        view = _told(visit.query(UsageView))
        wanted = period_of(view, self._usage.now())
        query = UsageQuery(wanted.start, wanted.end, wanted.step, wanted.key_id)
        names = await self._key_names(visit)
        first = await self._usage.page(visit.user.id, query)

        async def text() -> AsyncIterator[str]:
            page = first
            yield _csv([columns])
            while True:
                yield _csv(_row(row, names) for row in page.rows)
                if page.next is None:
                    return
                following = partial(self._usage.page, visit.user.id, page.next)
                page = await patiently(following)

        name = f"usage-{view.range}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(text(), media_type="text/csv; charset=utf-8", headers=headers)

    async def _key_names(self, visit: Visit) -> dict[int, str]:
        found = (await self._api_keys.page(visit.user.id, page_keys_max, None)).api_keys
        return names_of_all(found)

    def _page(
        self,
        visit: Visit,
        view: UsageView,
        names: Mapping[int, str],
        status: int = 200,
        /,
        **context: object,
    ) -> Response:
        return visit.render(
            "console/usage.html",
            status,
            view=view,
            ranges=ranges,
            choices=[
                ("", "All, and the console"),
                *((str(key_id), name) for key_id, name in names.items()),
            ],
            link=lambda **changed: f"{here}?{_query_of(view, **changed)}",
            csv_link=f"{here}.csv?{_query_of(view)}",
            **context,
        )


def period_of(view: UsageView, now: datetime) -> Period:
    """FixRequest names the fields that are wrong."""
    wrong: list[tuple[str, str]] = []
    key_id = None
    if view.key:
        is_number = (
            view.key.isascii() and view.key.isdecimal() and len(view.key) <= len(str(id_max))
        )
        if is_number and int(view.key) <= id_max:
            key_id = int(view.key)
        else:
            wrong.append(("key", "Choose one of your API keys"))
    times = {}
    for each in ranges:
        if each.name == view.range:
            _check(wrong)
            return Period(now - each.length, None, each.step, key_id)
    if view.range != custom:
        shown = view.range[:range_chars_shown]
        wrong.append(("", f"There is no period {shown}: choose one of those above"))
        _check(wrong)
    for name, text in (("from", view.from_), ("to", view.until)):
        try:
            times[name] = _time_of(text)
        except ValueError:
            wrong.append((name, "Enter a date and a time, in UTC"))
    _check(wrong)
    start, end = times["from"], times["to"]
    return Period(start, end, _step_for(end - start), key_id)


def _told(view: UsageView) -> UsageView:
    """With the range that is meant where none is named, or none of ours."""
    if view.range in range_names:
        return view
    if view.from_ or view.until:
        return msgspec.structs.replace(view, range=custom)
    return msgspec.structs.replace(view, range=view.range or usual_range)


def _check(wrong: Sequence[tuple[str, str]]) -> None:
    if wrong:
        raise invalid_members(wrong, "invalid_query")


def _time_of(text: str) -> datetime:
    """ValueError if it is no time; nor is one of another time zone."""
    if _local_time.fullmatch(text) is None:
        raise ValueError("this is no local time")
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def patiently(ask: Callable[[], Awaitable[UsagePage]]) -> UsagePage:
    """The next page of a download that has begun, which can tell nobody to try again later."""
    for _ in range(turns_waited_max):
        try:
            return await ask()
        except RetryLater as error:
            await asyncio.sleep(error.retry_after_s)
    return await ask()


def _step_for(length: timedelta) -> Step:
    """As fine as a chart can show."""
    if length <= timedelta(hours=3):
        return "minute"
    return "hour" if length <= timedelta(days=8) else "day"


def _figures(series: UsageSeries, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        "series": series,
        "chart": msgspec.json.encode(chart_of(series, names)).decode(),
        "rows": [
            (time, sums)
            for time, sums in zip(series.times(), series.points(), strict=True)
            if sums.requests
        ],
        "by_operation": operation_lines(series),
        "by_status": status_lines(series),
        "by_key": key_lines(series, names),
    }


def _query_of(view: UsageView, **changed: str) -> str:
    members = {**msgspec.to_builtins(view), **changed}
    if members["range"] != custom:
        members["from"] = members["to"] = ""
    return urlencode({name: value for name, value in members.items() if value})


def _row(row: UsageRow, names: Mapping[int, str]) -> tuple[object, ...]:
    return (
        iso_moment(row.start),
        row.key_id,
        unformulated(names.get(row.key_id, "")),
        row.operation,
        row.status,
        row.requests,
        row.bytes_in,
        row.bytes_out,
        row.average_latency_ms,
    )


def unformulated(text: str) -> str:
    """What people have named something, as a spreadsheet shows and does not run it."""
    runs = text.startswith(_formula_controls) or text.lstrip().startswith(_formula_signs)
    return f"'{text}" if runs else text


def _csv(rows: Iterable[Iterable[object]]) -> str:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue()
