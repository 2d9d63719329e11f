"""What an operator asks the replicators of a cluster, all of them at once, over HTTP.

They are those of REPLICATOR_URLS; if that is not set, those that `ydht up` has started on the data
directory, by its `up.json`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from services.cli.endings import UnreachableError
from services.core.cluster_health import Document, Told
from services.core.errors import FatalError
from services.runtime import setting_values as values
from services.runtime.clock import SystemClock
from services.runtime.settings import data_dir_setting, load, setting
from services.runtime.signed_client import signed_client
from services.runtime.survey import ask_all

# What they tell comes from memory.
answer_s_max: Final = 5.0
# One for each process that is asked.
connections_max: Final = 256
up_name: Final = "up.json"
_replicator: Final = re.compile(r"replicator(-\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterToolSettings:
    data_dir: Path = data_dir_setting()
    cluster_secret: str = setting(
        "CLUSTER_SECRET",
        values.secret,
        required=True,
        secret=True,
        help="Shared by all services; authenticates links and internal requests",
    )
    replicator_urls: tuple[str, ...] | None = setting(
        "REPLICATOR_URLS",
        values.url_list,
        help="Replicators, by the URLs of their HTTP ports; unset: those of a running `ydht up`",
    )


class ReplicatorDesk:
    def __init__(self, urls: Sequence[str], cluster_secret: str) -> None:
        self.urls = tuple(urls)
        self._cluster_secret = cluster_secret

    @classmethod
    def open(cls, data_dir: Path) -> ReplicatorDesk:
        """FatalError if nobody says where replicators are."""
        settings = load(ClusterToolSettings, {**os.environ, "DATA_DIR": str(data_dir)})
        urls = settings.replicator_urls or _urls_of_up(settings.data_dir)
        return cls(urls, settings.cluster_secret)

    def client(self) -> httpx.AsyncClient:
        """For whoever has the cluster's secret."""
        return signed_client(
            self._cluster_secret,
            SystemClock(),
            answer_s_max=answer_s_max,
            connect_s_max=answer_s_max,
            connections_max=connections_max,
        )

    async def get(self, path: str) -> list[Told]:
        """What each of them tells, in the order of their URLs."""
        return await self._all("GET", path, None)

    async def post(self, path: str, content: Mapping[str, object]) -> list[Told]:
        return await self._all("POST", path, content)

    async def _all(
        self, method: str, path: str, content: Mapping[str, object] | None
    ) -> list[Told]:
        async with self.client() as client:
            return await ask_all(client, method, self.urls, path, content)


def _urls_of_up(data_dir: Path) -> list[str]:
    told = told_by_up(data_dir, "set REPLICATOR_URLS")
    urls = [url for name, url in told.items() if is_replicator(name)]
    if not urls:
        raise UnreachableError(f"{data_dir / up_name} names no replicator: set REPLICATOR_URLS")
    return urls


def is_replicator(name: str) -> bool:
    """Whether `up.json` calls a replicator so."""
    return _replicator.fullmatch(name) is not None


def told_by_up(data_dir: Path, otherwise: str) -> Document:
    """What the `ydht up` that runs on the directory says of its services. FatalError, with what to
    do `otherwise`, if none does."""
    path = data_dir / up_name
    try:
        told: Document = json.loads(path.read_text())
    except FileNotFoundError:
        raise UnreachableError(
            f"nothing runs on {data_dir}: start `ydht up` there, name another directory by "
            f"--data-dir, or {otherwise}"
        ) from None
    except (OSError, ValueError) as error:
        raise FatalError(f"{path} cannot be read ({error}): {otherwise}") from error
    return told
