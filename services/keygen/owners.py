"""Which keys may yet be given out: asked of the keygen whose they are, which alone knows.

A keygen gives its keys out from memory, so of a key in one of its open ranges nobody else can tell
whether a client has it. Others are asked by a signed request, at the address that they registered:

    POST /held {"instance_id": "7", "tenant": "12", "keys": [{"size": 7, "index": "35"}]}
    ──► 200 {"held": [false]}

An instance that was started anew under that address is another one, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import httpx
import msgspec

from services.core.errors import FixRequest
from services.keygen.messages import HeldAnswer, HeldKey, HeldKeys
from services.keygen.pools import Pools
from services.keygen.return_store import Name
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.signed_client import signed_client

path_of_held: Final = "/held"
# It waits for a reservation that is under way, at most.
asked_s: Final = 3.0
connect_s: Final = 1.0
connections_max: Final = 32
# 10,000 keys of the longest size.
held_body_bytes_max: Final = 512 * 1024

log = telemetry.logger("services.keygen")


class Owners:
    """Usable until `close`."""

    def __init__(
        self,
        pools: Pools,
        cluster_secret: str,
        clock: Clock,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._pools = pools
        self._client = signed_client(
            cluster_secret,
            clock,
            answer_s_max=asked_s,
            connect_s_max=connect_s,
            connections_max=connections_max,
            transport=transport,
        )

    async def close(self) -> None:
        await self._client.aclose()

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                path_of_held,
                "findHeldKeys",
                "Tell which keys this instance may yet give out",
                self._tell,
                access=Access.INTERNAL,
                body_type=HeldKeys,
                body_bytes_max=held_body_bytes_max,
                answer_type=HeldAnswer,
                errors=("not_found",),
                tag="Internal",
            )
        ]

    def is_own(self, instance_id: int) -> bool:
        return instance_id == self._pools.instance_id

    async def held_here(self, tenant: int, names: Sequence[Name]) -> list[bool]:
        """Which of these keys are in a pool of this instance."""
        sizes = {name.size for name in names}
        pools = {size: await self._pools.pool_after_refill(tenant, size) for size in sizes}
        found = []
        for name in names:
            pool = pools[name.size]
            found.append(pool is not None and pool.holds(name.counter))
        return found

    async def held_there(
        self, address: str, instance_id: int, tenant: int, names: Sequence[Name]
    ) -> list[bool] | None:
        """The same of another instance; None if it cannot be asked."""
        if not address:
            return None
        asked = HeldKeys(
            str(instance_id), str(tenant), [HeldKey(name.size, str(name.counter)) for name in names]
        )
        try:
            answer = await self._client.post(
                address + path_of_held,
                content=msgspec.json.encode(asked),
                headers={"Content-Type": "application/json"},
            )
            if answer.status_code != httpx.codes.OK:
                return None
            held = msgspec.json.decode(answer.content, type=HeldAnswer).held
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError) as error:
            log.warning("another keygen cannot be asked", address=address, reason=str(error))
            return None
        return held if len(held) == len(names) else None

    async def _tell(self, call: Call[None, None, HeldKeys]) -> HeldAnswer:
        asked = call.body
        if asked.instance_id != str(self._pools.instance_id):
            raise FixRequest("not_found", f"This is not the instance {asked.instance_id[:20]}")
        names = [Name(key.size, int(key.index)) for key in asked.keys]
        return HeldAnswer(await self.held_here(int(asked.tenant), names))
