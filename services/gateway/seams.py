"""What the JSON routes of a gateway need of the rest of it: of its cluster and replicators."""

from __future__ import annotations

from typing import Protocol

from services.core.errors import RetryLater
from services.gateway.nodes import Answer
from services.runtime.fleet import Fleet
from services.runtime.speakers import Speakers


class Asking(Protocol):
    """Whoever asks replicators."""

    async def ask(
        self,
        kind: int,
        body: bytes,
        timeout_s: float,
        *,
        repeatable: bool = False,
        reads: bool = False,
    ) -> Answer: ...


class Nodes(Protocol):
    """The nodes of the cluster, and who speaks for which slots."""

    @property
    def fleet(self) -> Fleet: ...
    @property
    def speakers(self) -> Speakers: ...
    @property
    def absence(self) -> RetryLater:
        """What to say as long as there is no map."""
        ...


class WholeCluster(Nodes, Protocol):
    """The nodes, the replicators, and which namespaces are caches."""

    @property
    def replicators(self) -> Asking: ...
    @property
    def caches(self) -> frozenset[bytes]: ...
