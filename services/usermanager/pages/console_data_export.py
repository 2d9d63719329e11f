"""Keys and values as lines of JSON, a page at a time: what a download is put together of.

A page is at most so many keys and, as their sizes are known before their values are asked for, at
most so many bytes. What was deleted since it was listed is left out.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from services.core.errors import FixRequest, RetryLater
from services.core.value_lines import GotItems, WrittenLine
from services.runtime.console_requests import signed_body_bytes_max
from services.usermanager.pages.console_data_changes import facts_of, where
from services.usermanager.pages.console_data_links import here
from services.usermanager.pages.console_data_listing import ListedKey, Listing, list_keys
from services.usermanager.pages.console_data_many import OfPrefix
from services.usermanager.pages.gateway_calls import (
    PlatformCalls,
    TenantCalls,
    check,
    path_of,
    told,
    writing,
)
from services.usermanager.pages.page import Page, Visit

cursor_header: Final = "X-Cursor"
count_header: Final = "X-Count"

export_keys_max: Final = 500
# An answer of the gateway's has 16 MiB, and a value may take four thirds of itself there.
export_bytes_max: Final = 4 << 20
# Of some fifty requests at most, each of a few milliseconds; proxies give up a little later.
export_s_max: Final = 25.0
# What is around a key in a batch, and the most that a byte of it becomes: \u0000.
_item_bytes: Final = len(b'{"op":"get","key":""},')
_byte_escaped_bytes: Final = 6


class ExportPages:
    def __init__(self, calls: PlatformCalls) -> None:
        self._calls = calls

    def pages(self) -> list[Page]:
        return [Page("GET", f"{here}/export", self.take_out)]

    async def take_out(self, visit: Visit) -> Response:
        asked = visit.query(OfPrefix)
        calls = self._calls.of(visit.tenant)
        try:
            async with asyncio.timeout(export_s_max):
                listing = await self._listing(calls, asked)
                lines: list[bytes] = []
                for keys in _batches(listing.keys):
                    lines += await self._lines(calls, asked.namespace, keys)
        except TimeoutError:
            told_late = f"{export_s_max:g} s were not enough to read a page of a download"
            raise RetryLater("gateway_unavailable", told_late) from None
        return Response(
            b"".join(line + b"\n" for line in lines),
            media_type="application/x-ndjson",
            headers={cursor_header: listing.cursor or "", count_header: str(len(lines))},
        )

    async def _listing(self, calls: TenantCalls, asked: OfPrefix) -> Listing:
        """The next keys, so many that their values are not too much to bring at once."""
        limit = export_keys_max
        while True:
            found = await list_keys(
                calls, asked.namespace, asked.prefix, limit=limit, cursor=asked.cursor
            )
            fitting, size = 0, 0
            for key in found.keys:
                size += key.size
                if size > export_bytes_max:
                    break
                fitting += 1
            if fitting == len(found.keys) or len(found.keys) <= 1:
                return found
            # A cursor is of the end of a page: so a page is asked for that ends where it is full.
            limit = max(1, fitting)

    async def _lines(
        self, calls: TenantCalls, namespace: str, keys: Sequence[ListedKey]
    ) -> list[bytes]:
        operations = [{"op": "get", "key": key.key} for key in keys]
        answer = await calls.ask(
            "POST",
            "/v1/batch",
            content=msgspec.json.encode({"operations": operations}),
            scopes=writing,
            headers={**where(namespace), "Content-Type": "application/json"},
        )
        lines = []
        for got in told(check(answer), GotItems).results:
            if got.status == 200:
                lines.append(msgspec.json.encode(got.line()))
            elif got.code == "response_too_large":
                lines += await self._alone(calls, namespace, got.key)
            elif got.status != 404:
                # A download that lacks a key must not look like one that has all.
                raise RetryLater("overloaded", f"The key {got.key[:80]!r} could not be read")
        return lines

    async def _alone(self, calls: TenantCalls, namespace: str, key: str) -> list[bytes]:
        """A key whose value did not fit in among others."""
        try:
            answer = check(await calls.get(path_of(key), headers=where(namespace)))
        except FixRequest as error:
            if error.code == "key_not_found":
                return []
            raise
        facts = facts_of(answer)
        encoded = await asyncio.to_thread(base64.b64encode, answer.content)
        line = WrittenLine(
            key,
            value_base64=encoded.decode(),
            expires_at=facts.expires_at or UNSET,
            content_type=facts.content_type or UNSET,
            metadata=facts.metadata or UNSET,
        )
        return [msgspec.json.encode(line)]


def _batches(keys: Sequence[ListedKey]) -> list[Sequence[ListedKey]]:
    """As many keys as a signed request can name."""
    batches: list[Sequence[ListedKey]] = []
    start, size = 0, 32
    for number, key in enumerate(keys):
        needed = _item_bytes + len(key.key.encode()) * _byte_escaped_bytes
        if size + needed > signed_body_bytes_max:
            batches.append(keys[start:number])
            start, size = number, 32
        size += needed
    if start < len(keys):
        batches.append(keys[start:])
    return batches
