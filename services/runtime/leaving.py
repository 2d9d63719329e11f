"""Work that is only worth doing while the client that waits for it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request


async def while_there(request: Request, handling: Coroutine[Any, Any, object]) -> object:
    """What is returned by who handles the request, which has been read to its end; if the client
    leaves before, it is cancelled, and ClientDisconnect is raised."""
    handler = asyncio.create_task(handling)
    leaving = asyncio.create_task(_until_left(request))
    try:
        await asyncio.wait((handler, leaving), return_when=asyncio.FIRST_COMPLETED)
        if handler.done():
            return handler.result()
        raise ClientDisconnect
    finally:
        handler.cancel()
        leaving.cancel()
        await asyncio.wait((handler, leaving))


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
