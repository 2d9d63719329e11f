"""Keys that are returned, to be given out again: POST /api/ReturnKeys.

A key is taken back if its tenant has it: it decodes to an index of a range that is the tenant's,
was given out, and has not been returned since. Where the range, or the claim by which it was to go
out again, is still some keygen's, that one is asked, for a key must never be in a pool and on the
list at once. If it does not answer, the key is rejected for now.

What is taken back goes out again once its range is closed, and not before it has rested for so long
that nobody repeats its return any more: a repeated one would be taken for that of whoever has it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from services.core.errors import RetryLater
from services.core.id_requests import size_min as size_given_min
from services.core.permute import Permutation, size_max
from services.keygen.messages import Rejected, Returned, ReturnKeys
from services.keygen.owners import Owners
from services.keygen.pools import Pools
from services.keygen.return_store import Name, RangesMergedError, ReturnStore, Standing
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.metrics import Metrics

# The most keys with quotes, commas and room for what writers of JSON put between them.
return_body_bytes_max: Final = 1024 * 1024
# Decoded before others have their turn: each takes 9 us.
decoded_at_once: Final = 200

# Ranges that are merged meanwhile are looked for again; that happens to each once in its life.
looks_max: Final = 3

unknown: Final = "it was not given to this account"
made_by_operator: Final = (
    f"keys of fewer than {size_given_min} characters are made by operators, and none is given again"
)
twice: Final = "it has been returned already"
in_use: Final = (
    "the keygen that it came from cannot be asked now whether it was given out; try again later"
)


class Returns:
    def __init__(self, store: ReturnStore, owners: Owners, pools: Pools) -> None:
        self._store = store
        self._owners = owners
        self._pools = pools
        self.returned = 0
        self.rejected = 0

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("keys_returned", "counter", "Keys taken back", lambda: self.returned)
        metrics.add("keys_rejected", "counter", "Keys not taken back", lambda: self.rejected)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/api/ReturnKeys",
                "returnKeys",
                "Return keys that are not needed any more",
                self._return,
                access=Access.API_KEY,
                scope="write",
                counted_as="return_ids",
                body_type=ReturnKeys,
                body_bytes_max=return_body_bytes_max,
                answer_type=Returned,
                errors=("database_unavailable", "overloaded", "shutting_down", "unknown_outcome"),
                description="Each key is looked at by itself. What is rejected is told, with why. "
                "A key that is taken back is given out again, to the same account, once its range "
                "is closed, and not before it has rested for RETURN_REST (ten minutes unless it is "
                "set otherwise). Where no answer came, or 504, a return may be repeated for as "
                "long as that, and not later: the key may be somebody's again.",
                tag="Keys",
            )
        ]

    async def _return(self, call: Call[None, None, ReturnKeys]) -> Returned:
        return await self.take_back(call.credential.tenant, call.body.keys)

    async def take_back(self, tenant: int, keys: Sequence[str]) -> Returned:
        if not self._pools.permutations:
            raise RetryLater("database_unavailable", "PostgreSQL has not been reached yet")
        names, rejected = await self._decoded(keys)
        for _ in range(looks_max):
            try:
                taken, reasons = await self._take_back(tenant, names)
                break
            except RangesMergedError:
                continue
        else:
            raise RetryLater("overloaded", "The ranges of these keys are being put in order")
        rejected += [Rejected(names[name], reason) for name, reason in reasons.items()]
        self.returned += taken
        self.rejected += len(rejected)
        return Returned(taken, rejected)

    async def _take_back(
        self, tenant: int, names: Mapping[Name, str]
    ) -> tuple[int, dict[Name, str]]:
        """How many were taken back, and why the others were not."""
        standings = await self._store.look(tenant, list(names)) if names else []
        reasons = await self._reasons(tenant, standings)
        found = {standing.name for standing in standings}
        reasons.update((name, unknown) for name in names if name not in found)
        good = [standing for standing in standings if standing.name not in reasons]
        taken: set[Name] = set()
        if good:
            taken, free = await self._store.take_back(tenant, good)
            self._pools.give_returned_first((tenant, size) for size in free)
        # Somebody else has returned it just now.
        reasons.update((one.name, twice) for one in good if one.name not in taken)
        return len(taken), reasons

    async def _decoded(self, keys: Iterable[str]) -> tuple[dict[Name, str], list[Rejected]]:
        """The keys by what they decode to, and those that are none or stand there twice."""
        permutations = self._pools.permutations
        names: dict[Name, str] = {}
        rejected: list[Rejected] = []
        for number, key in enumerate(keys):
            if number % decoded_at_once == decoded_at_once - 1:
                await asyncio.sleep(0)
            name = _name_of(key, permutations.get(len(key)))
            if isinstance(name, str):
                rejected.append(Rejected(key, name))
            elif name in names:
                rejected.append(Rejected(key, twice))
            else:
                names[name] = key
        return names, rejected

    async def _reasons(self, tenant: int, standings: Sequence[Standing]) -> dict[Name, str]:
        """Why some of them are not taken back."""
        reasons: dict[Name, str] = {}
        of_holder: defaultdict[int, list[Name]] = defaultdict(list)
        for standing in standings:
            if standing.holder is not None:
                of_holder[standing.holder].append(standing.name)
            elif standing.is_returned:
                reasons[standing.name] = twice
        # Claimed and still held means: returned before, and not given out since.
        returned = {standing.name for standing in standings if standing.is_returned}
        addresses = await self._addresses(of_holder)
        # One question to each keygen that has any of them, all at once: some may not answer.
        answers = await asyncio.gather(
            *(
                self._held(holder, addresses.get(holder, ""), tenant, names)
                for holder, names in of_holder.items()
            )
        )
        for names, held in zip(of_holder.values(), answers, strict=True):
            if held is None:
                reasons.update((name, in_use) for name in names)
                continue
            for name, is_held in zip(names, held, strict=True):
                if is_held:
                    reasons[name] = twice if name in returned else unknown
        return reasons

    async def _held(
        self, holder: int, address: str, tenant: int, names: Sequence[Name]
    ) -> list[bool] | None:
        if self._owners.is_own(holder):
            return await self._owners.held_here(tenant, names)
        return await self._owners.held_there(address, holder, tenant, names)

    async def _addresses(self, of_holder: Iterable[int]) -> dict[int, str]:
        others = [holder for holder in of_holder if not self._owners.is_own(holder)]
        return await self._store.addresses(others) if others else {}


def _name_of(key: str, permutation: Permutation | None) -> Name | str:
    """What a key decodes to, or why it is none."""
    if permutation is None:
        return f"keys have {size_given_min} to {size_max} characters"
    if permutation.size < size_given_min:
        # No request gives out any of this size, so it would wait for nobody.
        return made_by_operator
    try:
        return Name(permutation.size, permutation.index(key.encode("ascii")))
    except UnicodeEncodeError:
        return "keys are made of 0-9, A-Z and a-z"
    except ValueError as error:
        return str(error)
