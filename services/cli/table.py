"""Which services `ydht up` runs. A new service joins by one row here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from services.cli.former_cluster import refuse_another_cluster
from services.cli.ports import PortPlan, node_name, nodes_max, replicator_name
from services.cli.rows import (
    Row,
    Stage,
    accepts_connections,
    http_ready,
    http_well,
    ready_s_default,
)
from services.runtime import setting_values as values
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import embedded_address, embedded_is_up, refuse_second_owner
from services.runtime.settings import DatabaseSettings, setting

# A first start makes the database; a start after kill -9 replays its log.
database_ready_s_max = 300.0
# Recovery of a node reads its snapshot and log, at about a million records in two seconds.
node_ready_s_max = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings(DatabaseSettings):
    """What `ydht up` itself reads; its options stand above them."""

    service: ClassVar[str] = "up"
    port: int = setting(
        "GATEWAY_PORT",
        values.port,
        default="8080",
        help="HTTP port of the gateway, and with `ydht up` the base of all others",
    )
    cluster_size: int = setting(
        "CLUSTER_SIZE", values.integer(1, nodes_max), default="3", help="Nodes of a new cluster"
    )
    public_url: str | None = setting(
        "PUBLIC_URL",
        values.url,
        help="Where people reach the user manager, as documents say",
    )
    cors_origins: tuple[str, ...] | None = setting(
        "CORS_ORIGINS",
        values.origins,
        help="Origins whose pages may call the API, or *; unset: none",
    )


def service_command(*words: str) -> tuple[str, ...]:
    """A command line of this installation, whatever lies in the current directory.

    Without -P a folder named `services` there would stand in for ours.
    """
    return (sys.executable, "-P", "-m", *words)


def service_table(
    settings: UpSettings, ports: PortPlan, *, has_demo: bool = False
) -> tuple[Row, ...]:
    """Every row, for these settings. Each finds its secrets in the environment or in DATA_DIR."""
    return (
        *_database(settings),
        _migration(),
        *_nodes(settings, ports),
        *_replicators(settings, ports),
        _user_manager(settings, ports, has_demo=has_demo),
        _keygen(settings, ports),
        _gateway(settings, ports),
    )


def _database(settings: UpSettings) -> tuple[Row, ...]:
    """The embedded PostgreSQL, unless there is another."""
    if settings.database_url is not None:
        return ()
    password = settings.embedded_db_password or ""

    def address() -> DatabaseAddress:
        return embedded_address(settings.data_dir, password)

    found = address()
    return (
        Row(
            name="postgres",
            stage=Stage.DATABASE,
            command=service_command("services.cli", "db"),
            # Without the password, which is in ydht.env: this is shown and published.
            url=f"postgresql://{found.user}@/{found.database}?host={found.host}",
            probe=accepts_connections(partial(embedded_is_up, settings.data_dir), address),
            ready_s_max=database_ready_s_max,
            refuse=partial(refuse_second_owner, settings.data_dir),
        ),
    )


def _nodes(settings: UpSettings, ports: PortPlan) -> tuple[Row, ...]:
    return tuple(
        _service(
            settings,
            Stage.NODES,
            node_name(number),
            "services.dhtnode",
            port,
            {
                "NODE_ID": node_name(number),
                "DHTNODE_PORT": str(port),
                "REPLICATOR_URLS": _replicator_urls(settings, ports),
                # Of a service that listens on all addresses somebody has to name one.
                "ADVERTISE_HOST": settings.advertise_host or _host(settings),
            },
            node_ready_s_max,
            redundant=True,
        )
        for number, port in enumerate(ports.nodes, start=1)
    )


def _replicators(settings: UpSettings, ports: PortPlan) -> tuple[Row, ...]:
    """Behind the nodes, which do without them: a replicator is ready once nodes have made a
    cluster of themselves over it."""
    return tuple(
        _service(
            settings,
            Stage.REPLICATORS,
            replicator_name(number),
            "services.replicator",
            port,
            {
                "REPLICATOR_ID": f"replicator-{number}",
                "REPLICATOR_PORT": str(port),
                "CLUSTER_SIZE": str(len(ports.nodes)),
            },
            redundant=True,
            refuse=partial(
                refuse_another_cluster,
                settings.data_dir / "replicators" / f"replicator-{number}",
                len(ports.nodes),
            ),
        )
        for number, port in enumerate(ports.replicators, start=1)
    )


def _user_manager(settings: UpSettings, ports: PortPlan, *, has_demo: bool) -> Row:
    return _service(
        settings,
        Stage.ACCOUNTS,
        "usermanager",
        "services.usermanager",
        ports.usermanager,
        {
            "USERMANAGER_PORT": str(ports.usermanager),
            "REPLICATOR_URLS": _replicator_urls(settings, ports),
            "GATEWAY_URL": _url(settings, ports.gateway),
            "KEYGEN_URL": _url(settings, ports.keygen),
            "SHOW_DEMO": "true" if has_demo else "false",
        },
    )


def _keygen(settings: UpSettings, ports: PortPlan) -> Row:
    """On one machine whoever can reach it may have keys, without an account."""
    return _service(
        settings,
        Stage.KEYGEN,
        "keygen",
        "services.keygen",
        ports.keygen,
        {
            "KEYGEN_PORT": str(ports.keygen),
            "KEYGEN_ANONYMOUS": "true",
            "USERMANAGER_URL": _url(settings, ports.usermanager),
            "ADVERTISE_HOST": settings.advertise_host or _host(settings),
        },
    )


def _gateway(settings: UpSettings, ports: PortPlan) -> Row:
    """Behind all that it asks, so that it is well as soon as it is ready."""
    return _service(
        settings,
        Stage.GATEWAY,
        "gateway",
        "services.gateway",
        ports.gateway,
        {
            "GATEWAY_PORT": str(ports.gateway),
            "USERMANAGER_URL": _url(settings, ports.usermanager),
            "REPLICATOR_URLS": _replicator_urls(settings, ports),
            "KEYGEN_URL": _url(settings, ports.keygen),
            "CORS_ORIGINS": ",".join(_page_origins(settings, ports)),
        },
    )


def _page_origins(settings: UpSettings, ports: PortPlan) -> tuple[str, ...]:
    """Whose pages may call the gateway: those that are allowed anyway, and the user manager's,
    which have something to try on them."""
    named = settings.cors_origins or ()
    if "*" in named:
        return ("*",)
    # People write either.
    own = [_url(settings, ports.usermanager), f"http://localhost:{ports.usermanager}"]
    if settings.public_url is not None:
        own.append(values.origin(settings.public_url))
    return tuple(dict.fromkeys((*named, *own)))


def _service(
    settings: UpSettings,
    stage: Stage,
    name: str,
    module: str,
    port: int,
    environment: Mapping[str, str],
    ready_s_max: float = ready_s_default,
    *,
    redundant: bool = False,
    refuse: Callable[[], None] | None = None,
) -> Row:
    """The row of one of our services: ready when its /ready says so."""
    url = _url(settings, port)
    return Row(
        name=name,
        stage=stage,
        command=service_command(module),
        environment=environment,
        http_port=port,
        url=url,
        probe=http_ready(f"{url}/ready"),
        well=http_well(f"{url}/ready"),
        ready_s_max=ready_s_max,
        redundant=redundant,
        refuse=refuse,
    )


def _replicator_urls(settings: UpSettings, ports: PortPlan) -> str:
    return ",".join(_url(settings, port) for port in ports.replicators)


def _url(settings: UpSettings, port: int) -> str:
    host = _host(settings)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _host(settings: UpSettings) -> str:
    """Where a service of this machine is reached, also if it listens on all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.bind_host, settings.bind_host)  # noqa: S104 - compared


def _migration() -> Row:
    """Ends when the schema is the one that the services expect."""
    return Row(
        name="migrate",
        stage=Stage.MIGRATION,
        command=service_command("services.cli", "migrate"),
        one_shot=True,
    )
