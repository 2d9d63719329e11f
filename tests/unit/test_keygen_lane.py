"""The lane of a keygen: what is answered at once, what waits, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.keygen import lane as lane_module
from services.keygen.issuing import Issuing
from services.keygen.lane import KeyLane
from services.keygen.memory_ledger import MemoryLedger
from services.keygen.memory_ranges import MemoryRanges
from services.keygen.pools import Pools
from services.keygen.quotas import Quotas
from services.runtime.client_address import ClientAddresses
from services.runtime.clock import SystemClock
from services.runtime.credential import Credential
from services.runtime.exchange import Exchange, Headers
from tests.known_keys import Counted, KnownKeys
from tests.unit.pool_world import permutations
from tests.waiting import wait_until

Fields = list[tuple[bytes, bytes]]


class Asked(Exchange):
    """A request, and what came of it."""

    __slots__ = ("body_told", "lines", "status")

    def __init__(self, headers: Headers, path: bytes, query: bytes, method: bytes) -> None:
        super().__init__(method, path, query, headers)
        self.status = 0
        self.lines = b""
        self.body_told = b""

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        assert not self.status, "answered twice"
        self.status, self.lines, self.body_told = status, lines, body

    @property
    def gone(self) -> bool:
        return False

    @property
    def code(self) -> str:
        found: str = json.loads(self.body_told)["code"]
        return found

    @property
    def detail(self) -> str:
        found: str = json.loads(self.body_told)["detail"]
        return found


class Laptop(SystemClock):
    """Its lid may be closed for a while."""

    def __init__(self) -> None:
        self.suspended_s = 0.0

    def boot_s(self) -> float:
        return super().boot_s() + self.suspended_s


class LaneWorld:
    def __init__(self, *, anybody: bool) -> None:
        clock = self.clock = Laptop()
        self.ranges = MemoryRanges()
        self.ledger = MemoryLedger()
        self.pools = Pools(self.ranges, 1_000, clock)
        self.keys = KnownKeys(clock)
        self.meter = Counted()
        self.quotas = Quotas(self.ledger, clock)
        self.lane = KeyLane(
            Issuing(self.pools, self.quotas),
            self.keys,
            self.meter,
            ClientAddresses(),
            clock,
            self._public() if anybody else None,
        )
        self.pools.begin(1, permutations)
        self.pools.usable_until_s = clock.boot_s() + 900

    def headers(self, api_key: str | None = None, **more: str) -> Headers:
        fields: Fields = [] if api_key is None else [(b"x-api-key", api_key.encode())]
        fields += [
            (name.replace("_", "-").encode(), value.encode()) for name, value in more.items()
        ]
        return Headers(fields)

    def api_key(self, tenant: int = 7, limit: int | None = None) -> str:
        key = self.keys.add(tenant)
        credential = self.keys.cached(key.encode(), 0)
        assert credential is not None
        credential.ids_per_day = limit
        return key

    def begin(
        self,
        headers: Headers,
        path: bytes = b"/get-key",
        query: bytes = b"",
        method: bytes = b"GET",
    ) -> Asked:
        asked = Asked(headers, path, query, method)
        assert self.lane.takes(method, path, headers)
        self.lane.begin(asked)
        return asked

    async def ask(
        self,
        headers: Headers,
        path: bytes = b"/get-key",
        query: bytes = b"",
        method: bytes = b"GET",
    ) -> Asked:
        asked = self.begin(headers, path, query, method)
        if not asked.status:
            await wait_until(lambda: asked.status > 0, "it is answered")
        return asked

    def _public(self) -> Credential:
        credential = self.keys.of_console(0)
        credential.ids_per_day = None
        return credential


@asynccontextmanager
async def lane_world(*, anybody: bool = False) -> AsyncIterator[LaneWorld]:
    world = LaneWorld(anybody=anybody)
    async with world.pools:
        yield world
        await world.lane.close()


async def test_who_has_asked_before_is_answered_at_once() -> None:
    async with lane_world() as world:
        headers = world.headers(world.api_key())
        found = [await world.ask(headers)]
        for path, query in ((b"/get-key", b""), (b"/api/key", b""), (b"/api/key", b"size=9")):
            await world.ask(headers, path, query)
            asked = world.begin(headers, path, query)
            assert asked.status == 200, "before anything else had its turn"
            found.append(asked)
        assert len({asked.body_told for asked in found}) == len(found)
        assert world.lane.waiting == 0
        assert [request[:2] for request in world.meter.requests] == [("ids", 200)] * 7


async def test_every_answer_has_an_id_of_its_own_or_the_one_it_was_given() -> None:
    async with lane_world(anybody=True) as world:
        first, second = await world.ask(world.headers()), await world.ask(world.headers())
        assert first.lines != second.lines
        named = await world.ask(world.headers(x_request_id="mine-1"))
        assert b"X-Request-ID: mine-1\r\n" in named.lines


async def test_no_key_of_anybody_goes_to_somebody_else() -> None:
    async with lane_world(anybody=True) as world:
        one, other = (world.headers(world.api_key(tenant)) for tenant in (1, 2))
        nobody = world.headers()
        for _ in range(50):
            for headers in (one, other, nobody):
                assert (await world.ask(headers)).status == 200
        assert {kept.tenant for kept in world.ranges.ranges} == {0, 1, 2}


async def test_without_an_api_key_only_get_key_answers() -> None:
    async with lane_world(anybody=True) as world:
        refused = await world.ask(world.headers(), b"/api/key")
        assert (refused.status, refused.code) == (401, "missing_api_key")
        wrong = await world.ask(world.headers("ydht_wrong"))
        assert (wrong.status, wrong.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("name", ["x-api-key", "api-key", "authorization"])
async def test_who_sends_an_empty_api_key_is_not_taken_for_nobody(name: str) -> None:
    async with lane_world(anybody=True) as world:
        for value in (b"", b" "):
            refused = await world.ask(Headers([(name.encode(), value)]))
            assert refused.status == 401, value
            assert b"WWW-Authenticate: " in refused.lines
        assert world.pools.issued == 0


async def test_a_refusal_names_the_headers_that_were_sent() -> None:
    async with lane_world() as world:
        one, other = (world.api_key(tenant).encode() for tenant in (1, 2))
        two = await world.ask(Headers([(b"x-api-key", one), (b"api-key", other)]))
        assert (two.status, two.code) == (400, "invalid_header")
        assert two.detail == "Different API keys are in X-API-Key and API-KEY; send one"
        empty = await world.ask(Headers([(b"api-key", b"")]))
        assert (empty.status, empty.code) == (401, "missing_api_key")
        assert "API-KEY is empty" in empty.detail
        none = await world.ask(world.headers())
        assert "as API-KEY" in none.detail


async def test_a_key_that_cannot_be_looked_up_is_not_refused() -> None:
    async with lane_world() as world:
        world.keys.away = True
        answer = await world.ask(world.headers("ydht_unknown"))
        assert (answer.status, answer.code) == (503, "auth_unavailable")


async def test_a_quota_holds_on_both_ways() -> None:
    async with lane_world() as world:
        headers = world.headers(world.api_key(limit=100))
        statuses = [(await world.ask(headers)).status for _ in range(120)]
        assert statuses == [200] * 100 + [429] * 20
        refused = await world.ask(headers, b"/api/key")
        assert refused.code == "quota_exhausted"
        assert b"Retry-After: " in refused.lines


async def test_what_cannot_be_reserved_costs_nothing_of_the_day() -> None:
    async with lane_world() as world:
        key = world.api_key(limit=100)
        world.ranges.away = True
        refused = await world.ask(world.headers(key))
        assert (refused.status, refused.code) == (503, "database_unavailable")
        world.ranges.away = False
        statuses = [(await world.ask(world.headers(key))).status for _ in range(101)]
        assert statuses == [200] * 100 + [429]


async def test_a_key_that_loses_its_rights_is_refused_from_then_on() -> None:
    async with lane_world() as world:
        key = world.api_key()
        headers = world.headers(key)
        assert (await world.ask(headers)).status == 200
        credential = world.keys.cached(key.encode(), 0)
        assert credential is not None
        credential.allow(["read"])
        refused = await world.ask(headers)
        assert (refused.status, refused.code) == (403, "insufficient_scope")


async def test_pools_that_are_dropped_are_found_again() -> None:
    async with lane_world() as world:
        headers = world.headers(world.api_key())
        first = await world.ask(headers)
        world.pools.end()
        assert (await world.ask(headers)).status == 503
        world.pools.begin(2, permutations)
        world.pools.usable_until_s = world.clock.boot_s() + 900
        again = await world.ask(headers)
        assert again.status == 200
        assert again.body_told != first.body_told


async def test_a_lease_that_ran_out_in_a_suspended_machine_is_over_at_once() -> None:
    async with lane_world() as world:
        headers = world.headers(world.api_key())
        assert (await world.ask(headers)).status == 200
        world.clock.suspended_s = 900.0
        refused = await world.ask(headers)
        assert (refused.status, refused.code) == (503, "database_unavailable")


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"PUT"])
async def test_only_get_gives_a_key(method: bytes) -> None:
    async with lane_world(anybody=True) as world:
        refused = await world.ask(world.headers(), method=method)
        assert (refused.status, refused.code) == (405, "method_not_allowed")
        assert b"Allow: GET\r\n" in refused.lines
        assert world.pools.issued == 0


async def test_too_many_who_wait_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_module, "slow_max", 5)
    async with lane_world(anybody=True) as world:
        world.ranges.hold()
        waiting = [world.begin(world.headers()) for _ in range(5)]
        refused = world.begin(world.headers())
        assert (refused.status, refused.code) == (503, "overloaded")
        world.ranges.go_on()
        await wait_until(lambda: all(asked.status for asked in waiting), "all are answered")
        assert {asked.status for asked in waiting} == {200}


async def test_who_still_waits_at_the_end_is_told_so() -> None:
    async with lane_world(anybody=True) as world:
        world.ranges.hold()
        waiting = world.begin(world.headers())
        await asyncio.sleep(0)
        await world.lane.close()
        assert (waiting.status, waiting.code) == (503, "shutting_down")
        world.ranges.go_on()
