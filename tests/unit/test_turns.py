"""Long requests take turns: however many there are, whatever goes wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from services.core.errors import PeerError
from services.core.wire import FAILED, OK, OVERLOADED, Hello, Role
from services.dhtnode.turns import Turns, turn_s, waiting_max
from services.runtime.clock import FakeClock, Timeline
from services.runtime.link_limits import LinkCounters
from services.runtime.peer import Peer

MALFORMED = 150
step_s = 0.000_4
steps_a_turn = 3


class WorkClock(FakeClock):
    """Time passes by steps of work alone."""

    worked_s = 0.0

    def monotonic_s(self) -> float:
        return self.worked_s


class Asker:
    hello = Hello(Role.REPLICATOR, "replicator-1", 0, bytes(32))

    def __init__(self) -> None:
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.connected = True

    def silent_s(self) -> float:
        return 0.0

    def request(self, *_: object) -> int:
        raise AssertionError("a node asks nobody")

    def notify(self, kind: int, body: bytes) -> bool:
        raise AssertionError("a node tells nobody")

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        assert request_id not in self.answers, f"request {request_id} is answered twice"
        self.answers[request_id] = (kind, body)


class Desk:
    """Turns, and works that note each step they make."""

    def __init__(self) -> None:
        self.clock = WorkClock(Timeline())
        self.due: list[Callable[[], None]] = []
        self.counters = LinkCounters()
        self.turns = Turns(self.clock, self.due.append, self._malformed, self.counters)
        self.made: list[int] = []
        self.asker = Asker()

    def ask(self, request_id: int, steps: int, error: Exception | None = None) -> None:
        self.turns.add(self.asker, request_id, self.work(request_id, steps, error))

    def work(self, number: int, steps: int, error: Exception | None = None) -> Iterator[None]:
        for _ in range(steps):
            self.made.append(number)
            self.clock.worked_s += step_s
            yield
        if error is not None:
            raise error
        self.asker.reply(number, OK, b"%d" % number)

    def turn(self) -> list[int]:
        """Let the loop turn once; the steps that were made."""
        (callback,), self.due[:] = self.due, []
        before = len(self.made)
        callback()
        return self.made[before:]

    def finish(self) -> None:
        while self.due:
            self.turn()

    def _malformed(self, peer: Peer, request_id: int, error: PeerError) -> None:
        peer.reply(request_id, MALFORMED, str(error).encode())


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_turn_is_as_short_with_many_waiting_as_with_one(desk: Desk) -> None:
    for number in range(1, 21):
        desk.ask(number, 10)
    assert desk.made == [], "nothing is done while the request is read"
    assert len(desk.due) == 1
    turns = 0
    while desk.due:
        began_s = desk.clock.worked_s
        assert len(desk.turn()) <= steps_a_turn
        assert desk.clock.worked_s - began_s < turn_s + step_s
        turns += 1
    assert turns >= 20 * 10 // steps_a_turn
    assert desk.asker.answers == {number: (OK, b"%d" % number) for number in range(1, 21)}


def test_short_works_share_a_turn(desk: Desk) -> None:
    for number in range(1, 4):
        desk.ask(number, 1)
    assert desk.turn() == [1, 2, 3]
    desk.finish()
    assert desk.asker.answers.keys() == {1, 2, 3}


def test_a_short_work_does_not_wait_for_all_of_a_long_one(desk: Desk) -> None:
    desk.ask(1, 1_000)
    desk.ask(2, 1)
    desk.turn()
    desk.turn()
    assert desk.asker.answers.keys() == {2}


@pytest.mark.parametrize("steps", [0, 1, 10])
def test_an_error_is_answered_wherever_it_comes_and_the_others_go_on(
    desk: Desk, steps: int
) -> None:
    desk.ask(1, steps, PeerError("no such slot"))
    desk.ask(2, steps, ZeroDivisionError("a bug"))
    desk.ask(3, 10)
    desk.finish()
    assert desk.asker.answers == {1: (MALFORMED, b"no such slot"), 2: (FAILED, b""), 3: (OK, b"3")}
    assert desk.counters.bugs == 1


def test_an_answer_that_cannot_be_given_does_not_stop_the_others(desk: Desk) -> None:
    class Broken(Asker):
        def reply(self, request_id: int, kind: int, body: bytes) -> None:
            raise RuntimeError("a bug of the link")

    desk.turns.add(Broken(), 1, desk.work(1, 1, ZeroDivisionError()))
    desk.ask(2, 1)
    with pytest.raises(RuntimeError, match="a bug of the link"):
        desk.turn()
    desk.finish()
    assert desk.asker.answers == {2: (OK, b"2")}


def test_past_so_many_waiting_the_next_are_overloaded_until_some_are_done(desk: Desk) -> None:
    for number in range(1, waiting_max + 2):
        desk.ask(number, 1)
    assert desk.asker.answers == {waiting_max + 1: (OVERLOADED, b"")}
    assert desk.counters.overloaded == 1
    desk.turn()
    desk.ask(waiting_max + 2, 1)
    assert waiting_max + 2 not in desk.asker.answers
    desk.finish()
    assert desk.asker.answers[waiting_max + 2][0] == OK


def test_a_peer_that_has_gone_costs_no_work(desk: Desk) -> None:
    gone = Asker()
    for number in range(1, 100):
        desk.turns.add(gone, number, desk.work(number, 50))
    desk.ask(100, 1)
    desk.turn()
    begun = len(desk.made)
    gone.connected = False
    desk.turn()
    assert desk.made[begun:] == [100]
    desk.finish()
    assert set(gone.answers.values()) == {(OVERLOADED, b"")}
    assert len(gone.answers) == 99


def test_a_change_that_has_begun_goes_on_without_its_peer_and_one_that_has_not_does_not(
    desk: Desk,
) -> None:
    for number in (1, 2):
        desk.turns.add(desk.asker, number, desk.work(number, 10), changes=True)
    desk.turn()
    desk.asker.connected = False
    desk.finish()
    assert desk.made == [1] * 10
    assert desk.asker.answers == {1: (OK, b"1"), 2: (OVERLOADED, b"")}
