from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.ports import (
    explained_max,
    link_port,
    nodes_max,
    plan_ports,
    refuse_taken_ports,
    replicators_max,
)
from services.core.errors import FatalError, RestartLater


def test_the_ports_of_the_default_installation_are_the_documented_ones() -> None:
    plan = plan_ports(8080, nodes=3, replicators=1)
    assert dict(plan.named()) == {
        "gateway": 8080,
        "usermanager": 8081,
        "node-1": 8082,
        "node-2": 8083,
        "node-3": 8084,
        "replicator": 8085,
        "keygen": 8086,
    }


def test_all_ports_move_with_the_base() -> None:
    here = dict(plan_ports(8080, nodes=5, replicators=2).named())
    there = dict(plan_ports(18080, nodes=5, replicators=2).named())
    assert there == {name: port + 10_000 for name, port in here.items()}


def test_a_second_replicator_is_at_seven_and_a_fourth_node_at_ten() -> None:
    ports = dict(plan_ports(8080, nodes=5, replicators=2).named())
    assert ports["replicator-2"] == 8087
    assert (ports["node-4"], ports["node-5"]) == (8090, 8091)


@given(
    base=st.integers(1, 63_000),
    nodes=st.integers(1, nodes_max),
    replicators=st.integers(1, replicators_max),
)
def test_no_two_services_share_a_port_and_all_ports_exist(
    base: int, nodes: int, replicators: int
) -> None:
    ports = [port for _, port in plan_ports(base, nodes=nodes, replicators=replicators).named()]
    ports += [link_port(port) for port in ports]
    assert len(set(ports)) == len(ports) == 2 * (3 + nodes + replicators)
    assert all(1 <= port <= 65535 for port in ports)


@pytest.mark.parametrize(
    ("base", "nodes", "replicators", "words"),
    [
        (8080, nodes_max + 1, 1, "994 nodes"),
        (8080, 0, 1, "0 nodes"),
        (8080, 3, replicators_max + 1, "5 replicators"),
        (8080, 3, 0, "0 replicators"),
        (64_530, 3, 1, "links of keygen would be at 65536"),
        (0, 3, 1, "port base 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    base: int, nodes: int, replicators: int, words: str
) -> None:
    with pytest.raises(FatalError, match=words):
        plan_ports(base, nodes=nodes, replicators=replicators)


def test_the_last_base_that_fits_is_accepted() -> None:
    assert link_port(plan_ports(64_529, nodes=3, replicators=1).keygen) == 65_535


def test_a_taken_port_is_named_with_its_service_and_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FatalError) as caught:
            refuse_taken_ports("127.0.0.1", {port: "links of node-1"})
    text = str(caught.value)
    assert f"port {port}, for links of node-1, is taken by process {os.getpid()} (" in text
    assert "--port-base" in text


def test_a_listener_on_all_addresses_takes_the_port_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104 - the case under test
        port = taken.getsockname()[1]
        with pytest.raises(RestartLater, match=f"port {port}, for gateway, is taken"):
            refuse_taken_ports("127.0.0.1", {port: "gateway"})


def test_when_all_are_taken_only_the_first_are_told_of_at_length() -> None:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(16)]
        ports = {server.getsockname()[1]: f"service {n}" for n, server in enumerate(taken)}
        with pytest.raises(RestartLater) as caught:
            refuse_taken_ports("127.0.0.1", ports)
    text = str(caught.value)
    assert text.count("is taken by") == explained_max
    others = ", ".join(map(str, list(ports)[explained_max:]))
    assert text.endswith(f"; nor are {others} free; --port-base moves all ports")
    assert len(text) < 500


def test_every_taken_port_is_named_at_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        ports = {one.getsockname()[1]: "gateway", other.getsockname()[1]: "keygen"}
        with pytest.raises(FatalError, match=r"for gateway, is taken.*for keygen, is taken"):
            refuse_taken_ports("127.0.0.1", ports)


def test_ports_of_connections_that_just_ended_do_not_count_as_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            # The side that closes first is left in TIME_WAIT.
            accepted.close()
            assert client.recv(1) == b""
    refuse_taken_ports("127.0.0.1", {port: "gateway"})


def test_an_address_of_another_machine_is_not_called_taken() -> None:
    with pytest.raises(FatalError, match=r"can't be listened on at 192\.0\.2\.1: Cannot assign"):
        refuse_taken_ports("192.0.2.1", {8080: "gateway"})
