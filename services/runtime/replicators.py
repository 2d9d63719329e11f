"""The replicators as a service sees them that asks them: a link to each, and whom to ask.

Any replicator can do whatever is asked of one. What is about a key goes to the one of its slot
(`choose`); for the rest a process keeps to the first live one in an order of its own, drawn at
random, so that many processes spread over all of them. Who has not been heard of for a moment is
asked last, and a request goes to the next one as long as nothing was done:

    DOWN, OVERLOADED, UNKNOWN_KIND, REFUSED with a code to retry by    ──► the next replicator
    LOST, TIMEOUT, FAILED, UNKNOWN    it may have been done            ──► UnknownOutcome, or the
                                      next one if to do it twice is no harm; RetryLater if there
                                      was nothing to do

`choose` is for hot paths, which ask by callbacks and decide themselves who is next. `ask` is for
everybody else: it is awaited, and raises what became of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from services.core.errors import CATALOGUE, FixRequest, PeerError, RetryLater, UnknownOutcome
from services.core.messages import MALFORMED
from services.core.operations import REFUSED, UNKNOWN, decode_refused, decode_unknown
from services.core.wire import DOWN, FAILED, LOST, OVERLOADED, TIMEOUT, UNKNOWN_KIND, Hello, Role
from services.runtime import telemetry
from services.runtime.edge import new_request_id
from services.runtime.link import Link, Station
from services.runtime.link_limits import silent_s_max
from services.runtime.metrics import Metrics
from services.runtime.opening import Admit, anyone
from services.runtime.peer import SENT, OwnedLink
from services.runtime.settings import link_port_offset

Answer = tuple[int, bytes]

log = telemetry.logger(__name__)

_not_taken: Final = frozenset((DOWN, OVERLOADED, UNKNOWN_KIND))
_undecided: Final = frozenset((LOST, TIMEOUT, FAILED))
# What a URL without a port means; nobody runs a replicator there, but it is what was said.
_http_port: Final = 80


def links_to_replicators(
    urls: Sequence[str], station: Station, *, admit: Admit = anyone
) -> list[Link]:
    """A link for each URL of REPLICATOR_URLS, not started yet, in the order of the URLs: all who
    name the same ones have them in the same order."""
    links = []
    for url in sorted(urls):
        place = urlsplit(url)
        link = Link(
            station,
            place.hostname or "",
            (place.port or _http_port) + link_port_offset,
            admit=admit,
            absence=f"no replicator yet at {url} (REPLICATOR_URLS); waiting",
        )
        links.append(link)
    return links


def only_replicators(hello: Hello) -> str | None:
    """Admit no other service that has taken a replicator's address."""
    if hello.role is Role.REPLICATOR:
        return None
    return f"expected a replicator here, found {hello.role.name.lower()} {hello.id}"


