"""Links between services: a client that keeps one connection up, and a server that takes them.

`Link` connects, opens and reconnects by itself; meanwhile `request` answers DOWN, and nothing is
queued: whoever asks decides what to do instead. `LinkServer` listens and hands each open
connection to its handlers. What one open connection promises stands in peer.py.

Without TLS (link_tls.py) a link is authenticated when it opens and not encrypted: for one machine
or a private network.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from services.core.wire import DOWN, Frame, FrameDecoder, Hello
from services.runtime import telemetry
from services.runtime.connection import Connection
from services.runtime.descriptors import descriptor_limit, links_within
from services.runtime.link_limits import LinkCounters, LinkLimits
from services.runtime.link_tls import SecuredStrangers, TlsFiles, tls_context, why_not
from services.runtime.opening import (
    Admit,
    ClientOpening,
    Identity,
    ServerOpening,
    anyone,
    bug_while_opening,
    shutting_down,
)
from services.runtime.peer import Handlers, OnAnswer, Peer
from services.runtime.port_holder import cannot_listen
from services.runtime.refusals import Refusals
from services.runtime.settings import link_port_offset

log = telemetry.logger(__name__)
_spoiled: Final = (ssl.SSLError, ConnectionResetError, ConnectionAbortedError)

# The first retry is nearly at once, for a peer that restarts; a peer that stays away is asked
# every few seconds, at random, so that a hundred clients don't return in one instant.
reconnect_s_min: Final = 0.05
reconnect_s_max: Final = 2.0


def ignore(peer: Peer) -> None:
    """For a service that need not know when a peer comes or goes."""


@dataclass(slots=True, frozen=True)
class Station:
    """What all links of one process share."""

    identity: Identity
    handlers: Handlers = field(default_factory=dict)
    limits: LinkLimits = field(default_factory=LinkLimits)
    counters: LinkCounters = field(default_factory=LinkCounters)
    tls: TlsFiles | None = None
    on_up: Callable[[Peer], None] = ignore
    on_down: Callable[[Peer], None] = ignore

    def came(self, peer: Peer) -> None:
        self._tell(self.on_up, peer)

    def went(self, peer: Peer) -> None:
        self._tell(self.on_down, peer)

    def _tell(self, callback: Callable[[Peer], None], peer: Peer) -> None:
        """A bug in what a service does about a peer must not cost the link to it."""
        try:
            callback(peer)
        except Exception:
            self.counters.bugs += 1
            log.exception("a callback of a link failed", peer=peer.hello.id)


class Link:
    """A client's end: one address, at most one connection, kept up from `start` to `close`.

    `absence` is what to say, once, as long as nobody has ever been there: for one who is started
    in no order with us. Raises FatalError when the station's TLS files cannot be used.
    """

    def __init__(
        self,
        station: Station,
        host: str,
        port: int,
        *,
        admit: Admit = anyone,
        absence: str | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.last_error: str | None = None
        self._station = station
        self._admit = admit
        self._absence = absence
        self._reached = False
        # Read once, so that files that cannot be used stop the start, not some later reconnect.
        self._context = tls_context(station.tls, server=False) if station.tls else None
        # Reconnects are spread, not hidden: no secret hangs on this generator.
        self._jitter = jitter or random.Random()  # noqa: S311
        self._connection: Connection | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        connection = self._connection
        return connection is not None and connection.connected

    @property
    def peer(self) -> Hello | None:
        """Who is at the other end, while there is a connection."""
        return self._connection.hello if self._connection is not None else None

    @property
    def pending(self) -> int:
        return self._connection.pending if self._connection is not None else 0

    def silent_s(self) -> float:
        return self._connection.silent_s() if self._connection is not None else float("inf")

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        connection = self._connection
        if connection is None:
            return DOWN
        return connection.request(kind, body, on_answer, timeout_s)

    def notify(self, kind: int, body: bytes) -> bool:
        return self._connection is not None and self._connection.notify(kind, body)

    def start(self) -> None:
        if self._task is not None:
            raise RuntimeError("the link was started before")
        self._task = asyncio.create_task(self._keep_up(), name=f"link {self.host}:{self.port}")

    async def close(self, drain_s: float = 0.0) -> None:
        """Finish what is under way within `drain_s`, then close and stay closed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._connection is not None:
            await self._connection.drain(drain_s)

    async def _keep_up(self) -> None:
        loop = asyncio.get_running_loop()
        wait_s = reconnect_s_min
        while True:
            refusal = await self._try()
            if refusal is None:
                up_s = loop.time()
                await self._lost.wait()
                if loop.time() - up_s > reconnect_s_max:
                    wait_s = reconnect_s_min
            elif refusal != self.last_error:
                # Said once, not at every retry.
                self._say_down(refusal)
                self.last_error = refusal
            await asyncio.sleep(wait_s * self._jitter.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, reconnect_s_max)

    def _say_down(self, reason: str) -> None:
        if self._reached or self._absence is None:
            log.warning("link is down", host=self.host, port=self.port, reason=reason)
        elif self.last_error is None:
            log.info(self._absence, reason=reason)

    async def _try(self) -> str | None:
        try:
            return await self._connect()
        except Exception:
            # A bug in one attempt must not end all later ones unseen.
            self._station.counters.bugs += 1
            log.exception("connecting a link failed", host=self.host, port=self.port)
            return bug_while_opening

    async def _connect(self) -> str | None:
        """Try once. None when the link is up, else why not."""
        loop = asyncio.get_running_loop()
        station = self._station
        outcome: asyncio.Future[str | None] = loop.create_future()

        def opened(
            transport: asyncio.Transport, hello: Hello, decoder: FrameDecoder, rest: list[Frame]
        ) -> None:
            if outcome.done():
                # The time ran out in this very turn of the loop, and nobody waits for it.
                transport.abort()
                return
            _open(station, transport, hello, decoder, rest, self._up, self._down)
            outcome.set_result(None)

        def refused(reason: str) -> None:
            if not outcome.done():
                outcome.set_result(reason)

        opening_s = station.limits.opening_s
        opening = ClientOpening(
            station.identity, self._admit, opening_s, station.counters, opened, refused
        )
        try:
            async with asyncio.timeout(opening_s):
                await loop.create_connection(
                    lambda: opening,
                    self.host,
                    self.port,
                    ssl=self._context,
                    ssl_shutdown_timeout=opening_s if self._context else None,
                )
                self._reached = True
                return await outcome
        except TimeoutError:
            if outcome.done() and not outcome.cancelled():
                # It came in the same turn as the end of the time: the link is up, or refused.
                return outcome.result()
            return f"no answer within {opening_s:g} s"
        except (OSError, ValueError, OverflowError) as error:
            # Who spoils the handshake of TLS is there.
            self._reached = self._reached or isinstance(error, _spoiled)
            # A host or port that cannot be is as good as one where nobody answers.
            return why_not(error)
        finally:
            opening.abandon()

    def _up(self, connection: Connection) -> None:
        self._lost.clear()
        self._connection = connection
        self.last_error = None

    def _down(self, connection: Connection, reason: str) -> None:
        self._connection = None
        self._lost.set()
        self.last_error = reason
        log.info("link closed", peer=connection.hello.id, reason=reason)
        self._station.went(connection)


