from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.announcement import up_document
from services.cli.rows import Restarts, Row, Stage, accepts_connections, http_ready
from services.runtime.database_url import DatabaseAddress


@given(deaths=st.integers(1, 10_000), luck=st.floats(0, 1))
def test_waits_are_bounded_whatever_the_luck(deaths: int, luck: float) -> None:
    restarts = Restarts(first_s=0.25, longest_s=15.0)
    assert 0.125 <= restarts.wait_s(deaths, luck) <= 15.0


def test_waits_double_until_they_are_longest() -> None:
    restarts = Restarts(first_s=1.0, longest_s=10.0)
    assert [restarts.wait_s(deaths, 0.0) for deaths in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_luck_takes_up_to_half_off() -> None:
    restarts = Restarts(first_s=1.0, longest_s=10.0)
    assert (restarts.wait_s(3, 0.0), restarts.wait_s(3, 0.5), restarts.wait_s(3, 1.0)) == (4, 3, 2)


def test_a_row_is_either_probed_or_a_one_shot() -> None:
    probe = http_ready("http://127.0.0.1:1/ready")
    with pytest.raises(ValueError, match="either one_shot or a probe"):
        Row("gateway", Stage.GATEWAY, ("true",))
    with pytest.raises(ValueError, match="either one_shot or a probe"):
        Row("migrate", Stage.MIGRATION, ("true",), one_shot=True, probe=probe)


def test_a_row_needs_its_http_port_and_the_link_port_above() -> None:
    probe = http_ready("http://127.0.0.1:1/ready")
    row = Row("keygen", Stage.KEYGEN, ("true",), probe=probe, http_port=8086)
    assert row.ports() == {8086: "keygen", 9086: "links of keygen"}
    assert Row("postgres", Stage.DATABASE, ("true",), probe=probe).ports() == {}


def test_the_stop_runs_from_the_gateway_to_the_database() -> None:
    names = [stage.name for stage in sorted(Stage, reverse=True)]
    assert names == [
        "GATEWAY",
        "KEYGEN",
        "ACCOUNTS",
        "REPLICATORS",
        "NODES",
        "MIGRATION",
        "DATABASE",
    ]


def _rows() -> list[Row]:
    def serving(name: str, stage: Stage, port: int) -> Row:
        url = f"http://127.0.0.1:{port}"
        return Row(name, stage, ("x",), http_port=port, url=url, probe=http_ready(url))

    return [
        Row("postgres", Stage.DATABASE, ("x",), probe=http_ready("http://127.0.0.1:1")),
        Row("migrate", Stage.MIGRATION, ("x",), one_shot=True),
        serving("node-1", Stage.NODES, 8082),
        serving("gateway", Stage.GATEWAY, 8080),
    ]


def test_the_document_has_addresses_by_name_nodes_together_and_every_pid() -> None:
    pids = {"postgres": 11, "node-1": 12, "gateway": 13}
    document = up_document(_rows(), pids, {})
    supervisor = document.pop("pid")
    assert isinstance(supervisor, int)
    assert document == {
        "ready": True,
        "gateway": "http://127.0.0.1:8080",
        "nodes": {"node-1": {"url": "http://127.0.0.1:8082", "pid": 12}},
        "pids": pids,
    }


async def test_an_address_where_nobody_listens_is_not_ready_and_says_so() -> None:
    reason = await http_ready("http://127.0.0.1:1/ready")()
    assert reason == "http://127.0.0.1:1/ready gives no answer (ConnectError)"


async def test_a_database_that_is_starting_is_not_tried() -> None:
    def address() -> DatabaseAddress:
        raise AssertionError("nobody should ask for it")

    assert await accepts_connections(lambda: False, address)() == "it is still starting"


async def test_a_database_that_is_up_is_tried_each_time() -> None:
    nowhere = DatabaseAddress(host="/nonexistent", user="ada", database="shop")
    reason = await accepts_connections(lambda: True, lambda: nowhere)()
    assert reason is not None
    assert reason.startswith("no connection: ")
