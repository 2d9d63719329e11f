"""Where everything is: for programs in `up.json`, for people on the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.cli.rows import Row, Stage


def up_document(rows: Sequence[Row], pids: Mapping[str, int]) -> dict[str, Any]:
    """The content of `up.json`: the address of every service, and the pid of every process.

    Nodes are many and stand under `nodes`; the others stand under their own names.
    """
    document: dict[str, Any] = {"ready": True, "pid": os.getpid()}
    for row in rows:
        if row.url is not None and row.stage is not Stage.NODES:
            document[row.name] = row.url
    nodes = [row for row in rows if row.stage is Stage.NODES]
    if nodes:
        document["nodes"] = {row.name: {"url": row.url, "pid": pids.get(row.name)} for row in nodes}
    document["pids"] = dict(pids)
    return document


def where_everything_is(rows: Sequence[Row], pids: Mapping[str, int], directory: Path) -> str:
    """A plain table for the terminal: every service, its process, and how to reach it."""
    lines = [("service", "pid", "reached at")]
    lines += [(row.name, str(pids.get(row.name, "-")), row.url or "-")
              for row in rows if not row.one_shot]  # fmt: skip
    width = max(len(name) for name, _, _ in lines)
    table = [f"  {name:<{width}}  {pid:>8}  {place}" for name, pid, place in lines]
    return "\n".join(
        [
            "",
            "Everything is ready.",
            "",
            *table,
            "",
            f"  data in {directory}, logs in {directory / 'logs'}",
            "  Ctrl-C stops everything; the data stays.",
            "",
        ]
    )
