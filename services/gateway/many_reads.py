"""Eventual reads of many keys at once: each from the first replica of its slot that answers.

keys ──by first live owner──► one message to each node ──► records
  ▲                                  │
  └── a node failed: its keys to ────┴── did not fit: asked for again, until there is no
      their next owners                  room left for more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.core.errors import ClientError, FixRequest, PeerError
from services.core.messages import GET_MANY, decode_records, encode_get_many
from services.core.ring import slot_of
from services.core.wire import OK
from services.gateway.nodes import Answer, Failures, Question, ask_all, told_bytes_max
from services.runtime.clock import Clock
from services.runtime.fleet import Fleet, FleetNode

# A message is answered in some milliseconds. Whoever needs longer may be gone, and others have the
# same keys.
asked_s: Final = 0.5

# A record, nothing if there is none, or why it was not read.
Outcome = bytes | ClientError


class ManyReads:
    """Usable once the fleet has a map."""

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock

    async def read(self, keys: Sequence[bytes], room_bytes: int, until_s: float) -> list[Outcome]:
        """What there is of each storage key, in their order. What does not fit the room, with what
        comes before it in general, is refused."""
        outcomes: list[Outcome | None] = [None] * len(keys)
        failures = Failures(self._fleet)
        pending = list(range(len(keys)))
        while pending:
            left_s = until_s - self._clock.monotonic_s()
            by_node = self._by_node(keys, pending, failures, outcomes)
            if left_s <= 0 or room_bytes <= 0:
                for indices in by_node.values():
                    for index in indices:
                        outcomes[index] = (
                            too_large() if room_bytes <= 0 else failures.refusal("No time was left")
                        )
                break
            questions = [
                Question(node, GET_MANY, encode_get_many([keys[index] for index in indices]))
                for node, indices in by_node.items()
            ]
            answers = await ask_all(questions, min(asked_s, left_s))
            for (node, indices), answer in zip(by_node.items(), answers, strict=True):
                room_bytes -= _take(node, indices, answer, outcomes, failures)
            pending = [index for index in pending if outcomes[index] is None]
        return [b"" if outcome is None else outcome for outcome in outcomes]

    def _by_node(
        self,
        keys: Sequence[bytes],
        pending: Sequence[int],
        failures: Failures,
        outcomes: list[Outcome | None],
    ) -> dict[FleetNode, list[int]]:
        """Whom to ask for which of them. Those that nobody is left for have their outcome."""
        by_node: dict[FleetNode, list[int]] = {}
        for index in pending:
            for node in self._fleet.route(slot_of(keys[index])).readers:
                if node.live and node.node_id not in failures.by_node:
                    by_node.setdefault(node, []).append(index)
                    break
            else:
                outcomes[index] = failures.refusal("No replica of this key can be asked")
        return by_node


def too_large() -> ClientError:
    return FixRequest(
        "response_too_large", "The answer of the batch has no room left for this value; ask again"
    )


def _take(
    node: FleetNode,
    indices: list[int],
    answer: Answer,
    outcomes: list[Outcome | None],
    failures: Failures,
) -> int:
    """How many bytes of records it has told."""
    kind, body = answer
    records: Sequence[bytes | None] = []
    why = f"records that do not fit {len(indices)} keys"
    try:
        if kind == OK:
            records = decode_records(body)
        else:
            why = body[:told_bytes_max].decode(errors="replace")
    except PeerError as error:
        why = str(error)
    # A node that tells of no record at all would be asked for ever.
    if len(records) != len(indices) or all(record is None for record in records):
        failures.note(node, kind, why)
        return 0
    told = 0
    for index, record in zip(indices, records, strict=True):
        if record is not None:
            outcomes[index] = record
            told += len(record)
    return told