class LinkServer:
    """A server's end: listens, and keeps the open connections until each is lost or drained."""

    def __init__(self, station: Station, host: str, port: int, *, admit: Admit = anyone) -> None:
        self.port = port
        self.connections: set[Connection] = set()
        self._station = station
        self._host = host
        self._admit = admit
        self._openings: set[ServerOpening] = set()
        self._refusals = Refusals(station.counters)
        self._server: asyncio.Server | None = None
        self._secured = (
            SecuredStrangers(
                tls_context(station.tls, server=True),
                self._stranger,
                self._refusals.refused,
                station.counters,
            )
            if station.tls
            else None
        )
        self._connections_max = station.limits.connections_max
        self._closing = False

    async def start(self) -> None:
        """Listen. A port of 0 becomes the one that was found."""
        limits = self._station.limits
        self._connections_max = min(limits.connections_max, links_within(descriptor_limit()))
        try:
            # A burst larger than the backlog waits a second for its kernel to knock again.
            listening = socket.create_server(
                (self._host, self.port),
                family=socket.AF_INET6 if ":" in self._host else socket.AF_INET,
                backlog=limits.openings_max,
            )
        except OSError as error:
            where = f"port {self.port} on {self._host}, for links,"
            choice = f"choose another HTTP port (links are at {link_port_offset} above it)"
            raise cannot_listen(error, self.port, where, choice) from error
        self.port = listening.getsockname()[1]
        if self._secured is not None:
            self._secured.start(listening, limits.openings_max, limits.opening_s)
        else:
            self._server = await asyncio.get_running_loop().create_server(
                self._stranger, sock=listening, backlog=limits.openings_max
            )

    async def close(self, drain_s: float = 0.0) -> None:
        """Take no more connections, finish what is under way within `drain_s`, close all."""
        self._closing = True
        if self._secured is not None:
            await self._secured.close()
        if self._server is not None:
            self._server.close()
        for opening in list(self._openings):
            opening.refuse(shutting_down)
        await asyncio.gather(*[connection.drain(drain_s) for connection in self.connections])

    def _stranger(self) -> ServerOpening:
        station = self._station

        def made() -> str | None:
            if self._closing:
                # Accepted just before the listening ended.
                return shutting_down
            if len(self._openings) >= station.limits.openings_max:
                return f"{station.limits.openings_max} other connections are just opening"
            if len(self.connections) >= self._connections_max:
                return f"{self._connections_max} links are open, which is the limit"
            self._openings.add(opening)
            return None

        def opened(
            transport: asyncio.Transport, hello: Hello, decoder: FrameDecoder, rest: list[Frame]
        ) -> None:
            self._openings.discard(opening)
            _open(station, transport, hello, decoder, rest, self.connections.add, self._gone)

        def refused(reason: str) -> None:
            self._openings.discard(opening)
            self._refusals.refused(reason, opening.address, opening.peer)

        opening = ServerOpening(
            station.identity,
            self._admit,
            station.limits.opening_s,
            station.counters,
            opened,
            refused,
            made,
        )
        return opening

    def _gone(self, connection: Connection, reason: str) -> None:
        self.connections.discard(connection)
        log.info("link closed", peer=connection.hello.id, reason=reason)
        self._station.went(connection)


def _open(
    station: Station,
    transport: asyncio.Transport,
    hello: Hello,
    decoder: FrameDecoder,
    rest: list[Frame],
    keep: Callable[[Connection], None],
    on_closed: Callable[[Connection, str], None],
) -> None:
    """Let an open connection take over; its owner knows it before its first frame is handled."""
    connection = Connection(
        transport, hello, decoder, station.handlers, station.limits, station.counters, on_closed
    )
    transport.set_protocol(connection)
    station.counters.connections_opened += 1
    keep(connection)
    station.came(connection)
    if rest:
        connection.frames_received(rest)
