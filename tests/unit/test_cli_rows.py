from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.announcement import up_document, where_everything_is
from services.cli.demo import DemoNews
from services.cli.demo_file import Demo
from services.cli.ports import plan_ports
from services.cli.rows import Restarts, Row, Stage, accepts_connections, http_ready
from services.cli.table import UpSettings, service_table
from services.core.errors import FatalError
from services.dhtnode.settings import NodeSettings
from services.runtime.database_url import DatabaseAddress
from services.runtime.settings import load


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
    document = up_document(_rows(), pids, {}, {})
    supervisor = document.pop("pid")
    assert isinstance(supervisor, int)
    assert document == {
        "ready": True,
        "gateway": "http://127.0.0.1:8080",
        "nodes": {"node-1": {"url": "http://127.0.0.1:8082", "pid": 12}},
        "pids": pids,
        "demo": None,
    }


demo = Demo("demo@ydht.example", "it's a password", "ydht_key")


def test_the_demo_is_in_the_document_also_what_nobody_knows_of_it() -> None:
    shown = {"email": "demo@ydht.example", "password": "it's a password", "api_key": "ydht_key"}
    assert up_document(_rows(), {}, {}, {}, demo)["demo"] == shown
    changed = Demo(demo.email, None, demo.api_key)
    assert up_document(_rows(), {}, {}, {}, changed)["demo"] == {**shown, "password": None}


def test_the_demo_is_announced_with_what_to_paste_and_how_to_be_without_it() -> None:
    lines = where_everything_is(_rows(), {}, {}, {}, Path("my data"), DemoNews(demo)).splitlines()
    assert "    password  it's a password" in lines
    assert "    API key   ydht_key" in lines
    pasted = [line.strip() for line in lines if line.startswith("    curl")]
    assert [shlex.split(line)[-1] for line in pasted] == 2 * [
        "http://127.0.0.1:8080/v1/kv/greeting"
    ]
    assert all("X-API-Key: ydht_key" in shlex.split(line) for line in pasted)
    said = "\n".join(lines)
    assert "`ydht user disable demo@ydht.example --data-dir 'my data'` ends it" in said
    assert "--no-demo" in said


@pytest.mark.parametrize(
    ("rows", "shown", "down"),
    [
        (_rows()[:-1], demo, {}),
        (_rows(), demo, {"gateway": "it ended"}),
        (_rows(), Demo(demo.email, demo.password, None), {}),
    ],
    ids=["no gateway", "a gateway that is down", "no key"],
)
def test_nothing_is_to_be_pasted_that_would_not_work(
    rows: list[Row], shown: Demo, down: dict[str, str]
) -> None:
    said = where_everything_is(rows, {}, down, {}, Path("data"), DemoNews(shown))
    assert demo.email in said
    assert "curl" not in said


def test_why_there_is_no_demo_is_announced() -> None:
    news = DemoNews(remarks=("no demo account: it is disabled",))
    said = where_everything_is(_rows(), {}, {}, {}, Path("data"), news)
    assert "  no demo account: it is disabled\n" in said
    assert "password" not in said


def test_people_are_told_where_to_begin_in_a_browser_while_that_is_up() -> None:
    rows = [*_table(nodes=3, replicators=1).values()]
    said = where_everything_is(rows, {}, {}, {}, Path("data"))
    assert "\n  in a browser: http://127.0.0.1:8081\n" in said
    down = {"usermanager": "usermanager: it died"}
    assert "in a browser" not in where_everything_is(rows, {}, down, {}, Path("data"))


def test_who_is_up_and_lacks_something_is_named_and_is_still_ready() -> None:
    rows, lacking = _rows(), {"node-1": "puts: the disk is nearly full"}
    document = up_document(rows, {}, {}, lacking)
    assert (document["ready"], document["lacking"]) == (True, lacking)
    shown = where_everything_is(rows, {}, {}, lacking, Path("data"))
    assert "WARNING: ready, but not all is well with node-1." in shown
    assert "  node-1: puts: the disk is nearly full\n" in shown
    assert "Everything is ready." not in shown


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


def _table(*, nodes: int, replicators: int, **environ: str) -> dict[str, Row]:
    settings = load(
        UpSettings,
        {
            "CLUSTER_SECRET": "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe",
            "DATABASE_URL": "postgres://ada@db/shop",
            "DATA_DIR": "/nonexistent",
            **environ,
        },
    )
    ports = plan_ports(8080, nodes=nodes, replicators=replicators)
    return {row.name: row for row in service_table(settings, ports)}


