"""Supervise a table given as JSON: `run_table.py DATA_DIR TABLE`, as `ydht up` does its own.

Each entry has `name`, `stage`, `command` (arguments of Python), and if need be `port`,
`one_shot`, `redundant`, `ready_s_max`, `first_s`, `healthy_s`, `deaths_max`, and `program` in the
place of Python. Restarts are quicker than in life.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from services.cli.datadir import DataDirectory
from services.cli.rows import Restarts, Row, Stage, http_ready
from services.cli.supervisor import supervise
from services.core.errors import FatalError


def row(entry: dict[str, Any]) -> Row:
    port = entry.get("port")
    first_s = entry.get("first_s", 0.05)
    url = f"http://127.0.0.1:{port}" if port else None
    return Row(
        name=entry["name"],
        stage=Stage[entry["stage"]],
        command=(entry.get("program", sys.executable), *entry["command"]),
        http_port=port,
        url=url,
        probe=http_ready(f"{url}/ready") if url else None,
        one_shot=entry.get("one_shot", False),
        redundant=entry.get("redundant", False),
        ready_s_max=entry.get("ready_s_max", 30.0),
        restarts=Restarts(
            first_s=first_s,
            longest_s=max(0.4, first_s),
            healthy_s=entry.get("healthy_s", 60.0),
            tries=3,
            failing_deaths=5,
            deaths_max=entry.get("deaths_max", 600),
        ),
    )


def main(data_dir: str, table: str) -> None:
    try:
        directory = DataDirectory.open(Path(data_dir))
        try:
            rows = [row(entry) for entry in json.loads(table)]
            environment = {**os.environ, "DATA_DIR": data_dir}
            asyncio.run(supervise(rows, directory, host="127.0.0.1", environment=environment))
        finally:
            directory.close()
    except FatalError as error:
        sys.stderr.write(f"ydht: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
