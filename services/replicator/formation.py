"""Who belongs to the cluster: what becomes of a node that registers.

    forming ──CLUSTER_SIZE nodes──► epoch 1 ──a member comes from a new address──► epoch 3, 5 …

Until the cluster has formed, nothing was promised to anybody: a node may come again with a new
directory, at a new address, in another zone. From then on the map says who belongs to it, and a
member is who it was only with the directory that holds its promises.

Everything here is a function of what is stored. A store of maps (`map_store`) reads, calls
`decide` and writes, all under one lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError, YdhtError

# A text for people names so many nodes; of a large cluster it counts the others.
named_max: Final = 16


class RegistrationRefused(YdhtError):
    """This node is not taken as it is; the text, one line, says why and what to do. Nothing was
    stored."""


class RegistrationWaits(RegistrationRefused):
    """Nor is it taken now, but it may ask again: what stands in its way, such as an address that
    another node is about to leave, may be gone by itself."""


@dataclass(slots=True, frozen=True)
class Registered:
    """A node is known. Without a map the cluster is forming, and waits for `missing` nodes."""

    map: ClusterMap | None
    missing: int


@dataclass(slots=True, frozen=True)
class Decision:
    """What to write, and then what to answer."""

    answer: Registered
    # Whether what the node says of itself is news.
    store_member: bool = False
    # The map of the answer, if it is to be stored.
    new_map: ClusterMap | None = None


def decide(
    registrations: Mapping[str, Member],
    newest: ClusterMap | None,
    member: Member,
    cluster_size: int,
    replication_factor: int,
) -> Decision:
    """What becomes of `member`, given the registrations by node id and the newest map.

    `RegistrationRefused` if it cannot be taken; `FatalError` if more nodes have registered than
    the cluster is to have, which no further registration can mend. Registering again without
    news writes nothing.
    """
    if newest is None:
        return _while_forming(registrations, member, cluster_size, replication_factor)
    return _once_formed(newest, member)


def check_settings(newest: ClusterMap, cluster_size: int, replication_factor: int) -> None:
    """`FatalError` unless the cluster has formed by these settings.

    For the first map that a replicator sees: with other settings it was not meant for this
    cluster, and would have formed another.
    """
    formed_of = len(newest.members)
    if formed_of != cluster_size:
        raise FatalError(
            f"CLUSTER_SIZE is {cluster_size}, but the cluster has formed of {formed_of} nodes "
            f"({_names(newest.nodes)}), and changing that is not available in this version: "
            f"set CLUSTER_SIZE to {formed_of} (`ydht up --nodes {formed_of}`)"
        )
    if newest.replication_factor != min(replication_factor, cluster_size):
        raise FatalError(
            f"REPLICATION_FACTOR is {replication_factor}, but the cluster has formed with "
            f"{newest.replication_factor} replicas of everything, and changing that is not "
            f"available in this version: set REPLICATION_FACTOR to {newest.replication_factor}"
        )


def _while_forming(
    registrations: Mapping[str, Member], member: Member, cluster_size: int, replication_factor: int
) -> Decision:
    others = [known for known in registrations.values() if known.node_id != member.node_id]
    _refuse_another_store(others, member)
    _refuse_same_address(others, member)
    nodes = (*others, member)
    # Only after CLUSTER_SIZE was lowered: with the right one the cluster would have formed.
    if len(nodes) > cluster_size:
        raise FatalError(
            f"CLUSTER_SIZE is {cluster_size}, but {len(nodes)} nodes have registered "
            f"({_names(node.node_id for node in nodes)}): set CLUSTER_SIZE to {len(nodes)}, or "
            "delete those that are no more from the table nodes in PostgreSQL"
        )
    is_news = registrations.get(member.node_id) != member
    if missing := cluster_size - len(nodes):
        return Decision(Registered(None, missing), store_member=is_news)
    formed = ClusterMap(1, min(replication_factor, cluster_size), nodes)
    return Decision(Registered(formed, 0), store_member=is_news, new_map=formed)


def _once_formed(newest: ClusterMap, member: Member) -> Decision:
    known = newest.nodes.get(member.node_id)
    others = [node for node in newest.nodes.values() if node.node_id != member.node_id]
    _refuse_another_store(others, member)
    if known is None:
        raise RegistrationRefused(
            f"node {member.node_id!r} is none of the cluster's, which has formed of "
            f"{_names(newest.nodes)} (epoch {newest.epoch}); joining a formed cluster is not "
            "available in this version"
        )
    if member.store_id != known.store_id:
        raise RegistrationRefused(
            f"node {member.node_id!r} comes with store {member.store_id}, and the cluster knows "
            f"it with store {known.store_id}: either it has lost its directory, and with it what "
            "it promised (give it back the directory it had), or another process is that node, "
            f"at {known.host} port {known.link_port} when it was last heard of (give this one a "
            "NODE_ID of its own)"
        )
    if member == known:
        return Decision(Registered(newest, 0))
    if member.zone != known.zone:
        raise RegistrationRefused(
            f"node {member.node_id!r} comes from zone {member.zone!r}, and the cluster knows it "
            f"in zone {known.zone!r}; another zone would move data, which is not available in "
            f"this version: set ZONE to {known.zone!r}"
        )
    _refuse_same_address(others, member)
    if newest.is_joint:
        raise RegistrationWaits(
            f"node {member.node_id!r} comes from a new address while the membership changes "
            f"(epoch {newest.epoch}): it will be taken once that change is through"
        )
    moved = _moved(newest, member)
    return Decision(Registered(moved, 0), store_member=True, new_map=moved)


def _moved(newest: ClusterMap, member: Member) -> ClusterMap:
    """The map with this member's new address.

    Nobody gains or loses data by it, so every quorum of the joint epoch in between would be one
    of the new epoch too, and it is passed over.
    """
    members = (member if node.node_id == member.node_id else node for node in newest.members)
    return newest.begin_change(members).finish_change()


def _refuse_another_store(others: Iterable[Member], member: Member) -> None:
    for other in others:
        if other.store_id == member.store_id:
            raise RegistrationRefused(
                f"node {member.node_id!r} comes with the store of node {other.node_id!r} "
                f"({member.store_id}): a directory belongs to one node and cannot be copied; "
                "give this node an empty one"
            )


def _refuse_same_address(others: Iterable[Member], member: Member) -> None:
    wanted = _addresses(member)
    for other in others:
        for host, port in sorted(wanted & _addresses(other)):
            raise RegistrationWaits(
                f"node {member.node_id!r} comes from {host} port {port}, which is the address of "
                f"node {other.node_id!r}: give each node an ADVERTISE_HOST or ports of its own"
            )


def _addresses(member: Member) -> set[tuple[str, int]]:
    host = member.host.lower()
    return {(host, member.http_port), (host, member.link_port)}


def _names(node_ids: Iterable[str]) -> str:
    names = sorted(node_ids)
    shown = ", ".join(names[:named_max])
    return shown if len(names) <= named_max else f"{shown} and {len(names) - named_max} more"
