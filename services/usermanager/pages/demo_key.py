"""The demo account's API key, for the first page of a platform that `ydht up` has started.

It may do all that the demo account may, so it is shown only where it is no secret: to a browser on
the same machine that came by a name of this machine. A page elsewhere whose name was made to mean
127.0.0.1 comes by another name, and whoever comes through a proxy from another address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from services.core.errors import RetryLater
from services.usermanager.key_validation import KeyValidation
from services.usermanager.pages.page import Visit

file_name: Final = "demo.json"
file_bytes_max: Final = 16 * 1024


class _Demo(msgspec.Struct):
    """What is read of the file."""

    api_key: str | None


class DemoKey:
    def __init__(self, data_dir: Path, keys: KeyValidation, *, is_shown: bool) -> None:
        self._path = data_dir / file_name
        self._keys = keys
        self._is_shown = is_shown

    async def for_visit(self, visit: Visit) -> str | None:
        """The key, if it is for this visitor, and good."""
        if not self._is_shown or not is_of_this_machine(visit):
            return None
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
    try:
        host = urlsplit(f"//{visit.request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return False
    return _is_loopback(visit.client.address) and (host == "localhost" or _is_loopback(host))


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
