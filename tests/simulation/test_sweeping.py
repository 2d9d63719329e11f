"""What a coordinator leaves unfinished when it dies, and what others do about it."""

from __future__ import annotations

from services.core.ballots import UNLEARNED, encode_unlearned
from services.core.messages import WRITE, decode_get_many, encode_write
from tests.simulation.history import Put
from tests.simulation.scene import Scene


def accepted_by_all(scene: Scene) -> bytes:
    """A change is accepted by every node, and learned by none; its record."""
    scene.ask_until_promised(1, Put(b"value"))
    lives = [machine.node for machine in scene.nodes if machine.node is not None]
    while sum(life.acceptor.unlearned for life in lives) < len(lives):
        assert scene.timeline.step()
    scene.replicators[0].stop(power_cut=True)
    scene.wait(0.1)
    return lives[0].replica.promises.get(scene.slot, scene.key).record


def unlearned(scene: Scene, node: int) -> list[bytes]:
    return decode_get_many(scene.send(node, UNLEARNED, encode_unlearned(0, 10)))


def test_what_a_dead_coordinator_had_accepted_is_learned_everywhere() -> None:
    scene = Scene()
    accepted_by_all(scene)
    assert [unlearned(scene, node) for node in (1, 2, 3)] == [[scene.key]] * 3
    scene.wait(6.0)
    assert [unlearned(scene, node) for node in (1, 2, 3)] == [[]] * 3
    assert scene.values() == {b"value"}


def test_those_that_take_all_places_finish_what_those_before_them_had_accepted() -> None:
    scene = Scene()
    record = accepted_by_all(scene)
    scene.replace([1, 2, 3])
    scene.wait_until(lambda: not scene.operator.busy)
    # Nobody has finished it before, and those who were told that it was accepted are gone.
    newcomers = [machine.node for machine in scene.nodes[3:]]
    for life in newcomers:
        assert life is not None
        assert life.replica.promises.get(scene.slot, scene.key).record == record
        assert life.replica.table.peek(scene.slot, scene.key) is None
    assert {machine.name for machine in scene.nodes[3:]} == set(scene.map.owners(scene.slot))
    scene.wait(6.0)
    assert scene.values() == {b"value"}


def test_what_a_write_has_brought_meanwhile_is_not_unlearned_any_more() -> None:
    scene = Scene()
    record = accepted_by_all(scene)
    scene.send(1, WRITE, encode_write(scene.map.epoch, scene.key, record))
    assert [unlearned(scene, node) for node in (1, 2, 3)] == [[], [scene.key], [scene.key]]
