"""`ydht up`: the whole platform in one terminal."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import click

from services.cli.datadir import DataDirectory
from services.cli.demo import find_demo
from services.cli.init import make_secrets
from services.cli.options import data_dir_option
from services.cli.ports import nodes_max, plan_ports, replicators_max
from services.cli.supervisor import supervise
from services.cli.table import UpSettings, service_table
from services.core.cluster import port_max
from services.runtime.settings import link_port_offset, load


@click.command()
@data_dir_option
@click.option(
    "--nodes",
    type=click.IntRange(1, nodes_max),
    help="Number of nodes.  [default: CLUSTER_SIZE, or 3]",
)
@click.option(
    "--port-base",
    type=click.IntRange(1, port_max - link_port_offset),
    help="First port; all ports move together.  [default: GATEWAY_PORT, or 8080]",
)
@click.option(
    "--replicators",
    type=click.IntRange(1, replicators_max),
    default=1,
    show_default=True,
    help="Number of replicators.",
)
@click.option("--no-demo", is_flag=True, help="Open no demo account, and show none.")
def up(
    data_dir: Path, nodes: int | None, port_base: int | None, replicators: int, *, no_demo: bool
) -> None:
    """Start everything, and keep it up until Ctrl-C.

    The first start makes the secrets, the database, and a demo account. Everything is in the data
    directory; the next start has it all back.
    """
    directory = DataDirectory.open(data_dir)
    try:
        make_secrets(directory.path)
        environment = {**os.environ, "DATA_DIR": str(directory.path)}
        settings = load(UpSettings, environment)
        ports = plan_ports(
            port_base or settings.port,
            nodes=nodes or settings.cluster_size,
            replicators=replicators,
        )
        rows = service_table(settings, ports, has_demo=not no_demo)
        demo = partial(find_demo, directory.path, environment, wanted=not no_demo)
        asyncio.run(
            supervise(
                rows,
                directory,
                host=settings.bind_host,
                environment=environment,
                find_demo=demo,
            )
        )
    finally:
        directory.close()
