"""What gateways ask over links: admitted or refused, decoded once, answered once."""

from __future__ import annotations

import os
import random

import pytest

from services.core import messages as m
from services.core import operations as o
from services.core.ballots import PREPARE, READ
from services.core.declarations import NamespacesTold, NamespaceTold
from services.core.deletions import PrefixDeletion
from services.core.errors import RetryLater
from services.core.hlc import version_bytes
from services.core.key import namespace_prefix
from services.core.namespaces import NamespacesPage, NamespacesQuery
from services.core.packed_bodies import decode_body, encode_body
from services.core.record import expires_at_ms, is_tombstone, meta, value
from services.core.wire import OK, Role
from services.replicator import batch, requests
from services.replicator.cache_news import CacheNews
from services.replicator.declarations import Declarations
from services.replicator.declaring import Declaring
from services.replicator.memory_namespace_store import MemoryNamespaceStore, NamespaceRows
from services.replicator.requests import Requests
from services.runtime.fake_link import FakeLink
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import SENT, body_bytes_max
from tests.unit.replicator_world import Asked, World, key_of, prefix, secret

key = key_of(1)
wait_s = 5.0


class Front:
    """A world whose replicator answers requests over links, and a gateway with a link to it."""

    def __init__(self, role: Role = Role.GATEWAY) -> None:
        self.world = World()
        self.trouble: RetryLater | None = None
        self.replicator = replicator = self.world.replicator
        clock, declared = replicator.clock, replicator.declared
        news = CacheNews(declared, replicator.fleet, lambda peer: True, clock)
        rows = MemoryNamespaceStore(NamespaceRows())
        declaring = Declaring(rows, declared, news, clock, random.Random(1))
        self.requests = Requests(
            lambda: self.trouble, declared, declaring, clock, replicator.counters
        )
        self.requests.serve(
            replicator.writes, replicator.strong, replicator.prefixes, replicator.namespaces
        )
        server = Station(Identity(Role.REPLICATOR, "front", secret), self.requests.handlers())
        self.server = server
        self.world.network.attach(server, replicator.clock)
        client = Station(Identity(role, "client", secret))
        self.client = client
        self.world.network.attach(client, replicator.clock)
        self.link = FakeLink(self.world.network, "client", "front")
        self.link.start()
        self.world.pass_time()

    def ask(self, kind: int, body: bytes) -> Asked:
        asked = Asked()
        assert self.link.request(kind, body, asked, wait_s) == SENT
        return asked

    def told(self, kind: int, body: bytes) -> Asked:
        asked = self.ask(kind, body)
        self.world.pass_time(0.2)
        assert not self.server.counters.bugs, "a handler failed; the log has it"
        assert (self.requests.under_way, self.requests.under_way_bytes) == (0, 0)
        return asked

    def batch(self, *items: o.Item) -> list[o.Item]:
        asked = self.told(o.BATCH, o.encode_batch(items))
        assert asked.kind == OK, asked.answers
        return o.decode_batch(asked.body)

    def record(self, key: bytes) -> bytes:
        records = self.world.held(key)
        assert len(set(records)) == 1, records
        return records[0] or b""


@pytest.fixture
def front() -> Front:
    return Front()


def code(asked: Asked) -> str:
    assert asked.kind == o.REFUSED, asked.answers
    return o.decode_refused(asked.body)[0]


def changed(request: o.ChangeRequest) -> bytes:
    return o.encode_change(request)


# One key.


def test_a_put_is_stored_with_its_metadata_and_without_an_expiry(front: Front) -> None:
    asked = front.told(o.PUT, o.encode_put(key, b"hello", meta=b"\1" + bytes(9)))
    record = front.record(key)
    assert asked.kind == o.CHANGED
    assert o.decode_changed(asked.body) == (record[:version_bytes], 0, None)
    assert (value(record), meta(record), expires_at_ms(record)) == (b"hello", b"\1" + bytes(9), 0)


def test_a_time_to_live_becomes_a_time_once_by_the_clock_of_the_replicator(front: Front) -> None:
    due_ms = front.replicator.clock.wall_ms() + 60_000
    asked = front.told(o.PUT, o.encode_put(key, b"hello", ttl_ms=60_000))
    assert expires_at_ms(front.record(key)) == o.decode_changed(asked.body).expires_at_ms
    assert abs(expires_at_ms(front.record(key)) - due_ms) <= 2


def test_a_delete_leaves_a_tombstone(front: Front) -> None:
    front.told(o.PUT, o.encode_put(key, b"hello"))
    assert front.told(o.DELETE, key).kind == o.CHANGED
    assert is_tombstone(front.record(key))


