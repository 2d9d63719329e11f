"""Why a port cannot be listened on, and who sits on it if it is taken."""

from __future__ import annotations

import errno
import socket
from typing import Final

import psutil  # type: ignore[import-untyped]

from services.core.errors import FatalError, RestartLater

# The machine is short of something just now, and may have it again at the next start.
_passing: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# asyncio tells of them by an error of their own kind, create_server() by the number alone.
_unresolved: Final = frozenset({socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL})


def cannot_listen(error: OSError, port: int, where: str, choice: str) -> FatalError:
    """What ends a service that cannot listen; RestartLater if that may pass by itself.

    `where` names the port in a sentence, `choice` is what to set for another one.
    """
    if error.errno == errno.EADDRINUSE:
        return RestartLater(f"{where} is taken by {holder_of(port)}: stop that, or {choice}")
    if error.errno == errno.EADDRNOTAVAIL:
        # While a machine starts, its addresses come one by one.
        return RestartLater(
            f"cannot listen on {where}: this machine has no such address now; set BIND_HOST to "
            "one that it has"
        )
    if error.errno in _unresolved:
        return unresolved(error)
    why = f"cannot listen on {where}: {error.strerror or error}"
    if error.errno in _passing:
        return RestartLater(why)
    return FatalError(f"{why}; {choice}")


def unresolved(error: OSError) -> FatalError:
    """What ends a service whose BIND_HOST is a name that nobody knows."""
    # While a machine starts, names may be answered late.
    kind = RestartLater if error.errno == socket.EAI_AGAIN else FatalError
    return kind(f"BIND_HOST names no address ({error.strerror}): set it to one of this machine's")


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
