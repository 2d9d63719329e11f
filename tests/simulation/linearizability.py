"""Whether a history is linearizable, key by key: Wing and Gong's search as Lowe made it fast.

An operation took effect at one moment between its invocation and its return. The search takes
operations in an order that this allows, steps a sequential model through them, and goes back when
the model has no step for what an operation was told. It remembers what it has failed from: the
set of operations taken, as bits of an integer, and the state they led to. (Wing and Gong 1993;
Lowe 2017, "Testing for linearizability", where the list of calls and returns is drawn.)

An operation with an unknown outcome has no return: it may be taken at any later point, or never.
Tried everywhere, a few dozen of them would be hopeless. So the search looks only for a history's
*plainest* linearizations, those with the fewest unknown operations, each as late as can be:

- An unknown operation U, taken in state s, is not followed by an operation that leads to the same
  state from s itself: without U the rest would go just as well.
- Nor by one that changes nothing and was possible in s: U might as well come after it.
- Of twins, which nothing told apart, the one invoked first is taken first: exchanged, they fit as
  well.
- An operation that changes nothing, possible in the present state and adding nothing to it, is
  taken at once and the search never goes back on it: moved to here from later on, it disturbs
  nothing, and lets what is unknown come later still.
- Operations that the model ranks are taken in that order, which the model demands anyway.

Each rule turns a linearization that it excludes into one that it does not, with fewer unknown
operations, or with as many and these later. If there is any, a plainest one is therefore left to
be found. What may follow U depends on s, so the search remembers s too until the next step.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from tests.simulation.history import FAILED, UNKNOWN, Operation

# A key's search is over after a few hundred steps, mostly, and one that is not by now has met
# more unknown operations than it can tell apart. This many take about ten seconds.
steps_max_default = 2_000_000
# A violation is certain by then; only its explanation gets shorter.
explaining_steps_max = 200_000

State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """What a key may do, one operation at a time.

    States may leave open what nobody was told yet; a state that leaves more open is *wider*, and
    allows whatever the narrower one does. A later `until_s` makes a step wider, never narrower.
    """

    @property
    def initial(self) -> State: ...

    def step(self, state: State, operation: Operation, until_s: float) -> Iterable[State]:
        """The states that the operation may leave, having had its outcome; none if it cannot
        have had it. `until_s` is the last moment at which it can have taken effect here."""
        ...

    def changes_nothing(self, operation: Operation) -> bool:
        """Whether the operation, with its outcome, leaves what it found."""
        ...

    def rank(self, operation: Operation) -> Any:
        """A place in the order in which alone steps allow operations of definite outcome, or None
        for any place. Equal ranks may come in either order."""
        ...

    def stand_ins(self, operations: Sequence[Operation]) -> Sequence[Operation]:
        """For each operation of a key the one to step by, mostly itself. Operations of unknown
        outcome that nothing told apart have one and the same: they are twins. The operations come
        in order of their invocation."""
        ...


class Verdict(Enum):
    LINEARIZABLE = "linearizable"
    VIOLATED = "not linearizable"
    # The search was given up: neither shown nor refuted.
    UNDECIDED = "undecided"


@dataclass(slots=True)
class Finding:
    """The verdict on one key, the steps it took, and for a violation how far a history went."""

    verdict: Verdict
    steps: int
    explanation: str = ""


@dataclass(slots=True)
class Report:
    """The findings of a whole history. It is linearizable if that of every key is."""

    findings: dict[bytes, Finding] = field(default_factory=dict)

    @property
    def violations(self) -> list[str]:
        found = self.findings.values()
        return [each.explanation for each in found if each.verdict is Verdict.VIOLATED]

    @property
    def undecided(self) -> list[bytes]:
        found = self.findings.items()
        return [key for key, each in found if each.verdict is Verdict.UNDECIDED]

    @property
    def steps(self) -> int:
        return sum(each.steps for each in self.findings.values())


def check(
    history: Iterable[Operation], model: Model[State], steps_max: int = steps_max_default
) -> Report:
    """Judge every key of a history by itself, with at most `steps_max` steps of the model each."""
    of_key: dict[bytes, list[Operation]] = {}
    for operation in history:
        of_key.setdefault(operation.key, []).append(operation)
    report = Report()
    for key, operations in sorted(of_key.items()):
        report.findings[key] = check_key(operations, model, steps_max)
    return report


def check_key(
    operations: Sequence[Operation], model: Model[State], steps_max: int = steps_max_default
) -> Finding:
    """Judge the operations of one key."""
    search = _Search(operations, model, steps_max)
    verdict = search.run()
    if verdict is not Verdict.VIOLATED:
        return Finding(verdict, search.steps)
    # Ranks end a hopeless search so early that it never comes to where the trouble shows.
    longest = _Search(operations, model, min(steps_max, explaining_steps_max), ranked=False)
    longest.run()
    return Finding(verdict, search.steps, longest.explain())


class _OutOfStepsError(Exception):
    """The search has taken all the steps it may."""


@dataclass(slots=True)
class _Move(Generic[State]):
    """An operation taken, the state it led to and, of an unknown one, the state before."""

    taken: int
    state: State
    before: State | None


class _Search(Generic[State]):
    """The search of one key. Operations are numbers, in order of their invocation.

    Calls and returns of those with a definite outcome stand in a doubly linked list, in order of
    time; number `n` has entries `2n + 1` and `2n + 2`, and entry 0 is the list's head and end. The
    calls before the first return are those that can be next.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        model: Model[State],
        steps_max: int,
        *,
        ranked: bool = True,
    ) -> None:
        self.model = model
        self.steps = 0
        self.steps_max = steps_max
        counted = [
            each
            for each in operations
            if each.outcome is not FAILED
            and not (each.outcome is UNKNOWN and model.changes_nothing(each))
        ]
        self.operations = sorted(counted, key=lambda each: each.invoked_s)
        self.stand_ins = model.stand_ins(self.operations)
        self.quiet = [model.changes_nothing(each) for each in self.operations]
        numbers = range(len(self.operations))
        self.unknown = [n for n in numbers if self.operations[n].outcome is UNKNOWN]
        self.twin_before = self._twins()
        self.is_unknown = [each.outcome is UNKNOWN for each in self.operations]
        self.rank = [
            model.rank(self.operations[n]) if ranked and not self.is_unknown[n] else None
            for n in numbers
        ]
        # Taken in this order, so that the first ones of it are those that have been taken.
        self.ranks = sorted(rank for rank in self.rank if rank is not None)
        self.ranked_taken = 0
        self.taken = 0
        self.left = len(self.operations) - len(self.unknown)
        self._link([n for n in numbers if not self.is_unknown[n]])
        # The longest way so far: what was taken, and where it stood.
        self.path: list[_Move[State]] = []
        self.longest: list[_Move[State]] = []
        self.least_left = self.left

    def run(self) -> Verdict:
        try:
            found = self._search()
        except _OutOfStepsError:
            return Verdict.UNDECIDED
        return Verdict.LINEARIZABLE if found else Verdict.VIOLATED

    def _search(self) -> bool:
        if not self.left:
            return True
        failed: set[tuple[int, State, State | None]] = set()
        frames = [self._moves(self.model.initial, None)]
        while frames:
            if not frames[-1]:
                frames.pop()
                if self.path:
                    self._untake(self.path.pop().taken)
                continue
            move = frames[-1].pop()
            # Whatever is seen a second time has failed: the first success ends the search.
            reached = (self.taken | 1 << move.taken, move.state, move.before)
            if reached in failed:
                continue
            failed.add(reached)
            self._take(move.taken)
            self.path.append(move)
            if self.left < self.least_left:
                self.least_left = self.left
                self.longest = self.path.copy()
                if not self.left:
                    return True
            frames.append(self._moves(move.state, move.before))
        return False

    def _moves(self, state: State, before: State | None) -> list[_Move[State]]:
        """What can be next, the best chances last. `before` is the state before the unknown
        operation that has just been taken, if one has."""
        numbers, until_s = self._callable()
        definite: list[_Move[State]] = []
        for number in numbers:
            rank = self.rank[number]
            if rank is not None and rank != self.ranks[self.ranked_taken]:
                continue
            for after in self._steps(state, before, number, until_s):
                if self.quiet[number] and after == state:
                    return [_Move(number, after, None)]
                definite.append(_Move(number, after, None))
        moves = [
            _Move(number, after, state)
            for number in self._unknown_callable(until_s)
            for after in self._steps(state, before, number, until_s)
            if after != state
        ]
        moves.extend(reversed(definite))
        return moves

    def _steps(
        self, state: State, before: State | None, number: int, until_s: float
    ) -> Sequence[State]:
        """Where the operation may lead; if an unknown one was taken for its sake, only where it
        does not lead without."""
        operation = self.stand_ins[number]
        afters = self._step(state, operation, until_s)
        if before is None or not afters:
            return afters
        without = self._step(before, operation, until_s)
        if self.quiet[number] and before in without:
            return ()
        return [after for after in afters if after not in without]

    def _step(self, state: State, operation: Operation, until_s: float) -> Sequence[State]:
        self.steps += 1
        if self.steps > self.steps_max:
            raise _OutOfStepsError
        return tuple(self.model.step(state, operation, until_s))

    def _callable(self) -> tuple[list[int], float]:
        """The definite operations that can be next, and the first return, which they all come
        before."""
        numbers = []
        entry = self.after[0]
        while entry & 1:
            numbers.append(entry >> 1)
            entry = self.after[entry]
        return numbers, self.time_s[entry]

    def _unknown_callable(self, until_s: float) -> Iterable[int]:
        for number in self.unknown:
            if self.operations[number].invoked_s > until_s:
                break
            twin = self.twin_before[number]
            if not self.taken >> number & 1 and (twin is None or self.taken >> twin & 1):
                yield number

    def _twins(self) -> dict[int, int | None]:
        """Of each unknown operation the twin that was invoked last before it."""
        latest: dict[int, int] = {}
        twin_before: dict[int, int | None] = {}
        for number in self.unknown:
            twin = id(self.stand_ins[number])
            twin_before[number] = latest.get(twin)
            latest[twin] = number
        return twin_before

    # The list of calls and returns.

    def _link(self, numbers: Sequence[int]) -> None:
        entries: list[tuple[float, int, int]] = []
        for number in numbers:
            operation = self.operations[number]
            if operation.returned_s is None or operation.returned_s < operation.invoked_s:
                raise ValueError(f"a definite outcome without a return after its call: {operation}")
            # At equal times calls come first: operations that touch count as concurrent.
            entries.append((operation.invoked_s, 0, 2 * number + 1))
            entries.append((operation.returned_s, 1, 2 * number + 2))
        entries.sort()
        size = 2 * len(self.operations) + 1
        self.time_s = [math.inf] * size
        self.after = [0] * size
        self.ahead = [0] * size
        previous = 0
        for time_s, _, entry in entries:
            self.time_s[entry] = time_s
            self.after[previous], self.ahead[entry] = entry, previous
            previous = entry
        self.after[previous], self.ahead[0] = 0, previous

    def _take(self, number: int) -> None:
        self.taken |= 1 << number
        if self.is_unknown[number]:
            return
        self.left -= 1
        self.ranked_taken += self.rank[number] is not None
        for entry in (2 * number + 1, 2 * number + 2):
            after, ahead = self.after[entry], self.ahead[entry]
            self.after[ahead], self.ahead[after] = after, ahead

    def _untake(self, number: int) -> None:
        """Undo the latest take that is not undone yet."""
        self.taken &= ~(1 << number)
        if self.is_unknown[number]:
            return
        self.left += 1
        self.ranked_taken -= self.rank[number] is not None
        for entry in (2 * number + 2, 2 * number + 1):
            self.after[self.ahead[entry]] = self.ahead[self.after[entry]] = entry

    # What to tell people.

    def explain(self) -> str:
        """How far the longest way went, and what stood around its end."""
        for move in reversed(self.path):
            self._untake(move.taken)
        for move in self.longest:
            self._take(move.taken)
        numbers, until_s = self._callable()
        state = self.longest[-1].state if self.longest else self.model.initial
        definite = sum(not self.is_unknown[move.taken] for move in self.longest)
        lines = [
            f"key {self.operations[0].key!r} is not linearizable: {definite} of its "
            f"{definite + self.left} definite operations fit in an order, then none does",
            "the longest order that fits, and what each leaves:",
        ]
        for move in self.longest:
            lines.append(f"  {self.operations[move.taken]}")
            lines.append(f"  {'':12}   {'':12} {move.state}")
        lines.append(f"none of these can be next, one has to be; the key is: {state}")
        lines.extend(f"  {self.operations[number]}" for number in numbers)
        if unknown := list(self._unknown_callable(until_s)):
            lines.append("nor does it help if one of these took effect first:")
            lines.extend(f"  {self.operations[number]}" for number in unknown)
        return "\n".join(lines)
