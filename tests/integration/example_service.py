"""A small service, run as a real process by the tests of a service's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from services.core.errors import FatalError
from services.runtime import setting_values as values
from services.runtime import telemetry
from services.runtime.http import application
from services.runtime.loops import Loops
from services.runtime.service import Service, main
from services.runtime.settings import ServiceSettings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSettings(ServiceSettings):
    service: ClassVar[str] = "example"
    # Tests let the system choose the port, which no real service does.
    port: int = setting("EXAMPLE_PORT", values.integer(0, 65535), default="0", help="HTTP port")
    misfortune: str = setting(
        "EXAMPLE_MISFORTUNE",
        values.one_of(
            "none", "slow-start", "slow-unwind", "fatal-start", "group-start", "stuck-close"
        ),
        default="none",
        help="What goes wrong",
    )


class State(TypedDict):
    loops: Loops


class Example:
    def __init__(self, settings: ExampleSettings, service: Service) -> None:
        self.settings = settings
        self.service = service
        self.log = telemetry.logger("example")
        self.fatal = asyncio.Event()
        self.app: Starlette = application(
            service.name,
            [
                Route("/slow", self.slow),
                Route("/fatal", self.end),
                Route("/echo", self.echo, methods=["POST"]),
            ],
            metrics=service.metrics,
            readiness=service.readiness,
            lifespan=self.lifespan,
            access_log=settings.access_log,
        )

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.resource("first"))
            loops = await stack.enter_async_context(Loops(self.service.fail, self.service.clock))
            loops.add_to(self.service.metrics)
            await stack.enter_async_context(self.resource("second"))
            await self.suffer()
            loops.start("fatal", self.fatal_when_told)
            yield {"loops": loops}

    @asynccontextmanager
    async def resource(self, name: str) -> AsyncIterator[None]:
        self.log.info("opened", resource=name)
        try:
            yield
        finally:
            if self.settings.misfortune == "stuck-close" and name == "second":
                await asyncio.Event().wait()
            self.log.info("closed", resource=name)

    async def suffer(self) -> None:
        match self.settings.misfortune:
            case "slow-start":
                await asyncio.Event().wait()
            case "slow-unwind":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.log.info("unwinding")
                    await asyncio.sleep(0.5)
            case "fatal-start":
                raise FatalError("the disk is made of cheese:\nreplace it")
            case "group-start":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.fail_soon())
            case _:
                pass

    async def fail_soon(self) -> None:
        raise FatalError("one of several tasks found cheese")

    async def fatal_when_told(self) -> None:
        await self.fatal.wait()
        raise FatalError("told to end by a request")

    async def slow(self, request: Request) -> Response:
        self.log.info("slow request")
        await asyncio.sleep(float(request.query_params["s"]))
        return PlainTextResponse("slow but sure")

    async def end(self, _: Request) -> Response:
        self.fatal.set()
        await asyncio.sleep(60)
        return PlainTextResponse("never sent")

    async def echo(self, request: Request) -> Response:
        return Response(await request.body())


def build_app(settings: ExampleSettings, service: Service) -> Starlette:
    return Example(settings, service).app


if __name__ == "__main__":
    main(ExampleSettings, build_app)
