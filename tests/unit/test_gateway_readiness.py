"""A gateway is ready while there is something that it can do."""

from __future__ import annotations

import pytest

from services.core.ring import slot_count
from services.gateway.readiness import has_replicas
from services.runtime.probes import ready
from tests.unit.gateway_world import GatewayWorld

noticed_s = 2.0


@pytest.mark.parametrize(
    ("nodes", "away", "level", "told"),
    [
        (3, 1, "degraded", "the others answer for node-1, which cannot be reached"),
        (3, 2, "degraded", "the others answer for node-1, node-2"),
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
