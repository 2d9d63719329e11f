"""The life of a service process: settings, resources, serving, draining, and the exit code.

Each service's `__main__` is one call:

    main(GatewaySettings, build_app)

where `build_app(settings, service)` wires the Starlette application (with runtime/http.py). Its
lifespan opens the resources, best on an AsyncExitStack, and yields the state that requests see;
they are closed in the reverse order.

    1. the address is taken, so that a taken port stops the service before it touches anything
    2. the lifespan opens
    3. requests are served, until SIGTERM, SIGINT, `stop()`, `fail()`, or the supervisor's end
    4. /ready is 503, no connection is taken any more, requests in flight get their answers
    5. the lifespan closes

A FatalError at any point is one line on stderr and its own exit code: 78 when a start would meet
it again, 1 when the next one may do better, as after a bug. A second signal hurries.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import NoReturn, TypeVar

import uvloop
from starlette.applications import Starlette

from services.core.errors import FatalError, RestartLater
from services.runtime import telemetry
from services.runtime.clock import Clock, SystemClock
from services.runtime.compiled import check_compiled, compiled_modules
from services.runtime.descriptors import connections_within, raise_descriptor_limit
from services.runtime.listener import Listener, ServiceProtocol
from services.runtime.metrics import Metrics, add_process_metrics
from services.runtime.probes import Condition, Readiness, ready, unready
from services.runtime.settings import ServiceSettings, load, variable_of
from services.runtime.supervised import watch_supervisor
from services.runtime.usage import answer_arguments

S = TypeVar("S", bound=ServiceSettings)

# The longest request has 5 s; all services together have 10 s to stop, and most stop at once.
drain_s_max = 6.0
# Closing flushes what is durable anyway; who takes longer is stuck.
close_s_max = 3.0
# New objects between two looks for cycles among them, which take some milliseconds at most; and
# how many such looks there are before the next older generation is looked at too.
young_objects_max = 20_000
older_rounds = (20, 20)


class Service:
    """What a running service has besides its application; handed to `build_app`."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.metrics = Metrics()
        self.readiness = Readiness()
        self.stopping: str | None = None
        self.failure: FatalError | None = None
        self._stopped = asyncio.Event()
        self._patience: asyncio.Timeout | None = None
        add_process_metrics(self.metrics)
        self.readiness.add("shutting_down", self._check)

    def stop(self, reason: str) -> None:
        """Begin to drain. While starting, or asked a second time, give up what is waited for."""
        if self.stopping is None:
            self.stopping = reason
        self._stopped.set()
        # One that has run out already is on its way: what it ended may take a while to unwind.
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    def fail(self, error: FatalError) -> None:
        """End the process because of the error: requests in flight are dropped."""
        if self.failure is None:
            self.failure = error
        self.stop("a fatal error")

    async def until_stopped(self) -> None:
        await self._stopped.wait()

    @asynccontextmanager
    async def patience(self, seconds: float | None) -> AsyncIterator[None]:
        """Let the block run that long; `stop` ends it at once. It ends without an exception."""
        try:
            async with asyncio.timeout(seconds) as self._patience:
                yield
        except TimeoutError:
            if self._patience is None or not self._patience.expired():
                raise
        finally:
            self._patience = None

    def _check(self) -> Condition:
        return ready if self.stopping is None else unready(f"stopping because of {self.stopping}")


BuildApp = Callable[[S, Service], Starlette]


def main(
    settings_type: type[S],
    build_app: BuildApp[S],
    protocol: type[ServiceProtocol] = ServiceProtocol,
) -> NoReturn:
    """Read the settings from the environment, run the service, and exit."""
    code = answer_arguments(settings_type, sys.argv[1:])
    if code is not None:
        sys.exit(code)
    try:
        settings = load(settings_type, os.environ)
    except FatalError as error:
        sys.exit(_say(settings_type.service, error))
    sys.exit(run(settings, build_app, os.environ, protocol))


