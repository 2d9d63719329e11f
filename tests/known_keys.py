"""API keys that are known beforehand: `Credentials` without a user manager."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from services.core.errors import FixRequest, RetryLater
from services.core.key_checks import Scope, scopes_all
from services.core.plans import Limits
from services.runtime.allowance import Allowances
from services.runtime.clock import Clock
from services.runtime.credential import Credential

plenty: Final = Limits(60_000_000, 1_000_000)


class KnownKeys:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._allowances = Allowances()
        self._known: dict[bytes, Credential] = {}
        # Whether keys that are not known cannot be asked about.
        self.away = False

    def add(
        self,
        tenant: int,
        scopes: Collection[Scope] = scopes_all,
        *,
        prefix: bytes = b"",
        limits: Limits = plenty,
    ) -> str:
        """The key."""
        key_id = len(self._known) + 1
        key = f"ydht_{key_id}"
        allowance = self._allowances.of_key(tenant, limits, key_id, limits, self._now_ns())
        credential = Credential(key.encode(), tenant, key_id, allowance)
        credential.allow(scopes)
        credential.key_prefix = prefix
        credential.usable_until_s = math.inf
        self._known[key.encode()] = credential
        return key

    def cached(self, key: bytes, now_s: float) -> Credential | None:
        return self._known.get(key)

    async def find(self, key: bytes, address: str) -> Credential:
        if self.away:
            raise RetryLater("auth_unavailable", "The user manager is away")
        raise FixRequest("invalid_api_key", "The API key is unknown")

    def of_console(self, tenant: int, scopes: Collection[Scope] = scopes_all) -> Credential:
        allowance = self._allowances.of_console(tenant, self._now_ns())
        credential = Credential(b"", tenant, 0, allowance)
        credential.allow(scopes)
        credential.tally = None
        credential.usable_until_s = math.inf
        return credential

    def _now_ns(self) -> int:
        return int(self._clock.monotonic_s() * 1_000_000_000)


class Counted:
    """A meter that keeps what it was told: operation, status, bytes in and out."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int, int, int]] = []

    def count(
        self,
        credential: Credential,
        operation: str,
        status: int,
        bytes_in: int,
        bytes_out: int,
        latency_us: int,
    ) -> None:
        assert latency_us >= 0
        if credential.tally is not None:
            self.requests.append((operation, status, bytes_in, bytes_out))
