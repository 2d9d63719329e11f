"""A small lane over a dictionary of values, in this process or as a service of its own.

/v1/kv/{key}    GET, HEAD, PUT, DELETE; POST echoes what has arrived
/v1/kv/later    is answered when a test says so, or after ?ms=; by a service when it stops
/v1/kv/bug      raises; /v1/kv/wrong replies what is no answer; /v1/kv/rash raises in takes
?refused=       in any of them: the body is refused when the lane is asked
/app/{any}      belongs to the application: it echoes too
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Lifespan, Receive, Scope, Send

from services.core.errors import ClientError, FixRequest
from services.runtime import setting_values as values
from services.runtime.body_room import BodyRoom
from services.runtime.edge import RequestCounters, RequestEdge, request_id_of
from services.runtime.exchange import Exchange, Headers, Lane
from services.runtime.fastlane import FastLane
from services.runtime.lane_route import LaneRoute
from services.runtime.probes import probe_routes
from services.runtime.problem import as_problem, exception_handlers, problem_type
from services.runtime.request_body import BodyLimit
from services.runtime.service import Service, main
from services.runtime.settings import ServiceSettings, setting
from tests.waiting import poll_s

prefix = b"/v1/kv/"
methods = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]
body_bytes_max = 100_000
# What a service remembers of those, which nobody but its end answers.
postponed_max = 64


class ExampleLane:
    body_bytes_max = body_bytes_max

    def __init__(self, *, remembered_max: int | None = None) -> None:
        self.values: dict[bytes, bytes] = {}
        # Exchanges that wait to be answered, and what has come, for tests to look at.
        self.later: deque[Exchange] = deque(maxlen=remembered_max)
        self.headers_seen: deque[Headers] = deque(maxlen=remembered_max)
        self.asked = 0
        self.begun: deque[bytes] = deque(maxlen=remembered_max)
        self.room = BodyRoom()
        self.asked_early = 0

    def takes(self, method: bytes, path: bytes, headers: Headers) -> bool:
        self.asked += 1
        if path == prefix + b"rash":
            raise KeyError("a rash lane")
        return path.startswith(prefix)

    def refusal(self, exchange: Exchange) -> ClientError | None:
        self.asked_early += 1
        if exchange.query == b"refused":
            return FixRequest("missing_api_key", "Who is it?")
        return None

    def whose(self, exchange: Exchange) -> Hashable:
        return exchange.headers.get(b"x-api-key")

    def begin(self, exchange: Exchange) -> None:
        self.begun.append(exchange.path)
        self.headers_seen.append(exchange.headers)
        key = exchange.path.removeprefix(prefix)
        if key == b"later":
            self._postpone(exchange)
        elif key == b"bug":
            self.later.append(exchange)
            raise KeyError("a buggy lane")
        elif key == b"wrong":
            exchange.reply(200, b"", cast(Any, "no bytes"))
        else:
            self._answer(exchange, key)

    def _answer(self, exchange: Exchange, key: bytes) -> None:
        match exchange.method:
            case b"GET" | b"HEAD" if key in self.values:
                self.reply(exchange, 200, self.values[key])
            case b"GET" | b"HEAD":
                self.refuse(exchange, FixRequest("key_not_found", "Nothing is there"))
            case b"PUT":
                self.values[key] = exchange.body
                self.reply(exchange, 200, b"stored")
            case b"DELETE":
                self.reply(exchange, 200 if self.values.pop(key, None) is not None else 204, b"")
            case b"POST":
                self.reply(exchange, 200, echo(exchange))
            case _:
                self.refuse(exchange, FixRequest("method_not_allowed", "Not possible here"))

    def _postpone(self, exchange: Exchange) -> None:
        delay = parse_qs(exchange.query.decode("latin-1")).get("ms")
        if delay is None:
            self.later.append(exchange)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(int(delay[0]) / 1000, self.reply, exchange, 200, b"at last")

    def release(self, body: bytes = b"at last") -> None:
        """Answer what waits, the oldest first."""
        waiting = list(self.later)
        self.later.clear()
        for exchange in waiting:
            self.reply(exchange, 200, body)

    def reply(self, exchange: Exchange, status: int, body: bytes) -> None:
        request_id = request_id_of(exchange.headers.fields).encode()
        lines = b"Content-Type: text/plain\r\nX-Request-ID: " + request_id + b"\r\n"
        exchange.reply(status, lines, body)

    def refuse(self, exchange: Exchange, error: ClientError) -> None:
        request_id = request_id_of(exchange.headers.fields)
        lines = f"Content-Type: {problem_type}\r\nX-Request-ID: {request_id}\r\n".encode()
        exchange.reply(error.status, lines, json.dumps(error.problem(request_id)).encode())

    def too_large(self, exchange: Exchange) -> None:
        self.refuse(exchange, FixRequest("value_too_large", f"At most {body_bytes_max} bytes"))

    def timed_out(self, exchange: Exchange) -> None:
        self.refuse(exchange, FixRequest("request_timeout", "The value took too long"))


def echo(exchange: Exchange) -> bytes:
    """What a request was, but for the fields that each way to the lane has of its own."""
    fields = [f"{name!r}: {value!r}" for name, value in exchange.headers.fields]
    shown = [exchange.method, exchange.path, exchange.query, exchange.body]
    return "\n".join([*map(repr, shown), *fields]).encode()


async def application_echo(request: Request) -> Response:
    body = await request.body()
    # Behind uvicorn's own protocol values keep the blanks that follow them.
    fields = [f"{name!r}: {value.rstrip()!r}" for name, value in request.headers.raw]
    shown = [request.method.encode(), request.scope["raw_path"], request.url.query.encode(), body]
    return PlainTextResponse("\n".join([*map(repr, shown), *fields]))


async def application_slow(request: Request) -> Response:
    await asyncio.sleep(float(request.query_params["s"]))
    return JSONResponse({"slept": True})


class ApplicationStream:
    """Answers each part of a body with a large one, while more of the body may come."""

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            part = message.get("body", b"")[:1] * 8_000_000
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def application(
    counters: RequestCounters,
    routes: list[BaseRoute],
    lifespan: Lifespan[Starlette] | None = None,
    *,
    access_log: bool = False,
) -> Starlette:
    app = Starlette(
        routes=[
            *routes,
            Route("/app/slow", application_slow),
            Route("/app/stream", ApplicationStream()),
            Route("/app/{any:path}", application_echo, methods=methods),
        ],
        middleware=[
            Middleware(RequestEdge, counters=counters, access_log=access_log),
            Middleware(BodyLimit, bytes_max=4 * body_bytes_max),
        ],
        exception_handlers=exception_handlers(as_problem),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def lane_routes(lane: Lane) -> list[BaseRoute]:
    """The lane in the application, instead of in front of it."""
    return [Route("/v1/kv/{key:path}", LaneRoute(lane))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings(ServiceSettings):
    service: ClassVar[str] = "example"
    port: int = setting("EXAMPLE_PORT", values.integer(0, 65535), default="0", help="HTTP port")


def build_app(settings: ExampleSettings, service: Service) -> Starlette:
    counters = RequestCounters()
    counters.add_to(service.metrics)

    lane = ExampleLane(remembered_max=postponed_max)
    service.metrics.add("postponed", "gauge", "Wait to be answered", lambda: len(lane.later))

    async def release_when_stopping() -> None:
        while service.stopping is None:  # noqa: ASYNC110  Nothing tells.
            await asyncio.sleep(poll_s)
        lane.release()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, object]]:
        releasing = asyncio.create_task(release_when_stopping())
        yield {"lane": lane, "counters": counters, "access_log": settings.access_log}
        releasing.cancel()

    probes = probe_routes(service.name, service.readiness, service.metrics)
    return application(counters, [*probes], lifespan, access_log=settings.access_log)


if __name__ == "__main__":
    main(ExampleSettings, build_app, FastLane)
