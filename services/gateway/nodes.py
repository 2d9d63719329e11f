"""Asking many nodes at once, and what to tell a client when some of them gave no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from services.core.errors import RetryLater
from services.core.wire import DOWN, FAILED, LOST, OVERLOADED, TIMEOUT, UNKNOWN_KIND
from services.runtime import telemetry
from services.runtime.fleet import Fleet, FleetNode
from services.runtime.peer import SENT

Answer = tuple[int, bytes]
# Of what a node says is wrong, for the log.
told_bytes_max: Final = 200

_why: Final = {
    DOWN: "cannot be reached",
    LOST: "broke the connection",
    TIMEOUT: "did not answer in time",
    FAILED: "failed; its log has the reason",
    OVERLOADED: "has too much to do",
    UNKNOWN_KIND: "is of an older version",
}

log = telemetry.logger("services.gateway")


class Question(NamedTuple):
    node: FleetNode
    kind: int
    body: bytes


async def ask_all(questions: Sequence[Question], timeout_s: float) -> list[Answer]:
    """What each of them is answered, in their order; its kind tells why, where there is none."""
    answers: list[Answer] = [(DOWN, b"")] * len(questions)
    all_told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = len(questions)

    def told(index: int, kind: int, body: bytes) -> None:
        nonlocal waiting
        answers[index] = (kind, body)
        waiting -= 1
        # Who asked may have gone meanwhile.
        if not waiting and not all_told.done():
            all_told.set_result(None)

    for index, (node, kind, body) in enumerate(questions):
        sent = node.link.request(kind, body, partial(told, index), timeout_s)
        if sent != SENT:
            told(index, sent, b"")
    if questions:
        await all_told
    return answers


class Failures:
    """Nodes that gave no good answer to one request, with the reasons."""

    def __init__(self, fleet: Fleet) -> None:
        self.by_node: dict[str, int] = {}
        self._fleet = fleet

    def note(self, node: FleetNode, kind: int, why: str = "") -> None:
        """`why` says what is wrong with an answer that came: others may make up for it, but it is
        a bug at one of both ends, and somebody has to hear of it."""
        self.by_node[node.node_id] = kind
        if kind not in _why:
            self._fleet.senseless += 1
            log.error(
                "the answer of a node makes no sense", node=node.node_id, kind=kind, reason=why
            )

    def __str__(self) -> str:
        return "; ".join(
            f"{node_id} {_why.get(kind, 'gave an answer that makes no sense')}"
            for node_id, kind in sorted(self.by_node.items())
        )

    def refusal(self, why: str) -> RetryLater:
        """What to raise where nobody is left to ask. Whoever has too much to do may have less
        soon; that says more than that others are away."""
        code = "overloaded" if OVERLOADED in self.by_node.values() else "no_quorum"
        return RetryLater(code, f"{why}; {self}" if self.by_node else why)
