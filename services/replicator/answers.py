"""How a coordinator tells what became of a request."""

from __future__ import annotations

from collections.abc import Callable

from services.core.ballots import NACK
from services.core.errors import RetryLater
from services.core.messages import (
    AHEAD,
    BELOW_FLOOR,
    MALFORMED,
    NEWER,
    NOT_READY,
    STORAGE_FULL,
    WRONG_EPOCH,
)
from services.core.operations import REFUSED, refused_answer
from services.core.paxos import Answer
from services.core.sessions import NO_SESSION
from services.core.wire import DOWN, FAILED, LOST, OVERLOADED, TIMEOUT, UNKNOWN_KIND
from services.runtime import telemetry

Done = Callable[[int, bytes], None]
"""Called once with the kind and the body of the answer to a request."""

# What a replica's refusal is to a client when no other replica made up for it: the later in this
# table, the more it says.
_causes = {
    DOWN: ("no_quorum", "cannot be reached"),
    LOST: ("no_quorum", "broke the connection"),
    TIMEOUT: ("no_quorum", "did not answer in time"),
    FAILED: ("no_quorum", "failed; its log has the reason"),
    UNKNOWN_KIND: ("no_quorum", "is of an older version"),
    MALFORMED: ("no_quorum", "did not understand"),
    BELOW_FLOOR: ("overloaded", "has collected what is newer"),
    NO_SESSION: ("overloaded", "no longer has this collection's session"),
    NACK: ("overloaded", "has promised a later ballot"),
    WRONG_EPOCH: ("overloaded", "is in another epoch of the cluster"),
    NOT_READY: ("overloaded", "is not ready for this slot yet"),
    OVERLOADED: ("overloaded", "has too much to do"),
    NEWER: ("clock_skew", "holds what was stamped far ahead of this replicator's clock"),
    AHEAD: ("clock_skew", "has a clock far behind that of this replicator"),
    STORAGE_FULL: ("storage_full", "has no room left"),
}
_weight = {kind: place for place, kind in enumerate(_causes)}
# After these the request may have been done all the same.
undecided = frozenset((LOST, TIMEOUT, FAILED))

log = telemetry.logger("services.replicator")


def refusal(code: str, text: str) -> Answer:
    return REFUSED, refused_answer(code, text)


def refusal_of(error: RetryLater) -> Answer:
    return refusal(error.code, error.detail)


def senseless(node_id: str, kind: int, why: str) -> None:
    """Log what is a bug at one of both ends, whatever other replicas make up for."""
    log.error(
        "a node and this replicator do not understand each other",
        node=node_id,
        kind=kind,
        reason=why,
    )


class Failures:
    """Why replicas did not do what one request asked for; by their names, for its answer."""

    __slots__ = ("by_node",)

    def __init__(self) -> None:
        self.by_node: dict[str, int] = {}

    def note(self, node_id: str, kind: int) -> None:
        self.by_node[node_id] = kind
        if kind == MALFORMED or kind not in _causes:
            senseless(node_id, kind, "it did not understand, or is not understood")

    @property
    def undecided(self) -> bool:
        return any(kind in undecided for kind in self.by_node.values())

    def __str__(self) -> str:
        return "; ".join(
            f"{node_id} {_causes.get(kind, ('', 'gave an unknown answer'))[1]}"
            for node_id, kind in sorted(self.by_node.items())
        )

    def refusal(self) -> Answer:
        """The answer when too few replicas are left."""
        weightiest = max(
            self.by_node.values(), key=lambda kind: _weight.get(kind, -1), default=DOWN
        )
        code, _ = _causes.get(weightiest, ("no_quorum", ""))
        return refusal(code, str(self) or "no replica of this key is known")
