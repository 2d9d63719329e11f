"""The outermost layer of every HTTP request: its id, its counters, and the answer to a bug.

Pure ASGI: one object per request and no task of its own.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.errors import ClientError, InternalError, kept
from services.runtime import telemetry
from services.runtime.histogram import Histogram
from services.runtime.metrics import Metrics
from services.runtime.problem import Refuse, as_problem

# Long enough for a UUID with a prefix or two; ids stand in every log line.
request_id_chars_max = 128
_request_id = re.compile(rb"[\x21-\x7e]{1,%d}" % request_id_chars_max)
# What a client is told nowhere else about: it left before the answer (as nginx counts it).
status_client_left = 499


def new_request_id() -> str:
    return os.urandom(16).hex()


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's X-Request-ID if it is visible ASCII of acceptable length, else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode("ascii") if _request_id.fullmatch(value) else new_request_id()
    return new_request_id()


def given_request_id(fields: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The client's X-Request-ID, if it gave one that is taken; names are in lower case."""
    given = [field for field in fields if field[0] == b"x-request-id"][:1]
    if not given:
        return None
    found = request_id_of(given).encode("ascii")
    # Another one was made because that is none; the next request with these headers needs its own.
    return found if found == given[0][1] else None


class RequestCounters:
    """What one process has answered."""

    def __init__(self) -> None:
        self.by_status: Counter[str] = Counter()
        self.latency_ms = Histogram()
        self.in_flight = 0

    def add_to(self, metrics: Metrics) -> None:
        metrics.add(
            "http_requests",
            "counter",
            "Requests answered, by status",
            lambda: self.by_status,
            labels=("status",),
        )
        metrics.add(
            "http_requests_in_flight", "gauge", "Requests being answered", lambda: self.in_flight
        )
        metrics.add_histogram("http_request_ms", "Time from head to end of answer", self.latency_ms)


class RequestEdge:
    """Middleware that gives a request its id and turns any escaped exception into a 500."""

    def __init__(
        self,
        app: ASGIApp,
        counters: RequestCounters,
        *,
        access_log: bool,
        refuse: Refuse = as_problem,
    ) -> None:
        self._app = app
        self._refuse = refuse
        self._counters = counters
        self._access_log = access_log
        self._log = telemetry.logger("services.http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(request_id_of(scope["headers"]), send)
        token = telemetry.request_id.set(exchange.request_id)
        self._counters.in_flight += 1
        try:
            await self._answer(scope, receive, exchange)
        finally:
            self._count(scope, exchange)
            telemetry.request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = status_client_left
        except Exception as error:
            # Here a bug becomes an answer; a refusal by a middleware is none.
            refusal = kept(error) if isinstance(error, ClientError) else InternalError()
            if refusal is not error:
                self._log.exception("bug", method=scope["method"], path=scope["path"])
            if not exchange.started:
                await self._refuse(Request(scope), refusal)(scope, receive, exchange.send)
            # An answer that has begun can't be taken back: uvicorn closes the connection.

    def _count(self, scope: Scope, exchange: _Exchange) -> None:
        elapsed_ms = (time.perf_counter() - exchange.began_s) * 1000
        counters = self._counters
        counters.in_flight -= 1
        counters.by_status[str(exchange.status)] += 1
        counters.latency_ms.observe(elapsed_ms)
        if self._access_log:
            client = scope.get("client")
            self._log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=exchange.status,
                ms=round(elapsed_ms, 3),
                client=client[0] if client else None,
            )


class _Exchange:
    """One request and its answer, as far as it has gone."""

    __slots__ = ("_send", "began_s", "request_id", "started", "status")

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.began_s = time.perf_counter()
        self.started = False
        self.status = status_client_left
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)
