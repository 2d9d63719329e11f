"""The gateway's openapi.json: all that API keys are good for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from services.gateway import kv_document
from services.runtime.endpoints import Endpoint
from services.runtime.openapi import openapi_document

api_version: Final = "1"
_about: Final = (
    "Keys and values, by an API key. Values are kept three times; each request says whether it is "
    "to be eventual or strong."
)


def api_document(endpoints: Iterable[Endpoint], public_url: str | None) -> dict[str, Any]:
    """The document of these endpoints and of those about one key, which the lane answers."""
    return openapi_document(
        "ydht gateway",
        api_version,
        [*kv_document.endpoints(), *endpoints],
        description=_about,
        server_url=public_url,
    )
