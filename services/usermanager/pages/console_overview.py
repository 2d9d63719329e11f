"""The first page of the console: what an account has and uses, and the first steps it has taken.

Figures come from three places: what API keys have asked for from usage, what is stored from the
gateway, and how many IDs there were from keygen. If one of them is away, its tiles say so and the
others stay. The figures are loaded anew every few seconds for as long as somebody looks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.responses import Response

from services.core.errors import ClientError, RetryLater
from services.core.plans import plan_named
from services.usermanager.api_keys import ApiKeys
from services.usermanager.pages.console_ids import IdSource
from services.usermanager.pages.gateway_calls import PlatformCalls, administering, check
from services.usermanager.pages.page import Page, Visit
from services.usermanager.usage_query import UsageReader
from services.usermanager.usage_series import UsageSeries

here: Final = "/console"
# Who waits for tiles would rather see the others.
stored_s_max: Final = 2.0
# Of namespaces, a thousand each; who has more is told that it is at least so much.
pages_added_up_max: Final = 5
names_per_page: Final = 1_000


class _Namespace(msgspec.Struct, frozen=True):
    keys: int
    bytes: int


class _NamespacePage(msgspec.Struct, frozen=True):
    namespaces: list[_Namespace]
    cursor: str | None


@dataclass(slots=True, frozen=True)
class Stored:
    """Of all namespaces, unless there were too many to be added up."""

    keys: int
    bytes: int
    namespaces: int
    is_all: bool


@dataclass(slots=True, frozen=True)
class Step:
    """One of the first steps. `path` is where it is taken."""

    words: str
    hint: str
    path: str
    is_done: bool


class OverviewPages:
    def __init__(self, usage: UsageReader, api_keys: ApiKeys, calls: PlatformCalls) -> None:
        self._usage = usage
        self._api_keys = api_keys
        self._calls = calls
        self._ids = IdSource(calls)

    def pages(self) -> list[Page]:
        return [
            Page("GET", here, self.show),
            Page("GET", f"{here}/figures", self.show_figures),
            Page("GET", f"{here}/first-steps", self.show_steps),
        ]

    async def show(self, visit: Visit) -> Response:
        figures = await self._figures(visit)
        return visit.render("console/overview.html", steps=await self._steps(visit), **figures)

    async def show_figures(self, visit: Visit) -> Response:
        return visit.render("console/_overview_figures.html", **await self._figures(visit))

    async def show_steps(self, visit: Visit) -> Response:
        return visit.render("console/_first_steps.html", steps=await self._steps(visit))

    async def _figures(self, visit: Visit) -> dict[str, Any]:
        tenant = visit.tenant
        stored, quota, (day, hour) = await asyncio.gather(
            self._stored(tenant), self._ids.quota(visit.user), self._used(tenant)
        )
        minutes = [] if hour is None else [sums.requests for sums in hour.points()]
        return {
            "stored": stored,
            "quota": quota,
            "day": day,
            "points": [] if day is None else day.points(),
            "p99s": [] if day is None else [one.percentile_ms(0.99) or 0 for one in day.points()],
            "minutes": minutes,
            "plan": plan_named(visit.user.plan),
        }

    async def _used(self, tenant: int) -> tuple[UsageSeries | None, UsageSeries | None]:
        """By hours of a day, and by minutes of an hour; None if too much is asked at once."""
        try:
            return (
                await self._usage.series(tenant, None, None, "hour"),
                await self._usage.series(tenant, None, None, "minute"),
            )
        except ClientError:
            return None, None

    async def _stored(self, tenant: int) -> Stored | RetryLater:
        """RetryLater, returned and not raised, while nobody can tell."""
        try:
            async with asyncio.timeout(stored_s_max):
                return await self._added_up(tenant)
        except TimeoutError:
            return RetryLater("gateway_unavailable", "The data service does not answer")
        except ClientError as error:
            return RetryLater("gateway_unavailable", error.detail)

    async def _added_up(self, tenant: int) -> Stored:
        keys = size = namespaces = 0
        cursor: str | None = ""
        for _ in range(pages_added_up_max):
            params = {"limit": names_per_page} | ({"cursor": cursor} if cursor else {})
            answer = check(
                await self._calls.of(tenant).get(
                    "/v1/namespaces", params=params, scopes=administering
                )
            )
            page = msgspec.json.decode(answer.content, type=_NamespacePage)
            keys += sum(each.keys for each in page.namespaces)
            size += sum(each.bytes for each in page.namespaces)
            namespaces += len(page.namespaces)
            cursor = page.cursor
            if cursor is None:
                break
        return Stored(keys, size, namespaces, cursor is None)

    async def _steps(self, visit: Visit) -> list[Step] | None:
        """In the order in which people take them; None if all are done, or nobody can tell."""
        try:
            done = await self._usage.succeeded(visit.tenant)
            keys = await self._api_keys.page(visit.tenant, 1, None)
        except RetryLater:
            return None
        quota = await self._ids.quota(visit.user)
        has_made_ids = "ids" in done or (not isinstance(quota, RetryLater) and quota.used > 0)
        steps = [
            Step("Make an API key", "Programs show it.", "/console/keys", keys.count > 0),
            Step(
                "Put a first value", "PUT /v1/kv/greeting", "/docs", bool(done & {"put", "batch"})
            ),
            Step(
                "Get it back",
                "GET /v1/kv/greeting",
                "/docs",
                bool(done & {"get", "get_strong", "batch"}),
            ),
            Step(
                "Read it strongly",
                "With X-Consistency: strong a read sees every write before it.",
                "/docs",
                "get_strong" in done,
            ),
            Step("Make some IDs", "Short, and never the same twice.", "/console/ids", has_made_ids),
        ]
        return None if all(step.is_done for step in steps) else steps
