"""Batches while nodes and replicators fail: each item is told what became of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from services.core.errors import FixRequest, RetryLater, UnknownOutcome
from services.core.key_checks import scopes_all
from services.core.messages import GET_MANY, encode_records
from services.core.operations import UNKNOWN, unknown_answer
from services.core.wire import FAILED, OK, OVERLOADED
from services.gateway.batch_items import Asked
from services.gateway.batching import Batches, cost, encoded
from services.gateway.messages_batch import Batch, DeleteItem, GetItem, Item, PutItem
from services.runtime.clock import FakeClock, Timeline
from services.runtime.request_body import decode_struct
from tests.known_keys import KnownKeys
from tests.unit.gateway_world import GatewayWorld, prefix

credential = KnownKeys(FakeClock(Timeline())).of_console(7, scopes_all)
keys = [f"key-{number:04d}" for number in range(300)]


@pytest.fixture(params=[3, 6])
def world(request: pytest.FixtureRequest) -> GatewayWorld:
    return GatewayWorld(request.param)


async def run(world: GatewayWorld, items: list[Item], *, strong: bool = False) -> list[Any]:
    asked = [Asked(item, credential, prefix, strong=strong) for item in items]
    batches = Batches(world, world.clock)
    await world.run(batches.put_through(asked, strong=strong))
    results: list[Any] = json.loads(await encoded(asked))["results"]
    return results


def puts() -> list[Item]:
    return [PutItem(key, value=key) for key in keys]


def gets() -> list[Item]:
    return [GetItem(key) for key in keys]


def test_an_item_of_no_kind_is_told_which_kinds_there_are() -> None:
    with pytest.raises(FixRequest) as caught:
        decode_struct(b'{"operations": [{"op": "zap", "key": "a"}]}', Batch)
    assert caught.value.detail == (
        "operations[0].op: cannot be 'zap'; it is one of delete, get, put"
    )


@pytest.mark.parametrize("strong", [False, True])
async def test_what_was_put_is_got(world: GatewayWorld, *, strong: bool) -> None:
    made = await run(world, puts(), strong=strong)
    assert {one["status"] for one in made} == {200}
    found = await run(world, gets(), strong=strong)
    assert [one["value"] for one in found] == keys
    gone = await run(world, [DeleteItem(key) for key in keys], strong=strong)
    assert {one["status"] for one in gone} == {200}
    assert {one["code"] for one in await run(world, gets(), strong=strong)} == {"key_not_found"}


async def test_reads_need_no_replicator_and_one_message_to_each_node(world: GatewayWorld) -> None:
    await run(world, puts())
    world.replicators.instead = RetryLater("no_replicator", "There is none")
    before = world.world.messages(GET_MANY)
    mixed = await run(world, [*gets(), PutItem("new", value="v"), DeleteItem("key-0000")])
    assert [one.get("value") for one in mixed[:-2]] == keys
    assert [one["code"] for one in mixed[-2:]] == ["no_replicator"] * 2
    assert world.world.messages(GET_MANY) - before == len(world.world.nodes)


@pytest.mark.parametrize("answer", [(FAILED, b""), (OVERLOADED, b""), (OK, b"?"), (OK, b"\0\0")])
async def test_a_read_goes_to_the_next_owner_of_its_key(
    world: GatewayWorld, answer: tuple[int, bytes]
) -> None:
    await run(world, puts())
    world.world.nodes["node-1"].answer(GET_MANY, *answer)
    assert [one.get("value") for one in await run(world, gets())] == keys
    # What makes no sense is a bug somewhere, which the others only hide.
    assert world.fleet.senseless == (answer[0] == OK)
    world.world.nodes["node-2"].ignore(GET_MANY)
    assert [one.get("value") for one in await run(world, gets())] == keys


async def test_a_node_that_leaves_every_record_out_is_not_asked_for_ever(
    world: GatewayWorld,
) -> None:
    await run(world, puts())
    node = world.world.nodes["node-1"]

    def leave_out(peer: Any, request_id: int, body: bytes) -> None:
        count = int.from_bytes(body[:2], "big")
        peer.reply(request_id, OK, body[:2] + b"\xff\xff\xff\xff" * count)

    node.instead[GET_MANY] = leave_out
    assert [one.get("value") for one in await run(world, gets())] == keys


async def test_keys_that_nobody_can_tell_of_are_refused_and_no_others() -> None:
    world = GatewayWorld(6)
    await run(world, puts())
    for number in (1, 2, 3):
        world.world.nodes[f"node-{number}"].answer(GET_MANY, OVERLOADED)
    counted = Counter((one["status"], one.get("code")) for one in await run(world, gets()))
    assert counted.keys() == {(200, None), (503, "overloaded")}
    for node in world.world.nodes.values():
        node.answer(GET_MANY, FAILED)
    assert {one["code"] for one in await run(world, gets())} == {"no_quorum"}


async def test_large_records_come_in_several_messages(world: GatewayWorld) -> None:
    value = "x" * 700_000
    names = [f"large-{number}" for number in range(12)]
    await run(world, [PutItem(name, value=value) for name in names])
    assert len(encode_records([value.encode()] * 3)) < 2_100_000
    found = await run(world, [GetItem(name) for name in names])
    assert {one["status"] for one in found} == {200}
    assert {one["value"] for one in found} == {value}


async def test_what_may_have_been_done_is_unknown_and_a_read_never_is(world: GatewayWorld) -> None:
    world.replicators.instead = UnknownOutcome("Nobody knows", operation_id="ab")
    mixed: list[Item] = [PutItem("a", value="v"), DeleteItem("b"), GetItem("c")]
    eventual = await run(world, mixed)
    assert [one["status"] for one in eventual] == [504, 504, 404]
    assert [one.get("operation_id") for one in eventual] == ["ab", "ab", None]
    strong = await run(world, mixed, strong=True)
    assert [(one["status"], one["code"]) for one in strong] == [
        (504, "unknown_outcome"),
        (504, "unknown_outcome"),
        (503, "no_replicator"),
    ]
    assert strong[2]["detail"] == "The replicator that was asked gave no answer"


@pytest.mark.parametrize("strong", [False, True])
async def test_a_read_that_a_replicator_cannot_settle_lacks_a_quorum(*, strong: bool) -> None:
    item = Asked(GetItem("a"), credential, prefix, strong=strong)
    item.told(UNKNOWN, unknown_answer(bytes(12), "two of three were gone"))
    result = item.result()
    assert (result.status, result.code) == (503, "no_quorum")
    assert result.detail == "two of three were gone"


async def test_strong_items_without_a_majority_are_told_so_one_by_one() -> None:
    world = GatewayWorld(3)
    await run(world, puts())
    for number in (2, 3):
        world.world.nodes[f"node-{number}"].crash()
    world.world.pass_time(2.0)
    strong = await run(world, [GetItem("key-0001"), PutItem("key-0002", value="v")], strong=True)
    assert {(one["status"], one["code"]) for one in strong} == {(503, "no_quorum")}
    eventual = await run(world, [GetItem("key-0001"), PutItem("key-0002", value="v")])
    assert [one["status"] for one in eventual] == [200, 200]


async def test_alternating_reads_and_writes_of_one_key_end_in_time(world: GatewayWorld) -> None:
    items: list[Item] = []
    for number in range(100):
        items += (PutItem("k", value=str(number)), GetItem("k"))
    results = await run(world, items)
    assert [one["value"] for one in results[1::2]] == [str(number) for number in range(100)]
    for node in world.world.nodes.values():
        node.ignore(GET_MANY)
    results = await run(world, items)
    assert {one["status"] for one in results[1::2]} == {503}
    assert results[-2]["code"] == "overloaded", "there was no time left for the last of them"


def test_a_batch_costs_a_token_for_every_hundred_items() -> None:
    for count, tokens in ((0, 1), (1, 1), (100, 1), (101, 2), (1_000, 10)):
        assert cost(Batch([GetItem("k")] * count)) == tokens
