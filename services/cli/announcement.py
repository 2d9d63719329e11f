"""Where everything is: for programs in `up.json`, for people on the terminal."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.cli.demo import DemoNews, user_command
from services.cli.demo_file import Demo, demo_file_name
from services.cli.rows import Row, Stage
from services.cli.standing import is_ready


def up_document(
    rows: Sequence[Row],
    pids: Mapping[str, int],
    down: Mapping[str, str],
    lacking: Mapping[str, str],
    demo: Demo | None = None,
) -> dict[str, Any]:
    """The content of `up.json`: the address of every service, and the pid of every process.

    Nodes are many and stand under `nodes`; the others stand under their own names. While somebody
    is down, `down` has why, by name; `ready` is whether the others are enough. While somebody who
    is up lacks something, `lacking` has what. `demo` is null without a demo account.
    """
    document: dict[str, Any] = {"ready": is_ready(rows, down), "pid": os.getpid()}
    for row in rows:
        if row.url is not None and row.stage is not Stage.NODES:
            document[row.name] = row.url
    nodes = [row for row in rows if row.stage is Stage.NODES]
    if nodes:
        document["nodes"] = {row.name: {"url": row.url, "pid": pids.get(row.name)} for row in nodes}
    document["pids"] = dict(pids)
    document["demo"] = None if demo is None else msgspec.to_builtins(demo)
    if down:
        document["down"] = dict(down)
    if lacking:
        document["lacking"] = dict(lacking)
    return document


def where_everything_is(
    rows: Sequence[Row],
    pids: Mapping[str, int],
    down: Mapping[str, str],
    lacking: Mapping[str, str],
    directory: Path,
    news: DemoNews | None = None,
) -> str:
    """For the terminal: every service, its process, how to reach it, and the demo account."""
    lines = [("service", "pid", "reached at")]
    lines += [
        (row.name, str(pids.get(row.name, "-")), "DOWN" if row.name in down else row.url or "-")
        for row in rows
        if not row.one_shot
    ]
    width = max(len(name) for name, _, _ in lines)
    table = [f"  {name:<{width}}  {pid:>8}  {place}" for name, pid, place in lines]
    return "\n".join(
        [
            "",
            _headline(rows, down, lacking),
            *(f"  {why}" for why in down.values()),
            *(f"  {name}: {what}" for name, what in lacking.items()),
            "",
            *table,
            "",
            *_about_pages(rows, down),
            *_about_demo(rows, down, directory, news or DemoNews()),
            f"  data in {directory}, logs in {directory / 'logs'}",
            "  Ctrl-C stops everything; the data stays.",
            "",
        ]
    )


def _about_pages(rows: Sequence[Row], down: Mapping[str, str]) -> list[str]:
    """Where people begin who have a browser."""
    found = [row.url for row in rows if row.stage is Stage.ACCOUNTS and row.name not in down]
    return [f"  in a browser: {url}" for url in found] + ([""] if found else [])


def _about_demo(
    rows: Sequence[Row], down: Mapping[str, str], directory: Path, news: DemoNews
) -> list[str]:
    """The demo account, something to try it with, and how to be without it."""
    lines = [f"  {remark}" for remark in news.remarks]
    if (demo := news.demo) is not None:
        lines += [
            f"  demo account, an operator, kept in {directory / demo_file_name}:",
            f"    email     {demo.email}",
            f"    password  {demo.password or '(as its owner chose it)'}",
            f"    API key   {demo.api_key or '(none)'}",
            f"  Others can reach this machine? {user_command('disable', directory)} ends it;",
            "  the option --no-demo of `ydht up` leaves it out.",
        ]
        gateways = [row for row in rows if row.stage is Stage.GATEWAY and row.name not in down]
        if demo.api_key is not None and gateways:
            key = f"-H {shlex.quote(f'X-API-Key: {demo.api_key}')}"
            url = f"{gateways[0].url}/v1/kv/greeting"
            lines += [
                "  to try it:",
                f"    curl -sS -X PUT -d hello {key} {url}",
                f"    curl -sS {key} {url}",
                *(
                    f"    curl -sS {key} {row.url}/get-key"
                    for row in rows
                    if row.stage is Stage.KEYGEN and row.name not in down
                ),
            ]
    return [*lines, ""] if lines else []


def _headline(rows: Sequence[Row], down: Mapping[str, str], lacking: Mapping[str, str]) -> str:
    if not is_ready(rows, down):
        return f"WARNING: not ready, for {_and(down)} {'is' if len(down) == 1 else 'are'} down."
    if down:
        return f"WARNING: ready, but without {_and(down)}. The others do its work; mend it soon."
    if lacking:
        return f"WARNING: ready, but not all is well with {_and(lacking)}."
    return "Everything is ready."


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
