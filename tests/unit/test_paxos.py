"""The rules of acceptors and proposals: each by example, and all together by random schedules."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.core import paxos
from services.core.change import Changed, read
from services.core.hlc import Version, pack_version, version_bytes, version_zero
from services.core.paxos import (
    Promise,
    Proposal,
    Reading,
    Seen,
    Step,
    no_operation,
    nothing_promised,
)
from services.core.placement import Placement
from services.core.record import is_tombstone, tombstone_body, value, value_body
from services.core.wire import OK

three = Placement.of(("a", "b", "c"), ("a", "b", "c"))
# Two owners stay and one is replaced: bits 1, 2 and 4 are the old ones, 2, 4 and 8 the new.
joint = Placement.of(("a", "b", "c"), ("b", "c", "d"))


def at(number: int, stamper: int = 1) -> Version:
    return pack_version(number << 16, stamper)


def record(number: int, content: bytes = b"x", expires_at_ms: int = 0) -> bytes:
    return at(number) + value_body(content, expires_at_ms)


def seen(
    ballot: Version = version_zero,
    accepted: bytes = b"",
    cell: bytes = b"",
    operation: Version = no_operation,
    floor: Version = version_zero,
) -> Seen:
    return Seen(ballot, operation, floor, accepted, cell)


# Acceptors.

ballots = st.integers(0, 6).map(lambda number: at(number) if number else version_zero)
promises = st.builds(
    lambda promised, ballot: Promise(max(promised, ballot), ballot, ballot, record(1)),
    ballots,
    ballots,
)


@given(promises, ballots, ballots)
def test_a_promise_is_given_above_everything_and_takes_nothing_away(
    held: Promise, floor: Version, ballot: Version
) -> None:
    promise = paxos.prepare(held, floor, ballot)
    if ballot > held.promised and ballot > held.ballot and ballot > floor:
        assert promise == held._replace(promised=ballot)
    else:
        assert promise is None
        assert paxos.hindrance(held, floor) >= ballot


@given(promises, ballots, ballots)
def test_a_record_is_accepted_at_or_above_every_promise_and_above_the_floor(
    held: Promise, floor: Version, ballot: Version
) -> None:
    promise = paxos.accept(held, floor, ballot, at(9), record(2))
    if ballot == held.ballot:
        assert promise is held, "a duplicate changes nothing, not below the floor either"
    elif ballot < held.promised or ballot < held.ballot or ballot <= floor:
        assert promise is None
    else:
        assert promise == Promise(ballot, ballot, at(9), record(2))


def test_a_promise_without_an_accept_survives_no_lower_one() -> None:
    held = paxos.prepare(nothing_promised, version_zero, at(5))
    assert held is not None
    assert paxos.prepare(held, version_zero, at(5)) is None
    assert paxos.accept(held, version_zero, at(4), at(4), record(4)) is None
    assert paxos.accept(held, version_zero, at(5), at(5), record(5)) is not None


# Proposals, round by round.


class Put:
    """Store a value whatever there is, and remember what that was."""

    def __init__(self, content: bytes = b"new") -> None:
        self.content = content
        self.found: list[bytes] = []

    def __call__(self, current: bytes, ballot: Version) -> Changed:
        self.found.append(current)
        return ballot + value_body(self.content), (OK, b"done %d" % len(self.found))


def begun(proposal: Proposal, number: int, placement: Placement = three) -> Proposal:
    proposal.begin(at(number), placement)
    return proposal


def test_a_change_is_chosen_by_a_majority_that_promised_and_then_accepted() -> None:
    put = Put()
    proposal = begun(Proposal(put), 10)
    assert proposal.promised(1, seen()) is Step.WAIT
    assert not proposal.committed
    assert proposal.promised(4, seen()) is Step.ACCEPT
    assert proposal.committed
    assert (proposal.operation, proposal.record) == (at(10), at(10) + value_body(b"new"))
    assert proposal.accepted(2) is Step.WAIT
    assert proposal.accepted(2) is Step.WAIT, "one replica is one voice"
    assert not proposal.chosen
    assert proposal.accepted(1) is Step.CHOSEN
    assert proposal.chosen
    assert proposal.answer == (OK, b"done 1")


def test_it_goes_on_from_what_was_accepted_at_the_highest_ballot() -> None:
    put = Put()
    proposal = begun(Proposal(put), 10)
    proposal.promised(1, seen(at(5), record(5, b"later")))
    proposal.promised(2, seen(at(3), record(3, b"earlier")))
    assert put.found == [record(5, b"later")]


def test_a_higher_ballot_with_an_older_record_wins_over_a_newer_one_that_was_not_chosen() -> None:
    """An operation that changed nothing has accepted the old record once more."""
    put = Put()
    proposal = begun(Proposal(put), 10)
    proposal.promised(1, seen(at(7), record(2)))
    proposal.promised(2, seen(at(5), record(5)))
    assert put.found == [record(2)]


def test_a_cell_that_is_newer_than_what_was_accepted_is_absorbed() -> None:
    proposal = begun(Proposal(read), 10)
    proposal.promised(1, seen(at(5), record(5), cell=record(6, b"eventual")))
    assert proposal.promised(2, seen(cell=record(4))) is Step.ACCEPT
    assert proposal.answer == (OK, record(6, b"eventual"))
    assert (proposal.operation, proposal.record) == (no_operation, record(6, b"eventual"))
    assert not proposal.committed


def test_what_is_only_repeated_keeps_the_operation_that_made_it() -> None:
    proposal = begun(Proposal(read), 10)
    proposal.promised(1, seen(at(5), record(5), record(5), operation=at(4)))
    proposal.promised(2, seen())
    assert (proposal.operation, proposal.record) == (at(4), record(5))


def test_nothing_can_be_read_and_accepted_as_nothing() -> None:
    proposal = begun(Proposal(read), 10)
    proposal.promised(1, seen())
    assert proposal.promised(2, seen()) is Step.ACCEPT
    assert (proposal.record, proposal.answer) == (b"", (OK, b""))


def test_a_record_that_is_not_before_the_ballot_has_it_begin_again_above() -> None:
    for number in (10, 11):
        put = Put()
        proposal = begun(Proposal(put), 10)
        proposal.promised(1, seen())
        assert proposal.promised(2, seen(cell=record(number))) is Step.AGAIN
        assert proposal.beyond == at(number)
        assert put.found == []
        assert not proposal.committed


def test_an_expired_value_is_written_as_deleted_at_the_ballot() -> None:
    for expires_at_ms, is_gone in ((10, True), (11, False)):
        proposal = begun(Proposal(read), 10)
        proposal.promised(1, seen(at(5), record(5, b"x", expires_at_ms)))
        proposal.promised(2, seen())
        if is_gone:
            assert proposal.record == at(10) + tombstone_body
            assert proposal.operation == no_operation
            assert proposal.answer == (OK, b"")
        else:
            assert proposal.record == record(5, b"x", expires_at_ms)


def test_a_change_sees_an_expired_value_as_deleted() -> None:
    put = Put()
    proposal = begun(Proposal(put), 10)
    proposal.promised(1, seen(at(5), record(5, b"x", 9)))
    proposal.promised(2, seen())
    assert is_tombstone(put.found[0])


def test_a_refused_promise_has_it_begin_again_above_what_refused() -> None:
    proposal = begun(Proposal(Put()), 10)
    assert proposal.refused(1, at(12)) is Step.AGAIN
    assert proposal.beyond == at(12)


def test_a_refused_accept_matters_once_the_others_do_not_suffice() -> None:
    proposal = begun(Proposal(Put()), 10)
    proposal.promised(1, seen())
    proposal.promised(2, seen())
    assert proposal.refused(1, at(12)) is Step.WAIT
    assert proposal.accepted(2) is Step.WAIT
    assert proposal.refused(4, at(11)) is Step.AGAIN
    assert proposal.beyond == at(12)


def test_replicas_that_fail_block_it_once_the_others_do_not_suffice() -> None:
    proposal = begun(Proposal(Put()), 10)
    assert proposal.failed(1) is Step.WAIT
    assert proposal.failed(1) is Step.WAIT
    assert proposal.failed(2) is Step.BLOCKED


def test_a_failure_after_the_same_replicas_vote_counts_for_nothing() -> None:
    proposal = begun(Proposal(Put()), 10)
    proposal.promised(1, seen())
    assert proposal.failed(1) is Step.WAIT
    assert proposal.failed(2) is Step.WAIT
    assert proposal.promised(4, seen()) is Step.ACCEPT


def test_late_promises_do_not_count_as_accepts() -> None:
    proposal = begun(Proposal(Put()), 10)
    proposal.promised(1, seen())
    proposal.promised(2, seen())
    assert proposal.promised(4, seen(at(9), record(9))) is Step.WAIT
    assert proposal.accepted(4) is Step.WAIT
    assert not proposal.chosen


def test_a_proposal_of_all_is_chosen_by_the_acks_of_all_and_promised_by_a_majority() -> None:
    proposal = begun(Proposal(read, of_all=True), 10)
    assert proposal.promised(1, seen(at(5), record(5))) is Step.WAIT
    assert proposal.failed(2) is Step.WAIT
    assert proposal.promised(4, seen()) is Step.ACCEPT
    assert (proposal.ballot, proposal.record) == (at(10), record(5))
    assert proposal.accepted(1) is Step.WAIT
    assert proposal.accepted(4) is Step.WAIT
    assert not proposal.chosen, "two of three would be enough for any other"
    assert proposal.accepted(2) is Step.CHOSEN


@pytest.mark.parametrize("step", [Step.BLOCKED, Step.AGAIN])
def test_a_proposal_of_all_waits_for_nobody_once_one_replica_does_not_accept(step: Step) -> None:
    proposal = begun(Proposal(read, of_all=True), 10)
    proposal.promised(1, seen())
    proposal.promised(2, seen())
    proposal.accepted(1)
    later = step is Step.AGAIN
    assert (proposal.refused(4, at(11)) if later else proposal.failed(4)) is step
    assert not proposal.chosen
    assert not proposal.committed, "it changes nothing, so that it may fail for certain"


def test_a_proposal_of_all_needs_old_and_new_owners_while_joint() -> None:
    proposal = begun(Proposal(read, of_all=True), 10, joint)
    for bit in (1, 2, 4):
        proposal.promised(bit, seen())
    for bit in (1, 2, 8):
        assert proposal.accepted(bit) is Step.WAIT
    assert proposal.accepted(4) is Step.CHOSEN


# Proposals, after an ACCEPT has left.


def sent_once(change: Put, based_on: Seen | None = None) -> Proposal:
    proposal = begun(Proposal(change), 10)
    proposal.promised(1, based_on or seen())
    assert proposal.promised(2, based_on or seen()) is Step.ACCEPT
    return begun(proposal, 20)


def test_its_own_record_is_found_and_put_through_without_another_change() -> None:
    put = Put()
    proposal = sent_once(put)
    made = at(10) + value_body(b"new")
    proposal.promised(1, seen(at(10), made, operation=at(10)))
    assert proposal.promised(2, seen()) is Step.ACCEPT
    assert (proposal.operation, proposal.record) == (at(10), made)
    assert proposal.answer == (OK, b"done 1")
    assert len(put.found) == 1


def test_the_record_of_an_earlier_of_its_rounds_brings_that_rounds_answer() -> None:
    put = Put()
    proposal = sent_once(put)
    proposal.promised(1, seen())
    proposal.promised(2, seen())
    begun(proposal, 30)
    proposal.promised(1, seen(at(10), at(10) + value_body(b"new"), operation=at(10)))
    assert proposal.promised(2, seen()) is Step.ACCEPT
    assert proposal.answer == (OK, b"done 1")
    assert proposal.operation == at(10)


def test_if_nothing_has_changed_since_it_is_made_again() -> None:
    put = Put()
    base = seen(at(5), record(5), record(5))
    proposal = sent_once(put, base)
    proposal.promised(1, base)
    assert proposal.promised(4, base) is Step.ACCEPT
    assert put.found == [record(5)] * 2
    assert (proposal.operation, proposal.record[:version_bytes]) == (at(10), at(20))


def test_if_something_else_is_there_now_nobody_can_know() -> None:
    proposal = sent_once(Put())
    proposal.promised(1, seen(at(15, 2), at(15, 2) + value_body(b"other"), operation=at(15, 2)))
    assert proposal.promised(2, seen()) is Step.UNKNOWN


def test_its_own_record_below_a_newer_cell_is_not_known_to_be_the_last() -> None:
    proposal = sent_once(Put())
    made = at(10) + value_body(b"new")
    proposal.promised(1, seen(at(10), made, operation=at(10), cell=record(15)))
    assert proposal.promised(2, seen()) is Step.UNKNOWN


def test_what_a_floor_may_have_swept_away_nobody_can_know() -> None:
    for floor, step in ((9, Step.ACCEPT), (10, Step.UNKNOWN), (12, Step.UNKNOWN)):
        proposal = sent_once(Put())
        proposal.promised(1, seen(floor=at(floor)))
        assert proposal.promised(2, seen()) is step


def test_a_read_that_was_sent_may_be_begun_again_with_whatever_is_there() -> None:
    proposal = begun(Proposal(read), 10)
    proposal.promised(1, seen())
    proposal.promised(2, seen())
    begun(proposal, 20)
    proposal.promised(1, seen(at(15), record(15), record(15)))
    assert proposal.promised(2, seen()) is Step.ACCEPT
    assert proposal.answer == (OK, record(15))


# Two placements.


def test_a_joint_map_needs_a_majority_of_each_placement() -> None:
    proposal = begun(Proposal(Put()), 10, joint)
    assert proposal.promised(1, seen()) is Step.WAIT
    assert proposal.promised(2, seen()) is Step.WAIT
    assert proposal.promised(8, seen()) is Step.ACCEPT
    assert proposal.accepted(8) is Step.WAIT
    assert proposal.accepted(4) is Step.WAIT
    assert proposal.accepted(1) is Step.CHOSEN
    proposal = begun(Proposal(Put()), 10, joint)
    assert proposal.failed(2) is Step.WAIT
    assert proposal.failed(4) is Step.BLOCKED, "one of each placement is left"


# Readings.


def test_a_reading_needs_a_majority_that_accepted_the_same_and_nothing_newer() -> None:
    reading = Reading(three, now_ms=100)
    assert reading.seen(1, seen(at(5), record(5), record(5))) is None
    assert reading.seen(2, seen(at(5), record(5))) is True
    assert (reading.record, reading.ballot) == (record(5), at(5))
    assert reading.cells == {1: record(5), 2: b""}


@pytest.mark.parametrize(
    "second",
    [
        seen(at(6), record(5)),
        seen(),
        seen(at(5), record(5), record(6)),
    ],
    ids=["another ballot", "nothing", "a newer cell"],
)
def test_a_reading_that_finds_a_difference_decides_nothing(second: Seen) -> None:
    reading = Reading(three, now_ms=100)
    reading.seen(1, seen(at(5), record(5), record(5)))
    assert reading.seen(2, second) is False


def test_a_reading_does_not_judge_of_expiry() -> None:
    for now_ms, decided in ((99, True), (100, False)):
        reading = Reading(three, now_ms)
        expiring = record(5, b"x", 100)
        reading.seen(1, seen(at(5), expiring, expiring))
        assert reading.seen(4, seen(at(5), expiring, expiring)) is decided


# All together.


class Replica:
    def __init__(self) -> None:
        self.held = nothing_promised
        self.cell = b""


class Client:
    """Appends its name to a list, through as many rounds as it takes."""

    def __init__(self, world: Schedule, number: int) -> None:
        self.world = world
        self.name = number
        self.clock = 0
        self.proposal = Proposal(self)
        self.state = "fresh"

    def __call__(self, current: bytes, ballot: Version) -> Changed:
        before = value(current) if current and not is_tombstone(current) else b""
        return ballot + value_body(before + bytes((self.name,))), (OK, b"")

    def act(self) -> None:
        if self.state == "fresh":
            self.round()

    def round(self) -> None:
        self.state = "busy"
        self.ballot = self.world.ballot(self)
        self.proposal.begin(self.ballot, three)
        for index in range(3):
            self.world.post(lambda index=index, ballot=self.ballot: self.prepare(index, ballot))

    def prepare(self, index: int, ballot: Version) -> None:
        replica = self.world.replicas[index]
        held = replica.held
        promise = paxos.prepare(held, version_zero, ballot)
        if promise is None:
            by = paxos.hindrance(held, version_zero)
            self.reply(ballot, lambda: self.proposal.refused(1 << index, by))
            return
        replica.held = promise
        shown = Seen(held.ballot, held.operation, version_zero, held.record, replica.cell)
        self.reply(ballot, lambda: self.proposal.promised(1 << index, shown))

    def accept(self, index: int, ballot: Version, operation: Version, new: bytes) -> None:
        replica = self.world.replicas[index]
        promise = paxos.accept(replica.held, version_zero, ballot, operation, new)
        if promise is None:
            by = paxos.hindrance(replica.held, version_zero)
            self.reply(ballot, lambda: self.proposal.refused(1 << index, by), accepting=True)
            return
        replica.held = promise
        self.world.accepted(index, ballot, new)
        self.reply(ballot, lambda: self.proposal.accepted(1 << index), accepting=True)

    def reply(self, ballot: Version, hear: object, *, accepting: bool = False) -> None:
        def heard() -> None:
            assert callable(hear)
            expected = "accepting" if accepting else "busy"
            if self.ballot == ballot and self.state == expected:
                self.step(hear())

        self.world.post(heard)

    def step(self, step: Step) -> None:
        proposal = self.proposal
        if step is Step.ACCEPT:
            self.state = "accepting"
            for index in range(3):
                self.world.post(
                    lambda index=index, b=self.ballot, o=proposal.operation, r=proposal.record: (
                        self.accept(index, b, o, r)
                    )
                )
        elif step is Step.CHOSEN:
            self.state = "chosen"
            for replica in self.world.replicas:
                self.world.post(
                    lambda replica=replica, new=proposal.record: setattr(
                        replica, "cell", max(replica.cell, new)
                    )
                )
        elif step is Step.UNKNOWN:
            self.state = "unknown"
        elif step is not Step.WAIT:
            self.state = "fresh"


class Schedule:
    """Messages in any order, lost or doubled; replicas never forget."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.replicas = [Replica() for _ in range(3)]
        self.clients = [Client(self, number) for number in range(1, 7)]
        self.mail: list[object] = []
        self.clock = 0
        self.loss = self.draw.choice((0.0, 0.1, 0.3))
        self.votes: dict[tuple[Version, bytes], set[int]] = {}

    def ballot(self, client: Client) -> Version:
        """Clocks that differ: a client's next ballot may be below that of another, but is above
        all of its own."""
        beyond = int.from_bytes(client.proposal.beyond[:8], "big") >> 16
        self.clock = max(self.clock + 1, beyond + 1)
        client.clock = max(client.clock + 1, beyond + 2, self.clock - self.draw.randrange(4) + 1)
        return at(client.clock, client.name)

    def post(self, deliver: object) -> None:
        if self.draw.random() >= self.loss:
            self.mail += [deliver] * (2 if self.draw.random() < 0.1 else 1)

    def accepted(self, index: int, ballot: Version, new: bytes) -> None:
        self.votes.setdefault((ballot, new), set()).add(index)

    def run(self) -> None:
        for _ in range(600):
            if self.mail and self.draw.random() < 0.9:
                deliver = self.mail.pop(self.draw.randrange(len(self.mail)))
                assert callable(deliver)
                deliver()
            else:
                client = self.draw.choice(self.clients)
                if client.state in ("busy", "accepting") and self.draw.random() < 0.3:
                    client.state = "fresh"
                client.act()
            # A ballot that a client gave up goes on: what is answered to it is not heard.
        self.check()

    def check(self) -> None:
        by_ballot: dict[Version, set[bytes]] = {}
        for ballot, new in self.votes:
            by_ballot.setdefault(ballot, set()).add(new)
        assert all(len(news) == 1 for news in by_ballot.values()), "one ballot, one value"
        chosen = sorted((b, value(new)) for (b, new), who in self.votes.items() if len(who) >= 2)
        for (_, earlier), (_, later) in pairwise(chosen):
            assert later.startswith(earlier), f"{earlier!r} was chosen, and then {later!r}"
        last = chosen[-1][1] if chosen else b""
        for client in self.clients:
            count = last.count(bytes((client.name,)))
            assert count <= 1, f"{client.name} was made {count} times"
            if client.state == "chosen":
                assert count == 1, f"{client.name} was told of a change that is not there"
            if not client.proposal.committed:
                assert count == 0, f"{client.name} has nothing sent, and it is there"


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32))
@example(2860511)  # A client gives a proposal up, and its clock then falls behind.
def test_whatever_is_chosen_stays_and_every_change_is_made_once_at_most(seed: int) -> None:
    Schedule(seed).run()


def test_random_schedules_get_changes_through_and_into_trouble() -> None:
    states: dict[str, int] = {}
    for seed in range(40):
        schedule = Schedule(seed)
        schedule.run()
        for client in schedule.clients:
            states[client.state] = states.get(client.state, 0) + 1
    assert states["chosen"] > 40
    assert states["unknown"] > 5
