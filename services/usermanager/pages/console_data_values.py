"""The bytes of a value, for the scripts of the data pages: read, put, deleted, counted up.

What is read is sent as a file to keep, whatever its type: a value may be a page that somebody wrote
to be opened here.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import httpx
import msgspec
from starlette.responses import Response

from services.core.record import value_bytes_max
from services.core.usage_report import Time
from services.runtime.clock import Clock
from services.runtime.request_body import read_body
from services.usermanager.pages.console_data_changes import (
    conditioned,
    facts_of,
    kept_beside,
    metadata_header,
    metadata_of,
    ttl_of,
    where,
)
from services.usermanager.pages.console_data_links import here, namespace_default
from services.usermanager.pages.gateway_calls import PlatformCalls, check, path_of, writing
from services.usermanager.pages.page import Page, Visit

Consistency = Literal["", "eventual", "strong"]

file_name_chars_max: Final = 80
_unfit_for_file: Final = re.compile(r"[^A-Za-z0-9._-]+")


class OfKey(msgspec.Struct, frozen=True):
    key: str
    namespace: str = namespace_default
    consistency: Consistency = ""


class Put(msgspec.Struct, frozen=True):
    """`expires_at` is an expiry to keep."""

    key: str
    namespace: str = namespace_default
    consistency: Consistency = ""
    condition: str = ""
    ttl: str = ""
    expires_at: Time | None = None
    content_type: str = ""


class Delete(msgspec.Struct, frozen=True):
    key: str
    namespace: str = namespace_default
    consistency: Consistency = ""
    condition: str = ""


class Expire(msgspec.Struct, frozen=True):
    """A ttl of 0 takes the expiry away."""

    key: str
    ttl: str
    namespace: str = namespace_default
    condition: str = ""


class Increment(msgspec.Struct, frozen=True):
    key: str
    namespace: str = namespace_default
    by: int = 1


class ValuePages:
    def __init__(self, calls: PlatformCalls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock

    def pages(self) -> list[Page]:
        value = f"{here}/value"
        return [
            Page("GET", value, self.read),
            Page("PUT", value, self.put, body_bytes_max=value_bytes_max),
            Page("DELETE", value, self.delete),
            Page("PATCH", value, self.expire),
            Page("POST", f"{here}/increment", self.increment),
        ]

    async def read(self, visit: Visit) -> Response:
        asked = visit.query(OfKey)
        headers = where(asked.namespace, asked.consistency)
        answer = check(await self._calls.of(visit.tenant).get(path_of(asked.key), headers=headers))
        facts = facts_of(answer)
        name = _unfit_for_file.sub("_", asked.key)[-file_name_chars_max:].lstrip("._") or "value"
        return Response(
            answer.content,
            media_type="application/octet-stream",
            headers={
                "Content-Disposition": f'attachment; filename="{name}"',
                "X-Value-ETag": facts.etag,
                "X-Value-Expires-At": facts.expires_at,
            },
        )

    async def put(self, visit: Visit) -> Response:
        asked = visit.query(Put)
        ttl = ttl_of(asked.ttl, asked.expires_at, self._clock.wall_ms())
        metadata = visit.request.headers.get(metadata_header, "")
        answer = await self._calls.of(visit.tenant).ask(
            "PUT",
            path_of(asked.key),
            params={"ttl": ttl} if ttl else None,
            content=await read_body(visit.request),
            scopes=writing,
            headers={
                **where(asked.namespace, asked.consistency),
                **conditioned(asked.condition),
                **kept_beside(asked.content_type, metadata_of(metadata)),
            },
        )
        return _passed_on(answer)

    async def delete(self, visit: Visit) -> Response:
        asked = visit.query(Delete)
        headers = {**where(asked.namespace, asked.consistency), **conditioned(asked.condition)}
        return await self._changed(visit, "DELETE", path_of(asked.key), headers)

    async def expire(self, visit: Visit) -> Response:
        asked = visit.query(Expire)
        headers = {**where(asked.namespace), **conditioned(asked.condition)}
        return await self._changed(visit, "PATCH", path_of(asked.key), headers, ttl=asked.ttl)

    async def increment(self, visit: Visit) -> Response:
        asked = visit.query(Increment)
        path, headers = f"{path_of(asked.key)}/incr", where(asked.namespace)
        return await self._changed(visit, "POST", path, headers, by=str(asked.by))

    async def _changed(
        self, visit: Visit, method: str, path: str, headers: dict[str, str], **params: str
    ) -> Response:
        calls = self._calls.of(visit.tenant)
        answer = await calls.ask(
            method, path, params=params or None, scopes=writing, headers=headers
        )
        return _passed_on(answer)


def _passed_on(answer: httpx.Response) -> Response:
    """What the gateway answers to a change is for scripts as it is."""
    return Response(check(answer).content, media_type="application/json")
