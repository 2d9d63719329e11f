"""Who asks, as a set of headers tells: read once for each set, and kept with it.

X-API-Key: ydht_…      or API-KEY, or Authorization: Bearer ydht_…
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from services.core.errors import ClientError, FixRequest, kept
from services.keygen.pool import Pool
from services.keygen.quotas import Account
from services.runtime.credential import Credential
from services.runtime.edge import given_request_id
from services.runtime.exchange import Headers
from services.runtime.key_access import api_key_in

Fields = Iterable[tuple[bytes, bytes]]

_alias: Final = b"api-key"
_name: Final = b"x-api-key"
# As they are told.
_credentials: Final = {_name: "X-API-Key", _alias: "API-KEY", b"authorization": "Authorization"}


def with_usual_names(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The same headers with API-KEY under its usual name. Names are in lower case."""
    return [(_name if name == _alias else name, value) for name, value in fields]


def _refusal(error: ClientError, sent: Sequence[str]) -> ClientError:
    """The same, in the names by which API keys are sent here."""
    if error.code == "invalid_header":
        detail = f"Different API keys are in {' and '.join(sent)}; send one"
    elif error.code == "missing_api_key":
        empty = f"{' and '.join(sent)} is empty; send" if sent else "Send"
        detail = f"{empty} an API key as X-API-Key, as API-KEY, or as Authorization: Bearer ydht_…"
    else:
        return error
    return FixRequest(error.code, detail, headers=error.headers)


class Asker:
    """One set of headers, understood; and what was last found for it, which may be out of date:
    a pool or an account that was dropped is empty."""

    __slots__ = (
        "account",
        "api_key",
        "credential",
        "fields",
        "nobody",
        "pools",
        "request_id",
        "sent",
    )

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.fields = fields
        self.api_key = b""
        # Why there is no API key, if there is none.
        self.nobody: ClientError | None = None
        # Which headers were sent that an API key may be in, if only an empty one.
        sent = [_credentials[name] for name, _ in fields if name in _credentials]
        self.sent = list(dict.fromkeys(sent))
        # Given by the client, or None: each request without one gets its own.
        self.request_id = given_request_id(fields)
        self.credential: Credential | None = None
        self.account: Account | None = None
        # By size.
        self.pools: dict[int, Pool] = {}
        try:
            self.api_key = api_key_in(with_usual_names(fields))
        except ClientError as error:
            self.nobody = kept(_refusal(error, self.sent))

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
