"""Somebody who tries to get at another tenant's keys, in every way that requests can differ.

Attempts are drawn from a seed: a route, a way to name what is the other's, and headers that might
be believed to say whose it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from services.core.key import storage_key, tenant_prefix
from tests.integration.lane_world import request


@dataclass(slots=True, frozen=True)
class Loot:
    """What an intruder knows of somebody, and wants."""

    tenant: int
    namespaces: Sequence[str]
    keys: Sequence[str]
    etags: Sequence[str]
    # Of listings of keys, of namespaces.
    cursors: Sequence[str]


@dataclass(slots=True, frozen=True)
class Attempt:
    number: int
    method: str
    sent: bytes

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.sent!r}"


Drawn = tuple[str, str, Any]
"""Method, target and, where there is one, the document that is sent."""


class Intruder:
    def __init__(self, loot: Loot, api_key: str, seed: int) -> None:
        self._loot = loot
        self._api_key = api_key
        self._draw = random.Random(seed)

    def attempts(self, count: int, *, reading: bool = False) -> Iterator[Attempt]:
        """With `reading` only such that change nothing."""
        routes = [route for route, reads in _routes if reads or not reading]
        for number in range(count):
            method, target, document = self._draw.choice(routes)(self)
            body = b""
            lines = self._headers()
            if document is not None:
                body = json.dumps(document).encode()
                lines.append("Content-Type: application/json")
            elif method == "PUT":
                body = b"the intruder's own"
            yield Attempt(number, method, request(method, target, *lines, body=body))

    # Headers

    def _headers(self) -> list[str]:
        draw = self._draw
        lines = [f"X-API-Key: {self._api_key}"]
        if draw.random() < 0.8:
            lines.append(f"X-Namespace: {self._namespace()}")
        lines += draw.sample(self._claims(), draw.choice((0, 1, 1, 2, 3)))
        return lines

    def _namespace(self) -> str:
        """As bytes of latin-1, which is how it is sent."""
        draw, loot = self._draw, self._loot
        name = draw.choice(loot.namespaces).encode()
        tricks: Sequence[bytes] = (
            name,
            name,
            name,
            tenant_prefix(loot.tenant) + bytes((len(name),)) + name,
            storage_key(loot.tenant, name, draw.choice(loot.keys).encode())[:255],
            b"%d/%s" % (loot.tenant, name),
            name + b"/" + draw.choice(loot.keys).encode(),
            name[:-1] or b"x",
            name + b"\x80",
            b"../" + name,
            b"*",
            bytes((len(name),)) + name,
            quote(name).encode(),
        )
        # A line break would end the header, which is not what is tried here.
        return draw.choice(tricks).replace(b"\n", b" ").replace(b"\r", b" ").decode("latin-1")

    def _claims(self) -> list[str]:
        draw, loot = self._draw, self._loot
        tenant, key = loot.tenant, quote(draw.choice(loot.keys))
        etag, cursor = draw.choice(loot.etags), draw.choice(loot.cursors)
        return [
            f"X-Ydht-Tenant: {tenant}",
            "X-Ydht-Scope: read,write,admin",
            f"X-Ydht-Namespace: {loot.namespaces[0]}",
            "X-Ydht-Key-Id: 1",
            f"X-Ydht-Signature: v1;{draw.randrange(2 * 10**12)};AAAAAAAAAAAAAAAAAAAAAA;{'0' * 64}",
            f"X-Tenant-Id: {tenant}",
            f"X-User-Id: {tenant}",
            f"X-Forwarded-User: {tenant}",
            f"X-Forwarded-For: 127.0.0.1, 10.0.0.{draw.randrange(256)}",
            "X-Forwarded-Host: internal",
            "X-Forwarded-Proto: https",
            f"X-Forwarded-Prefix: /tenants/{tenant}",
            f"Forwarded: for=127.0.0.1;by=tenant-{tenant}",
            f"X-Original-URL: /v1/kv/{key}",
            f"X-Rewrite-URL: /v1/kv/{key}",
            "X-HTTP-Method-Override: DELETE",
            f"Authorization: Bearer ydht_{tenant}",
            f"X-API-Key: ydht_{tenant}",
            f"Cookie: tenant={tenant}; access_token=1",
            f'If-Match: "{etag}"',
            "If-Match: *",
            f'If-None-Match: "{etag}"',
            f'If-None-Match: W/"{etag}", "{loot.etags[0]}"',
            f"X-Cursor: {cursor}",
            "X-Consistency: strong",
            "Range: bytes=0-",
            f"X-Request-ID: {tenant}",
            "Origin: https://app.example",
            "Connection: X-API-Key",
            f"X-Metadata-Tenant: {tenant}",
        ]

    # Routes

    def _key(self) -> str:
        """A path behind /v1/kv/ that might lead to what is the other's."""
        draw, loot = self._draw, self._loot
        key, name = draw.choice(loot.keys), draw.choice(loot.namespaces)
        whole = storage_key(loot.tenant, name.encode(), key.encode())
        tricks: Sequence[str] = (
            quote(key),
            quote(key),
            quote(key, safe=""),
            quote(whole, safe=""),
            quote(whole[8:], safe=""),
            quote(whole[9:], safe=""),
            f"{loot.tenant}/{quote(name)}/{quote(key)}",
            f"../{loot.tenant}/{quote(key)}",
            f"..%2f..%2f{loot.tenant}%2f{quote(name)}%2f{quote(key)}",
            f"%00{quote(key)}",
            f"{quote(key)}%00",
            f"/{quote(key)}",
            f"{quote(key)};tenant={loot.tenant}",
        )
        return draw.choice(tricks)

    def _query(self, *more: str) -> str:
        draw, loot = self._draw, self._loot
        key = draw.choice(loot.keys)
        whole = storage_key(loot.tenant, draw.choice(loot.namespaces).encode(), key.encode())
        prefix = draw.choice(
            (key, key[:3], "", "%00", quote(whole, safe=""), quote(whole[:8], safe=""))
        )
        members = [f"prefix={quote(prefix, safe='%')}", *more]
        if draw.random() < 0.3:
            members.append(f"cursor={draw.choice(loot.cursors)}")
        if draw.random() < 0.05:
            members.append(f"tenant={loot.tenant}")
        return "&".join(members)

    def get(self) -> Drawn:
        return "GET", f"/v1/kv/{self._key()}", None

    def head(self) -> Drawn:
        return "HEAD", f"/v1/kv/{self._key()}", None

    def absolute(self) -> Drawn:
        return "GET", f"http://tenant-{self._loot.tenant}:1/v1/kv/{self._key()}", None

    def put(self) -> Drawn:
        return "PUT", f"/v1/kv/{self._key()}", None

    def delete(self) -> Drawn:
        return "DELETE", f"/v1/kv/{self._key()}", None

    def patch(self) -> Drawn:
        return "PATCH", f"/v1/kv/{self._key()}?ttl={self._draw.choice(('1ms', '0', '1h'))}", None

    def increment(self) -> Drawn:
        return "POST", f"/v1/kv/{self._key()}/incr", None

    def listing(self) -> Drawn:
        more = self._draw.choice(((), ("delimiter=/",), ("limit=1",), ("limit=1000",)))
        return "GET", f"/v1/kv?{self._query(*more)}", None

    def count(self) -> Drawn:
        return "DELETE", f"/v1/kv?{self._query('dry_run=true')}", None

    def delete_all(self) -> Drawn:
        return "DELETE", f"/v1/kv?{self._query()}", None

    def namespaces(self) -> Drawn:
        query = self._draw.choice(
            ("", "?limit=1", f"?cursor={self._draw.choice(self._loot.cursors)}")
        )
        return "GET", f"/v1/namespaces{query}", None

    def _of_namespace(self) -> str:
        name = quote(self._namespace().encode("latin-1"), safe="")
        return f"/v1/namespaces/{name}"

    def namespace(self) -> Drawn:
        return "GET", self._of_namespace(), None

    def declare(self) -> Drawn:
        document = self._draw.choice(({"kind": "store"}, {"kind": "store", "max_items": 1}))
        return "PUT", self._of_namespace(), document

    def delete_namespace(self) -> Drawn:
        return "DELETE", self._of_namespace(), None

    def batch(self) -> Drawn:
        keys = self._draw.choices(self._loot.keys, k=self._draw.randint(1, 4))
        ops = ({"op": "get"}, {"op": "delete"}, {"op": "put", "value": "the intruder's own"})
        return self._batch([{**self._draw.choice(ops), "key": key} for key in keys])

    def reading_batch(self) -> Drawn:
        return self._batch([{"op": "get", "key": key} for key in self._loot.keys])

    def _batch(self, operations: list[dict[str, str]]) -> Drawn:
        if self._draw.random() < 0.1:
            operations[0]["tenant"] = str(self._loot.tenant)
        return "POST", "/v1/batch", {"operations": operations}

    def ids(self) -> Drawn:
        return "POST", f"/v1/ids?tenant={self._loot.tenant}", None

    def nowhere(self) -> Drawn:
        tenant, key = self._loot.tenant, self._key()
        target = self._draw.choice(
            (f"/v1/tenants/{tenant}/kv/{key}", f"/store/{key}", "/v1/kv/../../metrics", "/cluster",
             f"//v1/kv/{key}", f"/v1//kv/{key}", f"/v1%2Fkv/{key}", f"/V1/kv/{key}")
        )  # fmt: skip
        return "GET", target, None


# With whether it only reads. Each is as likely as it stands here.
_routes: Final[Sequence[tuple[Callable[[Intruder], Drawn], bool]]] = (
    *[(Intruder.get, True)] * 6,
    *[(Intruder.head, True)] * 2,
    (Intruder.absolute, True),
    *[(Intruder.put, False)] * 4,
    *[(Intruder.delete, False)] * 3,
    *[(Intruder.patch, False)] * 2,
    *[(Intruder.increment, False)] * 2,
    *[(Intruder.listing, True)] * 2,
    (Intruder.count, True),
    (Intruder.delete_all, False),
    (Intruder.namespaces, True),
    (Intruder.namespace, True),
    (Intruder.declare, False),
    (Intruder.delete_namespace, False),
    (Intruder.batch, False),
    (Intruder.reading_batch, True),
    (Intruder.ids, True),
    (Intruder.nowhere, True),
)
