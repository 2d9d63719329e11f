"""The bearer token of a request, which POST /login gives."""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import Request

from services.core.errors import FixRequest

_challenge: Final = "WWW-Authenticate"

_bearer: Final = re.compile(r"Bearer +([\x21-\x7e]{1,4096})", re.IGNORECASE | re.ASCII)


def bearer_token(request: Request) -> str:
    """FixRequest `unauthorized` if there is none, or no one."""
    given = request.headers.getlist("authorization")
    if not given:
        raise FixRequest(
            "unauthorized",
            "The header Authorization: Bearer <access token> is missing; POST /login gives one",
            headers={_challenge: "Bearer"},
        )
    match = _bearer.fullmatch(given[0].strip(" \t"))
    if match is None or len(given) > 1:
        raise FixRequest(
            "unauthorized",
            "The header Authorization is not Bearer <access token>, once",
            headers={_challenge: "Bearer"},
        )
    return match[1]


def not_taken(error: FixRequest) -> FixRequest:
    """The same refusal, of a token that was there, for a client that renews its own."""
    headers = {_challenge: 'Bearer error="invalid_token"', **error.headers}
    return FixRequest(error.code, error.detail, members=error.members, headers=headers)
