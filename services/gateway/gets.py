"""Reading one key: from the first replica that answers, or by a majority of them."""

from __future__ import annotations

from services.core.errors import FixRequest, PeerError, RetryLater
from services.core.hlc import version_bytes
from services.core.operations import FETCH, UNKNOWN, decode_unknown
from services.core.record import head_bytes, plain, value, visible
from services.core.wire import FAILED, LOST, OK, TIMEOUT
from services.gateway.answers import value_lines
from services.gateway.calls import KeyCall
from services.gateway.keyspace import absent
from services.gateway.queries import no_query
from services.runtime.fleet import FleetNode


class Get(KeyCall):
    """GET and HEAD, which differ in nothing but what leaves of the answer."""

    __slots__ = ()

    def start(self, storage_key: bytes, slot: int) -> None:
        options = self.options
        if self.exchange.query:
            no_query(self.exchange.query)
        if options.if_match is not None:
            raise FixRequest("invalid_header", "If-Match is for changes; reads take If-None-Match")
        if options.strong:
            self.check_no_cache()
            # It takes longer than the others, and is counted apart from them.
            self.operation += "_strong"
            self.ask(FETCH, storage_key, slot)
        else:
            self.platform.reads.start(storage_key, slot, self._found, self._nobody)

    # -- from the first replica that answers

    def _found(self, record: bytes, node: FleetNode) -> None:
        try:
            # Most values never expire: only of others the time matters.
            if record[version_bytes:head_bytes] == plain or (
                record and visible(record, self.platform.clock.wall_ms())
            ):
                answer_value(self, record, node.name)
            else:
                answer_absent(self)
        except Exception:
            # As at the edge of every service: a bug in one request fails that request alone.
            self.fail()

    def _nobody(self, why: str) -> None:
        try:
            self.refuse(RetryLater("no_quorum", f"No replica of this key answers: {why}"))
        except Exception:
            # As above.
            self.fail()

    # -- by a majority

    def told(self, kind: int, body: bytes) -> None:
        if kind == OK:
            if body:
                primary = self.platform.cluster.fleet.route(self.slot).placement.owners[0]
                answer_value(self, body, primary.encode("ascii"))
            else:
                answer_absent(self)
        elif kind == UNKNOWN:
            # What is unknown is whether a value that was there before has been settled; a read
            # has no outcome of its own.
            self.refuse(RetryLater("no_quorum", decode_unknown(body)[1]))
        elif kind in (LOST, TIMEOUT, FAILED):
            self.ask_again(RetryLater("no_replicator", "The replicator of this key gave no answer"))
        else:
            raise PeerError(f"a replicator answered a FETCH with kind {kind}: {body[:200]!r}")


def answer_value(call: KeyCall, record: bytes, node_id: bytes) -> None:
    """200 with the value; 304 if the client has it; both with what is kept beside it."""
    tags = call.options.if_none_match
    lines = value_lines(record, node_id, call.platform.dates)
    if tags is not None and tags.match(record[:version_bytes]):
        call.answer(304, lines, b"")
    else:
        call.answer(200, lines, value(record))


def answer_absent(call: KeyCall) -> None:
    call.refuse(absent(call.key))
