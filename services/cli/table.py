"""Which services `ydht up` runs. A new service joins by one row here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from services.cli.ports import PortPlan, nodes_max
from services.cli.rows import Row, Stage, accepts_connections
from services.runtime import setting_values as values
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import embedded_address
from services.runtime.settings import DatabaseSettings, setting

# A first start makes the database; a start after kill -9 replays its log.
database_ready_s_max = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSettings(DatabaseSettings):
    """What `ydht up` itself reads; its options stand above them."""

    service: ClassVar[str] = "up"
    port: int = setting("GATEWAY_PORT", values.port, default="8080", help="Base of all ports")
    cluster_size: int = setting(
        "CLUSTER_SIZE", values.integer(1, nodes_max), default="3", help="Nodes of a new cluster"
    )


def service_command(*words: str) -> tuple[str, ...]:
    """A command line of this installation, whatever lies in the current directory.

    Without -P a folder named `services` there would stand in for ours.
    """
    return (sys.executable, "-P", "-m", *words)


def service_table(settings: UpSettings, ports: PortPlan) -> tuple[Row, ...]:
    """Every row, for these settings. Each finds its secrets in the environment or in DATA_DIR."""
    return (*_database(settings), _migration())


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
            probe=accepts_connections(address),
            ready_s_max=database_ready_s_max,
        ),
    )


def _migration() -> Row:
    """Ends when the schema is the one that the services expect."""
    return Row(
        name="migrate",
        stage=Stage.MIGRATION,
        command=service_command("services.cli", "migrate"),
        one_shot=True,
    )