def test_every_replicator_has_a_name_of_its_own_and_every_node_knows_them_all() -> None:
    rows = _table(nodes=4, replicators=4)
    names = ["replicator", "replicator-2", "replicator-3", "replicator-4"]
    assert [name for name, row in rows.items() if row.stage is Stage.REPLICATORS] == names
    for number, (name, port) in enumerate(zip(names, (8085, 8087, 8088, 8089), strict=True), 1):
        assert rows[name].environment == {
            "REPLICATOR_ID": f"replicator-{number}",
            "REPLICATOR_PORT": str(port),
            "CLUSTER_SIZE": "4",
        }
        assert port + 1000 in rows[name].ports()
    urls = ",".join(str(rows[name].url) for name in names)
    nodes = [row for row in rows.values() if row.stage is Stage.NODES]
    assert [row.environment["REPLICATOR_URLS"] for row in nodes] == [urls] * 4


def test_the_user_manager_is_on_its_port_and_starts_behind_the_replicators_it_knows() -> None:
    rows = _table(nodes=3, replicators=2)
    row = rows["usermanager"]
    assert row.stage > rows["replicator-2"].stage
    assert row.environment == {
        "USERMANAGER_PORT": "8081",
        "REPLICATOR_URLS": f"{rows['replicator'].url},{rows['replicator-2'].url}",
        "GATEWAY_URL": rows["gateway"].url,
        "KEYGEN_URL": rows["keygen"].url,
        "SHOW_DEMO": "false",
    }
    assert row.url == "http://127.0.0.1:8081"
    assert set(row.ports()) == {8081, 9081}
    assert not row.redundant, "nobody else does its work"


def test_the_gateway_is_the_last_to_start_and_knows_all_that_it_asks() -> None:
    rows = _table(nodes=3, replicators=2)
    row = rows["gateway"]
    assert row.stage == max(other.stage for other in rows.values())
    assert row.environment == {
        "GATEWAY_PORT": "8080",
        "USERMANAGER_URL": rows["usermanager"].url,
        "REPLICATOR_URLS": f"{rows['replicator'].url},{rows['replicator-2'].url}",
        "KEYGEN_URL": "http://127.0.0.1:8086",
        "CORS_ORIGINS": "http://127.0.0.1:8081,http://localhost:8081",
    }
    assert row.url == "http://127.0.0.1:8080"
    assert not row.redundant, "nobody else does its work"


@pytest.mark.parametrize(
    ("environ", "allowed"),
    [
        ({"CORS_ORIGINS": "*"}, "*"),
        (
            {"CORS_ORIGINS": "https://app.example"},
            "https://app.example,http://127.0.0.1:8081,http://localhost:8081",
        ),
        (
            {"PUBLIC_URL": "https://Ydht.example/people"},
            "http://127.0.0.1:8081,http://localhost:8081,https://ydht.example",
        ),
    ],
)
def test_pages_of_the_user_manager_may_call_the_gateway_besides_those_that_may_anyway(
    environ: dict[str, str], allowed: str
) -> None:
    row = _table(nodes=3, replicators=1, **environ)["gateway"]
    assert row.environment["CORS_ORIGINS"] == allowed


@pytest.mark.parametrize(
    ("environ", "host"),
    [
        ({}, "127.0.0.1"),
        ({"BIND_HOST": "0.0.0.0"}, "127.0.0.1"),  # noqa: S104  Nobody listens.
        ({"BIND_HOST": "::"}, "::1"),
        ({"BIND_HOST": "0.0.0.0", "ADVERTISE_HOST": "here.example"}, "here.example"),  # noqa: S104  As above.
    ],
)
def test_nodes_that_listen_everywhere_tell_others_one_address(
    environ: dict[str, str], host: str
) -> None:
    row = _table(nodes=1, replicators=1, **environ)["node-1"]
    assert row.environment["ADVERTISE_HOST"] == host
    started = {
        **environ,
        **row.environment,
        "CLUSTER_SECRET": "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe",
        "DATA_DIR": "/nonexistent",
    }
    assert load(NodeSettings, started).advertised_host == host


def test_a_node_that_nobody_could_reach_does_not_start() -> None:
    everywhere = {
        "BIND_HOST": "0.0.0.0",  # noqa: S104  Nobody listens.
        "DATA_DIR": "/nonexistent",
        "CLUSTER_SECRET": "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe",
    }
    with pytest.raises(FatalError, match="ADVERTISE_HOST is not set"):
        load(NodeSettings, everywhere)
    with pytest.raises(FatalError, match="ZONE is 'rack 1': use up to 64 letters"):
        load(NodeSettings, {**everywhere, "ZONE": "rack 1"})


def test_the_keygen_is_on_its_port_and_lets_anybody_have_keys() -> None:
    rows = _table(nodes=3, replicators=1)
    row = rows["keygen"]
    assert rows["usermanager"].stage < row.stage < rows["gateway"].stage
    assert row.environment == {
        "KEYGEN_PORT": "8086",
        "KEYGEN_ANONYMOUS": "true",
        "USERMANAGER_URL": rows["usermanager"].url,
        "ADVERTISE_HOST": "127.0.0.1",
    }
    assert row.url == rows["gateway"].environment["KEYGEN_URL"]
    assert not row.redundant, "nobody else does its work"
