"""Which port each service of `ydht up` listens on, and who sits on one that is taken.

All ports move together with one base. Offsets from it, for HTTP:

    0 gateway · 1 usermanager · 2, 3, 4 the first three nodes · 5 replicator · 6 keygen
    7, 8, 9 further replicators · 10 and up: the nodes from the fourth

The link port of a service is its HTTP port + 1000.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.core.cluster import port_max
from services.core.errors import FatalError, RestartLater
from services.runtime.port_holder import holder_of, unresolved
from services.runtime.settings import link_port_offset

gateway_offset = 0
usermanager_offset = 1
first_node_offsets = (2, 3, 4)
keygen_offset = 6
later_nodes_offset = 10
# The second replicator is +7; two more fit before the nodes begin again at +10.
replicator_offsets = (5, 7, 8, 9)
replicators_max = len(replicator_offsets)
# Of ports that are taken, those that are told of at length: all of a platform would be a page.
explained_max = 2
# The next node's port would be the gateway's link port.
nodes_max = len(first_node_offsets) + link_port_offset - later_nodes_offset


@dataclass(slots=True, frozen=True)
class PortPlan:
    """The HTTP port of every service, links understood to be 1000 above."""

    gateway: int
    usermanager: int
    nodes: tuple[int, ...]
    replicators: tuple[int, ...]
    keygen: int

    def named(self) -> Iterator[tuple[str, int]]:
        """Every HTTP port with the name of the service that it belongs to."""
        yield "gateway", self.gateway
        yield "usermanager", self.usermanager
        for number, port in enumerate(self.nodes, start=1):
            yield node_name(number), port
        for number, port in enumerate(self.replicators, start=1):
            yield replicator_name(number), port
        yield "keygen", self.keygen


def node_name(number: int) -> str:
    return f"node-{number}"


def replicator_name(number: int) -> str:
    """The only replicator of most installations needs no number."""
    return "replicator" if number == 1 else f"replicator-{number}"


def link_port(http_port: int) -> int:
    return http_port + link_port_offset


def plan_ports(base: int, *, nodes: int, replicators: int) -> PortPlan:
    """Every service's port, or FatalError when there are not enough ports for so many."""
    if not 1 <= nodes <= nodes_max:
        raise FatalError(f"{nodes} nodes asked for: there can be 1 to {nodes_max}")
    if not 1 <= replicators <= replicators_max:
        raise FatalError(
            f"{replicators} replicators asked for: there can be 1 to {replicators_max}"
        )
    node_offsets = [*first_node_offsets, *range(later_nodes_offset, link_port_offset)]
    plan = PortPlan(
        gateway=base + gateway_offset,
        usermanager=base + usermanager_offset,
        nodes=tuple(base + offset for offset in node_offsets[:nodes]),
        replicators=tuple(base + offset for offset in replicator_offsets[:replicators]),
        keygen=base + keygen_offset,
    )
    highest, name = max((link_port(port), name) for name, port in plan.named())
    if base < 1 or highest > port_max:
        raise FatalError(
            f"port base {base} does not fit: ports go from 1 to {port_max}, and the links of "
            f"{name} would be at {highest}"
        )
    return plan


def refuse_taken_ports(host: str, wanted: Mapping[int, str]) -> None:
    """RestartLater if a port of `wanted` (port to the service it is for) can't be listened on;
    FatalError if none can, for want of such a host.

    The text names each such port, and of the first few the service and the process that has it: a
    platform that runs already has all of them. A port may still be lost between this check and the
    service's own bind; the service then says so itself.
    """
    complaints = {
        port: f"port {port}, for {service}, {trouble}"
        for port, service in wanted.items()
        if (trouble := _trouble(host, port)) is not None
    }
    if complaints:
        told = list(complaints.values())[:explained_max]
        if others := [str(port) for port in complaints][explained_max:]:
            told.append(f"nor are {', '.join(others)} free")
        raise RestartLater(f"{'; '.join(told)}; --port-base moves all ports")


def _trouble(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers bind: connections of an earlier run in TIME_WAIT do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except socket.gaierror as error:
            raise unresolved(error) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"is taken by {holder_of(port)}"
            return f"can't be listened on at {host}: {error.strerror}"
    return None
