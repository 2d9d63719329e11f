"""The lane of a gateway without a cluster: whose requests are, who is refused by the head alone,
and that each is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.core.errors import ClientError, FixRequest, RetryLater
from services.core.usage_report import UsageReport, UsageTaken
from services.gateway.answers import Dates
from services.gateway.calls import Places, Platform
from services.gateway.cluster import Cluster, Doors
from services.gateway.cors import Cors
from services.gateway.kv import KeyValue
from services.gateway.reads import Reads
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import ClientAddresses
from services.runtime.disk import SystemDisk
from services.runtime.exchange import Exchange, Headers
from services.runtime.metering import Meters
from tests.unit.key_world import KeyWorld, key_world

never_made = b"ydht_" + b"0" * 40


class NoIntake:
    async def take_usage(self, report: UsageReport) -> UsageTaken:
        raise RetryLater("usermanager_unavailable", "there is none")


class Asked(Exchange):
    """A request, and what it was answered."""

    __slots__ = ("has_left", "replies")

    def __init__(self, method: bytes, *fields: tuple[bytes, bytes], body: bytes = b"") -> None:
        headers = Headers(list(fields))
        super().__init__(method, b"/v1/kv/a", b"", headers, body, "2001:db8:1:2::3")
        self.replies: list[int] = []
        self.has_left = False

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        self.replies.append(status)

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
