"""A service as a real process: start, signals, drain, fatal errors, too many clients."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from services.core.errors import FatalError
from services.runtime.client_connections import idle_s_max
from services.runtime.clock import FakeClock, SystemClock, Timeline
from services.runtime.listener import Listener, head_bytes_max
from services.runtime.service import Service
from services.runtime.supervised import descriptor_variable

repository = Path(__file__).parents[2]
secret = "Vb8rJ2mQx0LkTz5WnYc7PdSg1HfUe4Ao"


class Process:
    """A running example service."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.port = 0
        self.events: list[dict[str, Any]] = []
        self.clients: list[Connection] = []

    async def until(self, event: str) -> dict[str, Any]:
        """Read the log until this event."""
        assert self.child.stdout is not None
        while line := await self.child.stdout.readline():
            found: dict[str, Any] = json.loads(line)
            self.events.append(found)
            if found["event"] == event:
                return found
        raise AssertionError(f"no {event!r} among {self.events}; {await self.errors()}")

    async def errors(self) -> str:
        assert self.child.stderr is not None
        return (await self.child.stderr.read()).decode()

    async def end(self) -> tuple[int, list[str], str]:
        """Exit code, the events of the log, and what stands on stderr."""
        assert self.child.stdout is not None
        async for line in self.child.stdout:
            self.events.append(json.loads(line))
        code = await self.child.wait()
        shown = [" ".join([e["event"], e.get("resource", "")]).strip() for e in self.events]
        return code, shown, await self.errors()

    async def connect(self) -> Connection:
        client = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def get(self, path: str) -> tuple[int, bytes]:
        """Ask on a connection of its own."""
        client = await self.connect()
        try:
            return await client.get(path)
        finally:
            await client.close()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Connection:
    """A client that writes exactly the bytes it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, bytes]:
        status, _, body = await self.whole_answer()
        return status, body

    async def whole_answer(self) -> tuple[int, bytes, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), head, await self.reader.readexactly(length)

    async def get(self, path: str) -> tuple[int, bytes]:
        self.send(request(path))
        return await self.answer()

    async def closed(self) -> bool:
        """Wait for the other side to close; True when it sent nothing more before."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@asynccontextmanager
async def launched(
    data_dir: Path,
    *,
    descriptors: int | None = None,
    pass_fds: tuple[int, ...] = (),
    **variables: str,
) -> AsyncIterator[Process]:
    """The example service, started but perhaps not yet serving."""

    def lower_the_limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors // 2, descriptors))

    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.example_service",
        cwd=repository,
        env={
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(data_dir),
            "CLUSTER_SECRET": secret,
            "LOG_FORMAT": "json",
            **variables,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lower_the_limit,
        pass_fds=pass_fds,
    )
    process = Process(child)
    try:
        yield process
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()
        for client in process.clients:
            await client.close()


@asynccontextmanager
async def serving(data_dir: Path, **options: Any) -> AsyncIterator[Process]:
    async with launched(data_dir, **options) as process:
        process.port = (await process.until("listening"))["port"]
        yield process


