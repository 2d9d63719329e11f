"""The first page of the console: what an account has and uses, and the first steps it has taken.

Figures come from three places: what was asked for from usage, what is stored from the gateway, and
how many IDs there were from keygen. If one of them is away, its tiles say so and the others stay.
The figures are loaded anew every few seconds for as long as somebody looks, and found anew at most
once in as many, however many pages of an account are open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from services.core.errors import ClientError, RetryLater
from services.core.plans import plan_named
from services.core.usage_report import no_key_id
from services.runtime.clock import Clock
from services.usermanager.api_keys import ApiKeys
from services.usermanager.kept import Kept
from services.usermanager.messages_accounts import User
from services.usermanager.pages.console_ids import IdSource, Quota
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.page import Page, Visit
from services.usermanager.pages.stored import Stored, stored_by
from services.usermanager.stored_history import Amount, StoredHistory
from services.usermanager.usage_query import UsageReader
from services.usermanager.usage_series import UsageSeries

here: Final = "/console"
# Less than pages wait between two looks (js/pages/overview.js), so that each shows something new.
kept_s: Final = 10.0
# Of accounts that somebody looks at; 50 KB each.
kept_max: Final = 500
# A tenth of what a page of usage may read: a tenant that uses a hundred pairs of API key and
# operation in every minute of a day. Who has more is led to that page.
rows_read_max: Final = 150_000


@dataclass(slots=True, frozen=True)
class Figures:
    """What the tiles show. An error in place of a figure says why it is not known."""

    day: UsageSeries | ClientError
    hour: UsageSeries | ClientError
    stored: Stored | RetryLater
    # Hour by hour, and how it is now.
    stored_hours: Sequence[Amount]
    quota: Quota | RetryLater
    # Operations that were ever successful; None while nobody can tell.
    succeeded: frozenset[str] | None


@dataclass(slots=True, frozen=True)
class Step:
    """One of the first steps. `path` is where it is taken."""

    words: str
    hint: str
    path: str
    is_done: bool


class OverviewPages:
    def __init__(
        self,
        usage: UsageReader,
        api_keys: ApiKeys,
        calls: PlatformCalls,
        history: StoredHistory,
        clock: Clock,
    ) -> None:
        self._usage = usage
        self._api_keys = api_keys
        self._calls = calls
        self._history = history
        self._ids = IdSource(calls)
        self._kept: Kept[int, Figures] = Kept(clock, kept_s, kept_max)

    def pages(self) -> list[Page]:
        return [
            Page("GET", here, self.show),
            Page("GET", f"{here}/figures", self.show_figures),
            Page("GET", f"{here}/first-steps", self.show_steps),
        ]

    async def show(self, visit: Visit) -> Response:
        figures = await self._figures(visit.user)
        steps = await self._steps(visit, figures)
        return self._page(visit, "console/overview.html", figures, steps=steps)

    async def show_figures(self, visit: Visit) -> Response:
        figures = await self._figures(visit.user)
        return self._page(visit, "console/_overview_figures.html", figures)

    async def show_steps(self, visit: Visit) -> Response:
        steps = await self._steps(visit, await self._figures(visit.user))
        return visit.render("console/_first_steps.html", steps=steps)

    @staticmethod
    def _page(visit: Visit, template: str, found: Figures, /, **more: object) -> Response:
        day = found.day if isinstance(found.day, UsageSeries) else None
        hour = found.hour if isinstance(found.hour, UsageSeries) else None
        points = [] if day is None else day.points()
        return visit.render(
            template,
            found=found,
            day=day,
            points=points,
            p99s=[one.percentile_ms(0.99) or 0 for one in points],
            minutes=[] if hour is None else _by_api_keys(hour),
            plan=plan_named(visit.user.plan),
            **more,
        )

    async def _figures(self, user: User) -> Figures:
        async def find() -> Figures:
            return await self._found(user)

        return await self._kept.of(user.id, find)

    async def _found(self, user: User) -> Figures:
        (stored, hours), quota, (day, hour, succeeded) = await asyncio.gather(
            self._stored(user.id), self._ids.quota(user), self._used(user.id)
        )
        return Figures(day, hour, stored, hours, quota, succeeded)

    async def _used(
        self, tenant: int
    ) -> tuple[UsageSeries | ClientError, UsageSeries | ClientError, frozenset[str] | None]:
        """By hours of a day, by minutes of an hour, and what was ever successful. One after the
        other: an account has a turn for one question at a time."""
        succeeded = None
        try:
            succeeded = frozenset(await self._usage.succeeded(tenant))
            hour = await self._usage.series(tenant, None, None, "minute", rows_most=rows_read_max)
            day = await self._usage.series(tenant, None, None, "hour", rows_most=rows_read_max)
        except ClientError as error:
            return error, error, succeeded
        return day, hour, succeeded

    async def _stored(self, tenant: int) -> tuple[Stored | RetryLater, Sequence[Amount]]:
        stored = await stored_by(self._calls.of(tenant))
        try:
            if isinstance(stored, Stored):
                await self._history.record(tenant, Amount(stored.keys, stored.bytes))
            return stored, await self._history.hours(tenant)
        except ClientError:
            # The figures of now do not wait for those of before.
            return stored, ()

    async def _steps(self, visit: Visit, found: Figures) -> list[Step] | None:
        """In the order in which people take them; None if all are done, or nobody can tell."""
        if found.succeeded is None:
            return None
        try:
            keys = await self._api_keys.page(visit.tenant, 1, None)
        except RetryLater:
            return None
        steps = steps_of(found, found.succeeded, has_key=keys.count > 0)
        return None if all(step.is_done for step in steps) else steps


def _by_api_keys(series: UsageSeries) -> list[int]:
    """Requests of each step, without those of the console: the plan's limit is that of keys."""
    columns = [series.points(of) for key_id, of in series.by_key.items() if key_id != no_key_id]
    return [
        sum(column[number].requests for column in columns) for number in range(len(series.times()))
    ]


def steps_of(found: Figures, done: frozenset[str], *, has_key: bool) -> list[Step]:
    """By programs or by the pages of data: both are counted."""
    has_stored = isinstance(found.stored, Stored) and found.stored.keys > 0
    has_made_ids = isinstance(found.quota, Quota) and found.quota.used_by_all > 0
    return [
        Step("Make an API key", "Programs show it.", "/console/keys", has_key),
        Step(
            "Put a first value",
            "Here, or PUT /v1/kv/greeting",
            "/console/data/new",
            has_stored or bool(done & {"put", "batch"}),
        ),
        Step(
            "Get it back",
            "Open it in Data, or GET /v1/kv/greeting",
            "/console/data",
            bool(done & {"get", "get_strong", "batch"}),
        ),
        Step(
            "Read it strongly",
            "Its page has a switch: a strong read sees every write before it.",
            "/console/data",
            "get_strong" in done,
        ),
        Step(
            "Make some IDs",
            "Short, and never the same twice.",
            "/console/ids",
            has_made_ids or "ids" in done,
        ),
    ]
