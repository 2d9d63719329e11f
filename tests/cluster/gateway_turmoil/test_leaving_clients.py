"""Clients that leave in the middle of anything, that do not read, or that send without an end."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.cluster.gateway.answers import put, raw
from tests.cluster.gateway_platform import Caller, GatewayProcess, Platform, served
from tests.cluster.gateway_turmoil.platform import (
    bugs,
    connected,
    descriptors,
    mebibyte,
    paused,
    resident_mib,
)
from tests.integration.lane_world import Client, request
from tests.integration.replicator_process import until_metrics

pytestmark = pytest.mark.asyncio(loop_scope="package")

strong = "X-Consistency: strong"
json_line = "Content-Type: application/json"
# Whoever asks for metrics is being answered, too.
at_rest = {"http_requests_in_flight": 1}


@asynccontextmanager
async def a_gateway(platform: Platform) -> AsyncIterator[GatewayProcess]:
    """One of the test's own, which nobody else makes grow, and which ends without a complaint."""
    async with served(platform.gateway()) as gateway:
        await gateway.until_whole()
        yield gateway
        await until_metrics(gateway, **at_rest)
        assert bugs(gateway) == []
        assert await gateway.terminate() == 0


def every_kind_of_request(lines: list[str]) -> dict[str, bytes]:
    operations = [{"op": "put", "key": f"b{n}", "value": "v" * 100} for n in range(100)]
    batch = json.dumps({"operations": operations}).encode()
    declaration = b'{"kind": "store"}'
    return {
        "get": request("GET", "/v1/kv/a", *lines),
        "head": request("HEAD", "/v1/kv/a", *lines),
        "strong get": request("GET", "/v1/kv/a", *lines, strong),
        "put": request("PUT", "/v1/kv/a", *lines, body=b"v" * 1000),
        "strong put": request("PUT", "/v1/kv/a", *lines, strong, body=b"v" * 1000),
        "chunked put": request("PUT", "/v1/kv/a", *lines, "Transfer-Encoding: chunked")
        + b"3e8\r\n" + b"v" * 1000 + b"\r\n0\r\n\r\n",
        "expected put": request("PUT", "/v1/kv/a", *lines, "Expect: 100-continue", body=b"v" * 99),
        "conditional put": request("PUT", "/v1/kv/a", *lines, "If-None-Match: *", body=b"v"),
        "delete": request("DELETE", "/v1/kv/a", *lines),
        "expire": request("PATCH", "/v1/kv/a?ttl=1h", *lines),
        "incr": request("POST", "/v1/kv/n/incr", *lines),
        "list": request("GET", "/v1/kv?limit=1000", *lines),
        "delete by prefix": request("DELETE", "/v1/kv?prefix=b", *lines),
        "batch": request("POST", "/v1/batch", *lines, json_line, body=batch),
        "declare": request("PUT", "/v1/namespaces/x", *lines, json_line, body=declaration),
        "namespaces": request("GET", "/v1/namespaces", *lines),
        "ids": request("POST", "/v1/ids", *lines),
        "health": request("GET", "/health"),
    }  # fmt: skip


