"""Who asks, as a set of headers tells: read once for each set, and kept with it.

X-API-Key: ydht_…      or API-KEY, or Authorization: Bearer ydht_…
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from services.core.errors import ClientError, kept
from services.keygen.pool import Pool
from services.keygen.quotas import Account
from services.runtime.credential import Credential
from services.runtime.edge import given_request_id
from services.runtime.exchange import Headers
from services.runtime.key_access import api_key_in

Fields = Iterable[tuple[bytes, bytes]]

_alias: Final = b"api-key"
_name: Final = b"x-api-key"


def with_usual_names(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The same headers with API-KEY under its usual name. Names are in lower case."""
    return [(_name if name == _alias else name, value) for name, value in fields]


class Asker:
    """One set of headers, understood; and what was last found for it, which may be out of date:
    a pool or an account that was dropped is empty."""

    __slots__ = ("account", "api_key", "credential", "fields", "nobody", "pools", "request_id")

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.fields = fields
        self.api_key = b""
        # Why there is no API key, if there is none.
        self.nobody: ClientError | None = None
        # Given by the client, or None: each request without one gets its own.
        self.request_id = given_request_id(fields)
        self.credential: Credential | None = None
        self.account: Account | None = None
        # By size.
        self.pools: dict[int, Pool] = {}
        try:
            self.api_key = api_key_in(with_usual_names(fields))
        except ClientError as error:
            self.nobody = kept(error)

    def belongs_to(self, credential: Credential, account: Account) -> None:
        if credential is not self.credential:
            self.pools = {}
        self.credential = credential
        self.account = account


def asker_of(headers: Headers) -> Asker:
    """Of these headers; the same object as long as they are the same."""
    asker = headers.memo
    if asker is None:
        asker = headers.memo = Asker(headers.fields)
    # Nobody else leaves anything there; an assertion would be paid for by every request.
    return asker  # type: ignore[return-value]