opened_and_closed = ["opened first", "opened second", "closed second", "closed first"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_and_in_reverse_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with serving(tmp_path) as process:
        assert (await process.get("/health"))[0] == 200
        assert (await process.get("/ready"))[0] == 200
        process.child.send_signal(number)
        code, events, errors = await process.end()
    assert (code, errors) == (0, "")
    assert [event for event in events if event in opened_and_closed] == opened_and_closed
    assert events[-1] == "stopped"


async def test_requests_in_flight_get_their_answers_and_new_connections_are_refused(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as process:
        slow, idle = await process.connect(), await process.connect()
        await idle.get("/health")
        # The second request waits behind the first on its connection, and sees the drain.
        slow.send(request("/slow?s=1") + request("/ready"))
        await process.until("slow request")
        process.child.terminate()
        await process.until("draining")
        assert await idle.closed()
        with pytest.raises(ConnectionRefusedError):
            await process.connect()
        assert await slow.answer() == (200, b"slow but sure")
        status, body = await slow.answer()
        assert status == 503
        assert json.loads(body)["reasons"] == {"shutting_down": "stopping because of SIGTERM"}
        assert await slow.closed()
        code, events, _ = await process.end()
    assert code == 0
    assert "drain cut short" not in events


async def test_a_second_signal_does_not_wait_for_requests(tmp_path: Path) -> None:
    async with serving(tmp_path) as process:
        slow = await process.connect()
        slow.send(request("/slow?s=3600"))
        await process.until("slow request")
        process.child.terminate()
        await process.until("draining")
        process.child.terminate()
        code, events, _ = await process.end()
    assert code == 0
    assert "drain cut short" in events
    assert events[-2:] == ["closed first", "stopped"]


async def test_a_signal_while_starting_closes_what_was_opened(tmp_path: Path) -> None:
    async with launched(tmp_path, EXAMPLE_MISFORTUNE="slow-start") as process:
        await process.until("opened")
        process.child.terminate()
        code, events, errors = await process.end()
    assert (code, errors) == (0, "")
    assert [event for event in events if event in opened_and_closed] == opened_and_closed
    assert events[-1] == "stopped while starting"


async def test_asking_again_while_a_start_unwinds_is_no_error(tmp_path: Path) -> None:
    async with launched(tmp_path, EXAMPLE_MISFORTUNE="slow-unwind") as process:
        await process.until("opened")
        process.child.terminate()
        await process.until("unwinding")
        process.child.terminate()
        process.child.terminate()
        code, events, errors = await process.end()
    assert (code, errors) == (0, "")
    assert all(event["level"] == "info" for event in process.events)
    assert events[-1] == "stopped while starting"


async def test_the_first_of_two_fatal_errors_in_a_drain_is_the_one_that_counts() -> None:
    service = Service("shop", SystemClock())
    unwinding = asyncio.Event()
    first, second = FatalError("no disk"), FatalError("no network either")

    async def drain() -> None:
        async with service.patience(3600):
            try:
                await asyncio.Event().wait()
            finally:
                unwinding.set()
                await asyncio.sleep(0.01)

    draining = asyncio.create_task(drain())
    await asyncio.sleep(0)
    service.stop("SIGTERM")
    service.fail(first)
    await unwinding.wait()
    service.fail(second)
    await draining
    assert service.failure is first
    assert service.stopping == "SIGTERM"


@pytest.mark.parametrize(
    ("misfortune", "line"),
    [
        ("fatal-start", "ydht example: the disk is made of cheese: replace it\n"),
        ("group-start", "ydht example: one of several tasks found cheese\n"),
    ],
)
async def test_a_fatal_error_at_start_is_one_line(
    tmp_path: Path, misfortune: str, line: str
) -> None:
    async with launched(tmp_path, EXAMPLE_MISFORTUNE=misfortune) as process:
        code, events, errors = await process.end()
    assert (code, errors) == (78, line)
    assert events == opened_and_closed


async def test_a_fatal_error_of_a_background_loop_ends_the_process(tmp_path: Path) -> None:
    async with serving(tmp_path) as process:
        client = await process.connect()
        client.send(request("/fatal"))
        code, events, errors = await process.end()
        assert await client.closed()
    assert (code, errors) == (78, "ydht example: told to end by a request\n")
    assert [event for event in events if event in opened_and_closed] == opened_and_closed


async def test_a_resource_that_does_not_close_is_given_up_and_said(tmp_path: Path) -> None:
    async with serving(tmp_path, EXAMPLE_MISFORTUNE="stuck-close") as process:
        process.child.terminate()
        code, _, errors = await process.end()
    assert code == 1
    assert errors.startswith("ydht example: resources were not closed within 3 s")
    assert errors.count("\n") == 1


async def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    async with launched(tmp_path, EXAMPLE_PORT="http", ACCESS_LOG="maybe") as process:
        code, events, errors = await process.end()
    assert (code, events) == (78, [])
    assert errors.startswith("ydht example: ")
    assert errors.count("\n") == 1


async def test_an_address_that_is_not_there_may_come_yet(tmp_path: Path) -> None:
    # TEST-NET-1, which nobody has.
    async with launched(tmp_path, BIND_HOST="192.0.2.1") as process:
        code, events, errors = await process.end()
    assert (code, events) == (1, [])
    assert "on 192.0.2.1: this machine has no such address now; set BIND_HOST" in errors
    assert errors.count("\n") == 1


async def test_a_taken_port_is_named_before_anything_is_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with launched(tmp_path, EXAMPLE_PORT=str(port)) as process:
            code, events, errors = await process.end()
    assert code == 1, "somebody may be about to let go of it"
    assert errors.startswith(
        f"ydht example: port {port} on 127.0.0.1 is taken by process {os.getpid()} ("
    )
    assert errors.endswith("): stop that, or set EXAMPLE_PORT to another\n")
    assert errors.count("\n") == 1
    assert "opened second" not in events


async def test_it_ends_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        variables = {descriptor_variable: str(reading)}
        async with serving(tmp_path, pass_fds=(reading,), **variables) as process:
            slow = await process.connect()
            slow.send(request("/slow?s=0.5"))
            await process.until("slow request")
            os.close(writing)
            writing = -1
            assert await slow.answer() == (200, b"slow but sure")
            code, events, _ = await process.end()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    assert code == 0
    assert events[-1] == "stopped"


async def test_it_survives_the_reader_of_its_log(tmp_path: Path) -> None:
    async with serving(tmp_path, ACCESS_LOG="true") as process:
        transport = process.child._transport  # type: ignore[attr-defined]
        transport.get_pipe_transport(1).close()
        for _ in range(20):
            assert (await process.get("/health"))[0] == 200
        process.child.terminate()
        assert await process.child.wait() == 0


async def test_four_times_as_many_clients_as_descriptors_are_all_served(tmp_path: Path) -> None:
    limit = 128
    async with serving(tmp_path, descriptors=limit) as process:
        assert process.events[-1]["descriptors"] == limit
        busy = await process.connect()
        busy.send(request("/slow?s=2"))
        await process.until("slow request")
        clients = []
        for _ in range(4 * limit):
            clients.append(client := await process.connect())
            assert (await client.get("/health"))[0] == 200
        # Whoever came last was not the idlest: still connected.
        assert (await clients[-1].get("/health"))[0] == 200
        assert await clients[0].closed()
        # One that waits for its answer is never the one to go.
        assert await busy.answer() == (200, b"slow but sure")
        figures = json.loads((await process.get("/metrics"))[1])
        assert figures["http_connections"] <= figures["http_connections_max"] + 1 < limit
        assert figures["http_connections_closed_by_us.shed"] >= 3 * limit
        before_s = process.cpu_s()
        await asyncio.sleep(1)
        assert process.cpu_s() - before_s < 0.3


async def test_a_burst_of_silent_clients_does_not_lock_out_new_ones(tmp_path: Path) -> None:
    limit = 96
    async with serving(tmp_path, descriptors=limit) as process:
        silent = await asyncio.gather(*(process.connect() for _ in range(4 * limit)))
        for client in silent[::3]:
            client.send(b"GET /heal")
        for _ in range(20):
            assert (await process.get("/health"))[0] == 200
        before_s = process.cpu_s()
        await asyncio.sleep(1)
        assert process.cpu_s() - before_s < 0.3


async def test_with_every_connection_busy_a_new_one_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path, descriptors=64) as process:
        room = process.events[-1]["connections_max"]
        busy = [await process.connect() for _ in range(room)]
        for client in busy:
            client.send(request("/slow?s=3600"))
        for _ in busy:
            await process.until("slow request")
        refused = await process.connect()
        status, head, body = await refused.whole_answer()
        assert status == 503
        assert b"Retry-After: 1" in head
        assert json.loads(body)["code"] == "overloaded"
        assert await refused.closed()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * head_bytes_max + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /" + b"x" * head_bytes_max, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * head_bytes_max, 431, "headers_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_header"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "invalid_header"),
        (b"GET /caf\xc3\xa9 HTTP/1.1\r\nA: b\r\n\r\n", 400, "invalid_header"),
        (b"GET / HTTP/1.1\r\nA b\r\n\r\n", 400, "invalid_header"),
        (
            b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "invalid_header",
        ),
        (b"POST /echo HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400, "invalid_header"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_header"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "invalid_header"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "invalid_header"),
        (b"GET /health HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400, "invalid_header"),
        (b"GET /health#a HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_header"),
        (b"GET /?a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_header"),
    ],
)
async def test_what_is_not_http_is_answered_with_a_problem_and_closed(
    example: Process,
    sent: bytes,
    status: int,
    code: str,
) -> None:
    client = await example.connect()
    client.send(sent)
    found, head, body = await client.whole_answer()
    assert (found, json.loads(body)["code"]) == (status, code)
    assert b"content-type: application/problem+json" in head.lower()
    assert await client.closed()
    assert (await example.get("/health"))[0] == 200


