"""Each rule of the protocol is there for something: a scene goes well with it, wrong without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.core.ballots import LEARN, encode_learn
from services.core.messages import WRITE, encode_write
from services.core.record import value_body
from tests.simulation.broken import removals
from tests.simulation.history import Get, Increment, Put
from tests.simulation.scene import Scene


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


def _resurrected(scene: Scene) -> str | None:
    values = scene.values()
    return f"what was deleted and collected is back: {values}" if values else None


def new_owner_without_floor() -> str | None:
    """What the old owners have collected comes late to a new one."""
    scene = Scene()
    record = scene.stamp + value_body(b"old")
    scene.raise_floor(scene.stamp, 1, 2, 3)
    scene.replace([1])
    scene.wait(2.0)
    scene.send(4, WRITE, encode_write(scene.map.epoch, scene.key, record))
    return _resurrected(scene)


def write_below_floor() -> str | None:
    scene = Scene()
    record = scene.stamp + value_body(b"old")
    scene.raise_floor(scene.stamp, 1, 2, 3)
    scene.send(1, WRITE, encode_write(scene.map.epoch, scene.key, record))
    return _resurrected(scene)


def hint_below_floor() -> str | None:
    scene = Scene()
    record = scene.stamp + value_body(b"old")
    scene.raise_floor(scene.stamp, 1, 2, 3)
    scene.owe(1, record)
    return _resurrected(scene)


def learn_below_floor() -> str | None:
    scene = Scene()
    ballot = scene.stamp
    scene.raise_floor(scene.stamp, 1, 2, 3)
    record = ballot + value_body(b"old")
    scene.send(1, LEARN, encode_learn(scene.map.epoch, ballot, scene.key, record))
    return _resurrected(scene)


scenes: dict[str, Callable[[], str | None]] = {
    "read-without-write-back": read_without_write_back,
    "blind-retry": blind_retry,
    "local-expiry": local_expiry,
    "restamp-after-answer": restamp_after_answer,
    "no-joint-quorum": no_joint_quorum,
    "new-owner-from-one-source": new_owner_from_one_source,
    "new-owner-without-floor": new_owner_without_floor,
    "write-below-floor": write_below_floor,
    "hint-below-floor": hint_below_floor,
    "learn-below-floor": learn_below_floor,
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