def run(
    settings: S,
    build_app: BuildApp[S],
    environ: Mapping[str, str],
    protocol: type[ServiceProtocol] = ServiceProtocol,
) -> int:
    """Run the service in this process until it is asked to stop; returns the exit code."""
    telemetry.configure(settings.service, settings.log_format)
    _prefer_batches()
    try:
        check_compiled()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(settings, build_app, environ, protocol))
    except FatalError as error:
        return _say(settings.service, error)
    except BaseExceptionGroup as errors:
        fatal, others = errors.split(FatalError)
        if fatal is None or others is not None:
            raise
        return _say(settings.service, _first(fatal))


async def serve(
    settings: S,
    build_app: BuildApp[S],
    environ: Mapping[str, str],
    protocol: type[ServiceProtocol] = ServiceProtocol,
) -> int:
    """The whole life within a running loop, as the module's text tells it."""
    service = Service(settings.service, SystemClock())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop, number.name)
    with ExitStack() as stack:
        stack.callback(watch_supervisor(partial(service.stop, "the supervisor's end"), environ))
        app = build_app(settings, service)
        listener = Listener(app, settings.bind_host, settings.port, service.clock, protocol)
        stack.callback(listener.stop_listening)
        listener.connections.add_to(service.metrics)
        port_variable = variable_of(type(settings), "port")
        await listener.bind(port_variable)
        await _live(service, app, listener, port_variable)
    if service.failure is not None:
        raise service.failure
    return 0


async def _live(service: Service, app: Starlette, listener: Listener, port_variable: str) -> None:
    log = telemetry.logger("services.service")
    lifespan: AbstractAsyncContextManager[Mapping[str, object] | None] = (
        app.router.lifespan_context(app)
    )
    opened = False
    state: Mapping[str, object] | None = None
    async with service.patience(None):
        state = await lifespan.__aenter__()
        opened = True
    if not opened:
        log.info("stopped while starting", reason=service.stopping)
        return
    _settle_memory()
    try:
        if service.stopping is None:
            descriptors = raise_descriptor_limit()
            listener.connections.connections_max = connections_within(descriptors)
            port = await listener.listen(dict(state or {}), port_variable)
            log.info(
                "listening",
                port=port,
                pid=os.getpid(),
                compiled=bool(compiled_modules()),
                descriptors=descriptors,
                connections_max=listener.connections.connections_max,
            )
            await service.until_stopped()
        log.info("draining", reason=service.stopping)
        await _drain(service, listener)
    finally:
        await _close(lifespan)
    log.info("stopped")


def _prefer_batches() -> None:
    """Ask the scheduler not to interrupt others the moment something arrives for us.

    Where there are more processes than cores, each would otherwise run for every few messages. A
    little later there are more of them, and they are read, synced and answered together: 8 % more
    reads and 10 % more writes a second with all services on two cores. On an idle core nothing
    changes.
    """
    if hasattr(os, "SCHED_BATCH"):
        # Some containers forbid it, and it is no more than a wish.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _settle_memory() -> None:
    """Have the cycle collector look at what is new, and seldom.

    What is there when a service begins stays for good. What requests make has hardly any cycles,
    and lives for milliseconds: looked at every 700 objects, as by default, much of it is found
    alive, is kept for older generations, and takes 5 % of the time of a gateway at its limit.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young_objects_max, *older_rounds)


async def _drain(service: Service, listener: Listener) -> None:
    # After a fatal error no answer can be trusted, so none is waited for.
    async with service.patience(0 if service.failure else drain_s_max):
        await listener.drain()
    connections = len(listener.connections.connections)
    requests = await listener.abandon()
    if connections or requests:
        telemetry.logger("services.service").warning(
            "drain cut short", connections=connections, requests=requests
        )


async def _close(lifespan: AbstractAsyncContextManager[object]) -> None:
    deadline = asyncio.timeout(close_s_max)
    try:
        async with deadline:
            await lifespan.__aexit__(None, None, None)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise RestartLater(
            f"resources were not closed within {close_s_max:g} s; what is on disk is as safe "
            "as after a crash"
        ) from None


def _first(errors: BaseExceptionGroup[FatalError]) -> FatalError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, FatalError) else FatalError(str(error))


def _say(service: str, error: FatalError) -> int:
    """Say it as the last line of this process; the exit code that goes with it."""
    line = " ".join(str(error).split("\n"))
    sys.stderr.write(f"ydht {service}: {line}\n")
    return error.exit_code
