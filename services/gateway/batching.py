"""Batches: POST /v1/batch.

    items ──wrong, or not allowed──► refused by themselves
      ├── eventual reads ──► the nodes, by the first live owner of each key (many_reads.py)
      └── all others     ──► one message to a replicator
              └─────────────────────► told together, in the order of the items

Items are not atomic together, and those on different keys are done in no particular order. Those on
one key are done in theirs: what changes between reading it and writing it waits for what comes
before. Strong items all go to a replicator, which sees to that itself.

The answer has at most 16 MiB. Room for a short answer is set aside for each item, and values are
told in the order of the items as long as there is room for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from services.core.errors import FixRequest, RetryLater, UnknownOutcome
from services.core.operations import BATCH, batch_bytes_max, decode_batch, encode_batch
from services.core.record import head_bytes, meta_bytes_max, visible
from services.gateway.batch_items import Asked
from services.gateway.keyspace import storage_prefix
from services.gateway.many_reads import ManyReads
from services.gateway.messages_batch import Batch, BatchAnswer, look_at_length
from services.gateway.messages_keys import BatchHeaders
from services.gateway.seams import WholeCluster
from services.gateway.unheeded import check_no_metadata
from services.runtime.clock import Clock
from services.runtime.endpoints import Access, Call, Encoded, Endpoint

# Within this a client has its answer. A replicator begins no item after 2.5 s, and none takes it
# longer than 2 s.
work_s: Final = 5.0
items_per_token: Final = 100
# About a millisecond of taking apart or of encoding, after which others have their turn: of so many
# bytes, or of a number of small items, each of which counts as so many bytes.
piece_bytes: Final = 256 << 10
item_bytes: Final = 4 << 10
# What a record has besides its value.
record_head_bytes_max: Final = head_bytes + meta_bytes_max
_opening: Final = b'{"results":['
_closing: Final = b"]}"


def cost(batch: Batch) -> int:
    """In tokens."""
    return max(1, -(-len(batch.operations) // items_per_token))


class Batches:
    def __init__(self, cluster: WholeCluster, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock
        self._reads = ManyReads(cluster.fleet, clock)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/v1/batch",
                "runBatch",
                "Put, get and delete many keys in one request",
                self._run,
                access=Access.API_KEY,
                scope="write",
                counted_as="batch",
                cost=cost,
                header_type=BatchHeaders,
                look_at_headers=check_no_metadata,
                body_type=Batch,
                look=look_at_length,
                body_bytes_max=batch_bytes_max,
                answer_type=BatchAnswer,
                errors=("overloaded", "cluster_forming"),
                description="Each operation by itself, not atomic, with its own status; those on "
                "one key in their order. To get values the API key needs the scope `read`, too. "
                f"Costs a token for every {items_per_token} operations.",
                tag="Keys",
            )
        ]

    async def _run(self, call: Call[None, None, Batch]) -> Encoded:
        headers: BatchHeaders = call.headers
        strong = headers.consistency == "strong"
        if self._cluster.fleet.map is None:
            raise self._cluster.absence
        prefix = storage_prefix(call.credential, headers.namespace)
        if strong and prefix in self._cluster.caches:
            raise FixRequest(
                "invalid_consistency",
                f"The namespace {headers.namespace!r} is a cache: there everything is eventual",
            )
        items: list[Asked] = []
        pieces = _Pieces()
        for item in call.body.operations:
            asked = Asked(item, call.credential, prefix, strong=strong)
            items.append(asked)
            await pieces.done(len(asked.request[1]))
        await self.put_through([item for item in items if item.outcome is None], strong=strong)
        return Encoded(await encoded(items))

    async def put_through(self, items: Sequence[Asked], *, strong: bool) -> None:
        """Give every item its outcome."""
        until_s = self._clock.monotonic_s() + work_s
        for together in [items] if strong else _in_turns(items):
            reads = [item for item in together if item.is_read and not strong]
            others = [item for item in together if strong or not item.is_read]
            # They are on different keys.
            async with asyncio.TaskGroup() as tasks:
                if reads:
                    tasks.create_task(self._read(reads, items, until_s))
                if others:
                    tasks.create_task(self._ask(others, until_s))

    async def _read(self, reads: Sequence[Asked], items: Sequence[Asked], until_s: float) -> None:
        held = sum(item.value_bytes for item in items)
        keys = [item.storage_key for item in reads]
        outcomes = await self._reads.read(keys, batch_bytes_max - held, until_s)
        now_ms = self._clock.wall_ms()
        for item, outcome in zip(reads, outcomes, strict=True):
            if isinstance(outcome, bytes) and outcome and not visible(outcome, now_ms):
                item.outcome = b""
            else:
                item.outcome = outcome

    async def _ask(self, items: Sequence[Asked], until_s: float) -> None:
        left_s = until_s - self._clock.monotonic_s()
        if left_s <= 0:
            late = RetryLater("overloaded", f"{work_s:g} s went by before this item could begin")
            for item in items:
                item.outcome = late
            return
        body = encode_batch([item.request for item in items])
        try:
            _, told = await self._cluster.replicators.ask(
                BATCH, body, left_s, reads=all(item.is_read for item in items)
            )
        except RetryLater as error:
            for item in items:
                item.outcome = error
        except UnknownOutcome as error:
            for item in items:
                item.lost(error.detail, error.members.get("operation_id"))
        else:
            for item, answer in zip(items, decode_batch(told), strict=True):
                item.told(*answer)


def _in_turns(items: Sequence[Asked]) -> Iterable[list[Asked]]:
    """The items, apart where one on the same key has to be done before: a read and a change in
    either order. Changes of one key keep their order by themselves."""
    turns: list[list[Asked]] = []
    last: dict[bytes, tuple[int, bool]] = {}
    for item in items:
        turn, was_read = last.get(item.storage_key, (0, item.is_read))
        if was_read != item.is_read:
            turn += 1
        last[item.storage_key] = turn, item.is_read
        if turn == len(turns):
            turns.append([])
        turns[turn].append(item)
    return turns


class _Pieces:
    """Lets others have their turn after each piece of a long piece of work."""

    def __init__(self) -> None:
        self._done_bytes = 0

    async def done(self, size_bytes: int) -> None:
        self._done_bytes += item_bytes + size_bytes
        if self._done_bytes >= piece_bytes:
            self._done_bytes = 0
            await asyncio.sleep(0)


async def encoded(items: Sequence[Asked]) -> bytes:
    """The answer, in which values are left out that do not fit."""
    encode, pieces = msgspec.json.encode, _Pieces()
    parts: list[bytes] = []
    for item in items:
        # Of those that have a value, first without it.
        parts.append(encode(item.without_value() if item.value_bytes else item.result()))
        await pieces.done(0)
    room = batch_bytes_max - len(_opening) - len(_closing) - sum(map(len, parts)) - len(parts)
    for index, item in enumerate(items):
        # Escaped or in base64 a value is never shorter than it is in the record, but for its head.
        short_bytes = len(parts[index])
        if item.value_bytes and item.value_bytes <= room + short_bytes + record_head_bytes_max:
            part = encode(item.result())
            if len(part) - short_bytes <= room:
                parts[index] = part
                room -= len(part) - short_bytes
            await pieces.done(len(part))
    return _opening + b",".join(parts) + _closing
