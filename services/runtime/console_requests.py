"""Requests that the console makes in the name of a tenant, in place of an API key.

The user manager cannot know anybody's API key, so what its pages ask of the data API is signed with
the cluster's secret (signing.py). Two headers, which the signature covers, say in whose name it is
and what may be done at most:

    X-Ydht-Tenant: 12
    X-Ydht-Scope: read,write

Where a body is wanted, but for values of single keys, it has at most 64 KiB: whoever can write a
header may claim to be the console until all of the body is there.

They have a bucket of their own, so whoever looks at a page takes no token from a program. Those to
paths that a service names are counted as usage, under the number that no API key has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final, Protocol

from services.core.errors import FixRequest
from services.core.key import tenant_max
from services.core.key_checks import Scope, scopes_all
from services.runtime.credential import Credential
from services.runtime.signing import Verifier, signature_header

tenant_header: Final = "X-Ydht-Tenant"
scope_header: Final = "X-Ydht-Scope"
# A form of a page, or what it shows of a listing; nothing to keep anybody waiting for.
signed_body_bytes_max: Final = 64 * 1024

Fields = Iterable[tuple[bytes, bytes]]

_signature: Final = signature_header.lower().encode()
_tenant: Final = tenant_header.lower().encode()
_scope: Final = scope_header.lower().encode()
_number: Final = re.compile(rb"0|[1-9][0-9]{0,19}")


class ConsoleCredentials(Protocol):
    """Whoever makes them (credentials.py)."""

    def of_console(self, tenant: int, scopes: Collection[Scope], /) -> Credential: ...


class ConsoleRequests:
    def __init__(
        self,
        verifier: Verifier,
        credentials: ConsoleCredentials,
        counted_paths: tuple[str, ...] = (),
    ) -> None:
        """`counted_paths` begin what is counted as usage of the tenant."""
        self._verifier = verifier
        self._credentials = credentials
        self._counted_paths = counted_paths

    @staticmethod
    def is_one(fields: Fields) -> bool:
        """Whether it claims to be. Names of headers are in lower case."""
        return any(name == _signature for name, _ in fields)

    def look(self, fields: Fields) -> None:
        """Refuse, before its body is read, what no body could make right."""
        self._verifier.look(_as_text(fields))

    def credential(self, method: str, target: str, fields: Fields, body: bytes) -> Credential:
        """What the request may do. `target` is the path and the query as they were sent.

        FixRequest `unauthorized` unless it is signed, recent and new; RetryLater if nobody could
        tell a replay any more.
        """
        known = list(fields)
        self._verifier.verify(method, target, _as_text(known), body)
        credential = self._credentials.of_console(_tenant_in(known), _scopes_in(known))
        if target.startswith(self._counted_paths):
            credential.tally = {}
        return credential


def _as_text(fields: Fields) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


def _tenant_in(fields: Fields) -> int:
    text = _only(tenant_header, _tenant, fields)
    if _number.fullmatch(text) is None or int(text) > tenant_max:
        raise FixRequest("invalid_header", f"{tenant_header} is no number of a tenant")
    return int(text)


def _scopes_in(fields: Fields) -> list[Scope]:
    asked = [part.strip() for part in _only(scope_header, _scope, fields).split(b",")]
    found = [scope for scope in scopes_all if scope.encode() in asked]
    if len(found) != len(asked):
        raise FixRequest("invalid_header", f"{scope_header} is of {', '.join(scopes_all)}")
    return found


def _only(shown: str, wanted: bytes, fields: Fields) -> bytes:
    values = [value for name, value in fields if name == wanted]
    if len(values) != 1:
        raise FixRequest("invalid_header", f"A request of the console has {shown}, once")
    return values[0]
