"""Clients of what tests start, which speaks plain HTTP.

By itself httpx reads all authorities for certificates for every client, 20 ms of CPU, which tests
that ask again and again until something is so would take from what they wait for.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

import httpx

# Trusts nobody: whoever speaks TLS after all is refused.
_no_authorities: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def plain_client(**options: Any) -> httpx.AsyncClient:
    """As httpx makes it, and with nothing from the environment."""
    return httpx.AsyncClient(verify=_no_authorities, trust_env=False, **options)


def plain_get(url: str) -> httpx.Response:
    """For who is no coroutine."""
    return httpx.get(url, verify=_no_authorities, trust_env=False)
