"""The listening side of HTTP: uvicorn's httptools protocol, run and bounded by us.

uvicorn gives the protocol; binding, draining and the bounds on what a client sends are here:
- Who finds no room among the clients (client_connections.py) is answered 503 and closed.
- A request head has at most `head_bytes_max` bytes, and so has what stands around a chunked body:
  trailers, which are dropped, and chunk extensions.
- A request of HTTP/1.1 names its host, once.
- A target has no fragment.

uvicorn is pinned exactly, because this reaches into its protocol and server state.
"""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Any, Final, NoReturn

import httptools
import msgspec
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from services.core.errors import ClientError, FatalError, FixRequest, RetryLater
from services.runtime.client_connections import Connections, idle_s_max
from services.runtime.clock import Clock
from services.runtime.edge import new_request_id
from services.runtime.port_holder import cannot_listen
from services.runtime.problem import problem_caching, problem_type
from services.runtime.request_head import check_no_fragment

# What a browser's cookies and a long URL need; the contract names this figure to clients.
head_bytes_max = 16 * 1024
# What a chunk costs its sender at least, however long: 16 hex digits and two line ends.
chunk_bytes_max = 20
# A burst of clients waits in the kernel instead of being refused.
backlog = 1024
# How often connections are looked at and the Date header changes.
tick_s = 1.0
# How long a client that was refused while it was sending may take to see the answer.
linger_s_max = 2.0
# A handler that ignores its cancellation this long is left behind.
abandon_s_max = 1.0


# What to do about what the parser (llhttp) finds wrong, where its own words do not tell: by them,
# and by the kind of the error.
_encode: Final = "percent-encode the target, a blank as %20"
_advice: Final = {
    "Expected HTTP/, RTSP/ or ICE/": _encode,
    "Pause on PRI/Upgrade": "HTTP/2 is not spoken here",
}
_advice_by_kind: Final[dict[type[Exception], str]] = {
    httptools.HttpParserInvalidURLError: _encode,
    httptools.HttpParserInvalidMethodError: "methods are in capitals, such as GET or PUT, and "
    "TLS is not spoken here",
}


