"""What the data pages do to many keys, a call at a time: count, delete, send in, take out.

A script makes the calls one after the other, shows how far it has come and can stop between them;
so nothing here takes longer than one request of the gateway's, or a few. What comes in and goes out
is lines of JSON, one a key (services/core/value_lines.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from services.core.errors import ClientError, FixRequest
from services.core.operations import batch_items_max
from services.core.value_lines import PutItem
from services.runtime.clock import Clock
from services.runtime.console_requests import signed_body_bytes_max
from services.runtime.request_body import decode_struct, read_body
from services.usermanager.pages.console_data_changes import ttl_of, where
from services.usermanager.pages.console_data_links import (
    here,
    namespace_default,
    namespace_path,
)
from services.usermanager.pages.gateway_calls import (
    PlatformCalls,
    administering,
    check,
    told,
    writing,
)
from services.usermanager.pages.page import Page, Visit

# What may be put again: nothing was done, or the same was.
_passing: Final = frozenset((429, 503, 504))
# What is around the operations of a batch.
_frame_bytes: Final = len(b'{"operations":[]}')


class OfPrefix(msgspec.Struct, frozen=True):
    prefix: str = ""
    namespace: str = namespace_default
    cursor: str = ""


class OfNamespace(msgspec.Struct, frozen=True):
    namespace: str = namespace_default


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A line that has no metadata, which goes into a batch; `line` is where it stood."""

    line: int
    key: str
    value: str | None = None
    value_base64: str | None = None
    ttl: str | int | None = None
    expires_at: datetime | None = None


class Items(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    items: Annotated[list[Item], Meta(max_length=batch_items_max)]


class Refused(msgspec.Struct, frozen=True):
    """What was not put, and why; `again` if it may be taken later."""

    line: int
    key: str
    code: str
    detail: str
    again: bool


class _Result(msgspec.Struct, frozen=True):
    status: int
    code: str = ""
    detail: str = ""


class _Results(msgspec.Struct, frozen=True):
    results: list[_Result]


class ManyPages:
    def __init__(self, calls: PlatformCalls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock

    def pages(self) -> list[Page]:
        return [
            Page("GET", f"{here}/count", self.count),
            Page("POST", f"{here}/delete", self.delete),
            Page("POST", f"{here}/import", self.take_in, body_bytes_max=2 * signed_body_bytes_max),
            Page("POST", f"{here}/namespaces/delete", self.delete_namespace),
        ]

    async def count(self, visit: Visit) -> Response:
        """How many keys begin with a prefix, up to 10,000; with a cursor there are more."""
        return await self._delete(visit, dry_run=True)

    async def delete(self, visit: Visit) -> Response:
        return await self._delete(visit, dry_run=False)

    async def _delete(self, visit: Visit, *, dry_run: bool) -> Response:
        asked = visit.query(OfPrefix)
        params = {"prefix": asked.prefix}
        if dry_run:
            params["dry_run"] = "true"
        if asked.cursor:
            params["cursor"] = asked.cursor
        answer = await self._calls.of(visit.tenant).ask(
            "DELETE",
            "/v1/kv",
            params=params,
            scopes=administering,
            headers=where(asked.namespace),
        )
        return Response(check(answer).content, media_type="application/json")

    async def delete_namespace(self, visit: Visit) -> Response:
        """Some of a namespace's keys; without a cursor in the answer it is gone."""
        asked = visit.query(OfPrefix)
        answer = await self._calls.of(visit.tenant).ask(
            "DELETE",
            namespace_path(asked.namespace),
            params={"cursor": asked.cursor} if asked.cursor else None,
            scopes=administering,
        )
        return Response(check(answer).content, media_type="application/json")

    async def take_in(self, visit: Visit) -> Response:
        """Put what a script has read from a file; the answer names what was refused."""
        asked = visit.query(OfNamespace)
        sent = decode_struct(await read_body(visit.request), Items)
        refused: list[Refused] = []
        puts: list[tuple[Item, bytes]] = []
        for item in sent.items:
            try:
                puts.append((item, self._put_of(item)))
            except FixRequest as error:
                refused.append(_refused(item, error.code, error.detail))
        for batch in _batches(puts):
            refused += await self._put(visit, asked.namespace, batch)
        return _json({"put": len(sent.items) - len(refused), "refused": refused})

    def _put_of(self, item: Item) -> bytes:
        ttl: str | int | UnsetType = UNSET if item.ttl is None else item.ttl
        if item.expires_at is not None:
            if item.expires_at.tzinfo is None:
                raise FixRequest("invalid_ttl", "expires_at has no time zone; end it with Z")
            ttl = ttl_of("", item.expires_at, self._clock.wall_ms())
        return msgspec.json.encode(
            PutItem(
                item.key,
                UNSET if item.value is None else item.value,
                UNSET if item.value_base64 is None else item.value_base64,
                ttl,
            )
        )

    async def _put(
        self, visit: Visit, namespace: str, batch: Sequence[tuple[Item, bytes]]
    ) -> list[Refused]:
        body = b'{"operations":[%b]}' % b",".join(put for _, put in batch)
        try:
            answer = await self._calls.of(visit.tenant).ask(
                "POST",
                "/v1/batch",
                content=body,
                scopes=writing,
                headers={**where(namespace), "Content-Type": "application/json"},
            )
            results = told(check(answer), _Results).results
        except ClientError as error:
            # Others of the same call have been put: each line is told for itself.
            again = error.status in _passing
            return [_refused(item, error.code, error.detail, again=again) for item, _ in batch]
        return [
            _refused(item, one.code, one.detail, again=one.status in _passing)
            for (item, _), one in zip(batch, results, strict=True)
            if one.status != 200
        ]


def _batches(
    puts: Sequence[tuple[Item, bytes]],
) -> Iterator[Sequence[tuple[Item, bytes]]]:
    """Each of them as large as a signed request may be."""
    batch: list[tuple[Item, bytes]] = []
    size = _frame_bytes
    for item, put in puts:
        if batch and size + len(put) + 1 > signed_body_bytes_max:
            yield batch
            batch, size = [], _frame_bytes
        batch.append((item, put))
        size += len(put) + 1
    if batch:
        yield batch


def _refused(item: Item, code: str, detail: str, *, again: bool = False) -> Refused:
    return Refused(item.line, item.key, code, detail, again)


def _json(document: Any) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
