"""A peer whose every answer a test gives by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.core.wire import OVERLOADED, Hello, Role
from services.runtime.peer import SENT, OnAnswer

Told = tuple[int, bytes]


@dataclass(eq=False)
class HandPeer:
    """Keeps what it is asked and told. While `full` it takes nothing."""

    hello: Hello
    connected: bool = True
    full: bool = False
    asked: list[tuple[int, bytes, OnAnswer]] = field(default_factory=list)
    notified: list[Told] = field(default_factory=list)
    replies: dict[int, Told] = field(default_factory=dict)

    def silent_s(self) -> float:
        return 0.0

    def request(self, kind: int, body: bytes, on_answer: OnAnswer, timeout_s: float) -> int:
        if self.full:
            return OVERLOADED
        self.asked.append((kind, body, on_answer))
        return SENT

    def notify(self, kind: int, body: bytes) -> bool:
        if not self.full:
            self.notified.append((kind, body))
        return not self.full

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        assert request_id not in self.replies, f"request {request_id} is answered twice"
        self.replies[request_id] = (kind, body)

    def answer(self, kind: int, body: bytes = b"") -> None:
        """Answer the oldest request that waits."""
        _, _, on_answer = self.asked.pop(0)
        on_answer(kind, body)


def hand_peer(role: Role, name: str, *, epoch: int = 0, store_id: str = "0" * 32) -> HandPeer:
    return HandPeer(Hello(role, name, epoch, bytes(32), bytes.fromhex(store_id)))
