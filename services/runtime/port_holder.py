"""Who sits on a port that is taken, for the line that says so."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]


def holder_of(port: int) -> str:
    """The process that has the TCP port, preferring listeners over outgoing connections."""
    try:
        found = [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port]
    except psutil.Error:
        found = []
    found.sort(key=lambda connection: connection.status != psutil.CONN_LISTEN)
    for connection in found:
        if connection.pid is None:
            continue
        try:
            return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
        except psutil.Error:
            continue
    return "a process that this user can't see"
