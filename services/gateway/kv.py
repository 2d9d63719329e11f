"""The requests about one key, `/v1/kv/{key}`: one module, whatever brings the requests.

    exchange ──whose it is──► a token taken ──► understood ──► a call of its own (gets, changes)
        └── a key that is not known: looked up first, in a task

It is a hot path from the head of a request to its answer: bytes and callbacks, no task, future,
timer, log line or JSON document that is not the answer itself. What does not depend on the key is
understood once for each set of headers (options.py). From `begin` to the reply it takes 6.2 us for
an eventual GET and 7.1 us for a PUT of 100 bytes, all of calls.py, reads.py and answers.py
included, links and connections not (CPython 3.11, 2.1 GHz).

A refusal costs what an answer does: it takes a token and is counted, once it is known whose it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from operator import attrgetter
from time import monotonic_ns
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from services.core.errors import ClientError, FixRequest, InternalError, RetryLater
from services.core.key import check_key
from services.core.key_checks import Scope
from services.core.record import value_bytes_max
from services.core.ring import slot_of
from services.gateway.calls import KeyCall, Platform
from services.gateway.changes import Delete, Expire, Increment, Put
from services.gateway.gets import Get
from services.gateway.keyspace import check_allowed
from services.gateway.options import Options
from services.gateway.unheeded import check_heeded
from services.runtime import telemetry
from services.runtime.body_room import BodyRoom
from services.runtime.client_address import ClientAddresses, network_of
from services.runtime.credential import Credential
from services.runtime.credentials import Credentials
from services.runtime.exchange import Exchange, Headers
from services.runtime.key_access import challenged, check_scope, too_many
from services.runtime.text_members import half_escaped

path_prefix: Final = b"/v1/kv/"
_path_bytes: Final = len(path_prefix)
# Requests whose API keys are looked up just now, and what their clients have sent.
lookups_max: Final = 2_000
lookup_bytes_max: Final = 64 << 20

# Shorter than the longest that is allowed.
usual_key_bytes: Final = 256

_increment: Final = b"/incr"
_s_per_ns: Final = 1e-9

log = telemetry.logger("services.gateway")


class Method(NamedTuple):
    # What its requests are counted as.
    operation: str
    scope: Scope
    # Whether a credential has that scope; who has not is told so by `check_scope`.
    allowed: Callable[[Credential], bool]
    call: type[KeyCall]


_may_read: Final = attrgetter("may_read")
_may_write: Final = attrgetter("may_write")
methods: Final[Mapping[bytes, Method]] = MappingProxyType(
    {
        b"GET": Method("get", "read", _may_read, Get),
        b"HEAD": Method("head", "read", _may_read, Get),
        b"PUT": Method("put", "write", _may_write, Put),
        b"DELETE": Method("delete", "write", _may_write, Delete),
        b"PATCH": Method("patch", "write", _may_write, Expire),
        # Of the path /v1/kv/{key}/incr.
        b"POST": Method("incr", "write", _may_write, Increment),
    }
)


class KeyValue:
    """The lane of a gateway (runtime/exchange.py)."""

    def __init__(
        self,
        platform: Platform,
        credentials: Credentials,
        addresses: ClientAddresses,
        room: BodyRoom,
    ) -> None:
        self.body_bytes_max = value_bytes_max
        self.room = room
        self.platform = platform
        self._credentials = credentials
        self._addresses = addresses
        self._lookups: set[asyncio.Task[None]] = set()
        self._lookup_bytes = 0
        # Ids of requests that brought none: nobody else's, and cheap.
        self._id_mark = os.urandom(8).hex().encode("ascii")
        self._id = 0

    @property
    def looking_up(self) -> int:
        return len(self._lookups)

    def takes(self, method: bytes, path: bytes, headers: Headers) -> bool:
        # What browsers ask before they ask, and what is signed, goes through the application.
        return (
            path.startswith(path_prefix) and method != b"OPTIONS" and not options_of(headers).signed
        )

    def refusal(self, exchange: Exchange) -> ClientError | None:
        options = options_of(exchange.headers)
        if self._cached(options) is not None:
            return None
        if options.nobody is not None:
            return options.nobody
        error = self._credentials.refusal(options.api_key)
        return None if error is None else challenged(error)

    def whose(self, exchange: Exchange) -> Hashable:
        credential = self._cached(options_of(exchange.headers))
        if credential is not None:
            return credential.whose
        return network_of(self._addresses.behind(exchange.address, exchange.headers.fields))

    def _cached(self, options: Options) -> Credential | None:
        return self._credentials.cached(options.api_key, monotonic_ns() * _s_per_ns)

    def begin(self, exchange: Exchange) -> None:
        began_ns = monotonic_ns()
        options = options_of(exchange.headers)
        credential = options.credential
        now_s = began_ns * _s_per_ns
        if credential is None or now_s >= credential.usable_until_s:
            credential = self._credentials.cached(options.api_key, now_s)
            if credential is None:
                self._begin_later(exchange, options, began_ns)
                return
            options.belongs_to(credential)
        self.begin_for(exchange, options, credential, began_ns)

    def begin_for(
        self, exchange: Exchange, options: Options, credential: Credential, began_ns: int
    ) -> None:
        """Answer for the owner of the credential, whom the options belong to."""
        path, name = exchange.path, exchange.method
        method = methods.get(name)
        end = None
        if name == b"POST":
            method, end = (method, -len(_increment)) if _is_increment(path) else (None, None)
        if method is None:
            self._refuse_to(credential, exchange, "other", _not_allowed(exchange))
            return
        call = method.call(
            self.platform,
            exchange,
            options,
            credential,
            method.operation,
            options.request_id or self._new_id(),
            began_ns,
        )
        wait_ns = credential.allowance.take(1, began_ns)
        if wait_ns:
            call.refuse(too_many(1, wait_ns))
        elif options.problem is not None:
            call.refuse(options.problem)
        else:
            try:
                if not method.allowed(credential):
                    check_scope(credential, method.scope)
                self._start(call, path[_path_bytes:end])
            except ClientError as error:
                call.refuse(error)
            except Exception:
                # As at the edge of every service: a bug in one request fails that request alone.
                call.fail()

    def _start(self, call: KeyCall, key: bytes) -> None:
        if b"%" in key:
            key = _decoded(key)
        # Nearly all keys are such; the others are looked at more closely.
        if not (0 < len(key) < usual_key_bytes and key.isascii()):
            check_key(key)
        if call.credential.key_prefix:
            check_allowed(call.credential, key)
        if call.options.unheeded:
            check_heeded(call.exchange.method, call.options.unheeded)
        if self.platform.cluster.fleet.map is None:
            raise self.platform.cluster.absence
        call.key = key
        storage_key = call.options.prefix + key
        call.start(storage_key, slot_of(storage_key))

    def too_large(self, exchange: Exchange) -> None:
        if exchange.method == b"PUT":
            code, larger = "value_too_large", f"The value is larger than {value_bytes_max} bytes"
        else:
            code, larger = "body_too_large", f"The body is larger than {value_bytes_max} bytes"
        self.refuse(exchange, FixRequest(code, _and_unchanged(exchange, larger)))

    def timed_out(self, exchange: Exchange) -> None:
        what = "value" if exchange.method == b"PUT" else "body"
        late = f"The {what} did not arrive in time"
        self.refuse(exchange, FixRequest("request_timeout", _and_unchanged(exchange, late)))

    async def close(self) -> None:
        """Look up nothing more; who still waits for it is refused."""
        for lookup in self._lookups:
            lookup.cancel()
        if self._lookups:
            await asyncio.wait(self._lookups)
        self.platform.unknown_outcomes.close()

    # -- keys that are not known

    def _begin_later(self, exchange: Exchange, options: Options, began_ns: int) -> None:
        """Answer once it is known whose key it is, or that it is nobody's."""
        if options.nobody is not None:
            self.refuse_to_nobody(exchange, options.nobody)
            return
        size = len(exchange.body)
        if len(self._lookups) >= lookups_max or self._lookup_bytes + size > lookup_bytes_max:
            busy = f"{len(self._lookups)} other requests wait for their API keys to be checked"
            self.refuse_to_nobody(exchange, RetryLater("overloaded", busy))
            return
        self._lookup_bytes += size
        lookup = asyncio.create_task(self._look_up(exchange, options, began_ns))
        self._lookups.add(lookup)
        lookup.add_done_callback(partial(self._looked_up, size))

    def _looked_up(self, size: int, lookup: asyncio.Task[None]) -> None:
        self._lookups.discard(lookup)
        self._lookup_bytes -= size

    async def _look_up(self, exchange: Exchange, options: Options, began_ns: int) -> None:
        address = self._addresses.behind(exchange.address, exchange.headers.fields)
        try:
            credential = await self._credentials.find(options.api_key, address)
        except FixRequest as error:
            self.refuse_to_nobody(exchange, challenged(error))
        except ClientError as error:
            self.refuse_to_nobody(exchange, error)
        except asyncio.CancelledError:
            self.refuse_to_nobody(exchange, RetryLater("shutting_down", "This gateway ends"))
            raise
        except Exception:
            log.exception("an API key could not be looked up")
            self.refuse_to_nobody(exchange, InternalError())
        else:
            options.belongs_to(credential)
            self.begin_for(exchange, options, credential, began_ns)

    # -- refusals of what is not begun

    def refuse(self, exchange: Exchange, error: ClientError) -> None:
        """Refuse a request that has not come as a whole. Nobody is asked whose it is, for it may be
        anybody's; if that is known it is told as every other."""
        credential = self._cached(options_of(exchange.headers))
        if credential is None:
            self.refuse_to_nobody(exchange, error)
            return
        method = methods.get(exchange.method)
        self._refuse_to(credential, exchange, method.operation if method else "other", error)

    def _refuse_to(
        self, credential: Credential, exchange: Exchange, operation: str, error: ClientError
    ) -> None:
        options, now_ns = options_of(exchange.headers), monotonic_ns()
        request_id = options.request_id or self._new_id()
        call = KeyCall(self.platform, exchange, options, credential, operation, request_id, now_ns)
        # If there is one.
        credential.allowance.take(1, now_ns)
        call.refuse(error)

    def refuse_to_nobody(self, exchange: Exchange, error: ClientError) -> None:
        """Refuse a request of which it is not known whose it is, or does not matter."""
        options = options_of(exchange.headers)
        self.platform.refuse(exchange, options, options.request_id or self._new_id(), error)

    def _new_id(self) -> bytes:
        self._id += 1
        return b"%s-%x" % (self._id_mark, self._id)


