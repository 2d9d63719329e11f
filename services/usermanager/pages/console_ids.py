"""IDs: made and returned by forms, with how many of the day are used.

Keygen is asked in the tenant's name. What is made here counts against a quota of the console's own,
as large as that of an API key: quotas are those of keys, and the console has none. The gauge shows
that one, those of the keys, and what all have had together.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec
from starlette.responses import Response

from services.core.errors import ClientError, FixRequest, RetryLater
from services.core.id_requests import (
    Ids,
    IdsQuery,
    KeyUse,
    count_max,
    ids_per_day_header,
    ids_per_day_text,
    key_id_header,
    path_of_ids,
    path_of_quota,
    returned_max,
    size_min,
)
from services.core.permute import size_max
from services.core.plans import plan_named
from services.core.usage_report import no_key_id
from services.runtime.console_requests import scope_header, signed_body_bytes_max, tenant_header
from services.runtime.request_body import invalid_members
from services.usermanager.api_keys import ApiKeys
from services.usermanager.messages_accounts import User
from services.usermanager.messages_api_keys import page_keys_max
from services.usermanager.pages.gateway_calls import PlatformCalls, check, told
from services.usermanager.pages.key_names import told_apart
from services.usermanager.pages.page import Page, Visit, errors_of
from services.usermanager.pages.render import shown_count

here: Final = "/console/ids"
unavailable: Final = "keygen_unavailable"
path_of_return: Final = "/api/ReturnKeys"
# As many of the longest as fit a signed request, with their quotes and commas.
returned_at_once: Final = (signed_body_bytes_max - 1024) // (size_max + 3)
# Of the longest, with line ends as browsers send them.
form_bytes_max: Final = returned_max * (size_max + 6) + 16 * 1024
# A page that tells of much else does not wait for this for long.
quota_s_max: Final = 2.0
rejected_shown_max: Final = 200
# Of API keys that have made some today; the others are added up.
gauges_max: Final = 5
_id: Final = re.compile(rf"[0-9A-Za-z]{{{size_min},{size_max}}}")
_shown_chars_max: Final = 40
no_id: Final = f"IDs are {size_min} to {size_max} characters of 0-9, A-Z and a-z"


class Quota(msgspec.Struct, frozen=True):
    """How many IDs the console has had on this day; without a limit `limit` is None. `keys` have
    had some today, the console among them as the key 0; `days` are of all of them, with this one as
    the last. A keygen of an older version tells neither."""

    used: int
    limit: int | None
    resets_at: datetime
    keys: list[KeyUse] = []
    days: list[int] = []

    @property
    def used_by_all(self) -> int:
        return self.days[-1] if self.days else self.used


@dataclass(slots=True, frozen=True)
class Gauge:
    """What one has had of its quota: the console, an API key, or those that are not shown alone."""

    name: str
    used: int
    # None: of several, each of which has its own.
    limit: int | None


def gauges_of(quota: Quota, names: Mapping[int, str]) -> list[Gauge]:
    """The console, then API keys, the fullest first."""
    keys = [key for key in quota.keys if key.key_id != no_key_id]
    gauges = [Gauge("This console", quota.used, quota.limit)]
    gauges += [
        Gauge(names.get(key.key_id) or f"API key {key.key_id}", key.used, quota.limit)
        for key in keys[:gauges_max]
    ]
    others = quota.used_by_all - sum(gauge.used for gauge in gauges)
    if len(keys) > gauges_max and others > 0:
        gauges.append(Gauge("Other API keys", others, None))
    return gauges


class _Rejected(msgspec.Struct, frozen=True):
    key: str
    reason: str


class _Returned(msgspec.Struct, frozen=True):
    returned: int
    rejected: list[_Rejected]


@dataclass(slots=True)
class Outcome:
    """What became of IDs that were returned. `unsent` were not looked at, because of `stopped`."""

    returned: int = 0
    rejected: list[_Rejected] = field(default_factory=list)
    unsent: Sequence[str] = ()
    stopped: ClientError | None = None


class IdSource:
    """Keygen, asked in the name of a tenant."""

    def __init__(self, calls: PlatformCalls) -> None:
        self._keygen = calls.keygen

    async def make(self, user: User, count: int, size: int) -> list[str]:
        answer = await self._keygen.ask(
            "POST", path_of_ids, params={"count": count, "size": size}, headers=_claims(user)
        )
        return told(check(answer), Ids, unavailable).ids

    async def quota(self, user: User) -> Quota | RetryLater:
        """RetryLater, returned and not raised, while nobody can tell."""
        try:
            async with asyncio.timeout(quota_s_max):
                answer = await self._keygen.ask("GET", path_of_quota, headers=_claims(user))
            return told(check(answer), Quota, unavailable)
        except TimeoutError:
            return RetryLater("keygen_unavailable", "The ID service does not answer")
        except RetryLater as error:
            return error

    async def take_back(self, user: User, ids: Sequence[str]) -> Outcome:
        """Part by part. Where one part fails the outcome tells which were looked at before."""
        outcome = Outcome()
        good = [one for one in ids if _id.fullmatch(one)]
        outcome.rejected = [
            _Rejected(one[:_shown_chars_max], no_id) for one in ids if not _id.fullmatch(one)
        ]
        for start in range(0, len(good), returned_at_once):
            try:
                part = await self._return(user, good[start : start + returned_at_once])
            except ClientError as error:
                outcome.unsent, outcome.stopped = good[start:], error
                break
            outcome.returned += part.returned
            outcome.rejected += part.rejected
        return outcome

    async def _return(self, user: User, ids: Sequence[str]) -> _Returned:
        answer = await self._keygen.ask(
            "POST",
            path_of_return,
            content=msgspec.json.encode({"keys": ids}),
            headers={
                tenant_header: str(user.id),
                scope_header: "write",
                "Content-Type": "application/json",
            },
        )
        return told(check(answer), _Returned, unavailable)


class IdPages:
    def __init__(self, calls: PlatformCalls, api_keys: ApiKeys) -> None:
        self._ids = IdSource(calls)
        self._api_keys = api_keys

    def pages(self) -> list[Page]:
        return [
            Page("GET", here, self.show),
            Page("POST", here, self.make),
            Page("GET", f"{here}/quota", self.show_quota),
            Page("POST", f"{here}/return", self.take_back, body_bytes_max=form_bytes_max),
        ]

    async def show(self, visit: Visit) -> Response:
        shown = await self._quota(visit)
        quota = shown["quota"]
        status = quota.status if isinstance(quota, RetryLater) else 200
        return self._page(visit, status, **shown)

    async def show_quota(self, visit: Visit) -> Response:
        return visit.render("console/_ids_quota.html", **await self._quota(visit))

    async def _quota(self, visit: Visit) -> dict[str, object]:
        """With the names of API keys, if they are needed."""
        quota = await self._ids.quota(visit.user)
        gauges: list[Gauge] = []
        if isinstance(quota, Quota):
            names: dict[int, str] = {}
            if any(key.key_id != no_key_id for key in quota.keys):
                page = await self._api_keys.page(visit.tenant, page_keys_max, None)
                names = told_apart(page.api_keys)
            gauges = gauges_of(quota, names)
        return {"quota": quota, "gauges": gauges, "count_most": _count_most(visit.user)}

    async def make(self, visit: Visit) -> Response:
        fields = await visit.fields()
        try:
            asked = _asked(fields, _count_most(visit.user))
            made = await self._ids.make(visit.user, asked.count, asked.size)
        except ClientError as error:
            return await self._part(visit, "make", error, fields=fields, made=None)
        return await self._part(visit, "make", fields=fields, made=made)

    async def take_back(self, visit: Visit) -> Response:
        fields = await visit.fields()
        try:
            ids = _named(fields.get("ids", ""))
        except FixRequest as error:
            return await self._part(visit, "return", error, text=fields.get("ids", ""))
        outcome = await self._ids.take_back(visit.user, ids)
        return await self._part(
            visit, "return", outcome.stopped, outcome=outcome, text="\n".join(outcome.unsent)
        )

    async def _part(
        self, visit: Visit, part: str, error: ClientError | None = None, /, **context: object
    ) -> Response:
        """One of the forms, with what came of it; the whole page where there are no scripts."""
        status = 200 if error is None else error.status
        known: dict[str, object] = {
            "errors": {part: errors_of(error)} if isinstance(error, FixRequest) else {},
            "stopped": {part: error} if error and not isinstance(error, FixRequest) else {},
            **context,
        }
        if visit.is_htmx:
            known["count_most"] = _count_most(visit.user)
            response = visit.render(f"console/_ids_{part}.html", status, **{**_usual, **known})
            response.headers["HX-Trigger"] = "ids-changed"
        else:
            response = self._page(visit, status, **await self._quota(visit), **known)
        if error is not None:
            for name, value in error.headers.items():
                response.headers[name] = value
        return response

    def _page(self, visit: Visit, status: int, /, **context: object) -> Response:
        return visit.render("console/ids.html", status, **{**_usual, **context})


# What the forms are shown with before anybody has filled them in.
_usual: Final[Mapping[str, object]] = {
    "fields": {"count": "10", "size": str(size_min)},
    "made": None,
    "outcome": None,
    "text": "",
    "errors": {},
    "stopped": {},
    "size_min": size_min,
    "size_max": size_max,
    "returned_max": returned_max,
    "rejected_shown_max": rejected_shown_max,
}


def _claims(user: User) -> dict[str, str]:
    return {
        tenant_header: str(user.id),
        key_id_header: str(no_key_id),
        ids_per_day_header: ids_per_day_text(plan_named(user.plan).ids_per_day),
    }


def _count_most(user: User) -> int:
    """How many fit one request and one day; more would be refused on any other day, too."""
    of_day = plan_named(user.plan).ids_per_day
    return count_max if of_day is None else min(count_max, of_day)


def _asked(fields: Mapping[str, str], count_most: int) -> IdsQuery:
    wrong = []
    found = {}
    for name, least, most in (("count", 1, count_most), ("size", size_min, size_max)):
        text = fields.get(name, "").strip()
        is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
        if is_number and least <= int(text) <= most:
            found[name] = int(text)
        else:
            wrong.append((name, f"Enter a whole number from {least} to {shown_count(most)}"))
    if wrong:
        raise invalid_members(wrong)
    return IdsQuery(**found)


def _named(text: str) -> list[str]:
    """IDs as people paste them: in lines, with commas, quotes and brackets of JSON between."""
    ids = [one for one in re.split(r"[\s,;\"'\[\]]+", text) if one]
    if not ids:
        raise invalid_members([("ids", "Paste at least one ID")])
    if len(ids) > returned_max:
        raise invalid_members(
            [
                (
                    "ids",
                    f"There are {shown_count(len(ids))} IDs, and {shown_count(returned_max)} is "
                    "the most at a time",
                )
            ]
        )
    return ids
