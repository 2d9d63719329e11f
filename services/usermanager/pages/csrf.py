"""That a form was sent by a page of ours: a token in it, and what the browser says of its origin.

Both have to be right. A token belongs to one session or, before there is one, to one browser, which
a cookie of its own tells. It is different each time it is written into a page, so that nobody
guesses it from how well pages compress.

    token    base64url of: salt 16 · HMAC-SHA256(subkey, salt · whose)
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from typing import Final

from starlette.datastructures import Headers

from services.core.errors import FixRequest
from services.core.subkey import subkey

header: Final = "X-CSRF-Token"
field: Final = "_csrf"
purpose_csrf: Final = b"ydht forms"

_salt_bytes: Final = 16


class Csrf:
    def __init__(self, secret: str, public_origin: str | None) -> None:
        self._key = subkey(secret, purpose_csrf)
        self._public_origin = public_origin

    def token(self, whose: str) -> str:
        salt = secrets.token_bytes(_salt_bytes)
        return base64.urlsafe_b64encode(salt + self._proof(salt, whose)).decode().rstrip("=")

    def check(self, token: str, whose: str) -> None:
        """FixRequest `csrf` unless the token is one of whose it is."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        salt, proof = raw[:_salt_bytes], raw[_salt_bytes:]
        if not hmac.compare_digest(proof, self._proof(salt, whose)):
            raise FixRequest(
                "csrf",
                "This form belongs to another session, or to none any more; nothing was changed. "
                "Load the page again and send it from there",
            )

    def check_origin(self, headers: Headers) -> None:
        """FixRequest `csrf` unless the browser says that a page of ours asks."""
        site = headers.get("sec-fetch-site")
        # What a browser says of itself; it says so only where the connection is to be trusted.
        origin = headers.get("origin", "")
        is_ours = site == "same-origin" if site is not None else self.names_us(origin, headers)
        if not is_ours:
            raise FixRequest(
                "csrf", "This was not sent by a page of this site; nothing was changed"
            )

    def names_us(self, origin: str, headers: Headers) -> bool:
        """Whether an origin is the one that these headers were sent to."""
        origin = origin.lower()
        if not origin or origin == "null":
            return False
        return origin == self._public_origin or origin.partition("://")[2] == headers.get("host")

    def _proof(self, salt: bytes, whose: str) -> bytes:
        return hmac.digest(self._key, salt + whose.encode(), "sha256")