def test_a_fetch_shows_the_record_or_nothing(front: Front) -> None:
    assert front.told(o.FETCH, key).answers == [(OK, b"")]
    front.told(o.PUT, o.encode_put(key, b"hello"))
    assert front.told(o.FETCH, key).answers == [(OK, front.record(key))]


def test_each_action_on_a_key_does_what_it_says(front: Front) -> None:
    def change(
        action: o.Action,
        content: bytes = b"",
        *,
        ttl_ms: int = 0,
        by: int = 0,
        versions: tuple[bytes, ...] | None = None,
        if_present: bool | None = None,
    ) -> Asked:
        request = o.ChangeRequest(action, key, content, ttl_ms, b"", by, versions, if_present)
        return front.told(o.CHANGE, changed(request))

    assert change(o.Action.INCREMENT, by=5).kind == o.CHANGED
    asked = change(o.Action.INCREMENT, by=-7)
    assert o.decode_changed(asked.body).value == -2
    asked = change(o.Action.EXPIRE, ttl_ms=60_000)
    assert o.decode_changed(asked.body).expires_at_ms > front.replicator.clock.wall_ms()
    assert value(front.record(key)) == b"-2"
    asked = change(o.Action.PUT, b"new", if_present=False)
    assert asked.answers == [(o.PRECONDITION_FAILED, front.record(key)[:version_bytes])]
    asked = change(o.Action.PUT, b"new", versions=(front.record(key)[:version_bytes],))
    assert asked.kind == o.CHANGED
    assert change(o.Action.INCREMENT, by=1).kind == o.NOT_AN_INTEGER
    assert change(o.Action.DELETE, versions=()).kind == o.PRECONDITION_FAILED
    assert change(o.Action.DELETE, if_present=True).kind == o.CHANGED
    assert change(o.Action.EXPIRE, ttl_ms=5).kind == o.ABSENT


# What is not taken.


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (o.PUT, b""),
        (o.PUT, o.encode_put(b"short", b"x")),
        (o.PUT, o.encode_put(key, b"x", ttl_ms=o.ttl_ms_max + 1)),
        (o.PUT, o.encode_put(key, bytes((1 << 20) + 1))),
        (o.DELETE, b"short"),
        (o.FETCH, b""),
        (o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, key))[:-1]),
        (o.CHANGE, b"\x09" + changed(o.ChangeRequest(o.Action.PUT, key))[1:]),
        (o.BATCH, b""),
        (o.BATCH, b"\xff\xff"),
        (o.BATCH, o.encode_batch([(o.PUT, o.encode_put(key, b"x")), (o.FETCH, b"")])),
        (o.BATCH, o.encode_batch([(o.BATCH, o.encode_batch([]))])),
        (o.BATCH, o.encode_batch([(o.DELETE_PREFIX, b"")])),
        (o.DELETE_PREFIX, b"\xc1"),
        (o.DELETE_PREFIX, encode_body(PrefixDeletion(prefix, b""))),
        (o.DELETE_PREFIX, encode_body(PrefixDeletion(b"x", b"a"))),
    ],
    ids=range(16),
)
def test_what_makes_no_sense_is_told_so_and_does_nothing(
    front: Front, kind: int, body: bytes
) -> None:
    assert front.told(kind, body).kind == m.MALFORMED
    assert front.world.writes_sent == 0
    assert front.requests.malformed == 1