def options_of(headers: Headers) -> Options:
    """What these headers ask for; the same object as long as the headers are the same."""
    options = headers.memo
    if options is None:
        options = headers.memo = Options(headers.fields)
    # Nobody else leaves anything there; an assertion would be paid for by every request.
    return options  # type: ignore[return-value]


def _is_increment(path: bytes) -> bool:
    # There is a key before it: /v1/kv/incr is about the key "incr".
    return path.endswith(_increment, _path_bytes)


def _decoded(key: bytes) -> bytes:
    if half_escaped.search(key) is not None:
        raise FixRequest("invalid_key", "A % in the key is not followed by two hexadecimal digits")
    return unquote_to_bytes(key)


def _and_unchanged(exchange: Exchange, problem: str) -> str:
    method = methods.get(exchange.method)
    reads = method is not None and method.scope == "read"
    return problem if reads else f"{problem}; nothing was changed"


def _not_allowed(exchange: Exchange) -> FixRequest:
    postable = _is_increment(exchange.path)
    allowed = [name.decode("ascii") for name in methods if name != b"POST" or postable]
    listed = ", ".join(sorted(allowed))
    shown = exchange.method.decode("latin-1")[:40]
    return FixRequest(
        "method_not_allowed",
        f"{shown} is not possible for a key, only {listed}; POST is for /v1/kv/{{key}}/incr",
        headers={"Allow": listed},
    )