class Replicators:
    """Owns the links that it is given, from `start` to `close`."""

    def __init__(self, links: Sequence[OwnedLink], draw: random.Random) -> None:
        # Neither is ever reordered: who was away and is back is asked again at once.
        self._links = draw.sample(links, len(links))
        self._by_slot = tuple(links)

    def start(self) -> None:
        for link in self._links:
            link.start()

    async def close(self, drain_s: float = 0.0) -> None:
        """Ask nothing more, and finish what is under way within `drain_s`."""
        await asyncio.gather(*(link.close(drain_s) for link in self._links))

    @property
    def live(self) -> int:
        """How many would take a request now and have been heard of lately."""
        return sum(map(_is_live, self._links))

    @property
    def count(self) -> int:
        """How many there are, whether they answer or not."""
        return len(self._links)

    def add_to(self, metrics: Metrics) -> None:
        metrics.add("replicators_live", "gauge", "Replicators that answer", lambda: self.live)

    def choose(self, slot: int, passed: Sequence[OwnedLink] = ()) -> OwnedLink | None:
        """Whom to ask about keys of this slot, now that these were asked in vain: the same for
        every process that was given the same replicators, so that those who write one key meet in
        one of them. The first live one, else one that is at least connected; None if there is
        none."""
        links = self._by_slot
        count = len(links)
        for place in range(slot, slot + count):
            link = links[place % count]
            if link.connected and link.silent_s() < silent_s_max and link not in passed:
                return link
        return next((link for link in links if link.connected and link not in passed), None)

    @property
    def absence(self) -> RetryLater:
        """What to say where nobody can be asked. Why is in the log, by each link: it names places
        that are none of a client's business."""
        return RetryLater("no_replicator", "No replicator can be asked now")

    async def ask(
        self,
        kind: int,
        body: bytes,
        timeout_s: float,
        *,
        repeatable: bool = False,
        reads: bool = False,
    ) -> Answer:
        """The kind and body of an answer that tells of something done, or of why not for good.

        What is `repeatable` does no harm when it is done twice: the next one is asked also when
        it is not known whether it was done. What only `reads` is repeatable, and has no outcome
        that could be unknown. `timeout_s` is for all of them together; each that can be asked has
        an equal share of what is left of it then, for one may never answer.

        RetryLater if nobody took it, with the last one's reason or `no_replicator`; UnknownOutcome
        if it may have been done; PeerError if a replicator does not understand us.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        refusal = self.absence
        unknown: UnknownOutcome | None = None
        links = sorted(self._links, key=_is_live, reverse=True)
        for number, link in enumerate(links):
            left_s = until_s - loop.time()
            if left_s <= 0:
                break
            if repeatable or reads:
                left_s /= max(1, sum(other.connected for other in links[number:]))
            name = link.peer.id if link.peer is not None else "a replicator"
            kind_told, told = await _answer(link, kind, body, left_s)
            if reads and (kind_told in _undecided or kind_told == UNKNOWN):
                refusal = _unread(name, kind_told, told)
            elif kind_told in _undecided or kind_told == UNKNOWN:
                unknown = _unknown(name, kind_told, told)
                if not repeatable:
                    raise unknown
            elif kind_told == REFUSED:
                refusal = as_told_to_clients(refusal_told(told))
            elif kind_told == MALFORMED:
                raise PeerError(f"{name} does not understand us: {told.decode(errors='replace')}")
            elif kind_told not in _not_taken:
                return kind_told, told
            elif kind_told != DOWN:
                refusal = RetryLater("overloaded", _why_not_taken(name, kind_told))
        raise unknown or refusal


def _is_live(link: OwnedLink) -> bool:
    return link.connected and link.silent_s() < silent_s_max


async def _answer(link: OwnedLink, kind: int, body: bytes, timeout_s: float) -> Answer:
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def on_answer(kind: int, body: bytes) -> None:
        # Who asked may have given up.
        if not answer.done():
            answer.set_result((kind, body))

    sent = link.request(kind, body, on_answer, timeout_s)
    return await answer if sent == SENT else (sent, b"")


def refusal_told(body: bytes) -> RetryLater:
    """Why a replicator did nothing. PeerError if that is between it and us, such as a role that
    may not ask: no client can do anything about it."""
    code, text = decode_refused(body)
    entry = CATALOGUE.get(code)
    if entry is None or entry.status not in RetryLater.statuses:
        raise PeerError(f"a replicator refuses us: {code}: {text}")
    return RetryLater(code, text)


def as_told_to_clients(refusal: RetryLater) -> RetryLater:
    """A replicator that cannot stamp for a moment, since its disk is slow, refuses as if it was not
    there, so that the next one is asked. Where there is none it was there, and has too much to
    do."""
    if refusal.code == "no_replicator":
        return RetryLater("overloaded", refusal.detail, retry_after_s=refusal.retry_after_s)
    return refusal


def fault_told(body: bytes) -> FixRequest:
    """What is wrong with a request that a replicator found INVALID."""
    code, text = decode_refused(body)
    entry = CATALOGUE.get(code)
    if entry is None or entry.status not in FixRequest.statuses:
        raise PeerError(f"a replicator finds a request wrong: {code}: {text}")
    return FixRequest(code, text)


def _unread(name: str, kind: int, body: bytes) -> RetryLater:
    if kind == UNKNOWN:
        return RetryLater("no_quorum", decode_unknown(body)[1])
    return RetryLater("no_replicator", f"{name} gave no answer")


def _unknown(name: str, kind: int, body: bytes) -> UnknownOutcome:
    if kind == UNKNOWN:
        operation, text = decode_unknown(body)
        return UnknownOutcome(text, operation_id=operation.hex())
    asking = telemetry.request_id.get()
    operation_id = new_request_id() if asking == telemetry.no_request_id else asking
    why = f"{name} did not tell what became of it"
    log.warning("an outcome is unknown", operation=operation_id, kind=kind, reason=why)
    return UnknownOutcome(why, operation_id=operation_id)


def _why_not_taken(name: str, kind: int) -> str:
    if kind == OVERLOADED:
        return f"{name} has too much to do"
    return f"{name} is of an older version, which does not know this request"
