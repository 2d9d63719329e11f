"""The checker against histories that are known to be right or wrong, and against a dumb one."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.runtime.clock import FakeClock
from tests.simulation.history import (
    ABSENT,
    FAILED,
    UNKNOWN,
    Found,
    Get,
    History,
    Operation,
    Put,
    Wrote,
)
from tests.simulation.key_model import Cell, KeyModel
from tests.simulation.known_histories import absent, bad, good, got, lost, op, put, skew_ms, v
from tests.simulation.linearizability import Finding, Verdict, check, check_key
from tests.simulation.memory_store import Use, Users

strict = KeyModel(FakeClock.epoch_ms, skew_ms)
timeless = KeyModel(FakeClock.epoch_ms)


def judged(operations: Sequence[Operation], model: KeyModel = strict) -> Finding:
    return check_key(operations, model)


@pytest.mark.parametrize("history", bad.values(), ids=bad)
def test_a_history_is_rejected_in_which(history: list[Operation]) -> None:
    finding = judged(history)
    assert finding.verdict is Verdict.VIOLATED
    assert "b'key' is not linearizable" in finding.explanation
    assert not dumbly_linearizable(history, strict)


@pytest.mark.parametrize("history", good.values(), ids=good)
def test_a_history_is_accepted_in_which(history: list[Operation]) -> None:
    assert judged(history).verdict is Verdict.LINEARIZABLE
    assert dumbly_linearizable(history, strict)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("a value expires before its time", Verdict.LINEARIZABLE),
        ("a value is read after its time", Verdict.LINEARIZABLE),
        ("an expired value is back", Verdict.VIOLATED),
        ("a value without expiry expires", Verdict.VIOLATED),
        ("two reads tell two expiries of one write", Verdict.VIOLATED),
    ],
)
def test_without_a_bound_on_clocks_only_times_go_unchecked(name: str, verdict: Verdict) -> None:
    assert judged(bad[name], timeless).verdict is verdict


def dumbly_linearizable(
    history: Sequence[Operation], model: KeyModel, *, twins: bool = False
) -> bool:
    """Every order that the intervals allow, with every choice of unknown operations."""
    by_time = sorted(history, key=lambda each: each.invoked_s)
    stand_ins = model.stand_ins(by_time) if twins else by_time

    def possible(cell: Cell, left: frozenset[int]) -> bool:
        definite = [by_time[n] for n in left if by_time[n].outcome is not UNKNOWN]
        if not definite:
            return True
        until_s = min(each.returned_s for each in definite if each.returned_s is not None)
        return any(
            possible(after, left - {n})
            for n in left
            if by_time[n].invoked_s <= until_s
            for after in model.step(cell, stand_ins[n], until_s)
        )

    applied = [n for n, each in enumerate(by_time) if each.outcome is not FAILED]
    return possible(model.initial, frozenset(applied))


def mutated(draw: random.Random, history: list[Operation]) -> list[Operation]:
    """The history with one thing wrong, or at least other."""
    changed = [replace(each) for each in history]
    one, other = draw.choice(changed), draw.choice(changed)
    what = draw.randrange(7)
    if what == 0:
        one.outcome, other.outcome = other.outcome, one.outcome
    elif what == 1:
        one.action, other.action = other.action, one.action
    elif what == 2 and isinstance(one.outcome, Found | Wrote):
        one.outcome = replace(one.outcome, version=v(draw.randint(1, 5)))
    elif what == 3 and isinstance(one.outcome, Found) and isinstance(other.action, Put):
        one.outcome = replace(one.outcome, value=other.action.value)
    elif what == 4:
        one.outcome = ABSENT if isinstance(one.action, Get) else UNKNOWN
    elif what == 5:
        other.action = one.action
    else:
        shift_s = draw.uniform(-0.3, 0.3)
        one.invoked_s += shift_s
        one.returned_s = None if one.returned_s is None else one.returned_s + shift_s
    for each in changed:
        if each.returned_s is None:
            each.outcome = UNKNOWN
    return changed


small = Use(operations=6, clients=3, keys=1, unknown=0.4, failed=0.02, skew_ms=skew_ms)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 3))
def test_it_agrees_with_trying_every_order(seed: int, mutations: int) -> None:
    draw = random.Random(seed)
    history = Users(draw, small).run()
    for _ in range(mutations):
        history = mutated(draw, history)
    linearizable = judged(history, timeless).verdict is Verdict.LINEARIZABLE
    assert linearizable == dumbly_linearizable(history, timeless)
    # Where times are checked, twins may do whatever the first of them may, and nothing else.
    linearizable = judged(history).verdict is Verdict.LINEARIZABLE
    assert linearizable == dumbly_linearizable(history, strict, twins=True)
    assert linearizable or not dumbly_linearizable(history, strict)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**40),
    st.sampled_from((0.0, 0.1, 0.25)),
    st.sampled_from((0, 20, 400, 30_000)),
    st.integers(1, 8),
)
def test_whatever_a_linearizable_store_did_is_accepted(
    seed: int, unknown: float, skew_ms: int, clients: int
) -> None:
    use = Use(operations=120, unknown=unknown, skew_ms=skew_ms, clients=clients)
    history = Users(random.Random(seed), use).run()
    for model in (KeyModel(FakeClock.epoch_ms, skew_ms), timeless):
        report = check(history, model)
        assert not report.violations, report.violations[0]
        assert not report.undecided


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40))
def test_a_read_that_goes_back_is_found_in_any_history(seed: int) -> None:
    draw = random.Random(seed)
    history = Users(draw, Use(operations=120)).run()
    shown = {
        each.outcome.version: each
        for each in history
        if each.key == b"key-0" and isinstance(each.outcome, Found)
    }
    # In some histories no read finds this key, or all show the same.
    assume(len(shown) > 1)
    oldest, newest = shown[min(shown)], shown[max(shown)]
    late_s = 1 + max(each.returned_s or each.invoked_s for each in history)
    again = [
        replace(each, invoked_s=late_s + number, returned_s=late_s + number + 0.5)
        for number, each in enumerate((newest, oldest))
    ]
    assert len(check(history + again, timeless).violations) == 1


def test_an_explanation_shows_how_far_it_went_and_what_stood_there() -> None:
    history = [
        put(0, 1, b"a", 1), lost(1.5, Put(b"z")), put(2, 3, b"b", 2), got(4, 6, b"a", 1),
        absent(5, 7),
    ]  # fmt: skip
    text = judged(history).explanation
    head, *lines = text.splitlines()
    assert head.startswith("key b'key' is not linearizable: 2 of its 4 definite operations fit")
    order = [lines.index(f"  {each}") for each in (history[0], history[2])]
    stuck = next(n for n, line in enumerate(lines) if line.startswith("none of these can be next"))
    assert order == sorted(order)
    assert "b'b', version 000000000000000000000002, expires never" in lines[stuck]
    assert lines[stuck + 1 : stuck + 3] == [f"  {history[3]}", f"  {history[4]}"]
    assert lines[stuck + 4 :] == [f"  {history[1]}"]


def test_keys_are_judged_by_themselves() -> None:
    history = bad["a read misses a write that had returned"] + [
        replace(each, key=b"other") for each in good["an increment starts at nothing"]
    ]
    report = check(history, strict)
    assert [each.verdict for each in report.findings.values()] == [
        Verdict.VIOLATED,
        Verdict.LINEARIZABLE,
    ]
    assert len(report.violations) == 1


def test_a_search_that_is_given_up_is_not_called_linearizable() -> None:
    history = good["a lost write took effect late"]
    report = check(history, strict, steps_max=3)
    assert report.undecided == [b"key"]
    assert not report.violations
    assert check(history, strict, steps_max=100).undecided == []


def test_a_definite_outcome_without_a_return_is_a_mistake_of_the_recording() -> None:
    with pytest.raises(ValueError, match="without a return"):
        judged([op(0, None, Get(), ABSENT)])


def test_a_history_tells_apart_what_happened_at_one_reading_of_the_clock() -> None:
    history = History(lambda: 1.0)
    first = history.invoke("client-1", b"key", Put(b"a"))
    history.resolve(first, Wrote(v(1)))
    second = history.invoke("client-1", b"key", Get())
    history.resolve(second, ABSENT)
    history.invoke("client-2", b"key", Get())
    assert judged(history.operations).verdict is Verdict.VIOLATED
    assert history.counts() == {"operations": 3, "definite": 2, "failed": 0, "unknown": 1}
    assert math.isclose(second.invoked_s, 1.0)
    with pytest.raises(ValueError, match="told twice"):
        history.resolve(second, FAILED)
