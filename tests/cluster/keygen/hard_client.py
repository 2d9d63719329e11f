"""A client for those who are killed: httpx, but for one thing that it does not survive.

Where a connection is lost at the moment in which it was made, the socket whose name anyio asks for
is gone, which comes up as an AttributeError of its own, or an OSError. To whoever asked it is a
lost connection like any other.
"""

from __future__ import annotations

import httpx

from tests.waiting import patience_s


class _Transport(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except (AttributeError, OSError) as error:
            if isinstance(error, AttributeError) and "getpeername" not in str(error):
                raise
            raise httpx.ConnectError("it was lost as it was made", request=request) from error


def hard_client(connections_max: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections_max)
    return httpx.AsyncClient(
        timeout=2 * patience_s, trust_env=False, transport=_Transport(limits=limits)
    )
