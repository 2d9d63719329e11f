"""Going through a slot by pages while it changes: nothing is lost, and each page costs its keys."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial

import pytest

from services.core import messages as m
from services.core import sessions as s
from services.core.comparison import decode_versions, encode_versions_asked
from services.core.hlc import version_zero
from services.core.paxos import nothing_promised
from services.core.ring import leaf_bits, leaf_count
from services.core.wire import OK
from services.dhtnode import runs, slot_orders
from services.dhtnode.chunk import decode_chunk
from services.dhtnode.handlers import NodeHandlers
from services.dhtnode.membership import Membership
from services.dhtnode.promises import Promises
from services.dhtnode.replica import Replica
from services.dhtnode.slot_orders import SlotOrders, few_keys, page_piece_keys
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock
from services.runtime.link_limits import LinkCounters
from tests.unit.replica_world import World, digest_key, prefix, tombstone, value, version
from tests.unit.session_world import Node, epoch, keys_in
from tests.unit.test_membership import cluster_map

slot = 77
keys_of_slot = keys_in(slot, 90)
session = version(50)
promise = nothing_promised._replace(
    promised=version(1), ballot=version(1), operation=version(2), record=tombstone(1)
)


# Pages, as who asks for them sees them.

Page = tuple[list[bytes], bytes | None]
"""The keys of a page, and the `after` of the next one."""


def stale(after: bytes) -> tuple[int, bytes]:
    return s.STALE, s.encode_stale(epoch, slot, FakeClock.epoch_ms, after)


def compare(after: bytes) -> tuple[int, bytes]:
    return s.COMPARE, s.encode_compare(epoch, slot, session, after)


def versions(after: bytes) -> tuple[int, bytes]:
    return m.VERSIONS, encode_versions_asked(slot, range(leaf_count), after)


def records(after: bytes) -> tuple[int, bytes]:
    return m.SLOT, m.u16.pack(slot) + after


def page_of(kind: int, body: bytes) -> Page:
    if kind == m.SLOT:
        reader = m.Reader(body)
        last = reader.take(reader.u16())
        if not last:
            return [], None
        keys = decode_chunk(reader.rest())[1]
        assert keys[-1] == last
        return keys, last
    if kind == s.STALE:
        more, keys = s.decode_key_page(body)
    elif kind == s.COMPARE:
        compared = s.decode_compared(body)
        more, keys = compared.more, [entry.key for entry in compared.entries]
    else:
        found = decode_versions(body)
        more, keys = found.more, [key for key, _ in found.found]
    return keys, keys[-1] if more else None


Ask = Callable[[bytes], tuple[int, bytes]]
all_pages = pytest.mark.parametrize("ask", [stale, compare, versions, records])


def walk(node: Node, ask: Ask) -> Generator[None, None, list[bytes]]:
    """Go through the slot, and wait where there is no answer yet."""
    seen: list[bytes] = []
    after: bytes | None = b""
    while after is not None:
        kind, body = ask(after)
        request_id = node.ask(kind, body)
        while (answer := node.answer(request_id)) is None:
            yield
        assert answer[0] == OK
        keys, after = page_of(kind, answer[1])
        seen += keys
    return seen


class Slot:
    """Keys that stay, and keys that come and go. Each has a cell, a promise, or both."""

    def __init__(self, node: Node, draw: random.Random) -> None:
        self.node = node
        self.draw = draw
        keys = draw.sample(keys_of_slot, 90)
        self.staying, self.passing = keys[:50], keys[50:]
        self.cells = {key for key in self.staying if draw.random() < 0.7}
        self.promises = {key for key in self.staying if draw.random() < 0.7}
        for key in self.staying:
            self.put(key, cell=key in self.cells, promised=key in self.promises)

    def put(self, key: bytes, *, cell: bool, promised: bool) -> None:
        if cell:
            self.node.table.put(slot, key, tombstone(self.draw.randrange(1, 40)))
        if promised:
            self.node.replica.promises.put(slot, key, promise)

    def change(self) -> None:
        key = self.draw.choice(self.passing)
        promises = self.node.replica.promises
        if self.node.cell(key) is None and not promises.holds(slot, key):
            self.put(key, cell=self.draw.random() < 0.7, promised=self.draw.random() < 0.7)
            return
        self.node.table.remove(slot, key)
        if promises.holds(slot, key):
            promises.drop(slot, key)

    def due(self, ask: Ask) -> set[bytes]:
        """What everybody who goes through it has to see."""
        if ask is stale:
            return self.promises
        return self.cells | self.promises if ask is compare else self.cells


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pages of a few keys, made in steps that look at fewer."""
    for name, limit in (
        ("services.dhtnode.slot_orders.few_keys", 10),
        ("services.dhtnode.slot_orders.page_piece_keys", 3),
        ("services.dhtnode.slot_orders.run_keys", 6),
        ("services.dhtnode.runs.run_keys", 6),
        ("services.core.comparison.versions_max", 7),
        ("services.dhtnode.handlers.versions_max", 7),
        ("services.core.sessions.stale_max", 7),
        ("services.dhtnode.sessions.stale_max", 7),
        ("services.core.sessions.compared_max", 7),
        ("services.dhtnode.sessions.compared_max", 7),
        ("services.dhtnode.handlers.piece_records", 7),
        ("services.dhtnode.handlers.piece_bytes", 300),
    ):
        monkeypatch.setattr(name, limit)


