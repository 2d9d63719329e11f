"""HTTP to services of our own: one way to make a client whose every request is signed.

Whoever asks in the name of a tenant says so in headers that the signature covers (signing.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from services.runtime.clock import Clock
from services.runtime.signing import SignedAuth, Signer


def signed_client(
    cluster_secret: str,
    clock: Clock,
    *,
    base_url: str = "",
    answer_s_max: float | None,
    connect_s_max: float,
    connections_max: int,
    idle_s_max: float = 5.0,
    headers: Mapping[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """A client that signs what it sends. Without `answer_s_max` its user bounds the waiting."""
    return httpx.AsyncClient(
        base_url=base_url,
        auth=SignedAuth(Signer(cluster_secret, clock)),
        headers=headers,
        timeout=httpx.Timeout(answer_s_max, connect=connect_s_max),
        limits=httpx.Limits(max_connections=connections_max, keepalive_expiry=idle_s_max),
        transport=transport,
        # What the environment says of proxies is not meant for a service of our own.
        trust_env=False,
    )
