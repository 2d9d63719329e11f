"""What tests rely on when they run side by side: no two of them are given the same port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from services.runtime.settings import link_port_offset
from tests.free_ports import PortBlock, block_ports


@pytest.fixture
def block() -> Iterator[PortBlock]:
    with closing(PortBlock()) as block:
        yield block


def test_two_who_draw_at_the_same_time_share_no_port_and_no_link_port(block: PortBlock) -> None:
    with closing(PortBlock()) as other:
        ours = {block.give(1) for _ in range(block_ports - 10)}
        theirs = {other.give(1) for _ in range(block_ports - 10)}
    ours |= {port + link_port_offset for port in ours}
    theirs |= {port + link_port_offset for port in theirs}
    assert not ours & theirs


def test_a_port_is_not_given_again_before_most_others_were(block: PortBlock) -> None:
    given = [block.give(1) for _ in range(block_ports // 2)]
    assert len(set(given)) == len(given)


def test_ports_in_a_row_lie_within_the_block_also_at_its_end(block: PortBlock) -> None:
    first, *others = [block.give(10) for _ in range(2 * block_ports // 10)]
    assert all(abs(port - first) <= block_ports - 10 for port in others)


def test_a_port_is_passed_over_whose_link_port_is_taken(block: PortBlock) -> None:
    first = block.give(1)
    with ExitStack() as stack:
        for port in range(first + 1, first + 4):
            taken = ("127.0.0.1", port + link_port_offset)
            stack.enter_context(socket.create_server(taken))
        assert block.give(2) > first + 3
