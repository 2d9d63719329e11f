"""Making the replicas of a frozen slot equal: compare all, bring each what it lacks, and again,
until a round shows that nothing is lacking. That a repair was acknowledged shows less.

A round goes through a slot of any size by pages. Of a page some keys are judged in a turn of the
loop, and what they lack is fetched from who has it and brought, before the next are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from services.core.collecting import Lack, Round, Settled
from services.core.errors import PeerError
from services.core.hlc import Version, version_bytes
from services.core.messages import GET_MANY, decode_records, encode_get_many, many_bytes_max
from services.core.sessions import (
    COMPARE,
    REPAIR,
    decode_compared,
    encode_compare,
    encode_repair,
    repair_head_bytes,
    repair_item_bytes,
)
from services.replicator.collection_asking import Asking
from services.replicator.collection_end import End

# To judge so many takes two milliseconds; with their records they are one message at most.
keys_in_a_turn: Final = 512
# The first brings all that is lacking, unless a client writes to it meanwhile; the second shows
# that nothing is. Whoever needs more meets something that should not be there.
rounds_max: Final = 6


class Rounds:
    """`equal` hears the round that was clean, once."""

    def __init__(
        self,
        asking: Asking,
        session: Version,
        settled: Mapping[bytes, Settled],
        equal: Callable[[Round], None],
    ) -> None:
        # Records brought, each counted for each replica that took it, with all that they came in.
        self.repaired = 0
        self.repaired_bytes = 0
        self._asking = asking
        self._session = session
        self._settled = settled
        self._equal = equal
        self._rounds = 0
        self._round = Round(len(asking.nodes), session, settled)
        # Answers that this step waits for.
        self._awaited = 0
        # What is to be fetched next, by the bit of who has it.
        self._fetches: deque[tuple[int, list[Lack]]] = deque()

    def begin(self) -> None:
        asking = self._asking
        if self._rounds == rounds_max:
            asking.fail(End.UNEQUAL, f"replicas still differ after {rounds_max} rounds")
            return
        self._rounds += 1
        self._round = Round(len(asking.nodes), self._session, self._settled)
        self._go_on()

    # -- comparing

    def _go_on(self) -> None:
        if wanted := self._round.wanted():
            self._awaited = len(wanted)
            asking = self._asking
            for place, after in wanted:
                body = encode_compare(asking.epoch, asking.slot, self._session, after)
                asking.ask(place, COMPARE, body, partial(self._compared, place))
        else:
            self._judge()

    def _compared(self, place: int, body: bytes) -> None:
        self._round.page(place, decode_compared(body))
        self._awaited -= 1
        if not self._awaited:
            self._judge()

    def _judge(self) -> None:
        round_ = self._round
        lacks = round_.advance(keys_in_a_turn)
        if lacks:
            by_holder: dict[int, list[Lack]] = {}
            for lack in lacks:
                by_holder.setdefault(lack.holder, []).append(lack)
            self._fetches.extend(by_holder.items())
            self._fetch_more()
        elif not round_.ended:
            self._asking.later(0.0, self._go_on)
        elif round_.clean:
            self._equal(round_)
        else:
            self.begin()

    # -- repairing

    def _fetch_more(self) -> None:
        if not self._fetches:
            self._asking.later(0.0, self._go_on)
            return
        holder, lacks = self._fetches.popleft()
        if not holder:
            self._bring([(lack, self._settled[lack.key].record) for lack in lacks])
            return
        body = encode_get_many([lack.key for lack in lacks])
        place = holder.bit_length() - 1
        self._asking.ask(place, GET_MANY, body, partial(self._fetched, holder, lacks))

    def _fetched(self, holder: int, lacks: list[Lack], body: bytes) -> None:
        records = decode_records(body)
        if len(records) != len(lacks) or records[0] is None:
            raise PeerError(f"{len(records)} records for {len(lacks)} keys, or none that fits")
        found: list[tuple[Lack, bytes]] = []
        left_out: list[Lack] = []
        for lack, record in zip(lacks, records, strict=True):
            if record is None:
                left_out.append(lack)
            elif record[:version_bytes] == lack.version:
                found.append((lack, record))
            # Otherwise something later came meanwhile. The next round shows what is lacking then.
        if left_out:
            self._fetches.appendleft((holder, left_out))
        self._bring(found)

    def _bring(self, found: Sequence[tuple[Lack, bytes]]) -> None:
        asking = self._asking
        messages = [
            (place, items)
            for place in range(len(asking.nodes))
            for items in _messages(
                [(lack.key, r) for lack, r in found if lack.lacking >> place & 1]
            )
        ]
        self._awaited = len(messages)
        for place, items in messages:
            body = encode_repair(asking.epoch, asking.slot, self._session, items)
            asking.ask(place, REPAIR, body, partial(self._brought, len(items), len(body)))
        if not messages:
            self._fetch_more()

    def _brought(self, count: int, size_bytes: int, body: bytes) -> None:
        self.repaired += count
        self.repaired_bytes += size_bytes
        self._awaited -= 1
        if not self._awaited:
            self._fetch_more()


def _messages(items: Sequence[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """In pieces of what a message may have of bytes; of items it may have more than come here."""
    piece: list[tuple[bytes, bytes]] = []
    left = many_bytes_max - repair_head_bytes
    for key, record in items:
        size = repair_item_bytes + len(key) + len(record)
        if size > left and piece:
            yield piece
            piece, left = [], many_bytes_max - repair_head_bytes
        piece.append((key, record))
        left -= size
    if piece:
        yield piece
