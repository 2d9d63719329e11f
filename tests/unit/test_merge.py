"""Pages of several nodes become one listing: against a dumb version that sorts everything."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.cluster import Member
from services.core.errors import PeerError
from services.core.key import successor
from services.core.listings import ListEntry, ListPage
from services.gateway.merge import Found, Merge, Source
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork
from services.runtime.fleet import FleetNode

timeline = Timeline()
network = FakeNetwork(random.Random(1))
clock = FakeClock(timeline)


def node(number: int) -> FleetNode:
    member = Member(f"node-{number}", f"{number:032x}", "127.0.0.1", 8000, 9000)
    return FleetNode(member, FakeLink(network, "gateway", member.node_id))


nodes = [node(number) for number in range(1, 5)]
speakers: Mapping[FleetNode, bytes] = dict.fromkeys(nodes, b"")


def entry(key: bytes) -> ListEntry:
    return ListEntry(key, 1, bytes(12), 0, 0)


def group_of(key: bytes, prefix: bytes, delimiter: bytes) -> bytes | None:
    cut = key.find(delimiter, len(prefix)) if delimiter else -1
    return None if cut < 0 else key[: cut + len(delimiter)]


def dumb(keys: set[bytes], prefix: bytes, delimiter: bytes, start: bytes) -> list[bytes]:
    """All that a listing shows, from some place on: keys, and groups in their places."""
    shown = set()
    for key in keys:
        if key.startswith(prefix) and key >= start:
            shown.add(group_of(key, prefix, delimiter) or key)
    return sorted(shown)


def page_of(
    keys: list[bytes],
    prefix: bytes,
    delimiter: bytes,
    start: bytes,
    limit: int,
    examined: int,
    hidden: set[bytes],
) -> ListPage:
    """As a node makes it: it looks at so many keys, of which some are not to be seen."""
    page = ListPage([], [], None)
    passed: bytes | None = start
    for key in sorted(keys):
        if passed is None or key < max(passed, prefix) or not key.startswith(prefix):
            continue
        if not examined:
            return ListPage(page.entries, page.groups, key)
        examined -= 1
        if key in hidden:
            continue
        if len(page.entries) + len(page.groups) == limit:
            return ListPage(page.entries, page.groups, key)
        group = group_of(key, prefix, delimiter)
        if group is None:
            page.entries.append(entry(key))
        else:
            page.groups.append(group)
            passed = successor(group)
    return page


letters = st.lists(st.sampled_from([b"a", b"b", b"/", b"\xff", b"\x00"]), min_size=1, max_size=5)
keys_of_nodes = st.lists(
    st.tuples(letters.map(b"".join), st.integers(0, 3), st.booleans()), max_size=60
)


@given(
    keys_of_nodes,
    st.sampled_from([b"", b"a", b"a/", b"\xff"]),
    st.sampled_from([b"", b"/", b"/a"]),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(0, 1 << 30),
)
def test_all_pages_together_are_what_sorting_everything_gives(
    placed: list[tuple[bytes, int, bool]],
    prefix: bytes,
    delimiter: bytes,
    limit: int,
    examined: int,
    seed: int,
) -> None:
    draw = random.Random(seed)
    owner = {key: number for key, number, _ in placed}
    hidden = {key for key, _, is_hidden in placed if is_hidden}
    visible = owner.keys() - hidden
    told: list[Found] = []
    place: bytes | None = b""
    rounds = 0
    while place is not None:
        merge = Merge(prefix, place, limit)
        merge.begin(speakers)
        while lagging := merge.lagging():
            rounds += 1
            assert rounds < 3_000
            if merge.place != place and draw.random() < 0.1:
                # Its time is over.
                break
            if draw.random() < 0.1:
                # Somebody failed: others speak for all, from where it has come to.
                merge.begin(speakers)
                continue
            for source in lagging:
                number = nodes.index(source.node)
                own = [key for key, of in owner.items() if of == number]
                assert source.next is not None
                page = page_of(
                    own,
                    prefix,
                    delimiter,
                    source.next,
                    min(merge.page_limit, draw.randint(1, 9)),
                    examined,
                    hidden,
                )
                merge.take(source, page)
            merge.settle()
        told += merge.told[:limit]
        assert merge.place is None or merge.place > place
        place = merge.place
    assert [found.key for found in told] == dumb(set(visible), prefix, delimiter, b"")
    for found in told:
        assert (found.entry is None) == (group_of(found.key, prefix, delimiter) is not None)


def source_at(place: bytes) -> tuple[Merge, Source]:
    merge = Merge(b"k", place, 10)
    merge.begin({nodes[0]: b""})
    (source,) = merge.lagging()
    return merge, source


@pytest.mark.parametrize(
    "page",
    [
        ListPage([entry(b"other")], [], None),
        ListPage([entry(b"k2"), entry(b"k1")], [], None),
        ListPage([entry(b"k1"), entry(b"k1")], [], None),
        ListPage([entry(b"k0")], [], None),
        ListPage([], [b"k0/"], None),
        ListPage([], [], b"k1"),
        ListPage([], [], b"k0"),
        ListPage([entry(b"k3")], [], b"k2"),
        ListPage([entry(b"k3")], [], b"k3"),
        ListPage([entry(b"k2")], [b"k2"], None),
    ],
)
def test_a_page_that_makes_no_sense_is_not_taken(page: ListPage) -> None:
    merge, source = source_at(b"k1")
    with pytest.raises(PeerError):
        merge.take(source, page)
    assert source.next == b"k1"
    merge.settle()
    assert (merge.told, merge.place) == ([], b"k1")


def test_a_group_may_begin_before_the_place_within_it_where_a_node_went_on() -> None:
    merge, source = source_at(b"k/5")
    merge.take(source, ListPage([], [b"k/"], None))
    merge.settle()
    assert [found.key for found in merge.told] == [b"k/"]
    assert merge.place is None
