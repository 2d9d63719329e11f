"""What the JSON routes of a gateway refuse before a replicator is asked, and hold back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import httpx
import pytest

from services.core.declarations import DeclaredAnswer
from services.core.deletions import PrefixDeleted
from services.core.operations import DECLARE_NAMESPACE, DELETE_PREFIX, batch_bytes_max
from services.core.packed_bodies import encode_body
from services.core.wire import LOST, OK, TIMEOUT
from services.gateway.json_api import JsonApi, Surroundings
from services.gateway.namespaces import changes_of_tenant
from services.gateway.nodes import Answer
from services.gateway.prefix_deletion import deletions_of_tenant
from services.gateway.seams import Asking
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import SystemClock
from services.runtime.console_requests import ConsoleRequests
from services.runtime.http import application
from services.runtime.key_access import KeyAccess
from services.runtime.metrics import Metrics
from services.runtime.peer import SENT, OnAnswer
from services.runtime.probes import Readiness
from services.runtime.replicators import Replicators
from services.runtime.signing import Verifier
from tests.integration.link_ends import log_lines
from tests.known_keys import Counted, KnownKeys
from tests.unit.gateway_world import GatewayWorld
from tests.waiting import wait_until

secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"
done = {
    DELETE_PREFIX: encode_body(PrefixDeleted(0, 0, None)),
    DECLARE_NAMESPACE: encode_body(DeclaredAnswer(changed=True, untold=[])),
}


class Held:
    """Replicators that answer when they are let."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = asyncio.Event()

    async def ask(
        self,
        kind: int,
        body: bytes,
        timeout_s: float,
        *,
        repeatable: bool = False,
        reads: bool = False,
    ) -> Answer:
        self.asked += 1
        await self.open.wait()
        return OK, done[kind]


class World:
    def __init__(self, replicators: Asking | None = None) -> None:
        clock = SystemClock()
        self.keys = KnownKeys(clock)
        self.replicators = Held()
        gateway = GatewayWorld()
        gateway.replicators = replicators or self.replicators  # type: ignore[assignment]
        api = JsonApi(gateway, Surroundings(secret, "http://keygen", None), clock)
        verifier = Verifier(secret, clock)
        access = KeyAccess(self.keys, ConsoleRequests(verifier, self.keys), Counted(), clock)
        app = application(
            "gateway",
            api.routes(access, verifier, ClientAddresses()),
            metrics=Metrics(),
            readiness=Readiness(),
            body_bytes_max=batch_bytes_max,
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.client:
        yield world


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"X-Consistency": "strong"}, "invalid_consistency"),
        ({"X-Consistency": "nonsense"}, "invalid_consistency"),
        ({"If-Match": '"00"'}, "invalid_header"),
        ({"If-None-Match": "*"}, "invalid_header"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_what_would_be_ignored_is_refused(
    world: World, method: str, header: dict[str, str], code: str
) -> None:
    body: dict[str, list[object]] = {"operations": []}
    path = "/v1/batch" if method == "POST" else "/v1/kv?prefix=a"
    headers = {"X-API-Key": world.keys.add(7), **header}
    answer = await world.client.request(method, path, headers=headers, json=body)
    if method == "POST" and header == {"X-Consistency": "strong"}:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert world.replicators.asked == 0


async def test_metadata_that_no_batch_keeps_is_refused(world: World) -> None:
    headers = {"X-API-Key": world.keys.add(7), "X-Metadata-Colour": "blue"}
    body = {"operations": [{"op": "put", "key": "a", "value": "v"}]}
    answer = await world.client.post("/v1/batch", headers=headers, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")
    assert "X-Metadata" in answer.json()["detail"]
    assert world.replicators.asked == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_namespace_that_is_no_text_is_none(world: World, method: str) -> None:
    headers = {"X-API-Key": world.keys.add(7)}
    body = {"kind": "store"} if method == "PUT" else None
    answer = await world.client.request(method, "/v1/namespaces/%FF", headers=headers, json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_namespace")
    assert answer.json()["detail"] == "The name in the path is not valid UTF-8"


async def test_a_route_tells_its_own_limit_of_however_large_a_body(world: World) -> None:
    headers = {"X-API-Key": world.keys.add(7)}
    for size in (70_000, batch_bytes_max + 1):
        answer = await world.client.put("/v1/namespaces/a", headers=headers, content=b"x" * size)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert "larger than 65536 bytes" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/ids"), ("DELETE", "/v1/kv?prefix=a"), ("DELETE", "/v1/namespaces/a")],
)
async def test_a_body_that_nobody_reads_is_refused(world: World, method: str, path: str) -> None:
    headers = {"X-API-Key": world.keys.add(7)}
    answer = await world.client.request(method, path, headers=headers, json={"count": 5})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_body")
    assert world.replicators.asked == 0


class Silent:
    """A link to a replicator that is killed, or does not answer in time."""

    connected = True
    last_error = None
    peer = None
    pending = 0

    def __init__(self, becomes: int) -> None:
        self.asked = 0
        self._becomes = becomes

    def silent_s(self) -> float:
        return 0.0

    def start(self) -> None: ...

    async def close(self, drain_s: float = 0.0) -> None: ...

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        self.asked += 1
        asyncio.get_running_loop().call_soon(on_answer, self._becomes, b"")
        return SENT

    def notify(self, kind: int, body: bytes) -> bool:
        raise AssertionError("no replicator is told what nobody answers")


@pytest.mark.parametrize("becomes", [TIMEOUT, LOST])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/namespaces"),
        ("GET", "/v1/namespaces/b"),
        ("DELETE", "/v1/kv?prefix=a&dry_run=true"),
    ],
)
async def test_what_is_only_read_has_no_unknown_outcome(
    method: str, path: str, becomes: int
) -> None:
    links = [Silent(becomes), Silent(becomes)]
    world = World(Replicators(links, random.Random(1)))
    headers = {"X-API-Key": world.keys.add(7)}
    async with world.client:
        with log_lines() as lines:
            answer = await world.client.request(method, path, headers=headers)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (503, "no_replicator")
    assert told["detail"] == "a replicator gave no answer"
    assert answer.headers["Retry-After"].isdigit()
    assert [link.asked for link in links] == [1, 1]
    assert not [line for line in lines if "outcome" in line["event"]]


