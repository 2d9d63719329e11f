"""Several gateways behind one address, with the file that users are given: deploy/haproxy.cfg.

HAProxy is called as that file says, before the gateway of `ydht up` and one more that was started
by hand, and before servers that tell what they were sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from services.core.errors import CATALOGUE
from services.runtime.problem import problem_type
from tests.cluster.test_up import up_command
from tests.free_ports import free_port
from tests.integration.lane_world import Answer, Client
from tests.integration.node_process import NodeProcess
from tests.integration.supervised import supervised
from tests.plain_http import plain_get
from tests.tidy.tree import root
from tests.waiting import wait_until

configuration = root / "deploy" / "haproxy.cfg"
customers = 32
# Answered before a gateway leaves, after that, and once it is back.
enough_answers = 1_000


def haproxy() -> str:
    found = shutil.which("haproxy")
    assert found is not None, "haproxy is not installed; Debian's package has that name"
    return found


@asynccontextmanager
async def balanced(first_port: int, second_port: int) -> AsyncIterator[int]:
    """HAProxy before gateways on these ports, which it holds for ready; its own port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        haproxy(),
        "-db",
        "-f",
        str(configuration),
        env={
            **os.environ,
            "YDHT_ADDRESS": f"127.0.0.1:{port}",
            "YDHT_GATEWAY_1": f"127.0.0.1:{first_port}",
            "YDHT_GATEWAY_2": f"127.0.0.1:{second_port}",
        },
        stderr=subprocess.PIPE,
    )
    try:
        await wait_until(lambda: is_listening(port), "the balancer listens")
        yield port
        assert process.returncode is None
    finally:
        process.terminate()
        await process.communicate()


def is_listening(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


async def connect(port: int) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", port))


def request(method: str, path: str, *lines: str, body: str = "") -> bytes:
    fields = ["Host: 127.0.0.1", *lines, *([f"Content-Length: {len(body)}"] if body else [])]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", body]).encode()


# -- before servers that tell what they were sent


class Witness:
    """A server that is always ready, and keeps the heads of what else it is asked."""

    def __init__(self, *, hangs_up: bool = False) -> None:
        self.heads: list[bytes] = []
        self._hangs_up = hangs_up
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"GET /ready "):
                    self.heads.append(head)
                    if self._hangs_up:
                        break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()


@asynccontextmanager
async def witnessed(*, hangs_up: bool = False) -> AsyncIterator[tuple[Witness, int]]:
    """A witness, and the port of a balancer before it and a gateway that is not there."""
    witness = Witness(hangs_up=hangs_up)
    try:
        async with balanced(await witness.start(), free_port()) as port:
            yield witness, port
    finally:
        await witness.close()


async def asked(port: int, content: bytes) -> Answer:
    """The answer to one request on a connection of its own."""
    client = await connect(port)
    answer = await client.ask(content)
    await client.close()
    return answer


def problem(answer: Answer) -> dict[str, Any]:
    """What it says, if it has the form of all errors."""
    assert answer.field(b"content-type") == problem_type.encode()
    found: dict[str, Any] = json.loads(answer.body)
    assert found["status"] == answer.status == CATALOGUE[found["code"]].status
    assert found["title"] == found["error"] == CATALOGUE[found["code"]].title
    assert found["type"] == f"/docs/errors#{found['code']}"
    assert found["detail"]
    assert found["request_id"]
    return found