class ServiceProtocol(HttpToolsProtocol):
    """One client connection."""

    server_state: Connections

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Bytes of the head, or of what stands around the body, that have arrived.
        self._framing_bytes = 0
        self._in_head = True
        # Of the message that is being parsed; uvicorn has none before the first.
        self.url = b""
        # From here on, what the client sends is dropped.
        self._refused = False
        # The line that frames the body of a message whose offer to upgrade is being declined.
        self._declining = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.server_state.add(self):
            self._refused = True
            busy = f"All {self.server_state.connections_max} connections are busy"
            transport.write(self._raw(RetryLater("overloaded", busy)))
            # Not lingering: there is no room for it.
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.busy(self)
        self.server_state.flowing(self)
        super().connection_lost(exc)
        # It refers to this connection: both would stay, with all that arrived, until the cycle
        # collector comes by, which is seldom where thousands of connections come and go.
        self.cycle = None  # type: ignore[assignment]
        self.server_state.lost.set()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._framing_bytes += len(data)
        self._parse(data)
        self._bound_framing()

    def _parse(self, data: bytes | memoryview) -> None:
        while len(data):
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._declining:
                    self.parser = BehindAnOffer(self).parser(self._declining)
                    self._declining = b""
                data = memoryview(data)[offer.args[0] :]
            except httptools.HttpParserError as error:
                self._malformed(error)
                return
            else:
                return

    def _bound_framing(self) -> None:
        # Looked at after parsing: the callbacks have taken off what was no framing. They cannot
        # tell where in `data` a message ended, so what is behind that goes uncounted, once.
        if self._framing_bytes > head_bytes_max and not self._refused:
            self._refuse(head_too_large() if self._in_head else _framing_too_large())
        self._framing_bytes = max(self._framing_bytes, 0)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Behind the head this is a trailer. Taken for a header it would have passed every check
        # of headers by, and nothing would bound how many there are.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            hosts += name == b"host"
        self._framing_bytes -= size
        if size > head_bytes_max:
            self._refuse_head(head_too_large())
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self.server_state.malformed += 1
            self._refuse_head(
                FixRequest("invalid_header", f"There are {hosts} Host headers; send exactly one")
            )
        try:
            check_no_fragment(self.url)
        except FixRequest as error:
            self.server_state.malformed += 1
            self._refuse_head(error)
        self._decline_upgrade(self.headers)
        self.server_state.busy(self)
        super().on_headers_complete()
        self.cycle.transport = LingeringTransport(self)  # type: ignore[assignment]

    def _decline_upgrade(self, headers: list[tuple[bytes, bytes]]) -> None:
        if self.parser.should_upgrade():
            framing = (b"content-length", b"transfer-encoding")
            for name, value in headers:
                if name in framing and value.strip(b" \t0"):
                    self._declining = name + b": " + value + b"\r\n"

    def on_chunk_header(self) -> None:
        self._framing_bytes -= chunk_bytes_max

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._declining:
            self._framing_bytes = 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self._answered:
            self.server_state.idle(self)

    def close_after_answer(self) -> None:
        """Close, so that the client gets the answer even if it is still sending."""
        if self._refused or self.transport.is_closing() or not self.cycle.more_body:
            self.transport.close()
        else:
            self._refused = True
            self._linger()

    def _linger(self) -> None:
        """End our side, and the connection a little later.

        Closing with unread input makes the kernel reset the connection, and a reset overtakes
        the answer. So the rest is read and dropped for a while.
        """
        self.flow.resume_reading()
        self.transport.write_eof()
        self.server_state.idle(self)
        # Closing again what is lost or shed by then does nothing.
        self.loop.call_later(linger_s_max, self.transport.close)

    def pause_writing(self) -> None:
        self.server_state.stalled(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self.server_state.flowing(self)
        super().resume_writing()

    @property
    def _answered(self) -> bool:
        """Whether every request that arrived here has its answer."""
        return self.cycle is None or self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """uvicorn's hook for what its parser does not take."""
        if not self._refused:
            self.server_state.malformed += 1
            problem = f"This is not an HTTP/1.1 request: {msg}"
            self._refuse(FixRequest("invalid_header", problem))

    def _malformed(self, error: httptools.HttpParserError) -> None:
        # One of the parser's own texts, with nothing in it of what the client has sent.
        msg = str(error)
        advice = _advice.get(msg) or _advice_by_kind.get(type(error))
        self.send_400_response(f"{msg}; {advice}" if advice else msg)

    def _refuse_head(self, error: ClientError) -> NoReturn:
        self._refuse(error)
        raise httptools.HttpParserError

    def _refuse(self, error: ClientError) -> None:
        """Answer and close; requests that have arrived whole get their own answers first."""
        self._refused = True
        cycle = self.cycle
        if self._answered:
            self._answer_and_end(error)
        elif not cycle.more_body:
            cycle.keep_alive = False
        elif self.pipeline and self.pipeline[0][0] is cycle:
            self._refuse_in_turn(error)
        else:
            # Its body will never be whole; the handler sees a client that has left.
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
            else:
                self._answer_and_end(error)

    def _refuse_in_turn(self, error: ClientError) -> None:
        """Refuse the newest request when those before it on the connection are answered."""
        cycle = self.cycle
        cycle.disconnected = True

        async def refuse(*_: object) -> None:
            self._answer_and_end(error)

        self.pipeline[0] = (cycle, refuse)

    def _answer_and_end(self, error: ClientError) -> None:
        if not self.transport.is_closing():
            self.transport.write(self._raw(error))
            self._linger()

    def _raw(self, error: ClientError) -> bytes:
        # Before its target nobody knows what a message is, and the parser names the one before.
        bodiless = bool(self.url) and self.parser.get_method() == b"HEAD"
        return raw_answer(error, self.server_state.date_line, bodiless=bodiless)


class BehindAnOffer:
    """Hears a parser that takes over behind a head with `Upgrade: h2c`, or `websocket`.

    llhttp ends such a message at its head, since what follows would be of the other protocol. The
    offer is declined by answering the request, so what follows is its body. Who took that for the
    next request would answer requests that a client has hidden in it. The new parser is primed
    with a head of the same framing, which the connection does not hear of.
    """

    def __init__(self, protocol: ServiceProtocol) -> None:
        self._protocol = protocol
        self._primed = False
        self.on_body = protocol.on_body
        self.on_chunk_header = protocol.on_chunk_header
        self.on_message_complete = protocol.on_message_complete

    def parser(self, framing: bytes) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._primed = True
        return parser

    def on_message_begin(self) -> None:
        if self._primed:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._primed:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._primed:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._primed:
            self._protocol.on_headers_complete()


class LingeringTransport:
    """What a request's cycle sees of its connection's transport."""

    __slots__ = ("_protocol", "is_closing", "write")

    def __init__(self, protocol: ServiceProtocol) -> None:
        self._protocol = protocol
        self.is_closing = protocol.transport.is_closing
        self.write = protocol.transport.write

    def close(self) -> None:
        self._protocol.close_after_answer()


def head_too_large() -> FixRequest:
    return FixRequest(
        "headers_too_large", f"The request line and headers take more than {head_bytes_max} bytes"
    )


def _framing_too_large() -> FixRequest:
    return FixRequest(
        "headers_too_large",
        f"The trailers and chunk extensions take more than {head_bytes_max} bytes",
    )


def raw_answer(error: ClientError, date_line: bytes = b"", *, bodiless: bool = False) -> bytes:
    """A whole response for a connection that is closed after it; `bodiless` to HEAD, which has a
    body's length and no body."""
    request_id = new_request_id()
    body = msgspec.json.encode(error.problem(request_id))
    headers = {
        **error.headers,
        "Content-Type": problem_type,
        **problem_caching,
        "Content-Length": str(len(body)),
        "X-Request-ID": request_id,
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = STATUS_LINE[error.status] + date_line + lines.encode("latin-1") + b"\r\n"
    return head if bodiless else head + body


class Listener:
    """Serves an application on one address: `bind`, `listen`, and at last `drain`."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        clock: Clock,
        protocol: type[ServiceProtocol] = ServiceProtocol,
    ) -> None:
        self._host = host
        self._port = port
        self._protocol = protocol
        self._app_state: dict[str, Any] = {}
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self.connections = Connections(clock)
        self._config = Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(idle_s_max),
        )
        self._config.load()

    async def bind(self, port_variable: str) -> None:
        """Take the address without serving yet, so that a taken port is known before all else."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._connection, self._host, self._port, backlog=backlog, start_serving=False
            )
        except OSError as error:
            raise self._unusable(error, port_variable) from error

    async def listen(self, app_state: dict[str, Any], port_variable: str) -> int:
        """Serve; the port is returned, for it may have been 0. `app_state` goes to each request."""
        if self._server is None:
            raise RuntimeError("bind comes first")
        self._app_state = app_state
        self._tick()
        try:
            await self._server.start_serving()
        except OSError as error:
            raise self._unusable(error, port_variable) from error
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drain(self) -> None:
        """Take no more connections; return when every request has its answer."""
        self.stop_listening()
        for connection in list(self.connections.connections):
            connection.shutdown()
        while self.connections.connections:
            self.connections.lost.clear()
            await self.connections.lost.wait()
        # A handler may outlive its client.
        if self.connections.tasks:
            await asyncio.wait(list(self.connections.tasks))

    async def abandon(self) -> int:
        """Drop what is left of connections and requests; how many requests that were."""
        left = list(self.connections.tasks)
        for connection in list(self.connections.connections):
            connection.transport.abort()
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=abandon_s_max)
        return len(left)

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._ticking is not None:
            self._ticking.cancel()

    def _connection(self) -> ServiceProtocol:
        return self._protocol(
            config=self._config, server_state=self.connections, app_state=self._app_state
        )

    def _tick(self) -> None:
        self.connections.tell_date(formatdate(usegmt=True).encode())
        self.connections.expire()
        # At each full second, so that no Last-Modified is later than its Date.
        pause_s = tick_s - time.time() % tick_s
        self._ticking = asyncio.get_running_loop().call_later(pause_s, self._tick)

    def _unusable(self, error: OSError, port_variable: str) -> FatalError:
        where = f"port {self._port} on {self._host}"
        return cannot_listen(error, self._port, where, f"set {port_variable} to another")
