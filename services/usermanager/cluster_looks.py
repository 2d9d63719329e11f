"""How the cluster is, as replicators and nodes tell it, for whoever looks at a page about it.

However many look, the cluster is asked once in a moment. Where keys lie is known also while nobody
answers: by the last map that was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec

from services.core.cluster import ClusterMap
from services.core.cluster_health import Health, health_of
from services.core.errors import PeerError
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.signed_client import signed_client
from services.runtime.survey import Survey, survey

kept_s: Final = 1.0
# Probes and maps are answered from memory; who is slower than this is told of as away.
answer_s_max: Final = 2.0
connect_s_max: Final = 1.0
# Three questions to each of a large cluster may be under way.
connections_max: Final = 256

log = telemetry.logger("services.usermanager")


@dataclass(slots=True, frozen=True)
class Look:
    found: Survey
    health: Health
    # The newest that was ever told; None before the cluster has formed.
    map: ClusterMap | None

    @property
    def is_silent(self) -> bool:
        """Whether nobody has told anything now."""
        return self.found.is_silent


class ClusterLooks:
    """Usable until `close`."""

    def __init__(
        self,
        replicator_urls: Sequence[str],
        cluster_secret: str,
        clock: Clock,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._urls = tuple(replicator_urls)
        self._clock = clock
        self._client = signed_client(
            cluster_secret,
            clock,
            answer_s_max=answer_s_max,
            connect_s_max=connect_s_max,
            connections_max=connections_max,
            transport=transport,
        )
        self._one_asks = asyncio.Lock()
        self._map: ClusterMap | None = None
        self._last: Look | None = None
        self._last_s = float("-inf")

    async def close(self) -> None:
        await self._client.aclose()

    async def look(self) -> Look:
        async with self._one_asks:
            if self._last is None or self._clock.monotonic_s() - self._last_s > kept_s:
                self._last = await self._ask()
                self._last_s = self._clock.monotonic_s()
            return self._last

    async def _ask(self) -> Look:
        found = await survey(self._client, self._urls)
        health = health_of(found.told, self._clock.wall_ms(), found.of_nodes)
        for one in found.told:
            if one.document is not None:
                await self._learn(one.document.get("map"))
        return Look(found, health, self._map)

    async def _learn(self, told: Any) -> None:
        """Keep a map that is newer. A replicator of an older version tells none."""
        if told is None:
            return
        try:
            new = ClusterMap.decode(msgspec.json.encode(told))
        except PeerError as error:
            log.warning("a cluster map cannot be read", reason=str(error))
            return
        if self._map is not None and new.epoch <= self._map.epoch:
            return
        # A large ring takes a tenth of a second, which is not all taken from others at once.
        for _ in new.prepare():
            await asyncio.sleep(0)
        self._map = new