def test_garbage_is_never_more_than_malformed_or_done(front: Front) -> None:
    draw = random.Random(7)
    good = [
        (o.PUT, o.encode_put(key, b"value", 5, b"\1" + bytes(9))),
        (o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, key, b"x", versions=(bytes(12),)))),
        (o.BATCH, o.encode_batch([(o.FETCH, key), (o.DELETE, key)])),
        (o.DELETE_PREFIX, encode_body(PrefixDeletion(prefix, b"key"))),
    ]
    asked: list[Asked] = []
    for kind, body in good:
        asked += [front.ask(kind, body[:end]) for end in range(len(body))]
        for _ in range(100):
            flipped = bytearray(body)
            flipped[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
            asked.append(front.ask(kind, bytes(flipped)))
        front.world.pass_time(3.0)
    assert all(one.answered for one in asked)
    assert not front.server.counters.bugs
    assert front.requests.under_way == 0


def test_while_it_cannot_serve_every_request_is_refused_with_the_reason(front: Front) -> None:
    front.trouble = RetryLater("cluster_forming", "2 nodes of 3 are missing")
    asked = front.ask(o.PUT, o.encode_put(key, b"x"))
    front.world.pass_time(0.01)
    assert o.decode_refused(asked.body) == ("cluster_forming", "2 nodes of 3 are missing")
    front.trouble = RetryLater("shutting_down", "bye")
    for kind in front.requests.handlers():
        assert code(front.told(kind, b"")) == "shutting_down"
    front.trouble = None
    assert front.told(o.PUT, o.encode_put(key, b"x")).kind == o.CHANGED


@pytest.mark.parametrize("role", [Role.NODE, Role.KEYGEN, Role.TOOL])
def test_others_than_gateways_replicators_and_user_managers_may_not_ask(role: Role) -> None:
    front = Front(role)
    assert code(front.told(o.PUT, o.encode_put(key, b"x"))) == "unauthorized"
    assert code(front.told(o.FETCH, key)) == "unauthorized"
    assert front.world.writes_sent == 0


def test_past_the_bound_on_requests_the_next_is_refused_at_once(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "requests_max", 10)
    for node in front.world.nodes.values():
        node.disk.freeze()
    asked = [front.ask(o.PUT, o.encode_put(key_of(number), b"x")) for number in range(15)]
    front.world.pass_time(0.01)
    assert [one.answered for one in asked] == [False] * 10 + [True] * 5
    assert {code(one) for one in asked[10:]} == {"overloaded"}
    for node in front.world.nodes.values():
        node.disk.thaw()
    front.world.pass_time(0.5)
    assert {one.kind for one in asked[:10]} == {o.CHANGED}
    assert front.told(o.PUT, o.encode_put(key, b"x")).kind == o.CHANGED


def test_a_batch_counts_as_its_items(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "requests_max", 10)
    for node in front.world.nodes.values():
        node.disk.freeze()
    put = (o.PUT, o.encode_put(key, b"x"))
    first = front.ask(o.BATCH, o.encode_batch([put] * 10))
    front.world.pass_time(0.01)
    second = front.ask(o.PUT, put[1])
    front.world.pass_time(0.01)
    assert not first.answered
    assert code(second) == "overloaded"


def test_past_the_bound_on_bytes_the_next_is_refused_at_once(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "bytes_max", 5_000)
    for node in front.world.nodes.values():
        node.disk.freeze()
    asked = [front.ask(o.PUT, o.encode_put(key, bytes(1_000))) for _ in range(8)]
    front.world.pass_time(0.01)
    assert [one.answered for one in asked] == [False] * 5 + [True] * 3


# Batches.


def test_each_item_of_a_batch_has_its_answer_in_its_place(front: Front) -> None:
    there, counter, absent = key_of(1), key_of(2), key_of(3)
    front.told(o.PUT, o.encode_put(there, b"there"))
    front.told(o.CHANGE, changed(o.ChangeRequest(o.Action.INCREMENT, counter, by=4)))
    answers = front.batch(
        (o.FETCH, there),
        (o.PUT, o.encode_put(key_of(4), b"four")),
        (o.CHANGE, changed(o.ChangeRequest(o.Action.INCREMENT, counter, by=1))),
        (o.DELETE, key_of(5)),
        (o.FETCH, absent),
        (o.CHANGE, changed(o.ChangeRequest(o.Action.EXPIRE, absent, ttl_ms=9))),
        (o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, there, if_present=False))),
    )
    kinds = [OK, o.CHANGED, o.CHANGED, o.CHANGED, OK, o.ABSENT, o.PRECONDITION_FAILED]
    assert [kind for kind, _ in answers] == kinds
    assert value(answers[0][1]) == b"there"
    assert o.decode_changed(answers[2][1]).value == 5
    assert answers[4][1] == b""
    assert value(front.record(key_of(4))) == b"four"
    assert is_tombstone(front.record(key_of(5)))


def test_an_empty_batch_is_answered(front: Front) -> None:
    assert front.batch() == []


def test_eventual_items_take_four_messages_to_each_node_for_a_thousand(front: Front) -> None:
    items = [(o.PUT, o.encode_put(key_of(number), b"x")) for number in range(o.batch_items_max)]
    assert {kind for kind, _ in front.batch(*items)} == {o.CHANGED}
    assert front.world.messages(m.WRITE_MANY) == 3 * 4
    assert front.world.messages(m.WRITE) == 0


