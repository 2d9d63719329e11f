"""The requests for one key, /get-key and /api/key, answered inside the HTTP parser's callbacks.

    exchange ─► whose it is ─► one of its day ─► a key from the pool ─► the answer
        └── anything of that is not at hand: in a task, which waits for it

It is a hot path, and where all is at hand it takes no task, future, timer or log line. Compiled, it
is 2 us from the bytes of a request for /get-key to those of its answer, fast lane and key included,
and some 10 us with the event loop and the kernel around it (CPython 3.11, 2.1 GHz).
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final

from services.core.errors import ClientError, FixRequest, InternalError, RetryLater
from services.core.hlc import rfc3339
from services.core.permute import number_spelled
from services.keygen.askers import Asker, asker_of
from services.keygen.issuing import Issuing
from services.keygen.lots import Drawn
from services.keygen.messages import KeyQuery, id_of, short_size, size_default
from services.keygen.pools import Pools
from services.keygen.quotas import Quotas
from services.runtime import telemetry
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import ClientAddresses, network_of
from services.runtime.clock import Clock
from services.runtime.credential import Credential
from services.runtime.exchange import Exchange, Headers
from services.runtime.key_access import Keys, Meter, challenged, check_scope
from services.runtime.problem import problem_parts
from services.runtime.request_ids import RequestIds
from services.runtime.text_members import TextMembers, refusal

get_key: Final = b"/get-key"
api_key: Final = b"/api/key"
paths: Final = frozenset((get_key, api_key))
# What its requests are counted as.
operation: Final = "ids"
# Nobody has a reason to send a body here.
body_bytes_max: Final = 1024
# Requests that wait for an API key to be looked up, or for keys to be reserved.
slow_max: Final = 4_000

_s_per_ns: Final = 1e-9
# A key is for whoever asked: kept by a cache on the way it would be somebody else's too.
_text_head: Final = b"Content-Type: text/plain\r\nCache-Control: no-store\r\nX-Request-ID: "
_json_head: Final = b"Content-Type: application/json\r\nCache-Control: no-store\r\nX-Request-ID: "

log = telemetry.logger("services.keygen")


class KeyLane:
    """The lane of a keygen (runtime/exchange.py). `public` is who may come without an API key."""

    def __init__(
        self,
        issuing: Issuing,
        credentials: Keys,
        meters: Meter,
        addresses: ClientAddresses,
        clock: Clock,
        public: Credential | None,
    ) -> None:
        self.body_bytes_max = body_bytes_max
        self.room = BodyRoom()
        self._issuing = issuing
        self._pools: Pools = issuing.pools
        self._quotas: Quotas = issuing.quotas
        self._credentials = credentials
        self._meters = meters
        self._addresses = addresses
        self._clock = clock
        self._boot_s = clock.boot_s
        self._public = public
        self._slow: set[asyncio.Task[None]] = set()
        self._query = TextMembers(KeyQuery)
        self._nothing = TextMembers(None)
        # Queries as they were sent, of which there are few that are right.
        self._sizes: dict[bytes, int] = {b"": size_default}
        # The times that were last told, as they are told.
        self._taken_ms = self._reserved_ms = -1
        self._taken = self._reserved = ""
        self._ids = RequestIds()

    @property
    def waiting(self) -> int:
        return len(self._slow)

    def takes(self, method: bytes, path: bytes, headers: Headers) -> bool:
        return path in paths

    def refusal(self, exchange: Exchange) -> ClientError | None:
        return None

    def whose(self, exchange: Exchange) -> Hashable:
        return network_of(self._addresses.behind(exchange.address, exchange.headers.fields))

    def begin(self, exchange: Exchange) -> None:
        asker = asker_of(exchange.headers)
        credential = asker.credential
        account = asker.account
        now_s = exchange.began_ns * _s_per_ns
        if (
            credential is not None
            and account is not None
            and exchange.method == b"GET"
            and now_s < credential.usable_until_s
            and (boot_s := self._boot_s()) < self._pools.usable_until_s
            and boot_s < account.until_s
            and account.left > 0
            and credential.may_write
        ):
            is_short = exchange.path == get_key
            query = exchange.query
            size = (short_size if not query else 0) if is_short else self._sizes.get(query, 0)
            pool = asker.pools.get(size)
            if pool is not None and pool.ready and not pool.returned_first:
                account.left -= 1
                reserved_ms = pool.reserved_ms
                key = pool.take()
                if is_short:
                    self._answer(exchange, asker, credential, _text_head, key)
                else:
                    body = self._document(key, reserved_ms)
                    self._answer(exchange, asker, credential, _json_head, body)
                return
        self._begin_slowly(exchange, asker)

    def too_large(self, exchange: Exchange) -> None:
        self.refuse(exchange, FixRequest("body_too_large", "A request for a key has no body"))

    def timed_out(self, exchange: Exchange) -> None:
        problem = "The request did not arrive in time; no key was given out"
        self.refuse(exchange, FixRequest("request_timeout", problem))

    def refuse(self, exchange: Exchange, error: ClientError) -> None:
        self._refuse(exchange, asker_of(exchange.headers), None, error)

    async def close(self) -> None:
        """Wait for nothing more; who still does is refused."""
        for task in self._slow:
            task.cancel()
        if self._slow:
            await asyncio.wait(self._slow)

    # -- what is not at hand

    def _begin_slowly(self, exchange: Exchange, asker: Asker) -> None:
        if len(self._slow) >= slow_max:
            busy = f"{slow_max} other requests wait for keys"
            self._refuse(exchange, asker, None, RetryLater("overloaded", busy))
            return
        task = asyncio.create_task(self._serve(exchange, asker))
        self._slow.add(task)
        task.add_done_callback(self._slow.discard)

    async def _serve(self, exchange: Exchange, asker: Asker) -> None:
        credential: Credential | None = None
        try:
            credential = await self._credential(exchange, asker)
            size = self._size(exchange)
            check_scope(credential, "write")
            account = self._quotas.account(
                credential.tenant, credential.key_id, credential.ids_per_day
            )
            asker.belongs_to(credential, account)
            part = (await self._issuing.issue(credential.tenant, account, size, 1))[0]
            asker.pools[size] = self._pools.pool(credential.tenant, size)
        except ClientError as error:
            self._refuse(exchange, asker, credential, error)
        except asyncio.CancelledError:
            ending = RetryLater("shutting_down", "This keygen ends; another one may have keys")
            self._refuse(exchange, asker, credential, ending)
            raise
        except Exception:
            # As at the edge of every service: a bug in one request fails that request alone.
            log.exception("a request failed")
            self._refuse(exchange, asker, credential, InternalError())
        else:
            self._give(exchange, asker, credential, part)

    async def _credential(self, exchange: Exchange, asker: Asker) -> Credential:
        if asker.nobody is not None:
            # An empty header is from a program whose variable is not set, which should hear of it.
            allowed = exchange.path == get_key and not asker.sent
            if self._public is not None and allowed:
                return self._public
            raise asker.nobody
        known = self._credentials.cached(asker.api_key, self._clock.monotonic_s())
        if known is not None:
            return known
        address = self._addresses.behind(exchange.address, asker.fields)
        try:
            return await self._credentials.find(asker.api_key, address)
        except FixRequest as error:
            raise challenged(error) from error

    def _size(self, exchange: Exchange) -> int:
        if exchange.method != b"GET":
            shown = exchange.method.decode("latin-1")[:40]
            raise FixRequest(
                "method_not_allowed",
                f"{shown} is not possible here, only GET: each answer is another key",
                headers={"Allow": "GET"},
            )
        members = self._nothing if exchange.path == get_key else self._query
        found, wrong = members.of_query(exchange.query)
        if wrong:
            raise refusal(wrong)
        if found is None:
            return short_size
        size: int = found.size
        if exchange.query == b"size=%d" % size:
            self._sizes[exchange.query] = size
        return size

    # -- answering

    def _give(self, exchange: Exchange, asker: Asker, credential: Credential, drawn: Drawn) -> None:
        key = drawn.keys[0]
        if exchange.path == get_key:
            self._answer(exchange, asker, credential, _text_head, key)
        else:
            body = self._document(key, drawn.reserved_ms)
            self._answer(exchange, asker, credential, _json_head, body)

    def _document(self, key: bytes, reserved_ms: int) -> bytes:
        number = id_of(number_spelled(key))
        shown = str(number) if isinstance(number, int) else f'"{number}"'
        now_ms = self._clock.wall_ms()
        if now_ms != self._taken_ms:
            self._taken_ms, self._taken = now_ms, rfc3339(now_ms)
        if reserved_ms != self._reserved_ms:
            self._reserved_ms, self._reserved = reserved_ms, rfc3339(reserved_ms)
        return (
            f'{{"id":{shown},"key":"{key.decode("ascii")}","size":{len(key)},'
            f'"creationDate":"{self._reserved}","takenDate":"{self._taken}"}}'
        ).encode("ascii")

    def _refuse(
        self,
        exchange: Exchange,
        asker: Asker,
        credential: Credential | None,
        error: ClientError,
    ) -> None:
        request_id = asker.request_id or self._ids.next()
        status, lines, body = problem_parts(error, request_id)
        exchange.reply(status, b"%sX-Request-ID: %s\r\n" % (lines, request_id), body)
        if credential is not None:
            self._count(exchange, credential, status, body)

    def _answer(
        self, exchange: Exchange, asker: Asker, credential: Credential, head: bytes, body: bytes
    ) -> None:
        request_id = asker.request_id or self._ids.next()
        exchange.reply(200, head + request_id + b"\r\n", body)
        self._count(exchange, credential, 200, body)

    def _count(self, exchange: Exchange, credential: Credential, status: int, body: bytes) -> None:
        self._meters.count(
            credential, operation, status, len(exchange.body), len(body), exchange.took_ns // 1000
        )
