"""Credentials and meters as a gateway has them, at a real user manager.

async with key_checks(usermanager) as checks:
    credential = await checks.find(key)
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from services.core.api_key import lookup_subkey
from services.core.errors import FatalError, FixRequest, RetryLater
from services.runtime.allowance import Allowances
from services.runtime.clock import SystemClock
from services.runtime.credential import Credential
from services.runtime.credentials import Credentials
from services.runtime.loops import Loops
from services.runtime.metering import Meters
from services.runtime.user_manager import UserManager
from tests.integration.node_process import secret
from tests.integration.usermanager_process import UserManagerProcess, key_pepper
from tests.waiting import wait_until

here = "192.0.2.1"


class KeyChecks:
    def __init__(self, url: str, cluster_secret: str = secret) -> None:
        clock = SystemClock()
        self.user_manager = UserManager(url, cluster_secret, clock)
        self.allowances = Allowances()
        self.credentials = Credentials(
            self.user_manager, lookup_subkey(key_pepper), self.allowances, clock
        )
        self.meters = Meters(self.user_manager, clock, f"gateway-{time.time_ns()}")

    @property
    def in_touch(self) -> bool:
        return self.credentials.news.trouble is None

    async def find(self, key: str, address: str = here) -> Credential:
        return await self.credentials.find(key.encode(), address)

    def cached(self, key: str) -> Credential | None:
        return self.credentials.cached(key.encode(), time.monotonic())

    async def refusal(self, key: str, address: str = here) -> str | None:
        """The code that the key is refused with; None if it is not."""
        try:
            await self.find(key, address)
        except (FixRequest, RetryLater) as error:
            return error.code
        return None

    async def until_in_touch(self) -> None:
        await wait_until(lambda: self.in_touch, "the user manager tells of keys")

    async def until_away(self) -> None:
        await wait_until(lambda: not self.in_touch, "the user manager is found to be away")


@asynccontextmanager
async def key_checks(
    usermanager: UserManagerProcess, url: str | None = None
) -> AsyncIterator[KeyChecks]:
    """In touch with the user manager when the block begins; the meters are closed by the block."""
    failures: list[FatalError] = []
    checks = KeyChecks(url or usermanager.url)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(checks.user_manager)
        await stack.enter_async_context(checks.credentials)
        loops = await stack.enter_async_context(Loops(failures.append, SystemClock()))
        loops.start("credentials", checks.credentials.run)
        await checks.until_in_touch()
        yield checks
        assert not loops.restarts, "a loop has failed"
    assert not failures