@pytest.fixture
async def example(tmp_path: Path) -> AsyncIterator[Process]:
    async with serving(tmp_path) as process:
        yield process


async def test_garbage_behind_a_request_does_not_overtake_its_answer(example: Process) -> None:
    client = await example.connect()
    client.send(request("/slow?s=0.2") + b"\x00\x01garbage\r\n\r\n")
    assert await client.answer() == (200, b"slow but sure")
    assert await client.closed()


async def test_a_head_that_arrives_byte_by_byte_is_a_request(example: Process) -> None:
    client = await example.connect()
    for byte in request("/health"):
        client.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await client.answer())[0] == 200
    assert (await client.get("/ready"))[0] == 200


async def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(
    example: Process,
) -> None:
    client = await example.connect()
    client.send(
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    status, body = await client.answer()
    assert (status, json.loads(body)["code"]) == (413, "body_too_large")
    assert await client.closed()


async def test_a_chunked_body_is_cut_off_at_the_limit(example: Process) -> None:
    client = await example.connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with suppress(ConnectionError):
        for _ in range(64):
            client.send(chunk)
            await client.writer.drain()
    status, body = await client.answer()
    assert (status, json.loads(body)["code"]) == (413, "body_too_large")
    # The server has ended its side; who goes on sending is cut off before long.
    assert await client.closed()

    async def go_on_sending() -> None:
        while True:
            client.send(chunk)
            await client.writer.drain()
            await asyncio.sleep(0.005)

    with pytest.raises(ConnectionError):
        await go_on_sending()


chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"1\r\na\r\n0\r\n", b"X-Trailer: y\r\n" * 500),
        (b"1\r\na\r\n0\r\nX-Trailer: ", b"y" * 5000),
        (b"1;ext=", b"y" * 5000),
        (b"", b"1;extension-that-is-longer-than-its-chunk\r\na\r\n" * 100),
    ],
    ids=["trailers", "one trailer", "one chunk extension", "chunk extensions"],
)
async def test_what_stands_around_a_body_is_bounded(
    example: Process, begin: bytes, more: bytes
) -> None:
    client = await example.connect()
    client.send(chunked + begin)
    for _ in range(1 + head_bytes_max // 2000):
        client.send(more)
        await client.writer.drain()
    status, body = await client.answer()
    assert (status, json.loads(body)["code"]) == (431, "headers_too_large")
    assert "trailers and chunk extensions" in json.loads(body)["detail"]
    assert await client.closed()


async def test_a_body_in_the_smallest_chunks_is_taken(example: Process) -> None:
    client = await example.connect()
    client.send(chunked + b"1\r\na\r\n" * 2 * head_bytes_max + b"0\r\nX-Trailer: y\r\n\r\n")
    assert await client.answer() == (200, b"a" * 2 * head_bytes_max)
    assert (await client.get("/health"))[0] == 200


async def test_a_body_that_turns_malformed_is_refused_at_once(example: Process) -> None:
    client = await example.connect()
    client.send(chunked + b"1\r\na\r\n")
    client.send(b"no size\r\n")
    status, body = await client.answer()
    assert (status, json.loads(body)["code"]) == (400, "invalid_header")
    assert await client.closed()


async def test_a_malformed_body_is_refused_behind_the_answers_before_it(example: Process) -> None:
    client = await example.connect()
    client.send(request("/slow?s=0.2") + request("/health") + chunked + b"no size\r\n")
    assert await client.answer() == (200, b"slow but sure")
    assert (await client.answer())[0] == 200
    status, body = await client.answer()
    assert (status, json.loads(body)["code"]) == (400, "invalid_header")
    assert await client.closed()


async def test_an_old_client_needs_to_name_no_host(example: Process) -> None:
    client = await example.connect()
    client.send(b"GET /health HTTP/1.0\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert await client.closed()


async def test_after_kill_9_its_port_can_be_used_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as killed:
        client = await killed.connect()
        await client.get("/health")
        killed.child.kill()
        assert (await killed.end())[0] == -signal.SIGKILL
        async with serving(tmp_path, EXAMPLE_PORT=str(killed.port)) as again:
            assert again.port == killed.port
            assert (await again.get("/health"))[0] == 200


class Attended:
    """A listener in this process, on a clock that a test moves."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        app = Starlette(
            routes=[
                Route("/health", self.health),
                Route("/flood", self.flood),
                Route("/headers", self.headers, methods=["POST"]),
            ]
        )
        self.listener = Listener(app, "127.0.0.1", 0, FakeClock(self.timeline))
        self.listener.connections.connections_max = 100
        self.flooding = asyncio.Event()

    async def health(self, _: Request) -> Response:
        return PlainTextResponse("fine")

    async def headers(self, request: Request) -> Response:
        """Whatever stands in the scope once the body has been read."""
        await request.body()
        return PlainTextResponse(repr(request.scope["headers"]))

    async def flood(self, _: Request) -> Response:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                self.flooding.set()
                yield b"x" * 65536
                await asyncio.sleep(0)

        return StreamingResponse(endless())

    def pass_seconds(self, seconds: float) -> None:
        self.timeline.advance(seconds)
        self.listener.connections.expire()


Attending = tuple[Attended, Callable[[], Awaitable[Connection]]]


@pytest.fixture
async def attended() -> AsyncIterator[Attending]:
    attended = Attended()
    await attended.listener.bind("PORT")
    port = await attended.listener.listen({}, "PORT")
    clients: list[Connection] = []

    async def connect() -> Connection:
        clients.append(Connection(*await asyncio.open_connection("127.0.0.1", port)))
        return clients[-1]

    yield attended, connect
    attended.listener.stop_listening()
    await attended.listener.abandon()
    for client in clients:
        await client.close()


async def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never held")


async def test_silent_half_sent_and_unused_connections_expire_alike(attended: Attending) -> None:
    watch, connect = attended
    silent, halfway, unused, fresh = [await connect() for _ in range(4)]
    await unused.get("/health")
    halfway.send(b"GET /health HTTP/1.1\r\nHos")
    watch.pass_seconds(idle_s_max - 1)
    assert (await fresh.get("/health"))[0] == 200
    halfway.send(b"t: ")
    watch.pass_seconds(1)
    for client in (silent, halfway, unused):
        assert await client.closed()
    assert (await fresh.get("/health"))[0] == 200
    assert watch.listener.connections.expired == 3


async def test_a_client_that_does_not_read_its_answer_is_dropped(attended: Attending) -> None:
    watch, connect = attended
    client = await connect()
    client.send(request("/flood"))
    connections = watch.listener.connections
    await watch.flooding.wait()
    await eventually(lambda: connections.stalled_count == 1)
    watch.pass_seconds(idle_s_max - 1)
    assert len(connections.connections) == 1
    watch.pass_seconds(2)
    await connections.lost.wait()
    assert not connections.connections
    assert not connections.stalled_count
    assert connections.expired == 1


async def test_a_trailer_is_never_taken_for_a_header(attended: Attending) -> None:
    _, connect = attended
    client = await connect()
    client.send(
        b"POST /headers HTTP/1.1\r\nHost: x\r\nX-API-Key: mine\r\n"
        b"Transfer-Encoding: chunked\r\nTrailer: X-API-Key\r\n\r\n"
    )
    client.send(b"1\r\na\r\n0\r\nX-API-Key: from a trailer\r\nX-Ydht-Tenant: 7\r\n\r\n")
    status, body = await client.answer()
    assert status == 200
    assert b"mine" in body
    assert b"from a trailer" not in body
    assert b"x-ydht-tenant" not in body
