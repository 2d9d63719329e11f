"""What is declared of namespaces: the rules, and a list of them through its changes."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FixRequest, PeerError
from services.core.key import namespace_bytes_max, namespace_prefix, tenant_prefix
from services.core.namespaces import max_items_max
from services.replicator.declarations import (
    Declarations,
    check,
    declarations_max,
    nothing_declared,
)
from services.replicator.declared import Declared, decode_declarations, encode_declarations
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from tests.integration.link_ends import log_lines

place = Path("/data/replicators/one")
spaces = [namespace_prefix(tenant, name) for tenant in (7, 8) for name in (b"a", b"b", b"cc")]
changes = st.lists(
    st.tuples(st.sampled_from(spaces), st.sampled_from([None, 0, 1, 500])), max_size=20
)


@given(changes)
def test_a_list_that_was_changed_is_the_one_that_would_be_read_anew(
    made: list[tuple[bytes, int | None]],
) -> None:
    plain: dict[bytes, int] = {}
    declarations = nothing_declared
    for version, (prefix, max_items) in enumerate(made, 1):
        before = declarations
        copy = Declarations.of(before.version, before.max_items.items())
        declarations = declarations.with_change(version, prefix, max_items)
        plain.pop(prefix, None)
        if max_items is not None:
            plain[prefix] = max_items
        assert declarations == Declarations.of(version, plain.items())
        assert before == copy
    assert decode_declarations(encode_declarations(declarations)) == declarations
    names = declarations.names_from(tenant_prefix(7), b"b")
    assert names == sorted(p[9:] for p in plain if p[:8] == tenant_prefix(7) and p[9:] >= b"b")


def test_names_and_numbers_that_a_client_may_not_use_are_named() -> None:
    good = namespace_prefix(7, b"good")
    assert check(good, None) == 0
    assert check(good, 1) == 1
    assert check(good, max_items_max) == max_items_max
    for max_items in (0, -1, max_items_max + 1):
        with pytest.raises(FixRequest, match=r"invalid_body: max_items is 1 to .*, not"):
            check(good, max_items)
    for name in (b"a\nb", b"\0", b"\xff", b"\x7f"):
        with pytest.raises(FixRequest, match="invalid_namespace"):
            check(namespace_prefix(7, name), 5)


# On disk.


class World:
    def __init__(self) -> None:
        self.timeline = Timeline()
        self.disk = FakeDisk(random.Random(1), FakeClock(self.timeline))
        self.disk.make_directory(place)

    def begin(self) -> Declared:
        declared = Declared()
        declared.remember(self.disk, place)
        return declared


def listed(version: int) -> Declarations:
    return nothing_declared.with_change(version, spaces[0], version)


def test_what_is_declared_is_known_after_a_power_cut() -> None:
    world = World()
    declared = world.begin()
    assert declared.now is nothing_declared
    declared.adopt(listed(3))
    world.timeline.advance(1.0)
    world.disk.crash()
    assert world.begin().now == listed(3)


def test_only_what_is_newer_is_taken_and_told() -> None:
    declared = Declared()
    told: list[int] = []
    declared.on_change = lambda: told.append(declared.now.version)
    for version in (2, 1, 2, 5, 3):
        declared.adopt(listed(version))
    assert told == [2, 5]


def test_of_what_comes_while_the_disk_is_slow_the_newest_is_kept_in_the_end() -> None:
    world = World()
    declared = world.begin()
    for version in range(1, 30):
        declared.adopt(listed(version))
    world.timeline.advance(1.0)
    world.disk.crash()
    assert world.begin().now == listed(29)


def test_a_disk_that_fails_is_said_to_and_what_comes_later_is_kept() -> None:
    world = World()
    declared = world.begin()
    with log_lines() as lines:
        world.disk.fail("write", errno.ENOSPC)
        declared.adopt(listed(1))
        world.timeline.advance(1.0)
    assert "the namespaces could not be kept" in [line["event"] for line in lines]
    assert declared.now == listed(1)
    declared.adopt(listed(2))
    world.timeline.advance(1.0)
    assert world.begin().now == listed(2)


def test_a_file_that_is_damaged_is_put_aside() -> None:
    world = World()
    declared = world.begin()
    declared.adopt(listed(3))
    world.timeline.advance(1.0)
    world.disk.flip_bit(place / "namespaces", 40, 3)
    with log_lines() as lines:
        assert world.begin().now is nothing_declared
    assert [line["event"] for line in lines] == ["a kept file is put aside"]
    assert world.disk.names(place) == ["namespaces.damaged"]


def test_as_many_as_there_may_be_fit_the_file() -> None:
    world = World()
    declared = world.begin()
    longest = Declarations.of(
        1 << 40,
        (
            (namespace_prefix(tenant, b"n" * namespace_bytes_max), max_items_max)
            for tenant in range(declarations_max)
        ),
    )
    declared.adopt(longest)
    world.timeline.advance(1.0)
    assert world.begin().now == longest


@pytest.mark.parametrize("data", [b"", bytes(8), bytes(8) + b"\x91\x01", bytes(8) + b"\x91\x92"])
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_declarations(data)
