"""The cookies of the pages, and how they are written.

    access     an access token, for as long as that is good
    refresh    the refresh token that the next access token is had for
    visitor    tells one browser from another before anybody has logged in; for forms
    flash      what the next page says once, such as that a key was revoked

Where PUBLIC_URL is https they are `Secure`, and their names begin with `__Host-`, which no other
host and no page over http can set. Scripts read none of them.
"""

from __future__ import annotations

import base64
from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from services.usermanager.messages_sessions import LoggedIn
from services.usermanager.sessions import idle

Name = Literal["access", "refresh", "visitor", "flash"]
_of_session: Final[tuple[Name, ...]] = ("access", "refresh")

# A page that was asked for is loaded by then.
flash_s: Final = 60


class Flash(msgspec.Struct, frozen=True):
    """What is said once, at the top of the next page."""

    text: str
    kind: Literal["good", "bad", "note"] = "good"


class Cookies:
    def __init__(self, *, is_https: bool) -> None:
        self._is_https = is_https
        self._prefix = "__Host-ydht-" if is_https else "ydht-"

    def read(self, request: Request, name: Name) -> str | None:
        return request.cookies.get(self._prefix + name) or None

    def of_session(self, request: Request) -> bool:
        """Whether the browser has logged in, as far as it says."""
        return any(self.read(request, name) is not None for name in _of_session)

    def log_in(self, response: Response, tokens: LoggedIn) -> None:
        self._set(response, "access", tokens.access_token, tokens.expires_in)
        self._set(response, "refresh", tokens.refresh_token, int(idle.total_seconds()))

    def log_out(self, response: Response) -> None:
        for name in _of_session:
            self._forget(response, name)

    def set_visitor(self, response: Response, visitor: str) -> None:
        # Until the browser is closed.
        self._set(response, "visitor", visitor, None)

    def set_flash(self, response: Response, flash: Flash) -> None:
        text = base64.urlsafe_b64encode(msgspec.json.encode(flash)).decode()
        self._set(response, "flash", text, flash_s)

    def flash(self, request: Request) -> Flash | None:
        text = self.read(request, "flash")
        if text is None:
            return None
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(text), type=Flash)
        except (ValueError, msgspec.DecodeError):
            # Whoever else is on this host may have set it, to anything.
            return None

    def forget_flash(self, response: Response) -> None:
        self._forget(response, "flash")

    def _set(self, response: Response, name: Name, value: str, seconds: int | None) -> None:
        response.set_cookie(
            self._prefix + name,
            value,
            max_age=seconds,
            path="/",
            secure=self._is_https,
            httponly=True,
            samesite="lax",
        )

    def _forget(self, response: Response, name: Name) -> None:
        response.delete_cookie(
            self._prefix + name,
            path="/",
            secure=self._is_https,
            httponly=True,
            samesite="lax",
        )
