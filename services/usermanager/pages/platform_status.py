"""How the platform is, for everybody to see: in words, without addresses or reasons.

Asked of the services themselves, at most once in a few seconds however many look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import httpx
import msgspec
from starlette.responses import Response

from services.core.errors import ClientError
from services.runtime.clock import Clock
from services.runtime.probes import Level, Readiness
from services.usermanager.pages.gateway_calls import PlatformCalls, Service
from services.usermanager.pages.page import Audience, Page, Visit

T = TypeVar("T")
Kind = Literal["good", "warn", "bad"]

kept_s: Final = 3.0
# A probe is answered from memory.
answer_s_max: Final = 2.0

_words: Final[dict[Level, tuple[str, Kind]]] = {
    "ready": ("Operational", "good"),
    "degraded": ("Degraded", "warn"),
    "unready": ("Not ready", "bad"),
}
# States of a node that answers (runtime/fleet.py).
_up: Final = frozenset(("live", "catching_up"))


@dataclass(slots=True, frozen=True)
class Part:
    """One line: a part of the platform, and how it is."""

    name: str
    words: str
    kind: Kind


class _Ready(msgspec.Struct):
    status: Level


class _Node(msgspec.Struct):
    state: str


class _Health(msgspec.Struct):
    nodes: list[_Node]


class PlatformStatus:
    def __init__(self, calls: PlatformCalls, readiness: Readiness, clock: Clock) -> None:
        self._calls = calls
        self._readiness = readiness
        self._clock = clock
        self._one_asks = asyncio.Lock()
        self._found: Sequence[Part] = ()
        self._found_s = float("-inf")

    def pages(self) -> list[Page]:
        return [Page("GET", "/status", self.show, Audience.ANYBODY)]

    async def show(self, visit: Visit) -> Response:
        """A part of a page, to be put into one by a script."""
        return visit.render("_status.html", parts=await self.parts())

    async def parts(self) -> Sequence[Part]:
        async with self._one_asks:
            if self._clock.monotonic_s() - self._found_s > kept_s:
                self._found = await self._ask()
                self._found_s = self._clock.monotonic_s()
            return self._found

    async def _ask(self) -> Sequence[Part]:
        gateway, keygen, health = await asyncio.gather(
            _told(self._calls.gateway, "/ready", _Ready),
            _told(self._calls.keygen, "/ready", _Ready),
            _told(self._calls.gateway, "/health", _Health),
        )
        own, _ = self._readiness.look()
        return [
            _part("Data", gateway),
            *([] if health is None else [of_nodes([node.state for node in health.nodes])]),
            _part("IDs", keygen),
            _part("Accounts and console", _Ready(own)),
        ]


async def _told(service: Service, path: str, of: type[T]) -> T | None:
    try:
        answer = await service.ask("GET", path, timeout=httpx.Timeout(answer_s_max))
        return msgspec.json.decode(answer.content, type=of)
    except (ClientError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _part(name: str, found: _Ready | None) -> Part:
    return Part(name, *(("Unreachable", "bad") if found is None else _words[found.status]))


def of_nodes(states: Sequence[str]) -> Part:
    live, known = sum(state in _up for state in states), len(states)
    kind: Kind = "good" if known and live == known else "warn" if live > known // 2 else "bad"
    return Part("Storage nodes", f"{live} of {known} up", kind)
