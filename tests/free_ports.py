"""Ports for processes that tests and benchmarks start, free for a moment at least."""

from __future__ import annotations

import random
import socket

from services.runtime.settings import link_port_offset

# Below where systems take the ports of outgoing connections from, so that none comes in between.
lowest_port = 12_000
highest_port = 30_000
_draw = random.SystemRandom()


def free_port(span: int = 1) -> int:
    """The first of `span` free ports whose link ports are free as well."""
    while True:
        first = _draw.randrange(lowest_port, highest_port)
        wanted = range(first, first + span)
        if all(is_free(port) and is_free(port + link_port_offset) for port in wanted):
            return first


def is_free(port: int) -> bool:
    """Whether nobody listens there just now."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
