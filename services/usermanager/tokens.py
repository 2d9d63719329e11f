"""Access tokens: JSON Web Tokens that say who has logged in, and in which session.

HS256 and nothing else: the algorithm is ours to choose, not the token's. The claims:

    iss  "ydht"                 aud  "ydht usermanager"       typ  "access"
    sub  user id, decimal       sid  session id, decimal
    exp  seconds since 1970     iat  the same                 jti  32 hex digits, of each its own

All of them have to be there, of exactly these types, whatever else is. A token is good until it
expires; that its session has not ended is for who checks it to look up. One from the future, or
good for longer than any can be, was not issued by us, whatever its signature says.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from typing import Annotated, Final, Literal

import jwt
import msgspec

from services.core.errors import FixRequest
from services.core.subkey import subkey
from services.runtime.clock import Clock
from services.runtime.endpoints import Caller
from services.usermanager.row_ids import id_max
from services.usermanager.settings import expiration_ms_max

algorithm: Final = "HS256"
issuer: Final = "ydht"
audience: Final = "ydht usermanager"
kind: Final = "access"
# By this much the clocks of user managers may differ that issue and check one token.
leeway_s: Final = 60
# No token is good for longer, whatever a user manager is told.
longest_s: Final = expiration_ms_max // 1000
purpose_next: Final = b"ydht next refresh token"
# Ours have about 340; what is longer is not worth decoding.
token_chars_max: Final = 512

_form: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_Id = Annotated[str, msgspec.Meta(pattern=r"\A[1-9][0-9]{0,18}\Z")]


_Seconds = Annotated[int, msgspec.Meta(gt=0, le=2**53)]


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    iss: Literal["ydht"]
    aud: Literal["ydht usermanager"]
    typ: Literal["access"]
    sub: _Id
    sid: _Id
    exp: _Seconds
    iat: _Seconds
    jti: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    # Ours have none.
    nbf: _Seconds | None = None


class Tokens:
    """Issues and checks access tokens under one secret."""

    def __init__(self, jwt_secret: str, expiration_ms: int, clock: Clock) -> None:
        self._key = jwt_secret.encode()
        self._next_key = subkey(jwt_secret, purpose_next)
        self._expiration_s = max(1, expiration_ms // 1000)
        self._clock = clock

    @property
    def expires_in_s(self) -> int:
        return self._expiration_s

    def issue(self, user_id: int, session_id: int) -> str:
        now_s = self._clock.wall_ms() // 1000
        claims = Claims(
            iss=issuer,
            aud=audience,
            typ=kind,
            sub=str(user_id),
            sid=str(session_id),
            exp=now_s + self._expiration_s,
            iat=now_s,
            jti=secrets.token_hex(16),
        )
        return jwt.encode(msgspec.to_builtins(claims), self._key, algorithm)

    def next_refresh_token(self, token: str) -> str:
        """The one refresh token that may follow another where several ask for it at once. To know
        it takes our secret; whoever has one token learns nothing of the next."""
        digest = hmac.digest(self._next_key, token.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def check(self, token: str) -> Caller:
        """Whom the token was issued to; `unauthorized` if it was not by us, or has expired."""
        if len(token) > token_chars_max or not _form.fullmatch(token):
            raise _refused("The access token is not one of ours")
        try:
            found = jwt.decode(
                token,
                self._key,
                [algorithm],
                audience=audience,
                issuer=issuer,
                # The time is that of our clock, and compared below.
                options={
                    "strict_aud": True,
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
            claims = msgspec.convert(found, Claims)
        except (jwt.InvalidTokenError, msgspec.ValidationError) as error:
            # One text for all that is wrong: a forger learns nothing from it.
            raise _refused("The access token is not one of ours") from error
        now_s = self._clock.wall_ms() // 1000
        if claims.exp <= now_s:
            raise _refused("The access token has expired; POST /refresh gives a new one")
        begins_s = max(claims.iat, claims.nbf or 0)
        if begins_s > now_s + leeway_s or claims.exp > now_s + longest_s + leeway_s:
            raise _refused("The access token is not one of ours")
        caller = Caller(int(claims.sub), int(claims.sid))
        if max(caller.user_id, caller.session_id) > id_max:
            raise _refused("The access token is not one of ours")
        return caller


def _refused(detail: str) -> FixRequest:
    return FixRequest("unauthorized", detail)