@all_pages
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("short_steps")
def test_no_key_that_is_there_all_the_time_is_lost_whatever_comes_and_goes_between_the_steps(
    ask: Ask, seed: int
) -> None:
    draw = random.Random(seed)
    node = Node()
    node.freeze(slot, session)
    world = Slot(node, draw)
    orders = node.replica.orders
    walks: list[Generator[None, None, list[bytes]]] = []
    begun = ended = 0
    while ended < 8:
        if begun < 8 and len(walks) < 3 and draw.random() < 0.1:
            walks.append(walk(node, ask))
            begun += 1
        if draw.random() < 0.5:
            world.change()
        if draw.random() < 0.01:
            orders.forget(slot)
        for steps in list(walks):
            if (seen := step(steps)) is not None:
                walks.remove(steps)
                ended += 1
                assert world.due(ask) <= set(seen) <= {*world.staying, *world.passing}
                # In order, so each of them once.
                assert seen == sorted(set(seen))
        node.turn()


def step(steps: Generator[None, None, list[bytes]]) -> list[bytes] | None:
    """What was seen, if that was the last step."""
    try:
        next(steps)
    except StopIteration as end:
        seen: list[bytes] = end.value
        return seen
    return None


@all_pages
@pytest.mark.usefixtures("short_steps")
def test_what_has_gone_when_its_page_is_made_is_not_shown(ask: Ask) -> None:
    node = Node()
    node.freeze(slot, session)
    world = Slot(node, random.Random(1))
    steps = walk(node, ask)
    next(steps)
    while not node.replica.orders.kept_keys:
        node.turn()
    gone = max(world.due(ask))
    node.table.remove(slot, gone)
    if node.replica.promises.holds(slot, gone):
        node.replica.promises.drop(slot, gone)
    assert gone not in finished(node, steps)


def finished(node: Node, steps: Generator[None, None, list[bytes]]) -> list[bytes]:
    while (seen := step(steps)) is None:
        node.turn()
    return seen


@all_pages
@pytest.mark.usefixtures("short_steps")
def test_who_begins_anew_is_shown_what_has_come_since(ask: Ask) -> None:
    node = Node()
    node.freeze(slot, session)
    world = Slot(node, random.Random(1))
    before = finished(node, walk(node, ask))
    assert node.replica.orders.kept_keys
    new = world.passing[0]
    world.put(new, cell=True, promised=True)
    assert finished(node, walk(node, ask)) == sorted([*before, new])


