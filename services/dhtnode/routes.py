"""What a node shows of its own copy over HTTP, to whoever holds the cluster's secret.

It is for looking at replication at work: this replica alone, whatever the others say. The tenant
comes in the header `X-Ydht-Tenant`, the namespace in `X-Ydht-Namespace` (`default` if it is not
there); both are covered by the signature.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Meta
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.errors import FixRequest, RetryLater
from services.core.hlc import etag
from services.core.key import check_key, check_namespace, namespace_prefix, tenant_max
from services.core.record import value, version, visible
from services.core.ring import slot_of
from services.dhtnode import pages
from services.dhtnode.listing import Entry, Query
from services.dhtnode.node import Node
from services.runtime.signing import RequireSignature, Verifier
from services.runtime.text_members import TextMembers, code, half_escaped, refusal

limit_default: Final = 100
limit_max: Final = 1_000
key_path: Final = b"/store/"
Endpoint = Callable[[Request], Awaitable[Response]]
tenant_header: Final = "X-Ydht-Tenant"
namespace_header: Final = "X-Ydht-Namespace"
# What clients of the gateway use. Here no signature covers it, and it is not taken for a claim.
unsigned_header: Final = "X-Namespace"
_tenant: Final = re.compile(r"[0-9]{1,20}")


class StoreQuery(msgspec.Struct, frozen=True):
    prefix: Annotated[str, Meta(extra=code("invalid_key"))] = ""
    cursor: Annotated[str, Meta(extra=code("invalid_cursor"))] = ""
    limit: Annotated[int, Meta(ge=1, le=limit_max)] = limit_default


_store_query: Final = TextMembers(StoreQuery)


def routes(node: Node, verifier: Verifier) -> list[BaseRoute]:
    store = Store(node)
    signed = [Middleware(RequireSignature, verifier=verifier)]
    return [
        Route("/store", store.list, middleware=signed),
        KeyRoute("/store/{key:path}", store.get, middleware=signed),
        Route("/snapshot", store.snapshot, methods=["POST"], middleware=signed),
        Route("/scrub", store.scrub, methods=["GET", "POST"], middleware=signed),
    ]


class KeyRoute(Route):
    """Takes every path below /store/: a key may have line breaks, at which {key:path} ends."""

    def __init__(self, path: str, endpoint: Endpoint, middleware: list[Middleware]) -> None:
        super().__init__(path, endpoint, middleware=middleware)
        self.path_regex = re.compile(r"/store/(?P<key>(?s:.*))\Z")


class Store:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def get(self, request: Request) -> Response:
        """This replica's value of a key; 404 if a client would see none here."""
        node_id = self._node.settings.node_id
        raw: bytes = request.scope["raw_path"]
        namespace = self._namespace(request)
        if half_escaped.search(raw) is not None:
            raise FixRequest(
                "invalid_key", "A % in the key is not followed by two hexadecimal digits"
            )
        key = namespace + check_key(unquote_to_bytes(raw[len(key_path) :]))
        found = self._node.table.peek(slot_of(key), key)
        await self._node.until_durable(key)
        if found is None or not visible(found, self._node.service.clock.wall_ms()):
            raise FixRequest("key_not_found", f"{node_id} has no value for this key")
        headers = {
            "ETag": f'"{etag(version(found))}"',
            "X-Node-ID": node_id,
            "X-Content-Type-Options": "nosniff",
        }
        return Response(value(found), media_type="application/octet-stream", headers=headers)

    async def list(self, request: Request) -> Response:
        """The keys that this replica has in a namespace, by pages."""
        prefix = self._namespace(request)
        asked = _query(request)
        query = Query(
            prefix=asked.prefix.encode(),
            start=_cursor(asked.cursor),
            limit=asked.limit,
        )
        answer = bytearray()
        await self._node.in_turns(self._page(prefix, query, answer))
        await self._node.until_durable()
        return Response(bytes(answer), media_type="application/json")

    def _page(self, prefix: bytes, query: Query, answer: bytearray) -> Iterator[None]:
        """Work for the queue: put the page as JSON into `answer`."""
        node = self._node
        found = yield from pages.page(node.table, prefix, query, node.service.clock.wall_ms)
        keys = list(map(_shown, found.entries))
        yield
        cursor = None if found.next is None else found.next.hex()
        answer += msgspec.json.encode({"keys": keys, "count": len(keys), "cursor": cursor})

    async def snapshot(self, _: Request) -> Response:
        """Have a snapshot written soon, so that the next start has little log to replay."""
        self._serving()
        if self._node.upkeep is not None:
            self._node.upkeep.want_snapshot()
        return JSONResponse({"status": "a snapshot will be written"}, status_code=202)

    async def scrub(self, request: Request) -> Response:
        """Have everything compared with its checksums, beginning now; or only tell how that goes
        and what was found so far."""
        self._serving()
        if (scrub := self._node.scrub) is None:
            raise RetryLater("overloaded", f"{self._node.settings.node_id} is still recovering")
        if request.method == "POST":
            scrub.request()
        return JSONResponse(scrub.told(), status_code=202 if request.method == "POST" else 200)

    def _namespace(self, request: Request) -> bytes:
        self._serving()
        tenant = request.headers.get(tenant_header, "")
        if not _tenant.fullmatch(tenant) or int(tenant) > tenant_max:
            raise FixRequest("invalid_header", f"{tenant_header} names the tenant by its number")
        if unsigned_header in request.headers:
            raise FixRequest(
                "invalid_header", f"{unsigned_header} is not signed; use {namespace_header}"
            )
        name = request.headers.get(namespace_header, "default").encode("latin-1")
        return namespace_prefix(int(tenant), check_namespace(name))

    def _serving(self) -> None:
        if not self._node.serving:
            raise RetryLater("overloaded", f"{self._node.settings.node_id} is still recovering")


def _shown(entry: Entry) -> dict[str, object]:
    return {
        # What came over a link need not be text; here it is shown whatever it is.
        "key": entry.key.decode(errors="backslashreplace"),
        "size": entry.value_bytes,
        "etag": etag(entry.version),
    }


def _query(request: Request) -> StoreQuery:
    """As it was sent. What is unknown, or there twice, is refused: it would be ignored."""
    query: StoreQuery | None
    query, wrong = _store_query.of_query(request.scope["query_string"])
    if query is None or wrong:
        raise refusal(wrong)
    return query


def _cursor(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise FixRequest("invalid_cursor", "cursor is not one that this route gave") from None