def test_the_file_is_accepted_as_it_is() -> None:
    command = [haproxy(), "-c", "-f", str(configuration)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  Ours.
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr


async def test_where_a_client_says_it_comes_from_is_not_passed_on() -> None:
    async with witnessed() as (witness, port):
        forged = ("X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.8")
        answer = await asked(port, request("GET", "/v1/kv/key", *forged, "X-Api-Key: mine"))
        assert answer.status == 200
        [head] = witness.heads
        lines = [line.lower() for line in head.split(b"\r\n")]
        assert [line for line in lines if b"forwarded" in line] == [b"x-forwarded-for: 127.0.0.1"]
        assert b"203.0.113" not in head
        assert b"x-api-key: mine" in lines


async def test_what_was_not_sent_goes_to_another_gateway() -> None:
    async with witnessed() as (witness, port):
        answers = [await asked(port, request("PUT", f"/v1/kv/{n}", body="v")) for n in range(20)]
        assert {answer.status for answer in answers} == {200}
        assert len(witness.heads) == 20


async def test_what_was_sent_is_not_sent_again_and_its_outcome_is_unknown() -> None:
    async with witnessed(hangs_up=True) as (witness, port):
        answer = await asked(port, request("POST", "/v1/kv/counter/incr"))
        assert problem(answer)["code"] == "unknown_outcome"
        assert len(witness.heads) == 1


async def test_without_any_gateway_clients_are_told_when_to_come_again() -> None:
    async with balanced(free_port(), free_port()) as port:
        answer = await asked(port, request("GET", "/v1/kv/key"))
        assert problem(answer)["code"] == "overloaded"
        assert answer.field(b"retry-after") == b"1"


async def test_a_large_head_is_left_to_the_gateway_to_judge() -> None:
    async with witnessed() as (witness, port):
        lines = [f"X-Metadata-{number}: {'m' * 20}" for number in range(400)]
        assert (await asked(port, request("GET", "/v1/kv/key", *lines))).status == 200
        assert witness.heads[0].lower().count(b"x-metadata-") == 400


def test_whatever_the_balancer_says_itself_is_a_problem_of_the_catalogue() -> None:
    told = re.findall(r"http-error status (\d+) .*lf-string '(.*)'", configuration.read_text())
    assert {int(status) for status, _ in told} >= {400, 408, 413, 500, 502, 503, 504}
    for _, text in told:
        document = json.loads(text)
        entry = CATALOGUE[document["code"]]
        assert (document["status"], document["title"]) == (entry.status, entry.title)


async def test_nobody_from_outside_speaks_as_a_part_of_the_cluster() -> None:
    async with witnessed() as (witness, port):
        lines = ["X-Ydht-Signature: v1;1;a;b", "x-ydht-tenant: 7", "X-Namespace: mine"]
        assert (await asked(port, request("GET", "/v1/kv/key", *lines))).status == 200
        assert b"x-ydht-" not in witness.heads[0].lower()
        assert b"x-namespace: mine" in witness.heads[0].lower()


# -- before gateways


class SecondGateway(NodeProcess):
    """By hand, on the data directory of `ydht up`, behind a proxy that it trusts."""

    def __init__(self, data_dir: Path, up: Mapping[str, Any]) -> None:
        super().__init__(data_dir, "gateway-2")
        self.command = ("-m", "services.gateway")
        self.environment = {
            "DATA_DIR": str(data_dir),
            "GATEWAY_PORT": str(self.port),
            "USERMANAGER_URL": up["usermanager"],
            "REPLICATOR_URLS": up["replicator"],
            "TRUSTED_PROXIES": "127.0.0.1",
        }

    async def until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.returncode is None, self.said
            with suppress(httpx.TransportError):
                return plain_get(f"{self.url}/ready").status_code == 200
            return False

        await wait_until(is_ready, "the second gateway is ready")

    async def until_busy(self) -> None:
        """Until it has answered more than those who look whether it is ready."""
        await wait_until(lambda: self._answered() > 200, "the second gateway has its share")

    def _answered(self) -> int:
        figures = plain_get(f"{self.url}/metrics").json()
        return sum(value for name, value in figures.items() if name.startswith("http_requests."))


class Crowd:
    """Customers that put and get, each on a connection and with a key of its own."""

    def __init__(self, port: int, api_key: str) -> None:
        self.answers = 0
        # What any of them met that is no right answer.
        self.failures: list[str] = []
        self.leaving = False
        self._port = port
        self._credential = f"X-API-Key: {api_key}"

    async def visit(self, number: int) -> None:
        """Until all leave. A connection is made again when an answer said that it ends."""
        while not self.leaving:
            client = await connect(self._port)
            try:
                await self._talk(client, f"/v1/kv/customer-{number}")
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                self.failures.append(repr(error))
            finally:
                await client.close()

    async def _talk(self, client: Client, path: str) -> None:
        turn = 0
        closes = False
        while not self.leaving and not closes:
            turn += 1
            put = await client.ask(request("PUT", path, self._credential, body=f"{turn}"))
            self._look(put)
            if not put.closes:
                got = await client.ask(request("GET", path, self._credential))
                self._look(got, b"%d" % turn)
                closes = got.closes
            closes = closes or put.closes

    def _look(self, answer: Answer, body: bytes | None = None) -> None:
        self.answers += 1
        if answer.status != 200 or body not in (None, answer.body):
            self.failures.append(f"{answer}, and not {body!r}")

    async def until_more(self) -> None:
        wanted = self.answers + enough_answers
        await wait_until(lambda: self.answers >= wanted, "customers have been answered")


async def test_a_gateway_leaves_under_load_and_comes_back_and_no_client_notices(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    async with supervised(up_command(data_dir), data_dir) as up:
        document = await up.until_up()
        second = SecondGateway(data_dir, document)
        first_port = int(document["gateway"].rpartition(":")[2])
        try:
            await second.start()
            await second.until_ready()
            async with balanced(first_port, second.port) as port, asyncio.TaskGroup() as visits:
                crowd = Crowd(port, document["demo"]["api_key"])
                for number in range(customers):
                    visits.create_task(crowd.visit(number))
                for _ in range(3):
                    await second.until_busy()
                    await crowd.until_more()
                    assert await second.terminate() == 0
                    await crowd.until_more()
                    await second.start()
                    await second.until_ready()
                await second.until_busy()
                crowd.leaving = True
            assert crowd.failures == []
        finally:
            await second.clear()