@pytest.mark.parametrize("way", ["purge", "freeze", "epoch"])
@pytest.mark.usefixtures("short_steps")
def test_a_page_of_a_session_that_ends_while_it_is_made_is_refused(way: str) -> None:
    node = Node()
    node.freeze(slot, session)
    Slot(node, random.Random(2))
    request_id = node.ask(*compare(b""))
    for _ in range(8):
        node.turn()
    assert node.answer(request_id) is None
    if way == "purge":
        node.purge(slot, session)
    elif way == "freeze":
        node.freeze(slot, version(60))
    else:
        node.membership.adopt(cluster_map(epoch + 2))
        node.finish()
        node.world.settle()
    assert node.answer(request_id) == (s.NO_SESSION, b"")


@pytest.mark.usefixtures("short_steps")
def test_a_page_of_stale_keys_is_one_of_the_epoch_it_was_asked_for_in() -> None:
    node = Node()
    Slot(node, random.Random(2))
    request_id = node.ask(*stale(b""))
    for _ in range(6):
        node.turn()
    assert node.answer(request_id) is None
    node.membership.adopt(cluster_map(epoch + 2))
    node.finish()
    node.world.settle()
    assert node.answer(request_id) == (m.WRONG_EPOCH, m.u64.pack(epoch + 2))


# What it costs.


class CountedTable(Table):
    """Counts the keys that are looked at in one piece."""

    def __init__(self) -> None:
        super().__init__(digest_key)
        self.looked: list[int] = []

    def lasting(self, slot: int, keys: Collection[bytes]) -> list[tuple[bytes, bytes]]:
        self.looked.append(len(keys))
        return super().lasting(slot, keys)


class LargeSlot:
    """A slot with so many keys as a tenant only has there on purpose, and what is asked of it."""

    count = 20_000

    def __init__(self) -> None:
        world = World()
        self.asker = world.asker
        self.table = CountedTable()
        self.replica = Replica(self.table, world.clock)
        self.replica.serve(world.log)
        membership = Membership(self.replica, lambda data: None)
        membership.adopt(cluster_map(epoch))
        handlers = NodeHandlers(
            self.replica, membership, world.clock, lambda callback: None, LinkCounters()
        )
        self.replica.sessions[slot] = session
        world.settle()
        self.steps: dict[int, Callable[[int, bytes], Iterator[None]]] = {
            kind: partial(handler, world.asker)
            for kind, handler in {
                m.VERSIONS: handlers._versions,
                m.SLOT: handlers._slot,
                **handlers.sessions.reading(),
            }.items()
        }
        draw = random.Random(3)
        self.keys = [prefix + b"%016x" % draw.getrandbits(64) for _ in range(self.count)]
        # That their hashes are of other slots is nothing that a table looks at.
        for number, key in enumerate(self.keys):
            place = slot << leaf_bits | number % leaf_count
            self.table.replace(place, key, None, value(1))
            self.replica.promises.put(slot, key, promise)

    def page(self, number: int, kind: int, body: bytes) -> tuple[bytes, int]:
        """The answer, and in how many steps it was made."""
        steps = 1 + sum(1 for _ in self.steps[kind](number, body))
        return self.asker.answers[number][1], steps


@pytest.mark.parametrize("ask", [stale, compare, versions, records])
def test_all_pages_of_a_large_slot_look_at_each_of_its_keys_about_once_and_at_few_in_a_step(
    ask: Ask,
) -> None:
    large = LargeSlot()
    shown = pages = steps = 0
    after: bytes | None = b""
    while after is not None:
        pages += 1
        kind, body = ask(after)
        answer, made_in = large.page(pages, kind, body)
        steps += made_in
        if kind == m.SLOT:
            last = answer[2 : 2 + int.from_bytes(answer[:2], "big")]
            shown += int.from_bytes(answer[len(last) + 4 : len(last) + 6], "big") if last else 0
            after = last or None
        else:
            keys, after = page_of(kind, answer)
            shown += len(keys)
    assert shown == large.count
    assert pages >= large.count // 4_096
    assert large.replica.orders.begun == 1
    # All of it besides what a page has looked at and had no room for; and two steps to sort a run.
    looked = large.count + pages * page_piece_keys
    assert steps >= large.count // page_piece_keys
    assert steps <= looked / page_piece_keys + 3 * pages + 8 * large.count / runs.run_keys
    if ask is not stale:
        assert max(large.table.looked) <= page_piece_keys
        assert sum(large.table.looked) <= looked