def test_of_two_items_on_one_key_the_later_one_stays(front: Front) -> None:
    strong = [
        (o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, key_of(2), b"%d" % number)))
        for number in range(5)
    ]
    eventual = [(o.PUT, o.encode_put(key_of(1), b"%d" % number)) for number in range(5)]
    front.batch(*strong, *eventual, (o.FETCH, key_of(2)))
    assert value(front.record(key_of(1))) == b"4"
    assert value(front.record(key_of(2))) == b"4"


def test_strong_items_on_one_key_see_each_other_in_their_order(front: Front) -> None:
    front.told(o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, key, b"0")))
    fetch = (o.FETCH, key)
    puts = [(o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, key, b"%d" % n))) for n in (1, 2)]
    answers = front.batch(fetch, puts[0], fetch, fetch, puts[1], fetch)
    shown = [value(body) for kind, body in answers if kind == OK]
    assert shown == [b"0", b"1", b"1", b"2"]


def test_of_strong_items_so_many_are_under_way_at_a_time(front: Front) -> None:
    for node in front.world.nodes.values():
        node.ignore(READ)
    front.ask(o.BATCH, o.encode_batch([(o.FETCH, key_of(number)) for number in range(500)]))
    front.world.pass_time(0.01)
    assert front.replicator.strong.under_way == batch.strong_at_once


def test_a_thousand_items_that_are_refused_at_once_are_no_problem(front: Front) -> None:
    for node in front.world.nodes.values():
        node.crash()
    front.world.pass_time()
    counters = front.replicator.counters
    asked = front.ask(
        o.BATCH, o.encode_batch([(o.FETCH, key_of(number)) for number in range(o.batch_items_max)])
    )
    front.world.pass_until(lambda: bool(counters.refusals))
    assert counters.refusals == batch.begun_in_a_turn, "the rest does not hold up the loop"
    front.world.pass_time()
    answers = o.decode_batch(asked.body)
    assert {kind for kind, _ in answers} == {o.REFUSED}
    assert {o.decode_refused(body)[0] for _, body in answers} == {"no_quorum"}


def test_items_that_could_not_begin_in_time_are_refused_and_the_batch_is_answered(
    front: Front,
) -> None:
    for node in front.world.nodes.values():
        node.ignore(READ)
    items = [(o.FETCH, key_of(number)) for number in range(200)]
    asked = front.ask(o.BATCH, o.encode_batch(items))
    front.world.pass_time(wait_s - 0.1)
    answers = o.decode_batch(asked.body)
    codes = [o.decode_refused(body)[0] for _, body in answers]
    assert codes == ["no_quorum"] * 64 + ["overloaded"] * 136


def test_what_does_not_fit_the_answer_is_told_so_and_the_rest_is_there(front: Front) -> None:
    large = os.urandom(1 << 20)
    count = body_bytes_max // len(large) + 5
    for number in range(count):
        front.told(o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, key_of(number), large)))
    asked = front.told(o.BATCH, o.encode_batch([(o.FETCH, key_of(n)) for n in range(count)]))
    assert len(asked.body) <= body_bytes_max
    answers = o.decode_batch(asked.body)
    fitting = [body for kind, body in answers if kind == OK]
    assert all(value(body) == large for body in fitting)
    assert len(fitting) >= count - 7
    assert {body for kind, body in answers if kind == o.TOO_LARGE} == {b""}
    assert [kind for kind, _ in answers].count(o.TOO_LARGE) == count - len(fitting) >= 5


def test_refusals_fit_the_answer_when_records_have_filled_it(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "body_bytes_max", 20_000)
    front.told(o.PUT, o.encode_put(key_of(1), bytes(10_000)))
    front.told(o.PUT, o.encode_put(key_of(2), b"small"))
    answers = front.batch(
        (o.FETCH, key_of(1)),
        (o.FETCH, key_of(1)),
        (o.FETCH, key_of(2)),
        (o.CHANGE, changed(o.ChangeRequest(o.Action.INCREMENT, key_of(2), by=1))),
    )
    kinds = [kind for kind, _ in answers]
    assert kinds == [OK, o.TOO_LARGE, OK, o.NOT_AN_INTEGER]
    assert len(o.encode_batch(answers)) <= 20_000


def test_a_batch_has_the_times_of_one_moment(front: Front) -> None:
    put = (o.PUT, o.encode_put(key_of(1), b"x", ttl_ms=1_000))
    other = (o.CHANGE, changed(o.ChangeRequest(o.Action.PUT, key_of(2), b"x", ttl_ms=1_000)))
    answers = front.batch(put, other)
    assert len({o.decode_changed(body).expires_at_ms for _, body in answers}) == 1


