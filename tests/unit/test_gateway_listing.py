"""Listings while nodes fail, are slow, or say what makes no sense."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

import pytest

from services.core.cluster import ClusterMap
from services.core.errors import ClientError, RetryLater
from services.core.listings import ListPage, ListQuery
from services.core.messages import LIST, MALFORMED
from services.core.packed_bodies import encode_body
from services.core.wire import FAILED, OK, OVERLOADED
from services.gateway.cursors import Cursors
from services.gateway.listing import Listings, page_s, work_s
from services.gateway.merge import Merge
from services.gateway.messages_keys import (
    BatchHeaders,
    ManyChangesHeaders,
    ManyHeaders,
    UnconditionalHeaders,
)
from services.runtime import telemetry
from services.runtime.text_members import TextMembers
from tests.integration.link_ends import log_lines
from tests.unit.gateway_world import GatewayWorld, prefix
from tests.unit.replicator_world import member_of

keys = [b"key-%04d" % number for number in range(400)]


@pytest.fixture(params=[3, 6])
def world(request: pytest.FixtureRequest) -> GatewayWorld:
    world = GatewayWorld(request.param)
    world.fill(keys)
    return world


def page(
    world: GatewayWorld, start: bytes = b"", limit: int = 1_000
) -> Coroutine[None, None, Merge]:
    listings = Listings(world, Cursors("secret"), world.clock)
    return listings.page(ListQuery(prefix, b"", start, limit))


async def told(world: GatewayWorld, start: bytes = b"", limit: int = 1_000) -> list[bytes]:
    merge = await world.run(page(world, start, limit))
    return [found.key for found in merge.told[:limit]]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (b"if-match", b'"ab"', "conditions are for single keys only; leave it out"),
        (b"if-none-match", b"*", "conditions are for single keys only; leave it out"),
        (
            b"x-consistency",
            b"strong",
            "listings, and deletions by prefix, are always eventual; leave it out",
        ),
    ],
)
def test_what_is_for_single_keys_is_to_be_left_out(name: bytes, text: bytes, told: str) -> None:
    value, [wrong] = TextMembers(ManyHeaders, "invalid_header").of_headers([(name, text)])
    assert value is None
    assert (wrong.member.lower(), wrong.detail) == (name.decode(), told)
    assert wrong.code in ("invalid_header", "invalid_consistency")


@pytest.mark.parametrize("of", [ManyChangesHeaders, BatchHeaders, UnconditionalHeaders])
@pytest.mark.parametrize(
    "name", [b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"]
)
def test_no_change_of_many_keys_has_a_condition(of: type[object], name: bytes) -> None:
    time = b"Sun, 22 Nov 2026 03:00:00 GMT"
    value, [wrong] = TextMembers(of, "invalid_header").of_headers([(name, time)])
    assert value is None
    assert (wrong.member.lower().encode(), wrong.code) == (name, "invalid_header")
    assert wrong.detail == "conditions are for single keys only; leave it out"


def test_a_listing_needs_no_care_for_times() -> None:
    headers = [(b"if-modified-since", b"Sun, 22 Nov 2026 03:00:00 GMT")]
    value, wrong = TextMembers(ManyHeaders, "invalid_header").of_headers(headers)
    assert (value, wrong) == (ManyHeaders(), [])


@contextmanager
def answering(request_id: str) -> Iterator[None]:
    token = telemetry.request_id.set(request_id)
    try:
        yield
    finally:
        telemetry.request_id.reset(token)


async def test_every_key_is_told_once(world: GatewayWorld) -> None:
    assert await told(world) == keys
    assert await told(world, keys[7], 50) == keys[7:57]
    assert await told(world, keys[-1] + b"\0") == []
    # As a rule one question to each does.
    asked = world.world.messages(LIST)
    await told(world, b"", 100)
    assert world.world.messages(LIST) - asked == len(world.world.nodes)


@pytest.mark.parametrize("answer", [(FAILED, b""), (OVERLOADED, b""), (OK, b"no page"), (77, b"")])
async def test_others_speak_for_a_node_that_cannot(
    world: GatewayWorld, answer: tuple[int, bytes]
) -> None:
    world.world.nodes["node-2"].answer(LIST, *answer)
    assert await told(world) == keys


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((OK, b"no page"), "not a message of the form that is due"),
        ((MALFORMED, b"no list query"), "no list query"),
        ((77, b""), ""),
    ],
)
async def test_an_answer_that_makes_no_sense_is_logged_and_counted(
    world: GatewayWorld, answer: tuple[int, bytes], reason: str
) -> None:
    node = world.world.nodes["node-2"]
    node.answer(LIST, *answer)
    with log_lines() as lines, answering("asked-1"):
        assert await told(world) == keys
        [line] = lines
    assert (line["level"], line["event"]) == ("error", "the answer of a node makes no sense")
    assert (line["node"], line["kind"]) == ("node-2", answer[0])
    assert reason in line["reason"]
    assert line["request_id"] == "asked-1"
    assert world.fleet.senseless == 1
    # What is none of anybody's bugs is neither.
    node.answer(LIST, FAILED)
    with log_lines() as lines:
        assert await told(world) == keys
        assert lines == []
    assert world.fleet.senseless == 1


async def test_others_speak_for_a_node_that_says_nothing(world: GatewayWorld) -> None:
    world.world.nodes["node-1"].ignore(LIST)
    assert await told(world) == keys


async def test_a_node_that_leads_in_a_circle_is_not_followed(world: GatewayWorld) -> None:
    world.world.nodes["node-3"].answer(LIST, OK, encode_body(ListPage([], [], b"")))
    assert await told(world) == keys


async def test_a_node_that_dies_in_the_middle_is_replaced_from_there(world: GatewayWorld) -> None:
    node = world.world.nodes["node-1"]
    first = await told(world, b"", 30)
    # It dies by the very question, while the others answer theirs.
    node.instead[LIST] = lambda *_: node.crash()
    rest = await told(world, first[-1] + b"\0")
    assert first + rest == keys


async def test_with_a_slot_that_nobody_speaks_for_nothing_is_told() -> None:
    world = GatewayWorld(3)
    world.fill(keys)
    for node in world.world.nodes.values():
        node.crash()
    world.world.pass_time(2.0)
    with pytest.raises(RetryLater, match="no_quorum"):
        await told(world)


async def test_who_has_too_much_to_do_is_told_apart_from_who_is_gone() -> None:
    world = GatewayWorld(3)
    world.fill(keys)
    for node in world.world.nodes.values():
        node.answer(LIST, OVERLOADED)
    with pytest.raises(RetryLater, match="overloaded") as refused:
        await told(world)
    assert "node-2 has too much to do" in refused.value.detail


async def test_a_listing_ends_in_time_and_says_where_to_go_on() -> None:
    world = GatewayWorld(1, replicas=1)
    world.fill(keys)
    node = world.world.nodes["node-1"]
    number = 0

    def crawl(peer: object, request_id: int, body: bytes) -> None:
        # A node that always has a little more to look through.
        nonlocal number
        number += 1
        answer = encode_body(ListPage([], [], b"key-%06d" % number))
        world.clock.call_later(0.4, lambda: peer.reply(request_id, OK, answer))  # type: ignore[attr-defined]

    node.instead[LIST] = crawl
    began_s = world.clock.monotonic_s()
    merge = await world.run(page(world))
    assert work_s <= world.clock.monotonic_s() - began_s < work_s + page_s
    assert (merge.told, merge.place) == ([], b"key-%06d" % number)
    # Without any progress it is refused.
    node.ignore(LIST)
    with pytest.raises(ClientError, match="no_quorum"):
        await told(world)


async def test_a_new_map_has_all_slots_spoken_for_anew() -> None:
    world = GatewayWorld(3)
    world.fill(keys)
    node = world.world.nodes["node-1"]
    members = tuple(member_of(number) for number in range(1, 4))

    def change(peer: object, request_id: int, body: bytes) -> None:
        node.obey()
        world.fleet.adopt(ClusterMap(3, 3, members))
        answer = encode_body(ListPage([], [], None))
        peer.reply(request_id, OK, answer)  # type: ignore[attr-defined]

    # It has nothing any more, as its slots are others' by the next map.
    node.instead[LIST] = change
    assert await told(world) == keys


async def test_without_a_map_nothing_is_known() -> None:
    world = GatewayWorld(3)
    world.fleet.map = None
    with pytest.raises(RetryLater, match="cluster_forming"):
        await told(world)
