"""API keys: made, listed, rotated and revoked by forms.

With scripts, forms come in dialogs and the list is loaded anew beside them; without, each is a page
of its own. A key itself is in one answer only, that to the form which made it, and in no address.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from starlette.responses import Response

from services.core.duration import format_duration
from services.core.errors import ClientError, FixRequest, RetryLater
from services.core.key_checks import scopes_all
from services.core.plans import plan_named
from services.runtime.clock import Clock
from services.runtime.request_body import invalid_members
from services.usermanager.api_keys import ApiKeys, live_keys_max, overlap_ms_max, overlap_ms_of
from services.usermanager.messages_api_keys import (
    ApiKey,
    CreatedKey,
    CreateKey,
    KeyPath,
    RotateKey,
    expires_in_days_default,
    expires_in_days_max,
    page_keys_max,
)
from services.usermanager.pages.example_requests import requests_for
from services.usermanager.pages.page import Page, Visit, errors_of

here: Final = "/console/keys"
# Digits of the largest number that any of the fields takes.
digits_max: Final = 10
# What ends within it is pointed out.
soon_s: Final = 7 * 86_400
overlaps: Final = (
    ("0s", "End it at once"),
    ("1h", "1 hour"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    (format_duration(overlap_ms_max), "30 days, the longest"),
)
lifetimes: Final = (
    ("7", "7 days"),
    ("30", "30 days"),
    (str(expires_in_days_default), f"{expires_in_days_default} days"),
    ("365", "1 year"),
    (str(expires_in_days_max), "10 years"),
    ("", "Never: until it is revoked"),
)
# What a form is filled in with before anybody has.
usual: Final[Mapping[str, str]] = {
    "expires_in_days": str(expires_in_days_default),
    "scope_read": "yes",
    "scope_write": "yes",
}


class KeyPages:
    def __init__(self, api_keys: ApiKeys, clock: Clock) -> None:
        self._api_keys = api_keys
        self._clock = clock

    def pages(self) -> list[Page]:
        one = f"{here}/{{key_id}}"
        return [
            Page("GET", here, self.show),
            Page("GET", f"{here}/list", self.show_list),
            Page("GET", f"{here}/new", self.show_form),
            Page("POST", here, self.create),
            Page("GET", f"{one}/rotate", self.show_rotate),
            Page("POST", f"{one}/rotate", self.rotate),
            Page("GET", f"{one}/revoke", self.show_revoke),
            Page("POST", f"{one}/revoke", self.revoke),
        ]

    async def show(self, visit: Visit) -> Response:
        return visit.render("console/keys.html", **await self._listed(visit))

    async def show_list(self, visit: Visit) -> Response:
        return visit.render("console/_keys_list.html", **await self._listed(visit))

    async def show_form(self, visit: Visit) -> Response:
        return self._form(visit)

    async def create(self, visit: Visit) -> Response:
        fields = await visit.fields()
        try:
            made = await self._api_keys.create_own(visit.call(await _asked(visit, fields)))
        except (FixRequest, RetryLater) as error:
            return self._form(visit, fields, error)
        return self._made(visit, made, 201)

    async def show_rotate(self, visit: Visit) -> Response:
        return self._asked_of(visit, "rotate", await self._find(visit))

    async def rotate(self, visit: Visit) -> Response:
        key = await self._find(visit)
        call = visit.call(await visit.form(RotateKey), path=KeyPath(key.id))
        try:
            made = await self._api_keys.rotate_own(call)
        except (FixRequest, RetryLater) as error:
            return self._asked_of(visit, "rotate", key, error)
        # As it is now, reckoned: the new key is in this answer alone, which nothing may spoil.
        old = _rotated(key, made.created_at, overlap_ms_of(call.body.overlap))
        return self._made(visit, made, 201, replaced=old)

    async def show_revoke(self, visit: Visit) -> Response:
        return self._asked_of(visit, "revoke", await self._find(visit))

    async def revoke(self, visit: Visit) -> Response:
        key = await self._find(visit)
        await self._api_keys.revoke_own(visit.call(path=KeyPath(key.id)))
        visit.say(f"The API key {key.name} was revoked. It is refused everywhere within a second")
        return visit.redirect(here)

    async def _listed(self, visit: Visit) -> dict[str, Any]:
        # All of them: there are a few hundred at most, whatever an account has done.
        found = (await self._api_keys.page(visit.user.id, page_keys_max, None)).api_keys
        plan = plan_named(visit.user.plan)
        return {
            "active": [key for key in found if key.is_active],
            "ended": [key for key in found if not key.is_active],
            "live_keys_max": live_keys_max,
            "plan": plan,
            "soon": self._clock.wall_ms() / 1000 + soon_s,
        }

    async def _find(self, visit: Visit) -> ApiKey:
        key_id = visit.path_as(KeyPath).key_id
        for key in (await self._api_keys.page(visit.user.id, page_keys_max, None)).api_keys:
            if key.id == key_id:
                return key
        raise FixRequest("not_found", f"You have no API key {key_id}")

    def _form(
        self, visit: Visit, fields: Mapping[str, str] = usual, error: ClientError | None = None
    ) -> Response:
        return _answered(
            visit,
            "console/_key_form.html" if visit.is_htmx else "console/key_form.html",
            error,
            fields=fields,
            lifetimes=lifetimes,
            scopes=scopes_all,
            plan=plan_named(visit.user.plan),
        )

    def _asked_of(
        self, visit: Visit, what: str, key: ApiKey, error: ClientError | None = None
    ) -> Response:
        template = f"console/_key_{what}.html" if visit.is_htmx else "console/key_asked.html"
        return _answered(visit, template, error, what=what, key=key, overlaps=overlaps)

    def _made(
        self, visit: Visit, made: CreatedKey, status: int, replaced: ApiKey | None = None
    ) -> Response:
        template = "console/_key_made.html" if visit.is_htmx else "console/key_made.html"
        requests = requests_for(made.scopes, made.prefix)
        response = visit.render(template, status, made=made, replaced=replaced, requests=requests)
        if visit.is_htmx:
            response.headers["HX-Trigger"] = "keys-changed"
        return response


def _rotated(key: ApiKey, now: datetime, overlap_ms: int) -> ApiKey:
    """A key once it has a successor: it ends with the overlap, unless it does so before."""
    ends = now + timedelta(milliseconds=overlap_ms)
    expires_at = ends if key.expires_at is None else min(key.expires_at, ends)
    return msgspec.structs.replace(key, expires_at=expires_at, is_active=expires_at > now)


async def _asked(visit: Visit, fields: Mapping[str, str]) -> CreateKey:
    """What a form asks for. FixRequest names each field that is wrong."""
    wrong: dict[str, str] = {}
    numbers: dict[str, int | None] = {}
    for name in ("expires_in_days", "rate_limit_per_minute"):
        try:
            numbers[name] = _whole(fields.get(name, ""))
        except ValueError as error:
            wrong[name] = str(error)
            numbers[name] = None
    scopes = [scope for scope in scopes_all if fields.get(f"scope_{scope}")]
    if not scopes:
        wrong["scopes"] = "Choose at least one"
    more: dict[str, object] = {
        **numbers,
        "name": fields.get("name", "").strip(),
        # Of what is refused anyway, for the other fields to be looked at as well.
        "scopes": scopes or ["read"],
        "prefix": fields.get("prefix") or None,
    }
    if not more["name"]:
        wrong["name"] = "Give it a name to know it by"
        more["name"] = "-"
    try:
        asked = await visit.form(CreateKey, **more)
    except FixRequest as error:
        wrong = {**errors_of(error), **wrong}
    if wrong:
        raise invalid_members(wrong.items())
    return asked


def _whole(text: str) -> int | None:
    """None if there is nothing; ValueError unless it is a whole number."""
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= digits_max):
        raise ValueError("Enter a whole number, such as 60")
    return int(text)


def _answered(
    visit: Visit, template: str, error: ClientError | None, **context: object
) -> Response:
    """A form, with what was wrong with it beside its fields."""
    response = visit.render(
        template,
        200 if error is None else error.status,
        errors=errors_of(error) if isinstance(error, FixRequest) else {},
        waiting=error if isinstance(error, RetryLater) else None,
        **context,
    )
    if isinstance(error, RetryLater):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response
