"""The demo account's API key, for the first page of a platform that `ydht up` has started.

It may do all that the demo account may, so it is given only where it is no secret: to a browser on
the same machine, at a page that has a name of this machine. The page does not have it, but asks for
it by a form, and these have to agree that nobody stands in between:

    the connection     comes from this machine
    Host               is a name of it, so the page's name was not made to mean 127.0.0.1
    Origin             likewise: a proxy that changes the Host leaves what the browser shows
    any other header   is none that proxies add, whether they are trusted or not
    PUBLIC_URL         if it is set, is of this machine too

A program that lies about all of them, by way of a proxy on this machine which hides that it is one,
cannot be told from a browser here: where others can reach it, a platform has no demo account.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from starlette.responses import Response

from services.core.errors import FixRequest, RetryLater
from services.usermanager.key_validation import KeyValidation
from services.usermanager.pages.page import Visit

file_name: Final = "demo.json"
file_bytes_max: Final = 16 * 1024
path: Final = "/demo-key"

# What proxies tell of those they ask for. No browser sends one of these.
_of_proxies: Final = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cdn-loop")
_of_proxies_begin: Final = ("x-forwarded-", "x-original-", "cf-")


class _Demo(msgspec.Struct):
    """What is read of the file."""

    api_key: str | None


class DemoKey:
    def __init__(
        self, data_dir: Path, keys: KeyValidation, *, is_shown: bool, public_url: str | None
    ) -> None:
        self._path = data_dir / file_name
        self._keys = keys
        is_public = public_url is not None and not names_this_machine(public_url)
        self._is_shown = is_shown and not is_public

    def is_offered(self, visit: Visit) -> bool:
        """Whether the page is to ask for the key."""
        return self._is_shown and is_of_this_machine(visit)

    async def give(self, visit: Visit) -> Response:
        """The key, or null if there is no good one; `not_found` unless it is for this visitor."""
        origin = visit.request.headers.get("origin", "")
        if not self.is_offered(visit) or not names_this_machine(origin):
            raise FixRequest("not_found", f"Nothing is at {path}")
        answer = msgspec.json.encode(_Demo(await self._good_key()))
        return Response(answer, media_type="application/json")

    async def _good_key(self) -> str | None:
        key = await asyncio.to_thread(self._read)
        try:
            return key if key is not None and await self._keys.is_good(key) else None
        except RetryLater:
            return None

    def _read(self) -> str | None:
        # What `ydht up` has written there, whenever it did, and no link to anything else.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(self._path, flags), "rb") as file:
                return msgspec.json.decode(file.read(file_bytes_max), type=_Demo).api_key
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None


def is_of_this_machine(visit: Visit) -> bool:
    """Whether all that a browser sends with any request says so."""
    request = visit.request
    return (
        _is_loopback(visit.client.address)
        and names_this_machine(f"//{request.headers.get('host', '')}")
        and not _came_by_proxy(request.headers)
        # Some proxies ask in a version that no browser speaks any more.
        and request.scope.get("http_version") != "1.0"
    )


def names_this_machine(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host == "localhost" or _is_loopback(host)


def _came_by_proxy(names: Iterable[str]) -> bool:
    return any(name in _of_proxies or name.startswith(_of_proxies_begin) for name in names)


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
