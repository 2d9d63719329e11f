"""Which troubles with a port may pass by themselves, and what each says."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from starlette.applications import Starlette

from services.core.errors import FatalError, RestartLater
from services.core.wire import Role
from services.runtime.clock import SystemClock
from services.runtime.link import LinkServer, Station
from services.runtime.listener import Listener
from services.runtime.port_holder import cannot_listen
from tests.integration.raw_peer import identity


def said(number: int) -> FatalError:
    error = OSError(number, os.strerror(number))
    return cannot_listen(error, 80, "port 80 on 127.0.0.1", "set GATEWAY_PORT to another")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT, errno.EINVAL])
def test_what_no_restart_mends_is_fatal_and_says_what_to_set(number: int) -> None:
    failure = said(number)
    assert failure.exit_code == 78
    assert str(failure) == (
        f"cannot listen on port 80 on 127.0.0.1: {os.strerror(number)}; set GATEWAY_PORT to another"
    )


@pytest.mark.parametrize(
    "number", [errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]
)
def test_what_may_pass_by_itself_is_worth_a_restart(number: int) -> None:
    failure = said(number)
    assert isinstance(failure, RestartLater)
    assert str(failure).startswith("cannot listen on port 80 on 127.0.0.1: ")


@pytest.mark.parametrize(
    ("number", "kind"), [(socket.EAI_NONAME, FatalError), (socket.EAI_AGAIN, RestartLater)]
)
def test_a_name_without_address_is_the_fault_of_bind_host(
    number: int, kind: type[FatalError]
) -> None:
    error = socket.gaierror(number, "not known")
    failure = cannot_listen(error, 80, "port 80 on nowhere", "set GATEWAY_PORT to another")
    assert type(failure) is kind
    assert str(failure) == (
        "BIND_HOST names no address (not known): set it to one of this machine's"
    )


def test_a_taken_port_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failure = cannot_listen(OSError(errno.EADDRINUSE, "in use"), port, "port x", "move")
    assert isinstance(failure, RestartLater)
    assert str(failure).startswith(f"port x is taken by process {os.getpid()} (")
    assert str(failure).endswith("): stop that, or move")


@pytest.mark.parametrize(
    ("host", "kind", "trouble"),
    [
        # TEST-NET-1, which nobody has.
        pytest.param(
            "192.0.2.1",
            RestartLater,
            "cannot listen on port 0 on",
            id="an address this machine may get",
        ),
        pytest.param(
            "no address",
            FatalError,
            "BIND_HOST names no address",
            id="one that nobody can ever have",
        ),
    ],
)
async def test_links_and_http_take_one_trouble_for_the_same(
    host: str, kind: type[FatalError], trouble: str
) -> None:
    with pytest.raises(FatalError, match=trouble) as links:
        await LinkServer(Station(identity("node-1", Role.NODE)), host, 0).start()
    with pytest.raises(FatalError, match=trouble) as http:
        await Listener(Starlette(), host, 0, SystemClock()).bind("EXAMPLE_PORT")
    assert (type(links.value), type(http.value)) == (kind, kind)
