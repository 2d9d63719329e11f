"""A client of the gateway that checks every answer: one connection, and keys of its own.

Tenants and namespaces have clients with keys of the same names: what crosses a wall between them is
met as a value that was never written there.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from bench.http_connection import Answer, ConnectionEndedError, HttpConnection, connect, request
from bench.stress_memory import (
    Judgement,
    Kept,
    absent,
    judge,
    number_in,
    value_of,
)
from bench.stress_tally import Tally

# As soon as a service that was lost may be back.
reconnect_s: Final = 0.1


@dataclass(slots=True, frozen=True)
class Identity:
    """Who a client is: whose key it has, and where its own keys are."""

    port: int
    api_key: str
    tenant: int
    namespace: str
    number: int

    @property
    def owner(self) -> str:
        return f"{self.tenant}.{self.namespace}.{self.number}"


class Client:
    def __init__(self, identity: Identity, tally: Tally) -> None:
        self._tally = tally
        self._owner = identity.owner
        self._port = identity.port
        self._root = f"{identity.number:05}/"
        self._headers = f"X-API-Key: {identity.api_key}\r\nX-Namespace: {identity.namespace}\r\n"
        self._strong = self._headers + "X-Consistency: strong\r\n"
        self._connection: HttpConnection | None = None
        self._took_s = 0.0
        self._kept: defaultdict[str, Kept] = defaultdict(Kept)
        # Whether the last request, if it was to change something, may have.
        self._is_unknown = False

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _ask(self, name: str, content: bytes, expected: Container[int]) -> Answer | None:
        """The answer, if it has one of these statuses; else an error is counted. None as well if
        there was no answer; `_is_unknown` tells for a write."""
        began_s = time.perf_counter()
        try:
            if self._connection is None or not self._connection.open:
                self._connection = await connect(self._port)
            answer = await self._connection.ask(content)
        except (ConnectionEndedError, OSError) as error:
            self._tally.error("connection lost", f"{name}: {error}")
            self._is_unknown = True
            await asyncio.sleep(reconnect_s)
            return None
        finally:
            self._took_s = time.perf_counter() - began_s
            self._tally.times[name].add(self._took_s)
        self._is_unknown = answer.status in (500, 504)
        if answer.status in expected:
            return answer
        code = document_of(answer).get("code", "?")
        self._tally.error(f"{answer.status} {code}", f"{name}: {answer.body[:300]!r}")
        return None

    def _request(
        self, method: str, key: str, headers: str, body: bytes = b"", query: str = ""
    ) -> bytes:
        return request(method, f"/v1/kv/{key}{query}", self._port, headers, body)

    def _judge(self, name: str, key: str, found: int | None, *, strong: bool = False) -> None:
        kept = self._kept[key]
        verdict = judge(kept, found, self._took_s, strong=strong)
        if verdict is Judgement.LATE:
            self._tally.late += 1
        elif verdict is not Judgement.RIGHT:
            took_ms = self._took_s * 1e3
            told = f"{self._owner} {key} is {kept}, and shows {found} after {took_ms:.1f} ms"
            self._tally.is_wrong(f"{name}: {verdict.value}", told)
        elif strong and found is not None:
            kept.possible = (found,)

    async def _read(self, name: str, key: str, *, strong: bool = False) -> int | None:
        """The number of what is there, judged."""
        headers = self._strong if strong else self._headers
        answer = await self._ask(name, self._request("GET", key, headers), (200, 404))
        if answer is None:
            return None
        there = answer.status == 200
        found = number_in(self._owner, key, answer.body) if there else absent
        self._judge(name, key, found, strong=strong)
        kept = self._kept[key]
        if there and kept.etag and (found,) == kept.possible:
            self._check(name, key, "ETag", answer.header("ETag"), f'"{kept.etag}"')
        return found

    async def _write(
        self, name: str, method: str, key: str, headers: str, query: str = ""
    ) -> Answer | None:
        """Give the key its next value, or none by DELETE."""
        kept = self._kept[key]
        is_put = method == "PUT"
        number = kept.next_number() if is_put else absent
        body = value_of(self._owner, key, number) if is_put else b""
        content = self._request(method, key, headers, body, query)
        answer = await self._ask(name, content, (200,))
        if answer is not None:
            document = document_of(answer)
            self._check(name, key, "key", document["key"], key)
            kept.written(number, document["etag"] if is_put else None, self._took_s)
        elif self._is_unknown:
            kept.unknown(number)
        return answer

    def _check(self, name: str, key: str, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            told = f"{self._owner} {key}: {found!r} instead of {wanted!r}"
            self._tally.is_wrong(f"{name}: {what}", told)


def document_of(answer: Answer) -> dict[str, Any]:
    """What an answer says in JSON; empty if it says nothing."""
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