# Caches.

cached = namespace_prefix(7, b"cached")
strong_changes = [
    o.ChangeRequest(o.Action.PUT, cached + b"key", b"value"),
    o.ChangeRequest(o.Action.DELETE, cached + b"key", if_present=True),
    o.ChangeRequest(o.Action.EXPIRE, cached + b"key", ttl_ms=5),
    o.ChangeRequest(o.Action.INCREMENT, cached + b"key", by=1),
]


def invalid(answer: o.Item) -> str:
    assert answer[0] == o.INVALID, answer
    return o.decode_refused(answer[1])[0]


def test_nothing_strong_is_done_to_a_cache_and_everything_eventual_is(front: Front) -> None:
    front.replicator.declared.adopt(Declarations.of(1, [(cached, 100)]))
    cached_key = cached + b"key"
    assert invalid(front.told(o.FETCH, cached_key).answers[0]) == "invalid_consistency"
    for request in strong_changes:
        answers = front.told(o.CHANGE, changed(request)).answers
        assert invalid(answers[0]) == "invalid_consistency"
    assert front.world.messages(READ, PREPARE) == 0
    assert front.told(o.PUT, o.encode_put(cached_key, b"value")).kind == o.CHANGED
    assert value(front.record(cached_key)) == b"value"
    assert front.told(o.DELETE, cached_key).kind == o.CHANGED
    deletion = PrefixDeletion(cached, b"k")
    assert front.told(o.DELETE_PREFIX, encode_body(deletion)).kind == OK
    # A namespace that is a store goes on beside it, and so does one of the same name elsewhere.
    for other in (key, namespace_prefix(8, b"cached") + b"key"):
        assert front.told(o.FETCH, other).answers == [(OK, b"")]


def test_in_a_batch_the_strong_items_of_a_cache_are_refused_and_no_others(front: Front) -> None:
    front.replicator.declared.adopt(Declarations.of(1, [(cached, 100)]))
    items = [
        (o.PUT, o.encode_put(cached + b"key", b"value")),
        (o.FETCH, cached + b"key"),
        *((o.CHANGE, changed(request)) for request in strong_changes),
        (o.FETCH, key),
        (o.DELETE, cached + b"other"),
    ]
    answers = front.batch(*items)
    assert [invalid(answer) for answer in answers[1:6]] == ["invalid_consistency"] * 5
    assert [kind for kind, _ in answers[:1] + answers[6:]] == [o.CHANGED, OK, o.CHANGED]
    only_refused = front.batch(items[1], items[2])
    assert [invalid(answer) for answer in only_refused] == ["invalid_consistency"] * 2


def test_a_namespace_is_described_with_its_keys_and_what_it_was_declared(front: Front) -> None:
    front.replicator.declared.adopt(
        Declarations.of(3, [(cached, 100), (namespace_prefix(7, b"empty"), 0)])
    )
    front.told(o.PUT, o.encode_put(cached + b"key", b"value"))
    front.told(o.PUT, o.encode_put(key, b"value"))
    store = NamespaceTold(b"default", 1, len(key) - len(prefix) + 5, None)
    cache, empty = NamespaceTold(b"cached", 1, 8, 100), NamespaceTold(b"empty", 0, 0, None)
    for space, expected in ((cached, cache), (prefix, store)):
        asked = front.told(o.DESCRIBE_NAMESPACE, space)
        assert asked.answers == [(OK, encode_body(expected))]
    absent = front.told(o.DESCRIBE_NAMESPACE, namespace_prefix(7, b"cache"))
    assert invalid(absent.answers[0]) == "not_found"
    assert front.told(o.DESCRIBE_NAMESPACE, b"short").kind == m.MALFORMED

    def listed(start: bytes = b"", limit: int = 1_000) -> NamespacesTold:
        asked = front.told(o.LIST_NAMESPACES, encode_body(NamespacesQuery(7, start, limit)))
        return decode_body(asked.body, NamespacesTold)

    assert listed() == NamespacesTold([cache, store, empty], None)
    assert listed(limit=1) == NamespacesTold([cache], b"default")
    assert listed(b"default", 1) == NamespacesTold([store], b"empty")
    assert listed(b"empty", 1) == NamespacesTold([empty], None)
    # Who knows nothing of declarations reads the same answer.
    asked = front.told(o.LIST_NAMESPACES, encode_body(NamespacesQuery(7)))
    assert [found.name for found in decode_body(asked.body, NamespacesPage).found] == [
        b"cached",
        b"default",
        b"empty",
    ]
