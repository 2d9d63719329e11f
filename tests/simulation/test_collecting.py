"""Whoever collects may die at any step, and several may collect at once; late messages of sessions
that are over change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.core.ballots import ACCEPT, PREPARE
from services.core.messages import WRITE
from services.core.sessions import COMPARE, FREEZE, PURGE, REPAIR, STALE
from services.replicator.collection_end import End
from tests.simulation.cluster_keys import keys_of_one_slot
from tests.simulation.history import Delete, Found, Get, Put
from tests.simulation.replicator_life import few_slots
from tests.simulation.scene import Scene

accepted, half_written, deleted, kept, _ = keys_of_one_slot()
steps = {
    "asking what is stale": STALE,
    "preparing": PREPARE,
    "accepting": ACCEPT,
    "freezing": FREEZE,
    "comparing": COMPARE,
    "repairing": REPAIR,
    "purging": PURGE,
}
# Two that have promised suffice, and who lacks nothing is brought nothing.
few = {"preparing": 2, "repairing": 1}


@pytest.fixture(autouse=True)
def _few_slots() -> Iterator[None]:
    with few_slots(young_ms=300):
        yield


def a_slot_with_much_to_do() -> Scene:
    """For each step of a collection there is some key that needs it."""
    scene = Scene()
    scene.key = accepted
    scene.asked(2, Put(b"old"))
    scene.delete(2)
    scene.key = deleted
    scene.put(2, b"old")
    scene.delete(2)
    scene.key = kept
    scene.asked(2, Put(b"kept"))
    scene.key = half_written
    scene.hold(WRITE, 3, of=2)
    scene.put(2, b"half written")
    return scene


def check(scene: Scene, come_back: set[bytes]) -> None:
    """Nothing is shown that should not be, and nothing is missed."""
    for key, value in ((half_written, b"half written"), (kept, b"kept"), (deleted, b"come back")):
        scene.key = key
        there = {value} if key != deleted or value in come_back else set()
        assert scene.values() == there
    scene.key = accepted
    assert scene.values() == set()


@pytest.mark.parametrize(
    ("step", "reached"),
    [
        *((step, reached) for step in steps for reached in (0, 1, 2) if step not in few),
        *((step, reached) for step, most in few.items() for reached in range(most)),
    ],
)
def test_another_replicator_completes_what_a_dead_one_has_begun(step: str, reached: int) -> None:
    """Of the messages of that step, so many replicas have had theirs."""
    scene = a_slot_with_much_to_do()
    nodes = [3] if step == "repairing" else [1, 2, 3][reached:]
    held = scene.hold(steps[step], *nodes, of=1)
    scene.begin_to_collect(1)
    scene.wait_until(lambda: all(each.messages for each in held))
    late = [
        (node, body) for node, each in zip(nodes, held, strict=True) for _, _, body in each.messages
    ]
    scene.lose(1)
    for each in held:
        each.forget()
    # It may find the slot in any state, and brings it to its end.
    scene.replicators[1].request_collection(scene.slot)
    scene.wait_until(lambda: not gone_wrong(scene))
    check(scene, set())
    scene.key = deleted
    scene.put(2, b"come back")
    for node, body in late:
        scene.send(node, steps[step], body)
    scene.wait(5.0)
    check(scene, {b"come back"})
    scene.key = deleted
    assert isinstance(scene.asked(2, Get()).outcome, Found)


def gone_wrong(scene: Scene) -> list[str]:
    """What is left of keys that have ended, and what was not brought to all."""
    left = []
    for key in (accepted, deleted):
        scene.key = key
        left += scene.left()
    scene.key = half_written
    return left if len(scene.left()) == len(scene.nodes) else [*left, "half written"]


@pytest.mark.parametrize("apart_s", [0.0, 0.001, 0.003, 0.01, 0.03])
def test_two_replicators_that_collect_at_once_do_each_other_no_harm(apart_s: float) -> None:
    scene = a_slot_with_much_to_do()
    ends = scene.begin_to_collect(1)
    scene.wait(apart_s)
    other_ends = scene.begin_to_collect(2)
    scene.wait_until(lambda: ends and other_ends)
    check(scene, set())
    for replicator in (1, 2):
        scene.replicators[replicator - 1].request_collection(scene.slot)
    scene.wait_until(lambda: not gone_wrong(scene))
    check(scene, set())


def test_a_replica_that_restarts_has_no_session_and_keeps_its_floor() -> None:
    scene = a_slot_with_much_to_do()
    held = scene.hold(COMPARE, 1, 2, 3)
    ends = scene.begin_to_collect(1)
    scene.wait_until(lambda: all(each.messages for each in held))
    life = scene.nodes[2].node
    assert life is not None
    floor = life.replica.floors[scene.slot]
    for each in held:
        each.forget()
    scene.restart(3)
    life = scene.nodes[2].node
    assert life is not None
    # Another replicator may have raised it since.
    assert life.replica.floors[scene.slot] >= floor
    assert not life.replica.sessions
    scene.wait_until(lambda: ends)
    assert ends[0].end is End.NOT_ALL_UP


def test_what_was_deleted_strongly_leaves_nothing_and_can_be_put_again() -> None:
    scene = Scene()
    for number in range(3):
        scene.asked(1, Put(b"value %d" % number))
        scene.asked(2, Delete())
        assert scene.collect(1 + number % 2).end is End.COMPLETED
        assert not scene.left()
    scene.asked(1, Put(b"last"))
    assert isinstance(scene.asked(2, Get()).outcome, Found)
    assert scene.verdict is None