async def test_who_leaves_in_the_middle_of_a_request_does_no_harm(
    platform: Platform, robot: Caller
) -> None:
    kinds = every_kind_of_request(robot.lines)
    async with a_gateway(platform) as gateway:
        caller = robot.at(gateway)
        await put(caller.saying(X_Consistency="strong"), "/v1/kv/spared", b"as it was")
        open_before = descriptors(gateway)
        for content in kinds.values():
            head = content.index(b"\r\n\r\n") + 4
            cuts = {1, head // 2, head - 1, head, (head + len(content)) // 2, len(content)}
            for cut in sorted(cuts):
                for ends in ("reset", "close", "half close", "reset behind another"):
                    await leave(gateway, kinds["get"], content[:cut], ends)
        await until_metrics(gateway, **at_rest)
        await until_metrics(gateway, http_connections=2)
        assert descriptors(gateway) <= open_before + 2
        assert raw(await caller.get("/v1/kv/spared")) == b"as it was"


async def leave(gateway: GatewayProcess, whole: bytes, part: bytes, ends: str) -> None:
    client = await gateway.connect()
    client.send(whole + part if ends == "reset behind another" else part)
    if ends == "half close":
        client.end_sending()
        # It says what it has to say, and closes.
        async with asyncio.timeout(10):
            await client.reader.read()
    # Let some of it arrive.
    await asyncio.sleep(0.001)
    if ends.startswith("reset"):
        client.reset()
    await client.close()


async def test_who_leaves_while_all_wait_for_an_answer_does_no_harm(
    platform: Platform, robot: Caller
) -> None:
    """What they asked for is under way, and its answers come to nobody."""
    kinds = every_kind_of_request(robot.lines)
    for answered_without_nodes in ("health", "ids", "declare"):
        del kinds[answered_without_nodes]
    # Those that may have their answers before it is looked for a client.
    through_application = {"list", "delete by prefix", "batch", "namespaces"}
    assert through_application < set(kinds)
    async with a_gateway(platform) as gateway:
        caller = robot.at(gateway)
        assert (await caller.get("/v1/kv/absent")).status_code == 404
        async with connected(gateway, len(kinds)) as leaving, connected(gateway, 4) as staying:
            async with paused(*platform.cluster.nodes):
                for client, content in zip(leaving, kinds.values(), strict=True):
                    client.send(content)
                for number, client in enumerate(staying):
                    client.send(request("PUT", f"/v1/kv/s{number}", *robot.lines, body=b"v"))
                in_flight = len(kinds) + len(staying) + 1
                await until_metrics(gateway, http_requests_in_flight=in_flight)
                for client in leaving:
                    client.reset()
                # With that of who asks for metrics, and the caller's.
                await until_metrics(gateway, http_connections=len(staying) + 2)
            for client in staying:
                assert (await client.answer()).status == 200
        await until_metrics(gateway, **at_rest)
        metrics = await gateway.metrics()
        assert metrics["http_requests.499"] >= len(kinds) - len(through_application)


large_bytes = mebibyte
pipelined = 32
not_reading = 16
# Of one that does not read: an answer, and what of the next the transport takes.
held_mib_max = 3.0


async def test_a_gateway_holds_little_for_those_who_do_not_read_what_they_asked_for(
    platform: Platform, robot: Caller
) -> None:
    async with a_gateway(platform) as gateway:
        caller = robot.at(gateway)
        await put(caller.saying(X_Consistency="strong"), "/v1/kv/large", b"v" * large_bytes)
        get = request("GET", "/v1/kv/large", *robot.lines, strong)
        async with connected(gateway, 1) as [client]:
            for _ in range(5):
                assert len((await client.ask(get)).body) == large_bytes
            before_mib = resident_mib(gateway)
            readers = [await narrow(gateway) for _ in range(not_reading)]
            for reader in readers:
                reader.send(get * pipelined)
            await until_metrics(gateway, http_connections_stalled=not_reading)
            # Others are answered meanwhile.
            for _ in range(50):
                assert len((await client.ask(get)).body) == large_bytes
            grown_mib = resident_mib(gateway) - before_mib
            sys.stdout.write(
                f"\n{not_reading} who do not read {pipelined} MiB each: {grown_mib:+.1f} MiB\n"
            )
            assert grown_mib < not_reading * held_mib_max
            # Who goes on reading after all gets every answer, whole.
            for _ in range(pipelined):
                assert (await readers[0].answer()).body == b"v" * large_bytes
            for reader in readers:
                reader.writer.transport.abort()
                await reader.close()
        await until_metrics(gateway, http_connections_stalled=0)


async def narrow(gateway: GatewayProcess) -> Client:
    """A client whose side of the kernel holds as little as possible."""
    side = socket.socket()
    side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    side.setblocking(False)  # noqa: FBT003  The standard library has no other name for it.
    await asyncio.get_running_loop().sock_connect(side, ("127.0.0.1", gateway.port))
    return Client(*await asyncio.open_connection(sock=side, limit=4096))


stream_bytes = 64 * mebibyte
piece_bytes = 60 * 1024
# Whatever is sent, what waits in the gateway is a read or two of it.
stream_mib_max = 24.0


async def test_64_mib_of_pipelined_requests_are_answered_in_order_and_do_not_pile_up(
    platform: Platform, robot: Caller
) -> None:
    turns = stream_bytes // (piece_bytes + 1024)
    async with a_gateway(platform) as gateway, connected(gateway, 1) as [client]:
        assert (await client.ask(request("GET", "/v1/kv/0", *robot.lines))).status == 404
        before_mib, most_mib = resident_mib(gateway), 0.0

        async def send() -> None:
            for turn in range(turns):
                body = (b"%d " % turn * piece_bytes)[:piece_bytes]
                key = turn % 10
                content = request("PUT", f"/v1/kv/{key}", *robot.lines, strong, body=body)
                client.send(content + request("GET", f"/v1/kv/{key}", *robot.lines, strong))
                await client.writer.drain()

        sending = asyncio.create_task(send())
        # As long as no answer is read, it takes what fits its buffers and those of the kernel.
        await asyncio.sleep(1)
        for turn in range(turns):
            assert (await client.answer()).status == 200
            answer = await client.answer()
            assert answer.body == (b"%d " % turn * piece_bytes)[:piece_bytes]
            if turn % 100 == 0:
                most_mib = max(most_mib, resident_mib(gateway))
        await sending
        grown_mib = most_mib - before_mib
        sys.stdout.write(f"\n64 MiB of {2 * turns:,} pipelined requests: {grown_mib:+.1f} MiB\n")
        assert grown_mib < stream_mib_max
