"""Ports for processes that tests and benchmarks start, which nobody else is given meanwhile.

Between the moment when a port is drawn and the one when a service listens there, and while that
is killed and starts again, anybody who draws could be given the same. So each process that draws
has a block of ports to itself, and gives one of it again only after all the others.
"""

from __future__ import annotations

import random
import socket
from functools import cache

from services.runtime.settings import link_port_offset

# Below where systems take the ports of outgoing connections from, so that none comes in between.
lowest_port = 12_000
highest_port = 30_000
# Several times what the largest test has at once, and 36 blocks for what runs at the same time.
block_ports = 250


def free_port(span: int = 1) -> int:
    """The first of `span` free ports whose link ports are free as well."""
    return _block().give(span)


def is_free(port: int) -> bool:
    """Whether nobody listens there just now."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class PortBlock:
    """So many ports in a row, this process's until it ends."""

    def __init__(self) -> None:
        self._sign = _sign_of_a_block()
        self._first: int = self._sign.getsockname()[1]
        self._next = self._first + 1

    def close(self) -> None:
        self._sign.close()

    def give(self, span: int) -> int:
        end = self._first + block_ports
        for _ in range(block_ports):
            if self._next + span > end:
                self._next = self._first + 1
            wanted = range(self._next, self._next + span)
            self._next += 1
            if all(is_free(port) and is_free(port + link_port_offset) for port in wanted):
                self._next = wanted.stop
                return wanted.start
        raise AssertionError(f"of ports {self._first} to {end - 1} no {span} in a row are free")


@cache
def _block() -> PortBlock:
    return PortBlock()


def _sign_of_a_block() -> socket.socket:
    """Bound to the first port of a block, which says that it is taken, and ends with us."""
    firsts = [
        first
        for lowest in range(lowest_port, highest_port, 2 * link_port_offset)
        for first in range(lowest, lowest + link_port_offset, block_ports)
    ]
    random.SystemRandom().shuffle(firsts)
    for first in firsts:
        sign = socket.socket()
        try:
            sign.bind(("127.0.0.1", first))
        except OSError:
            sign.close()
        else:
            return sign
    raise AssertionError(
        f"all {len(firsts)} blocks of ports from {lowest_port} to {highest_port} are taken: "
        "stop what was left running by tests"
    )
