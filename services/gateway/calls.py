"""One request about one key, once it is known whose it is: how it is answered, refused and counted.

What a kind of request does stands in gets.py and changes.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic_ns
from typing import Final

from services.core.cluster import ClusterMap
from services.core.errors import ClientError, FixRequest, InternalError, RetryLater
from services.core.operations import INVALID, REFUSED
from services.core.wire import OVERLOADED
from services.gateway.answers import Dates, placed_members, problem_answer
from services.gateway.cluster import Cluster
from services.gateway.cors import Cors
from services.gateway.options import Options
from services.gateway.reads import Reads
from services.gateway.unknown_outcomes import UnknownOutcomes
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.credential import Credential
from services.runtime.exchange import Exchange
from services.runtime.metering import Meters
from services.runtime.peer import SENT, OwnedLink
from services.runtime.replicators import as_told_to_clients, fault_told, refusal_told

# A client is answered within 5 s of its request, the way there and back included.
call_s_max: Final = 4.9
# An operation has 2 s in a replicator. One that does not answer leaves time for another.
asked_s_max: Final = 2.4
# With less the outcome would be unknown more often than not.
asked_s_min: Final = 0.25
_s_per_ns: Final = 1e-9
# Nothing was done, and another replicator may be able to.
_next_may_do: Final = frozenset(
    (
        "shutting_down",
        "clock_skew",
        "cluster_forming",
        "database_unavailable",
        "no_quorum",
        # It cannot stamp for a moment.
        "no_replicator",
    )
)

log = telemetry.logger("services.gateway")


@dataclass(slots=True, frozen=True)
class Platform:
    """What calls are answered from, and counted by."""

    cluster: Cluster
    reads: Reads
    meters: Meters
    cors: Cors
    clock: Clock
    dates: Dates
    places: Places
    unknown_outcomes: UnknownOutcomes

    def refuse(
        self, exchange: Exchange, options: Options, request_id: bytes, error: ClientError
    ) -> None:
        """Refuse a request of which it is not known whose it is."""
        status, lines, body = problem_answer(error, request_id)
        lines += b"X-Request-ID: %s\r\n" % request_id
        if options.origin:
            lines += self.cors.lines(options.origin)
        exchange.reply(status, lines, body)


class Places:
    """Where a slot is, as answers tell it: made once for each placement of a map."""

    def __init__(self) -> None:
        self._map: ClusterMap | None = None
        self._members: dict[int, bytes] = {}

    def members(self, cluster_map: ClusterMap, slot: int) -> bytes:
        if cluster_map is not self._map:
            self._map, self._members = cluster_map, {}
        placement = cluster_map.placements[slot]
        members = self._members.get(id(placement))
        if members is None:
            # The map keeps its placements, so no other one takes the id of this.
            members = placed_members(placement.owners[0], cluster_map.replication_factor)
            self._members[id(placement)] = members
        return members


class KeyCall:
    """Begun by `start`, which may raise a ClientError, and answered exactly once, by `answer`,
    `refuse` or `fail`.

    Most are put through by a replicator, which `ask` is for: the one of the slot, or, as long as
    nothing was done and there is time, the next one.
    """

    __slots__ = (
        "_body",
        "_kind",
        "_passed",
        "_refusal",
        "began_ns",
        "credential",
        "exchange",
        "key",
        "operation",
        "options",
        "platform",
        "request_id",
        "slot",
    )

    def __init__(
        self,
        platform: Platform,
        exchange: Exchange,
        options: Options,
        credential: Credential,
        operation: str,
        request_id: bytes,
        began_ns: int,
    ) -> None:
        self.platform = platform
        self.exchange = exchange
        self.options = options
        self.credential = credential
        self.operation = operation
        # As the client named it; known before the call is started.
        self.key = b""
        self.request_id = request_id
        self.began_ns = began_ns

    def start(self, storage_key: bytes, slot: int) -> None:
        raise NotImplementedError

    def check_no_cache(self) -> None:
        """For what a cache cannot promise."""
        if self.options.prefix in self.platform.cluster.caches:
            raise FixRequest(
                "invalid_consistency",
                f"The namespace {self.options.namespace.decode()!r} is a cache: there everything "
                "is eventual, without conditions, PATCH and increments",
            )

    # -- answering

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """`lines` are those of this answer alone."""
        platform, exchange, credential = self.platform, self.exchange, self.credential
        now_ns = monotonic_ns()
        lines += b"%sX-Request-ID: %s\r\n" % (credential.allowance.lines(now_ns), self.request_id)
        if self.options.origin:
            lines += platform.cors.lines(self.options.origin)
        exchange.reply(status, lines, body)
        platform.meters.count(
            credential,
            self.operation,
            status,
            len(exchange.body),
            len(body),
            (now_ns - self.began_ns) // 1000,
        )

    def refuse(self, error: ClientError) -> None:
        self.answer(*problem_answer(error, self.request_id))

    def fail(self) -> None:
        """Answer a bug, within the handler of its exception."""
        log.exception("a request failed", request_id=self.request_id.decode("ascii"))
        self.refuse(InternalError())

    # -- by a replicator

    def ask(self, kind: int, body: bytes, slot: int) -> None:
        self._kind = kind
        self._body = body
        self.slot = slot
        self._passed: tuple[OwnedLink, ...] = ()
        self._refusal: ClientError | None = None
        self._ask_next()

    def told(self, kind: int, body: bytes) -> None:
        """What became of it, unless nothing was done."""
        raise NotImplementedError

    def ask_again(self, unless: ClientError) -> None:
        """It may have been done, and to do it twice is no harm: ask the next one."""
        self._refusal = unless
        self._ask_next()

    def _ask_next(self) -> None:
        replicators = self.platform.cluster.replicators
        left_s = call_s_max - (monotonic_ns() - self.began_ns) * _s_per_ns
        if left_s < asked_s_min:
            self.refuse(self._refusal or _too_late())
            return
        timeout_s = min(left_s, asked_s_max)
        while (link := replicators.choose(self.slot, self._passed)) is not None:
            self._passed = (*self._passed, link)
            sent = link.request(self._kind, self._body, self._heard, timeout_s)
            if sent == SENT:
                return
            if sent == OVERLOADED:
                self._refusal = _overloaded()
        self.refuse(self._refusal or replicators.absence)

    def _heard(self, kind: int, body: bytes) -> None:
        try:
            if kind == REFUSED:
                self._refused(body)
            elif kind == INVALID:
                self.refuse(fault_told(body))
            elif kind == OVERLOADED:
                self._refusal = _overloaded()
                self._ask_next()
            else:
                self.told(kind, body)
        except Exception:
            # As at the edge of every service: a bug in one request fails that request alone.
            self.fail()

    def _refused(self, body: bytes) -> None:
        error = refusal_told(body)
        if error.code in _next_may_do:
            self._refusal = as_told_to_clients(error)
            self._ask_next()
        else:
            self.refuse(error)


def _too_late() -> RetryLater:
    return RetryLater("no_replicator", "There was no time left to ask a replicator")


def _overloaded() -> RetryLater:
    return RetryLater(
        "overloaded", "The replicator of this key has too much to do; nothing was done"
    )