# Orders that are kept.


def orders_of(*sizes: int) -> tuple[SlotOrders, Table]:
    """The orders of a table whose first slots have so many keys."""
    table = Table(digest_key)
    for number, size in enumerate(sizes):
        for at in range(size):
            table.replace(number << leaf_bits, prefix + b"%d/%06d" % (number, at), None, value(1))
    return SlotOrders(table, Promises(table.peek)), table


def begin(orders: SlotOrders, number: int) -> None:
    """Ask for the first keys of a slot."""
    next(keys for keys in orders.behind(number, b"") if keys)


def test_an_order_of_few_keys_is_made_anew_for_each_page() -> None:
    orders, _ = orders_of(few_keys)
    begin(orders, 0)
    assert orders.kept_keys == 0
    assert sum(map(len, orders.behind(0, b"\xff"))) == 0
    assert list(orders.behind(1, b"")) == []


def test_what_is_kept_is_bounded_and_what_was_used_last_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slot_orders, "kept_keys_max", 5_000)
    orders, _ = orders_of(2_000, 2_000, 2_000, 6_000)
    begin(orders, 0)
    begin(orders, 1)
    next(orders.behind(0, prefix))
    begin(orders, 2)
    assert orders.kept_keys == 4_000
    begun = orders.begun
    next(orders.behind(0, prefix))
    assert orders.begun == begun
    begin(orders, 3)
    assert orders.kept_keys == 6_000


def test_who_begins_last_has_the_order_that_is_kept() -> None:
    orders, table = orders_of(2_000)
    one, other = orders.behind(0, b""), orders.behind(0, b"")
    next(one)
    last = prefix + b"1"
    table.replace(0, last, None, value(1))
    begin(orders, 0)
    # That the first one comes to its end later changes nothing.
    next(keys for keys in one if keys)
    assert list(orders.behind(0, prefix + b"0/001999")) == [(last,)]
    next(other)


def test_what_nobody_goes_on_with_is_dropped_when_expired_values_are_looked_for() -> None:
    world = World()
    for at in range(2_000):
        world.table.replace(slot << leaf_bits, prefix + b"%d" % at, None, value(1))
    orders = world.replica.orders
    begin(orders, slot)
    next(keys for keys in orders.behind(slot, b"") if keys)
    assert orders.kept_keys == 2_000
    world.replica.trim_slice(FakeClock.epoch_ms, 1 << 20)
    assert orders.kept_keys == 0


def test_promises_that_have_ended_are_counted_by_namespace() -> None:
    promises = Promises(lambda slot, key: None)
    keys = keys_of_slot[:3]
    for key in keys:
        promises.put(slot, key, promise)
        promises.put(slot, key, promise._replace(promised=version(3)))
    assert (promises.ended(slot, ()), promises.ended_everywhere) == (3, 3)
    assert promises.ended(slot, {prefix}) == 0
    promises.put(slot, keys[0], promise._replace(ballot=version(4), record=value(4)))
    promises.drop(slot, keys[1])
    assert (promises.ended(slot, {b"another"}), promises.ended_everywhere) == (1, 1)
    promises.wipe(slot)
    assert (promises.ended(slot, ()), promises.ended_everywhere) == (0, 0)
    promises.put(slot, keys[0], promise._replace(ballot=version_zero, record=b""))
    assert promises.ended(slot, ()) == 0
