"""What each service can be asked, for its chapter: the user manager's own document, and those that
the gateway and keygen tell at /openapi.json.

They are asked for while somebody reads, once in a minute at most. Of one that is away the chapter
is what it told last; one that has told nothing yet has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx

from services.core.errors import ClientError, PeerError
from services.runtime import telemetry
from services.runtime.api_reference import Reference, reference_of, told_reference
from services.runtime.clock import Clock
from services.runtime.openapi import path_of_document
from services.usermanager.pages.gateway_calls import PlatformCalls, Service

kept_s: Final = 60.0
# Who is away is asked again sooner.
away_s: Final = 5.0
answer_s_max: Final = 2.0
# Ours are a tenth of it.
document_bytes_max: Final = 4 << 20

log = telemetry.logger("services.usermanager")


@dataclass(slots=True)
class _Kept:
    service: Service
    content: bytes = b""
    reference: Reference | None = None
    asked_again_s: float = float("-inf")


class References:
    def __init__(self, own: Mapping[str, Any], calls: PlatformCalls, clock: Clock) -> None:
        self._own = reference_of(own)
        self._clock = clock
        self._one_asks = asyncio.Lock()
        self._others = {"gateway": _Kept(calls.gateway), "keygen": _Kept(calls.keygen)}

    async def of(self, name: str) -> Reference | None:
        """Of `usermanager`, `gateway` or `keygen`; None while there is nothing to tell."""
        if name == "usermanager":
            return self._own
        kept = self._others[name]
        async with self._one_asks:
            if self._clock.monotonic_s() > kept.asked_again_s:
                is_there = await self._ask(kept)
                wait_s = kept_s if is_there else away_s
                kept.asked_again_s = self._clock.monotonic_s() + wait_s
            return kept.reference

    async def _ask(self, kept: _Kept) -> bool:
        """Whether it has told its document."""
        patience = httpx.Timeout(answer_s_max)
        try:
            answer = await kept.service.ask("GET", path_of_document, timeout=patience)
        except ClientError:
            # Who asked for it has logged why.
            return False
        content = answer.content
        if not answer.is_success or len(content) > document_bytes_max:
            log.warning("no document is told", asked=kept.service.name, status=answer.status_code)
            return False
        if content == kept.content:
            return True
        try:
            kept.reference = told_reference(content)
        except PeerError as error:
            # A service of another make has taken the address.
            log.warning("a document cannot be read", asked=kept.service.name, reason=str(error))
            return False
        kept.content = content
        return True
