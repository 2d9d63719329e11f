"""A gateway is ready while there is something that it can do."""

from __future__ import annotations

import random

import pytest

from services.core.ring import slot_count
from services.core.wire import Role
from services.gateway.readiness import has_replicas, has_replicators
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork
from services.runtime.link import Station, reconnect_s_max
from services.runtime.opening import Identity
from services.runtime.probes import ready
from services.runtime.replicators import Replicators
from tests.unit.gateway_world import GatewayWorld

noticed_s = 2.0


@pytest.mark.parametrize(
    ("nodes", "away", "level", "told"),
    [
        (3, 1, "degraded", "the others answer for node-1, which cannot be reached"),
        (3, 2, "degraded", f"strong requests are refused for {slot_count:,} of {slot_count:,}"),
        (3, 3, "unready", f"{slot_count:,} of {slot_count:,} slots cannot be read: node-1, node-2"),
        (6, 6, "unready", f"{slot_count:,} of {slot_count:,} slots cannot be read: node-1, node-2"),
    ],
)
def test_it_is_unready_where_no_slot_can_be_read_and_only_there(
    nodes: int, away: int, level: str, told: str
) -> None:
    world = GatewayWorld(nodes)
    assert has_replicas(world.fleet) == ready
    for number in range(1, away + 1):
        world.world.nodes[f"node-{number}"].crash()
    world.world.pass_time(noticed_s)
    condition = has_replicas(world.fleet)
    assert condition.level == level
    assert condition.reason.startswith(told)


def test_slots_that_can_still_be_read_leave_it_ready() -> None:
    world = GatewayWorld(6)
    for number in range(1, 6):
        world.world.nodes[f"node-{number}"].crash()
    world.world.pass_time(noticed_s)
    condition = has_replicas(world.fleet)
    assert condition.level == "degraded"
    lacking = int(condition.reason.split()[0].replace(",", ""))
    assert 0 < lacking < slot_count


def test_it_tells_of_each_replicator_until_it_can_ask_it_again() -> None:
    timeline, network = Timeline(), FakeNetwork(random.Random(1))
    names = ["replicator-1", "replicator-2"]

    def serve(name: str, role: Role = Role.REPLICATOR) -> None:
        network.attach(Station(Identity(role, name, "secret" * 8)), FakeClock(timeline))

    for name in names:
        serve(name)
    serve("gateway-1", Role.GATEWAY)
    links = [FakeLink(network, "gateway-1", name) for name in names]
    replicators = Replicators(links, random.Random(1))
    replicators.start()
    timeline.advance(0.1)
    assert has_replicators(replicators) == ready
    network.crash("replicator-1")
    timeline.advance(noticed_s)
    condition = has_replicators(replicators)
    assert condition.level == "degraded"
    assert condition.reason == "1 of 2 replicators cannot be asked; the others are"
    serve("replicator-1")
    assert has_replicators(replicators) == condition, "it is back, and the link to it is not"
    timeline.advance(reconnect_s_max)
    assert has_replicators(replicators) == ready
    for name in names:
        network.crash(name)
    timeline.advance(noticed_s)
    assert has_replicators(replicators).reason.startswith("writes and strong reads are refused")
