"""Scenes of collections, each told so that one rule of theirs decides how it ends.

Each gives back what is wrong at the end, or None.
"""

from __future__ import annotations

from services.core.ballots import ACCEPT, LEARN, encode_learn
from services.core.messages import WRITE, encode_write
from services.core.record import value_body
from services.core.sessions import PURGE, REPAIR
from services.replicator.collection_end import End
from tests.simulation.history import IF_ABSENT, Delete, Put
from tests.simulation.scene import Scene

# In which replicas are compared, and what could not be collected at once is tried again.
mended_s = 12.0


def shown(scene: Scene) -> str | None:
    values = scene.values()
    return f"what was deleted and collected is back: {values}" if values else None


def collected(scene: Scene) -> None:
    """What was put and deleted is collected."""
    scene.put(1, b"old")
    scene.delete(2)
    scene.wait(0.2)
    assert scene.collect(2).end is End.COMPLETED
    assert not scene.left()


def late_write() -> str | None:
    """A put comes to one replica after it was deleted and collected."""
    scene = Scene()
    held = scene.hold(WRITE, 3, of=1)
    collected(scene)
    scene.let_go(held)
    return shown(scene)


def late_write_to_a_new_owner() -> str | None:
    """The same, to one that has come to own the slot since."""
    scene = Scene()
    record = scene.stamp + value_body(b"old")
    collected(scene)
    scene.replace([1])
    scene.wait(2.0)
    scene.send(4, WRITE, encode_write(scene.map.epoch, scene.key, record))
    return shown(scene)


def late_hint() -> str | None:
    """A replicator has kept a put for a replica that has heard of its end by now."""
    scene = Scene()
    record = scene.stamp + value_body(b"old")
    collected(scene)
    scene.owe(1, record)
    return shown(scene)


def late_learn() -> str | None:
    """What was accepted comes to a cell after it was deleted and collected."""
    scene = Scene()
    ballot = scene.stamp
    collected(scene)
    record = ballot + value_body(b"old")
    scene.send(1, LEARN, encode_learn(scene.map.epoch, ballot, scene.key, record))
    return shown(scene)


def without_all() -> str | None:
    """One replica is down when what it has is deleted, and whoever deleted it is lost."""
    scene = Scene()
    scene.put(1, b"old")
    scene.wait(0.1)
    scene.nodes[2].stop(power_cut=False)
    scene.wait(0.5)
    scene.delete(1)
    scene.lose(1)
    scene.collect(2)
    scene.nodes[2].start()
    scene.wait(mended_s)
    return shown(scene)


def while_joint() -> str | None:
    """A new owner has been told what there was, and pauses before it has it; in the meantime that
    is deleted and collected, and who deleted it is lost."""
    scene = Scene()
    scene.put(1, b"old")
    scene.replace([3])
    new = scene.nodes[3]
    scene.wait_until(lambda: scene.operator.moves[0].found)
    new.pause()
    scene.wait(0.3)
    scene.delete(1)
    scene.lose(1)
    scene.collect(2)
    new.resume()
    scene.wait(mended_s)
    return shown(scene)


def repair_of_an_old_session() -> str | None:
    """What one replica lacks is on its way to it when another session begins; it comes when that
    was deleted and collected."""
    scene = Scene()
    scene.hold(WRITE, 3, of=1)
    scene.put(1, b"old")
    held = scene.hold(REPAIR, 3, of=1)
    scene.begin_to_collect(1)
    scene.wait_until(lambda: held[0].messages)
    scene.delete(2)
    scene.wait(0.2)
    scene.collect(2)
    scene.let_go(held)
    return shown(scene)


def purge_of_what_differs() -> str | None:
    """One replica has not heard of a delete when the others are to forget it."""
    scene = Scene()
    scene.put(1, b"old")
    scene.wait(0.1)
    scene.hold(WRITE, 3, of=1)
    scene.delete(1)
    scene.lose(1)
    scene.collect(2)
    return shown(scene)


def purge_of_a_promise() -> str | None:
    """A change was promised to before what it is based on is forgotten, and comes to be accepted
    after another one that began afterwards."""
    scene = Scene()
    scene.asked(1, Put(b"old"))
    scene.asked(1, Delete())
    purges = scene.hold(PURGE, 1, 2, 3)
    scene.begin_to_collect(2)
    scene.wait_until(lambda: all(each.messages for each in purges))
    scene.replicators[0].set_clock(400)
    accepts = scene.hold(ACCEPT, 1, 2, 3, of=1)
    scene.ask(1, Put(b"one", guard=IF_ABSENT))
    scene.wait_until(lambda: all(each.messages for each in accepts))
    scene.let_go(purges)
    scene.asked(2, Put(b"other", guard=IF_ABSENT))
    scene.let_go(accepts)
    return scene.verdict


def tombstone_of_a_cell_alone() -> str | None:
    """What was accepted lives, and has ended in the cells."""
    scene = Scene()
    scene.asked(1, Put(b"old"))
    scene.delete(1)
    scene.wait(0.2)
    scene.collect(2)
    left = scene.left()
    return f"it is never collected: {left}" if left else None
