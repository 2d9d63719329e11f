"""Since when each node is as it is, for people who look at the cluster."""

from __future__ import annotations

from services.runtime.clock import Clock
from services.runtime.fleet import FleetNode, node_state


class NodeStates:
    """What this replicator has seen since its own start."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ms = clock.wall_ms()
        # By node, its state when that changed last, and the time by the wall clock.
        self._changed: dict[str, tuple[str, int]] = {}

    def changed(self, node: FleetNode) -> None:
        """News of a node, which may be in another state now."""
        state = node_state(node)
        if self._changed.get(node.node_id, ("", 0))[0] != state:
            self._changed[node.node_id] = state, self._clock.wall_ms()

    def since_ms(self, node: FleetNode) -> int:
        """Since when it is in its present state, or our start if that was later."""
        if node.node_id not in self._changed:
            return self._began_ms
        self.changed(node)
        return self._changed[node.node_id][1]
