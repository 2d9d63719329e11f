"""A gateway that is told to stop while it has much to do, and then takes nothing more."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest

from services.runtime.service import drain_s_max
from tests.cluster.gateway_platform import Caller, GatewayProcess, Platform, served
from tests.cluster.gateway_turmoil.platform import bugs, connected, paused
from tests.integration.lane_world import Client, request
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")

in_flight = 64
strong = "X-Consistency: strong"
Ask = Callable[[int, list[str]], bytes]


def listing(_: int, lines: list[str]) -> bytes:
    return request("GET", "/v1/kv?limit=1000", *lines)


def batch(number: int, lines: list[str]) -> bytes:
    operations = [
        {"op": "put", "key": f"batch-{number}", "value": "during"},
        {"op": "get", "key": f"{number}"},
    ]
    body = json.dumps({"operations": operations}).encode()
    return request("POST", "/v1/batch", *lines, "Content-Type: application/json", body=body)


asks: dict[str, Ask] = {
    "get": lambda number, lines: request("GET", f"/v1/kv/{number}", *lines),
    "strong get": lambda number, lines: request("GET", f"/v1/kv/{number}", *lines, strong),
    "put": lambda number, lines: request("PUT", f"/v1/kv/{number}", *lines, body=b"during"),
    "strong put": lambda number, lines: request(
        "PUT", f"/v1/kv/{number}", *lines, strong, body=b"during"
    ),
    "incr": lambda number, lines: request("POST", f"/v1/kv/counter-{number}/incr", *lines),
    "delete": lambda number, lines: request("DELETE", f"/v1/kv/{number}", *lines),
    "list": listing,
    "batch": batch,
}
kinds = [list(asks)[number % len(asks)] for number in range(in_flight)]


async def test_all_that_is_under_way_is_answered_before_a_gateway_ends(
    platform: Platform, robot: Caller
) -> None:
    lines = robot.lines
    async with (
        served(platform.gateway()) as gateway,
        connected(gateway, in_flight) as clients,
        connected(gateway, 2) as [silent, half_a_request],
    ):
        await gateway.until_whole()
        for number, client in enumerate(clients):
            put = request("PUT", f"/v1/kv/{number}", *lines, strong, body=b"before")
            assert (await client.ask(put)).status == 200
        half_a_request.send(request("PUT", "/v1/kv/half", *lines, "Content-Length: 4") + b"ha")
        # Nobody answers for a moment, so that all of them are under way at once.
        async with paused(*platform.cluster.nodes):
            for number, client in enumerate(clients):
                client.send(asks[kinds[number]](number, lines))
            await until_told(lambda: are_in_flight(gateway), "all are under way")
            told_at_s = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            await until_told(lambda: refuses(gateway), "it takes no more connections")
        half_a_request.send(b"lf")
        for number, client in enumerate(clients):
            answer = await client.answer()
            assert (kinds[number], answer.status) == (kinds[number], 200), answer
            assert answer.closes, kinds[number]
            if kinds[number] == "get":
                assert answer.body == b"before"
            elif kinds[number] == "list":
                found = [key["key"] for key in json.loads(answer.body)["keys"]]
                assert {str(one) for one, kind in enumerate(kinds) if "get" in kind} <= set(found)
            elif kinds[number] == "batch":
                results = json.loads(answer.body)["results"]
                assert [result["status"] for result in results] == [200, 200], results
            assert await client.closed(), kinds[number]
        late = await half_a_request.answer()
        assert (late.status, late.closes) == (200, True), "what has begun to arrive is taken"
        assert await silent.closed()
        assert await gateway.ended() == 0
        assert time.monotonic() - told_at_s < drain_s_max
        assert "drain cut short" not in gateway.said
        assert bugs(gateway) == []
    reader = robot.saying(X_Consistency="strong")
    for number, kind in enumerate(kinds):
        if kind == "delete":
            assert (await reader.get(f"/v1/kv/{number}")).status_code == 404
        elif kind.endswith("put"):
            assert (await reader.get(f"/v1/kv/{number}")).content == b"during"
        elif kind == "incr":
            assert (await reader.get(f"/v1/kv/counter-{number}")).content == b"1"


async def test_who_never_gets_an_answer_does_not_keep_a_gateway_from_ending(
    platform: Platform, robot: Caller
) -> None:
    """Replicators that stay silent: what became of the writes is unknown, and told in time."""
    async with (
        served(platform.gateway()) as gateway,
        connected(gateway, 2) as [client, stuck],
    ):
        await gateway.until_whole()
        assert (await client.ask(request("GET", "/v1/kv/a", *robot.lines))).status == 404
        # It begins to send, and never ends.
        stuck.send(request("PUT", "/v1/kv/b", *robot.lines, "Content-Length: 9") + b"b")
        async with paused(*platform.cluster.replicators):
            client.send(request("PUT", "/v1/kv/a", *robot.lines, body=b"a"))
            await until_told(lambda: are_in_flight(gateway, 1), "it is under way")
            began_s = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            answer = await client.answer()
            assert (answer.status, answer.closes) == (504, True)
            assert json.loads(answer.body)["code"] == "unknown_outcome"
            assert await gateway.ended() == 0
            assert time.monotonic() - began_s < drain_s_max + 2
        assert bugs(gateway) == []


async def are_in_flight(gateway: GatewayProcess, count: int = in_flight) -> bool | None:
    metrics = await gateway.metrics()
    # Whoever asks for metrics is being answered, too.
    return metrics["http_requests_in_flight"] == count + 1 or None


async def refuses(gateway: GatewayProcess) -> bool | None:
    try:
        client: Client = await gateway.connect()
    except ConnectionError:
        return True
    await client.close()
    return None
