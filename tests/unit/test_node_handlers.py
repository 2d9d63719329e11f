"""Messages about many keys, while the loop turns and others come in between."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from services.core import messages as m
from services.core import sessions as s
from services.core.comparison import (
    SlotDigest,
    decode_digests,
    digests_max,
    encode_digests_asked,
)
from services.core.digest import summary_of
from services.core.key import namespace_prefix
from services.core.listings import ListPage, ListQuery, ScanPage
from services.core.namespaces import (
    Cache,
    Edition,
    NamespaceCount,
    NamespacesPage,
    NamespacesQuery,
    caches_max,
    encode_caches,
    encode_edition,
    no_edition,
)
from services.core.packed_bodies import decode_body, encode_body
from services.core.ring import slot_count, slot_of
from services.core.wire import FAILED, OK, OVERLOADED
from services.dhtnode.cache_list import caches_in_a_piece
from services.dhtnode.handlers import NodeHandlers
from services.dhtnode.listing import Query
from services.dhtnode.membership import Membership
from services.dhtnode.pages import namespaces_piece, namespaces_pieces_max
from services.dhtnode.turns import waiting_bytes_max
from services.runtime.clock import FakeClock
from services.runtime.link_limits import LinkCounters
from tests.unit.replica_world import Answer, World, key_of, prefix, tombstone, value, version


class BusyClock(FakeClock):
    """Time passes whenever it is asked for, so that a turn is a step or two."""

    spent_s = 0.0

    def monotonic_s(self) -> float:
        self.spent_s += 0.000_7
        return self.spent_s


class Station:
    """The handlers of a node, and the turns of its loop one by one."""

    def __init__(self) -> None:
        self.world = World(commit_bytes_max=2_000)
        self.counters = LinkCounters()
        self.due: list[Callable[[], None]] = []
        clock = BusyClock(self.world.timeline)
        replica = self.world.replica
        membership = Membership(replica, lambda data: None)
        self.handlers = NodeHandlers(
            replica, membership, clock, self.due.append, self.counters
        ).table({})

    def ask(self, kind: int, body: bytes) -> int:
        self.world.asked += 1
        self.handlers[kind](self.world.asker, self.world.asked, body)
        return self.world.asked

    def turn(self) -> None:
        due, self.due[:] = list(self.due), []
        for callback in due:
            callback()

    def finish(self) -> int:
        """Let the loop turn until nothing waits for it; how often it did."""
        turns = 0
        while self.due:
            self.turn()
            turns += 1
        return turns

    def told(self, kind: int, body: bytes) -> Answer:
        request_id = self.ask(kind, body)
        self.finish()
        self.world.settle()
        return self.world.asker.answers[request_id]


@pytest.fixture
def station() -> Station:
    return Station()


def written(*items: tuple[bytes, bytes], epoch: int = 0) -> bytes:
    return m.encode_write_many(epoch, items)


# So many writes take turns; fewer are stored in one piece.
many = m.few_items_max + 1


# Many writes.


def test_many_writes_wait_for_the_last_of_their_batches_whatever_is_durable_by_then(
    station: Station,
) -> None:
    world = station.world
    items = [(key_of(number), value(number + 1, bytes(300))) for number in range(many)]
    request_id = station.ask(m.WRITE_MANY, written(*items))
    while station.due:
        station.turn()
        world.settle(0.000_5)
    assert world.log.durable_sequence > 5, "nothing became durable in between"
    world.settle()
    kind, answer = world.asker.answers[request_id]
    assert (kind, set(m.decode_statuses(answer))) == (OK, {(OK, b"")})
    assert world.asker.durable_at[request_id] == many


def test_many_writes_whose_batches_are_all_durable_are_answered_at_once(station: Station) -> None:
    items = [(key_of(1), value(5)), *[(b"short", value(1))] * many]
    request_id = station.ask(m.WRITE_MANY, written(*items))
    station.turn()
    station.turn()
    station.world.settle()
    assert station.world.log.durable_sequence == 1
    assert station.world.answer(request_id) is None
    station.finish()
    assert station.world.answer(request_id) is not None


def test_items_behind_a_change_of_the_epoch_are_refused_with_it_once_that_is_durable(
    station: Station,
) -> None:
    world = station.world
    items = [(key_of(number), value(number + 1)) for number in range(many)]
    request_id = station.ask(m.WRITE_MANY, written(*items))
    for _ in range(8):
        station.turn()
    world.settle()
    stored = world.table.total.keys
    assert 0 < stored < many
    world.replica.adopt_epoch(3)
    station.finish()
    assert world.answer(request_id) is None, "the epoch is not durable yet"
    world.settle()
    kind, answer = world.asker.answers[request_id]
    refused = (m.WRONG_EPOCH, m.u64.pack(3))
    assert kind == OK
    assert m.decode_statuses(answer) == [(OK, b"")] * stored + [refused] * (many - stored)
    assert world.table.total.keys == stored


@pytest.mark.parametrize("count", [1, m.few_items_max])
def test_a_few_writes_are_stored_in_one_piece_and_told_once_all_are_durable(
    station: Station, count: int
) -> None:
    world = station.world
    items = [(key_of(number), value(number + 1)) for number in range(count)]
    request_id = station.ask(m.WRITE_MANY, written(*items))
    assert (station.due, world.table.total.keys) == ([], count)
    assert world.answer(request_id) is None
    world.settle()
    assert world.asker.answers[request_id] == (OK, m.encode_statuses([(OK, b"")] * count))
    assert world.asker.durable_at[request_id] == count


def test_of_a_few_writes_each_has_its_own_verdict(station: Station) -> None:
    items = [
        (key_of(1), value(5)),
        (key_of(1), value(4)),
        (b"short", value(6)),
        (key_of(1), value(7)),
    ]
    kind, answer = station.told(m.WRITE_MANY, written(*items))
    assert kind == OK
    assert [status for status, _ in m.decode_statuses(answer)] == [OK, m.NEWER, m.MALFORMED, OK]
    assert station.world.table.get(slot_of(key_of(1)), key_of(1)) == value(7)


def test_few_writes_that_are_large_take_turns(station: Station) -> None:
    request_id = station.ask(m.WRITE_MANY, written((key_of(1), value(1, bytes(m.few_bytes_max)))))
    assert station.world.table.total.keys == 0
    station.finish()
    station.world.settle()
    assert station.world.asker.answers[request_id] == (OK, m.all_applied(1))


def test_a_message_that_makes_no_sense_changes_nothing(station: Station) -> None:
    body = written((key_of(1), value(1)), (key_of(2), value(2)))
    assert station.told(m.WRITE_MANY, body[:-1])[0] == m.MALFORMED
    assert station.told(m.GET_MANY, b"\0")[0] == m.MALFORMED
    assert station.told(m.LIST, b"\xc1")[0] == m.MALFORMED
    assert station.told(m.DIGESTS, bytes(4))[0] == m.MALFORMED
    assert station.world.table.total.keys == 0
    assert station.world.replica.counters.malformed == 4


def test_a_write_is_not_kept_waiting_by_the_listings_before_it(station: Station) -> None:
    world = station.world
    for number in range(300):
        key = key_of(number)
        world.table.put(slot_of(key), key, value(1))
    listings = [station.ask(m.LIST, encode_body(ListQuery(prefix))) for _ in range(100)]
    station.turn()
    write = station.ask(m.WRITE_MANY, written((key_of(1), value(2)), (key_of(2), value(2))))
    read = station.ask(m.GET_MANY, m.encode_get_many([key_of(5)]))
    for _ in range(8):
        station.turn()
        world.settle(0.01)
    assert world.answer(write) == (OK, m.encode_statuses([(OK, b"")] * 2))
    assert world.answer(read) == (OK, m.encode_records([value(1)]))
    assert sum(request_id in world.asker.answers for request_id in listings) < 10
    station.finish()
    world.settle()
    assert all(world.asker.answers[request_id][0] == OK for request_id in listings)


queued = (
    *(m.GET_MANY, m.WRITE_MANY, m.LIST, m.SCAN, m.NAMESPACES),
    *(m.DIGESTS, m.LEAVES, m.VERSIONS, m.SLOT),
    *(s.STALE, s.COMPARE, s.REPAIR, s.PURGE),
)


@pytest.mark.parametrize("kind", queued)
def test_what_wants_no_answer_or_is_too_large_never_waits(station: Station, kind: int) -> None:
    world = station.world
    station.handlers[kind](world.asker, 0, written((key_of(1), value(1))))
    assert world.asker.answers == {}
    request_id = station.ask(kind, bytes(m.many_bytes_max + 1))
    assert world.asker.answers[request_id][0] == m.MALFORMED
    assert station.due == []
    assert (world.replica.counters.malformed, world.table.total.keys) == (2, 0)


def test_past_so_many_bytes_of_writes_the_next_are_overloaded(station: Station) -> None:
    world = station.world
    body = written(*[(key_of(1), value(1, bytes(20_000)))] * 50)
    room = waiting_bytes_max // len(body)
    asked = [station.ask(m.WRITE_MANY, body) for _ in range(room + 1)]
    assert world.asker.answers == {asked[-1]: (OVERLOADED, b"")}
    assert station.counters.overloaded == 1
    listing = station.ask(m.LIST, encode_body(ListQuery(prefix)))
    station.finish()
    world.settle(10.0)
    assert {world.asker.answers[request_id][0] for request_id in (*asked[:-1], listing)} == {OK}


def test_a_peer_that_has_gone_is_told_that_nothing_was_done(station: Station) -> None:
    world = station.world
    request_id = station.ask(m.WRITE_MANY, written(*[(key_of(1), value(1))] * many))
    world.asker.connected = False
    station.finish()
    assert world.answer(request_id) == (OVERLOADED, b"")
    assert world.table.total.keys == 0


# Digests.


def test_leaves_wait_for_their_turn_as_they_may_have_to_be_worked_out(station: Station) -> None:
    request_id = station.ask(m.LEAVES, m.u16.pack(5))
    assert station.world.answer(request_id) is None
    station.finish()
    assert station.world.answer(request_id) == (OK, bytes(512))
    assert station.told(m.LEAVES, m.u16.pack(slot_count))[0] == m.MALFORMED


def test_digests_are_worked_out_in_steps_while_a_cache_changes_sides(station: Station) -> None:
    table = station.world.table
    keys = [key_of(number) for number in range(2_000)]
    for key in keys:
        table.put(slot_of(key), key, value(1))
    table.declare_cache(prefix, 5_000)
    asked = [
        station.ask(m.DIGESTS, encode_digests_asked(first, digests_max))
        for first in range(0, slot_count, digests_max)
    ]
    assert len(station.due) == 1
    station.turn()
    assert not station.world.asker.answers
    # A step is a slot, and a turn on this clock a step or two of one request.
    assert station.finish() > slot_count // 3
    empty = SlotDigest(summary_of(bytes(512)), 0)
    for request_id in asked:
        kind, answer = station.world.asker.answers[request_id]
        assert (kind, decode_digests(answer)) == (OK, [empty] * digests_max)


# Caches.


def test_a_list_of_as_many_caches_as_there_may_be_is_taken_in_turns(station: Station) -> None:
    spaces = [namespace_prefix(7, b"cache-%04d" % number) for number in range(caches_max)]
    told = encode_caches(Edition(1, 1), [Cache(space, 5) for space in spaces])
    request_id = station.ask(m.CACHES, told)
    # A turn on this clock is a step or two.
    assert station.finish() > caches_max // caches_in_a_piece // 2
    # It is answered once all of it is durable, and what others change meanwhile is not in its way.
    assert station.world.answer(request_id) is None
    station.world.settle(20.0)
    assert station.world.answer(request_id) == (OK, encode_edition(Edition(1, 1)))
    assert station.world.replica.caches == dict.fromkeys(spaces, 5)
    frames = len(station.world.frames)
    # Everybody tells it; once is enough, and an older one is answered with what is known.
    for version_told in (1, 0):
        edition = Edition(version_told, 1)
        known = encode_edition(Edition(1, 1))
        assert station.told(m.CACHES, encode_caches(edition, [])) == (OK, known)
    assert len(station.world.frames) == frames


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(15),
        encode_edition(Edition(9, 9)),
        encode_caches(Edition(9, 9), [Cache(b"", 1)]),
        encode_caches(Edition(9, 9), [Cache(prefix + b"x", 1)]),
        encode_caches(Edition(9, 9), [Cache(prefix, 0)]),
        encode_caches(Edition(9, 9), [Cache(prefix, 1)] * (caches_max + 1)),
    ],
    ids=["nothing", "cut", "no list", "no name", "a broken name", "no items", "too many"],
)
def test_a_list_of_caches_that_makes_no_sense_changes_nothing(
    station: Station, body: bytes
) -> None:
    assert station.told(m.CACHES, body)[0] == m.MALFORMED
    known = station.world.replica.cache_list
    assert (known.caches, known.edition) == ({}, no_edition)


# Listings.


@pytest.mark.parametrize("delimiter", [b"", b"/"])
@pytest.mark.parametrize("limit", [1, 255, 256, 257, 1_000])
def test_a_page_in_pieces_is_the_page(station: Station, delimiter: bytes, limit: int) -> None:
    table, draw = station.world.table, random.Random(limit)
    for number in range(1_500):
        key = prefix + b"%d/%04d" % (draw.randrange(300), number)
        table.put(slot_of(key), key, value(number + 1))
    lone = prefix + b"5-alone"
    table.put(slot_of(lone), lone, value(1))
    now_ms = station.world.clock.wall_ms()
    start = b""
    pages = 0
    while True:
        query = ListQuery(prefix, start=start, limit=limit, delimiter=delimiter)
        kind, answer = station.told(m.LIST, encode_body(query))
        page = decode_body(answer, ListPage)
        whole = table.page(prefix, Query(start=start, limit=limit, delimiter=delimiter), now_ms)
        assert kind == OK
        assert [entry.key for entry in page.entries] == [entry.key for entry in whole.entries]
        assert page.groups == whole.groups
        scanned = decode_body(station.told(m.SCAN, encode_body(query))[1], ScanPage)
        seen = table.scan(prefix, Query(start=start, limit=limit), now_ms, tombstones=False)
        assert [tuple(item) for item in scanned.found] == seen.found
        pages += 1
        if page.next is None or pages == 5:
            break
        assert page.next == whole.next
        start = page.next


def test_namespaces_come_in_pages_with_what_each_has(station: Station) -> None:
    table = station.world.table
    names = [b"%04d" % number for number in range(1_300)]
    for number, name in enumerate(names):
        for copy in range(number % 3):
            key = namespace_prefix(7, name) + b"key-%d" % copy
            table.put(slot_of(key), key, value(1, b"four"))
        gone = namespace_prefix(7, name) + b"gone"
        table.put(slot_of(gone), gone, tombstone(1))
    key = namespace_prefix(8, b"of another") + b"key"
    table.put(slot_of(key), key, value(1))
    start: bytes | None = b""
    found: list[NamespaceCount] = []
    sizes = []
    while start is not None:
        query = NamespacesQuery(7, start, 400)
        kind, answer = station.told(m.NAMESPACES, encode_body(query))
        assert kind == OK
        page = decode_body(answer, NamespacesPage)
        found += page.found
        sizes.append(len(page.found))
        start = page.next
    assert sizes == [400, 400, 66]
    assert found == [
        NamespaceCount(name, number % 3, number % 3 * (5 + 4))
        for number, name in enumerate(names)
        if number % 3
    ]


def test_namespaces_without_keys_are_passed_over_in_turns_and_in_pages_that_are_bounded(
    station: Station,
) -> None:
    table = station.world.table
    for number in range(namespaces_piece * namespaces_pieces_max + 5):
        key = namespace_prefix(7, b"%05d" % number) + b"key"
        table.put(slot_of(key), key, tombstone(1))
    request_id = station.ask(m.NAMESPACES, encode_body(NamespacesQuery(7)))
    # A turn on this clock is a step or two.
    assert station.finish() >= namespaces_pieces_max // 2
    station.world.settle()
    page = decode_body(station.world.asker.answers[request_id][1], NamespacesPage)
    assert page == NamespacesPage([], b"16000")
    _, answer = station.told(m.NAMESPACES, encode_body(NamespacesQuery(7, b"16000")))
    assert decode_body(answer, NamespacesPage) == NamespacesPage([], None)


def test_a_namespace_that_comes_or_goes_between_two_turns_does_no_harm(station: Station) -> None:
    table = station.world.table
    keys = [namespace_prefix(7, b"%04d" % number) + b"key" for number in range(3_000)]
    for key in keys[500:2_500]:
        table.put(slot_of(key), key, value(1))
    request_id = station.ask(m.NAMESPACES, encode_body(NamespacesQuery(7)))
    station.turn()
    for key in keys[:600] + keys[2_000:]:
        if table.peek(slot_of(key), key) is None:
            table.put(slot_of(key), key, value(2))
        else:
            table.remove(slot_of(key), key)
    station.finish()
    station.world.settle()
    page = decode_body(station.world.asker.answers[request_id][1], NamespacesPage)
    names = [found.name for found in page.found]
    assert names == sorted(set(names))
    assert set(names) >= {b"%04d" % number for number in range(600, 1_500)}


def test_namespaces_that_make_no_sense_are_malformed_and_unwritten_ones_are_not_told_of(
    station: Station,
) -> None:
    bad = encode_body(NamespacesQuery(-1))
    assert station.told(m.NAMESPACES, bad)[0] == m.MALFORMED
    request_id = station.ask(m.NAMESPACES, encode_body(NamespacesQuery(7)))
    station.world.ask("write", m.encode_write(0, key_of(1), value(4)))
    station.finish()
    assert station.world.answer(request_id) is None, "what it shows is not durable yet"
    station.world.settle()
    page = decode_body(station.world.asker.answers[request_id][1], NamespacesPage)
    assert [found.name for found in page.found] == [b"default"]


def test_a_bug_after_the_first_step_is_answered_too(station: Station) -> None:
    key = key_of(1)
    station.world.table.put(slot_of(key), key, value(1))
    request_id = station.ask(m.LIST, encode_body(ListQuery(prefix)))
    # What no handler expects: a record that is none.
    station.world.table._slots[slot_of(key)][key] = b""
    station.finish()
    assert station.world.answer(request_id) == (FAILED, b"")
    assert station.counters.bugs == 1


def test_many_reads_wait_for_the_change_they_show(station: Station) -> None:
    request_id = station.ask(m.GET_MANY, m.encode_get_many([key_of(1), key_of(2)]))
    station.world.ask("write", m.encode_write(0, key_of(1), value(4)))
    station.finish()
    assert station.world.answer(request_id) is None
    station.world.settle()
    assert station.world.answer(request_id) == (OK, m.encode_records([value(4), b""]))
    assert version(4) in station.world.asker.answers[request_id][1]
