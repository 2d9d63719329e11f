"""What one API key may do, as those see it who answer its requests.

Whoever keeps a Credential compares `now_s < credential.usable_until_s` before each use, and asks
`cached` again when that is over. Its other members may change at any time, to what the key may
do from then on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from typing import Final

from services.core.key_checks import Scope, ValidKey
from services.core.plans import Limits, free, plan_named
from services.core.usage_report import no_key_id
from services.runtime.allowance import Allowance
from services.runtime.metering import Tally

never_s: Final = -math.inf


class Credential:
    """What one API key, or the console for a tenant, may do now."""

    __slots__ = (
        "allowance",
        "caches_max",
        "due",
        "expires_s",
        "ids_per_day",
        "key",
        "key_id",
        "key_prefix",
        "may_admin",
        "may_read",
        "may_write",
        "stale_until_s",
        "tally",
        "tenant",
        "usable_until_s",
    )

    def __init__(self, key: bytes, tenant: int, key_id: int, allowance: Allowance) -> None:
        self.key = key
        self.tenant = tenant
        self.key_id = key_id
        self.allowance = allowance
        self.may_read = self.may_write = self.may_admin = False
        # What its keys begin with; empty if it is held to none.
        self.key_prefix = b""
        # Namespaces that the plan of its tenant lets be caches. Of the console it is not told.
        self.caches_max = free.caches_max
        # IDs that it may be given on a day; None: as many as it asks for. Likewise.
        self.ids_per_day = free.ids_per_day
        # None: its requests are not counted.
        self.tally: Tally | None = {}
        # Monotonic times. No use of it needs to ask anybody before the first.
        self.usable_until_s = self.stale_until_s = self.expires_s = never_s
        # Whether it is to be looked up before its next use.
        self.due = False

    @property
    def whose(self) -> Hashable:
        """What shares are had by: the console takes nothing from a tenant's own programs."""
        return self.tenant, self.key_id == no_key_id

    def allow(self, scopes: Collection[Scope]) -> None:
        self.may_read = "read" in scopes
        self.may_write = "write" in scopes
        self.may_admin = "admin" in scopes

    def end(self) -> None:
        """It may not be used any more, whatever happens."""
        self.due = True
        self.usable_until_s = self.stale_until_s = never_s


def limits_of(answer: ValidKey, of_free: Limits) -> tuple[Limits, Limits]:
    """Of the tenant, and of the key if it is held to less."""
    plan = plan_named(answer.plan)
    of_tenant = of_free if plan is free else plan.limits()
    return of_tenant, of_tenant.held_to(answer.held_to)
