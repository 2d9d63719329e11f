"""The lane of a gateway without a cluster: whose requests are, who is refused by the head alone,
and that each is answered."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic_ns

import pytest

from services.core.errors import ClientError, FixRequest, RetryLater
from services.core.hlc import version_zero
from services.core.operations import (
    FETCH,
    PRECONDITION_FAILED,
    PUT,
    REFUSED,
    UNKNOWN,
    refused_answer,
    unknown_answer,
)
from services.core.usage_report import UsageReport, UsageTaken
from services.core.wire import LOST, OK, TIMEOUT, Hello
from services.gateway.answers import Dates
from services.gateway.calls import KeyCall, Places, Platform, asked_s_max, call_s_max
from services.gateway.changes import Put
from services.gateway.cluster import Cluster, Doors
from services.gateway.console_lane import ConsoleLane
from services.gateway.cors import Cors
from services.gateway.gets import Get
from services.gateway.kv import KeyValue, options_of
from services.gateway.reads import Reads
from services.gateway.unknown_outcomes import UnknownOutcomes, ids_per_line_max
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import ClientAddresses
from services.runtime.console_requests import ConsoleRequests
from services.runtime.disk import SystemDisk
from services.runtime.exchange import Exchange, Headers
from services.runtime.metering import Meters
from services.runtime.peer import SENT, OnAnswer
from services.runtime.replicators import Replicators
from services.runtime.signing import Verifier
from tests.integration.link_ends import log_lines
from tests.unit.key_world import KeyWorld, key_world

never_made = b"ydht_" + b"0" * 40


class NoIntake:
    async def take_usage(self, report: UsageReport) -> UsageTaken:
        raise RetryLater("usermanager_unavailable", "there is none")


class Asked(Exchange):
    """A request, and what it was answered."""

    __slots__ = ("details", "has_left", "replies")

    def __init__(self, method: bytes, *fields: tuple[bytes, bytes], body: bytes = b"") -> None:
        headers = Headers(list(fields))
        super().__init__(method, b"/v1/kv/a", b"", headers, body, "2001:db8:1:2::3")
        self.replies: list[int] = []
        self.details: list[str] = []
        self.has_left = False

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        self.replies.append(status)
        self.details.append(json.loads(body)["detail"] if status >= 400 else "")

    @property
    def gone(self) -> bool:
        return self.has_left


@asynccontextmanager
async def lane(tmp_path: Path) -> AsyncIterator[tuple[KeyValue, KeyWorld]]:
    async with key_world() as world:
        doors = Doors("gateway-1", "one secret for all of them here", ("http://127.0.0.1:9",))
        cluster = Cluster(doors, SystemDisk(), tmp_path, world.clock)
        platform = Platform(
            cluster,
            Reads(cluster.fleet, world.clock),
            Meters(NoIntake(), world.clock, "gateway-1"),
            Cors(()),
            world.clock,
            Dates(),
            Places(),
            UnknownOutcomes(world.clock),
        )
        keys = KeyValue(platform, world.credentials, ClientAddresses(), BodyRoom())
        yield keys, world
        await keys.close()


def refusal_of(keys: KeyValue, *fields: tuple[bytes, bytes]) -> ClientError | None:
    return keys.refusal(Asked(b"PUT", *fields))


async def test_who_has_no_good_key_is_refused_by_the_head(tmp_path: Path) -> None:
    async with lane(tmp_path) as (keys, world):
        good, revoked = world.keys.make(), world.keys.make()
        world.keys.revoke(revoked)
        assert await world.refusal(revoked) == "invalid_api_key"
        for fields, code in [
            ((), "missing_api_key"),
            (((b"x-api-key", b""),), "missing_api_key"),
            (((b"x-api-key", never_made),), "invalid_api_key"),
            (((b"x-api-key", b"no key"),), "invalid_api_key"),
            (((b"x-api-key", revoked),), "invalid_api_key"),
            (((b"authorization", b"Basic abc"),), "invalid_api_key"),
            (((b"x-api-key", good), (b"authorization", b"Bearer other")), "invalid_header"),
        ]:
            error = refusal_of(keys, *fields)
            assert isinstance(error, FixRequest), fields
            assert error.code == code, fields
            assert (error.status == 401) == ("WWW-Authenticate" in error.headers)
        # Neither what is known to be good nor what nobody was asked about.
        assert refusal_of(keys, (b"x-api-key", good)) is None
        await world.find(good)
        assert refusal_of(keys, (b"x-api-key", good)) is None


async def test_large_bodies_are_their_tenants_or_of_the_network_they_come_from(
    tmp_path: Path,
) -> None:
    async with lane(tmp_path) as (keys, world):
        first, second = world.keys.make(8), world.keys.make(8)
        stranger = keys.whose(Asked(b"PUT", (b"x-api-key", first)))
        assert stranger == "2001:db8:1:2::/64"
        for key in (first, second):
            await world.find(key)
        assert keys.whose(Asked(b"PUT", (b"x-api-key", first))) == keys.whose(
            Asked(b"PUT", (b"x-api-key", second))
        )


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_request_whose_key_is_looked_up_is_answered_also_when_its_client_has_left(
    tmp_path: Path, leaves: bool
) -> None:
    async with lane(tmp_path) as (keys, world):
        asked = Asked(b"GET", (b"x-api-key", world.keys.make()))
        world.keys.hold()
        keys.begin(asked)
        await asyncio.sleep(0.01)
        asked.has_left = leaves
        world.keys.go_on()
        await world.settle()
        assert asked.replies == [503]
        assert keys.looking_up == 0


class Waiting:
    """A link whose other end answers when a test says so."""

    connected = True
    last_error: str | None = None
    peer: Hello | None = None
    pending = 0

    def __init__(self) -> None:
        self.asked: list[tuple[OnAnswer, float]] = []

    def silent_s(self) -> float:
        return 0.0

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        self.asked.append((on_answer, timeout_s))
        return SENT

    def notify(self, kind: int, body: bytes) -> bool:
        return True

    def start(self) -> None:
        pass

    async def close(self, drain_s: float = 0.0) -> None:
        pass


async def call_after(
    keys: KeyValue, world: KeyWorld, kind: type[KeyCall], elapsed_s: float
) -> tuple[KeyCall, Asked]:
    """A call of which so much time is over."""
    credential = await world.find(world.keys.make())
    asked = Asked(b"PUT")
    options = options_of(asked.headers)
    began_ns = monotonic_ns() - int(elapsed_s * 1e9)
    return kind(keys.platform, asked, options, credential, "put", b"id", began_ns), asked


@pytest.mark.parametrize(
    ("kind", "message", "answer"),
    [
        # Read, or not done: another may be asked.
        (Get, FETCH, (TIMEOUT, b"")),
        (Put, PUT, (REFUSED, refused_answer("shutting_down", "bye"))),
    ],
)
async def test_replicators_are_asked_only_as_long_as_a_client_waits(
    tmp_path: Path, kind: type[KeyCall], message: int, answer: tuple[int, bytes]
) -> None:
    async with lane(tmp_path) as (keys, world):
        links = [Waiting() for _ in range(3)]
        keys.platform.cluster.replicators = Replicators(links, random.Random(1))
        call, asked = await call_after(keys, world, kind, 0.0)
        for elapsed_s, most_s in ((0.0, asked_s_max), (3.0, call_s_max - 3.0), (4.8, 0.0)):
            call.began_ns = monotonic_ns() - int(elapsed_s * 1e9)
            if not elapsed_s:
                call.ask(message, b"body", 0)
            else:
                on_answer, _ = next(link.asked.pop() for link in links if link.asked)
                on_answer(*answer)
            given = [timeout_s for link in links for _, timeout_s in link.asked]
            if most_s:
                assert len(given) == 1
                assert most_s - 0.2 < given[0] <= most_s
                assert asked.replies == []
            else:
                assert given == []
        assert asked.replies == [503]


@pytest.mark.parametrize(
    ("fields", "answer", "status", "told"),
    [
        ([(b"if-none-match", b"*")], (PRECONDITION_FAILED, b"v" * 12), 412, "is a value already;"),
        ([(b"if-match", b"*")], (PRECONDITION_FAILED, version_zero), 412, "there is no value;"),
        ([], (REFUSED, refused_answer("no_quorum", "why")), 503, "why; nothing was changed: try"),
        ([], (LOST, b""), 504, "read the key before you repeat it"),
        ([], (UNKNOWN, unknown_answer(b"o" * 12, "why")), 504, "why; read the key before you"),
    ],
)
async def test_whose_change_was_not_made_is_told_what_to_do(
    tmp_path: Path,
    fields: list[tuple[bytes, bytes]],
    answer: tuple[int, bytes],
    status: int,
    told: str,
) -> None:
    async with lane(tmp_path) as (keys, world):
        link = Waiting()
        keys.platform.cluster.replicators = Replicators([link], random.Random(1))
        call, asked = await call_after(keys, world, Put, 0.0)
        call.options = options_of(Headers(fields))
        call.ask(PUT, b"body", 0)
        on_answer, _ = link.asked.pop()
        on_answer(*answer)
        assert asked.replies == [status]
        assert told in asked.details[0]


@pytest.mark.parametrize("operation", ["get", "head"])
async def test_strong_reads_are_counted_apart_from_the_others(
    tmp_path: Path, operation: str
) -> None:
    async with lane(tmp_path) as (keys, world):
        link = Waiting()
        keys.platform.cluster.replicators = Replicators([link], random.Random(1))
        call, asked = await call_after(keys, world, Get, 0.0)
        call.operation = operation
        call.options = options_of(Headers([(b"x-consistency", b"strong")]))
        call.start(b"storage key", 0)
        on_answer, _ = link.asked.pop()
        on_answer(OK, b"")
        assert asked.replies == [404]
        assert list(call.credential.tally or {}) == [(f"{operation}_strong", 404)]


async def test_a_lost_link_names_every_change_in_a_few_lines(tmp_path: Path) -> None:
    async with lane(tmp_path) as (keys, world):
        link = Waiting()
        keys.platform.cluster.replicators = Replicators([link], random.Random(1))
        count = 10 * ids_per_line_max
        for number in range(count):
            call, _ = await call_after(keys, world, Put, 0.0)
            call.request_id = b"id-%d" % number
            call.ask(PUT, b"body", 0)
        with log_lines() as lines:
            for on_answer, _ in link.asked:
                on_answer(LOST, b"")
            assert lines == []
            world.after(0.001)
        assert len(lines) <= 11
        named = " ".join(line["operation_ids"] for line in lines).split()
        assert named == [f"id-{number}" for number in range(count)]


async def test_what_only_looks_signed_is_refused_by_the_head_too(tmp_path: Path) -> None:
    async with lane(tmp_path) as (keys, world):
        verifier = Verifier("one secret for all of them here", world.clock)
        console = ConsoleLane(keys, ConsoleRequests(verifier, world.credentials))
        forged = Asked(b"PUT", (b"x-ydht-signature", b"forged"), (b"x-ydht-tenant", b"8"))
        error = console.refusal(forged)
        assert error is not None
        assert error.code == "unauthorized"
        # Nor has it a share of a tenant that it only names.
        good = world.keys.make(8)
        await world.find(good)
        assert console.whose(forged) != console.whose(Asked(b"PUT", (b"x-api-key", good)))
        assert console.refusal(Asked(b"PUT")) is not None
        assert console.room is keys.room
