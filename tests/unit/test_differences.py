"""What pages of keys and versions say that replicas lack."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.comparison import VersionsPage
from services.core.hlc import Version, pack_version
from services.replicator.differences import Differences, differences

Told = list[tuple[bytes, Version]]
now_ms = 1_000


def at(ms: int) -> Version:
    return pack_version(ms << 16, 1)


def whole(*told: dict[bytes, int]) -> list[VersionsPage]:
    return [
        VersionsPage(more=False, found=[(key, at(ms)) for key, ms in sorted(one.items())])
        for one in told
    ]


def only(pages: list[VersionsPage]) -> Differences:
    """What they differ in, of pages that are compared in one part."""
    (found,) = differences(pages, now_ms)
    return found


def test_equal_pages_differ_in_nothing() -> None:
    found = only(whole({b"a": 1, b"b": 2}, {b"a": 1, b"b": 2}))
    assert found == Differences([], 0, None)


def test_who_has_less_or_nothing_lacks_the_greatest() -> None:
    found = only(whole({b"a": 1, b"b": 2}, {b"a": 3}, {b"b": 2}))
    assert [(one.key, one.version, one.having, one.lacking) for one in found.lacking] == [
        (b"a", at(3), 1, (0, 2)),
        (b"b", at(2), 0, (1,)),
    ]


def test_what_is_young_is_counted_and_left_alone() -> None:
    found = only(whole({b"a": now_ms, b"b": now_ms + 1}, {b"b": 5}))
    assert [one.key for one in found.lacking] == [b"a"]
    assert found.young == 1


def test_nothing_is_said_of_keys_behind_the_first_end() -> None:
    pages = [
        VersionsPage(more=True, found=[(b"a", at(1)), (b"c", at(1))]),
        VersionsPage(more=True, found=[(b"a", at(1)), (b"b", at(1))]),
        VersionsPage(more=False, found=[]),
    ]
    found = only(pages)
    assert found.through == b"b"
    assert {one.key: one.lacking for one in found.lacking} == {b"a": (2,), b"b": (0, 2)}


def test_pages_are_compared_in_parts_of_so_many_keys_of_each_replica() -> None:
    pages = whole(
        {b"%02d" % number: 1 for number in range(20)},
        {b"%02d" % number: 1 for number in range(0, 20, 2)},
    )
    parts = list(differences(pages, now_ms, keys_max=4))
    assert [part.through for part in parts] == [b"03", b"07", b"11", b"15", None]
    assert [len(part.lacking) for part in parts] == [2] * 5


keys = st.binary(min_size=1, max_size=2)
replica = st.dictionaries(keys, st.integers(1, now_ms + 3), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(replica, min_size=2, max_size=4), st.integers(1, 5), st.integers(1, 5))
def test_pages_of_any_size_tell_the_same_as_a_comparison_key_by_key(
    replicas: list[dict[bytes, int]], page: int, part: int
) -> None:
    expected = set()
    young = 0
    for key in sorted(set().union(*replicas)):
        here = [one.get(key, 0) for one in replicas]
        if len(set(here)) > 1 and max(here) > now_ms:
            young += 1
        elif len(set(here)) > 1:
            lacking = tuple(place for place, ms in enumerate(here) if ms != max(here))
            expected.add((key, at(max(here)), lacking))
    found = set()
    found_young = 0
    after: bytes | None = b""
    rounds = 0
    while after is not None:
        told = []
        for one in replicas:
            rest = sorted((key, at(ms)) for key, ms in one.items() if key > after)
            told.append(VersionsPage(len(rest) > page, rest[:page]))
        for some in differences(told, now_ms, part):
            for item in some.lacking:
                assert replicas[item.having][item.key] == int.from_bytes(item.version[:6], "big")
                assert after < item.key
                found.add((item.key, item.version, item.lacking))
            found_young += some.young
        after = some.through
        rounds += 1
    assert (found, found_young) == (expected, young)
    assert rounds <= 1 + len(set().union(*replicas))