@pytest.mark.parametrize("count", [1_001, 100_000])
async def test_of_too_many_operations_no_more_are_looked_at_than_a_batch_has(
    world: World, count: int
) -> None:
    headers = {"X-API-Key": world.keys.add(7)}
    # The last of them makes no sense, which is found only by who looks at all.
    operations = [{"op": "get", "key": "a" * 60}] * count + [{"op": "none"}]
    answer = await world.client.post("/v1/batch", headers=headers, json={"operations": operations})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "operations: must have at most 1000 elements"


async def test_a_large_batch_of_as_many_operations_as_there_can_be_is_taken(world: World) -> None:
    headers = {"X-API-Key": world.keys.add(7)}
    operations = [{"op": "put", "key": "", "value": "x" * 100}] * 1_000
    answer = await world.client.post("/v1/batch", headers=headers, json={"operations": operations})
    assert [one["status"] for one in answer.json()["results"]] == [400] * 1_000


@pytest.mark.parametrize(
    ("method", "path", "body", "share"),
    [
        ("DELETE", "/v1/kv?prefix=a", None, deletions_of_tenant.at_once),
        ("PUT", "/v1/namespaces/a", {"kind": "store"}, changes_of_tenant.at_once),
    ],
)
async def test_one_tenant_does_not_have_all_that_a_replicator_does_at_once(
    world: World, method: str, path: str, body: dict[str, str] | None, share: int
) -> None:
    ada, bob = {"X-API-Key": world.keys.add(7)}, {"X-API-Key": world.keys.add(8)}
    async with asyncio.TaskGroup() as asking:
        many = [
            asking.create_task(world.client.request(method, path, headers=ada, json=body))
            for _ in range(6)
        ]
        await wait_until(lambda: world.replicators.asked == share, "so many are asked")
        one = asking.create_task(world.client.request(method, path, headers=bob, json=body))
        await wait_until(lambda: world.replicators.asked == share + 1, "another has his turn")
        world.replicators.open.set()
    assert {task.result().status_code for task in (*many, one)} == {200}
