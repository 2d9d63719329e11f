"""Each rule of the protocol is there for something: a scene goes well with it, wrong without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.simulation import collecting_scenes as collecting
from tests.simulation.broken import removals
from tests.simulation.history import Get, Increment, Put
from tests.simulation.replicator_life import few_slots
from tests.simulation.scene import Scene


@pytest.fixture(autouse=True)
def _few_slots() -> Iterator[None]:
    with few_slots(young_ms=300):
        yield


def read_without_write_back() -> str | None:
    """One replica has accepted a change. A read sees it, and the next asks those who have not."""
    scene = Scene()
    scene.asked(1, Put(b"old"))
    scene.ask_until_promised(1, Put(b"new"))
    scene.cut(1, 2, 3)
    scene.wait(0.2)
    scene.cut(2, 3)
    scene.asked(2, Get())
    scene.mend()
    scene.cut(2, 1)
    scene.asked(2, Get())
    return scene.verdict


def blind_retry() -> str | None:
    """One replica has accepted a sum, which a reader finishes; then its coordinator, that lost the
    others, tries again."""
    scene = Scene()
    scene.asked(1, Increment(1))
    scene.ask_until_promised(1, Increment(1))
    scene.cut(1, 2, 3)
    scene.wait(0.1)
    scene.asked(2, Get())
    scene.mend()
    scene.restart(2)
    scene.restart(3)
    scene.asked(2, Get())
    return scene.verdict


def local_expiry() -> str | None:
    """A reader whose clock is ahead sees a value expired, and then one whose clock is behind."""
    scene = Scene()
    scene.replicators[0].set_clock(200)
    scene.replicators[1].set_clock(-200)
    scene.asked(1, Put(b"short-lived", ttl_ms=300))
    scene.wait(0.2)
    scene.asked(1, Get())
    scene.asked(2, Get())
    return scene.verdict


def restamp_after_answer() -> str | None:
    """A write reaches the last replica after another one that was acknowledged later."""
    scene = Scene()
    scene.delay(1, 3, 0.1)
    scene.put(1, b"first")
    scene.put(2, b"second")
    scene.wait(0.5)
    return None if scene.values() == {b"second"} else f"the cells show {scene.values()}"


def no_joint_quorum() -> str | None:
    """All data have moved to two new owners, when a change reaches two old ones alone, and its
    coordinator dies."""
    scene = Scene()
    scene.operator.may_finish = False
    scene.replace([2, 3])
    scene.wait(2.0)
    scene.cut(1, 1, 4, 5)
    scene.ask(1, Put(b"new"))
    scene.wait(0.5)
    scene.replicators[0].stop(power_cut=True)
    scene.mend()
    scene.operator.may_finish = True
    scene.wait(3.0)
    scene.asked(2, Get())
    return scene.verdict


def new_owner_from_one_source() -> str | None:
    """What two old owners have accepted, the third has not; that is whom the new one asks."""
    scene = Scene()
    scene.compare_nothing()
    scene.asked(1, Put(b"old"))
    scene.cut(1, 3)
    scene.asked(1, Put(b"new"))
    scene.cut_operator(1, 2)
    scene.replace([1])
    scene.wait(1.0)
    scene.mend()
    scene.cut(1, 3)
    scene.wait(2.0)
    scene.cut(2, 2)
    scene.asked(2, Get())
    return scene.verdict


scenes: dict[str, Callable[[], str | None]] = {
    "read-without-write-back": read_without_write_back,
    "blind-retry": blind_retry,
    "local-expiry": local_expiry,
    "restamp-after-answer": restamp_after_answer,
    "no-joint-quorum": no_joint_quorum,
    "new-owner-from-one-source": new_owner_from_one_source,
    "new-owner-without-floor": collecting.late_write_to_a_new_owner,
    "no-floor": collecting.late_write,
    "write-below-floor": collecting.late_write,
    "hint-below-floor": collecting.late_hint,
    "learn-below-floor": collecting.late_learn,
    "collect-without-all": collecting.without_all,
    "collect-while-joint": collecting.while_joint,
    "repair-without-session": collecting.repair_of_an_old_session,
    "purge-before-equal": collecting.purge_of_what_differs,
    "purge-any-promise": collecting.purge_of_a_promise,
    "settle-without-cells": collecting.tombstone_of_a_cell_alone,
}


@pytest.mark.parametrize("rule", scenes)
def test_a_scene_goes_well_with_the_rule(rule: str) -> None:
    assert scenes[rule]() is None


@pytest.mark.parametrize("rule", scenes)
def test_the_scene_goes_wrong_without_the_rule(rule: str) -> None:
    with removals[rule]():
        assert scenes[rule]() is not None


def test_every_rule_that_can_be_taken_out_has_its_scene() -> None:
    assert scenes.keys() == removals.keys()
