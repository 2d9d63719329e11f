"""What a user manager answers over HTTP: the endpoints of its nouns, and what describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from starlette.routing import BaseRoute

from services.runtime.client_address import ClientAddresses
from services.runtime.endpoints import Authenticate, Before, Endpoint, routes
from services.runtime.openapi import document_route, openapi_document
from services.runtime.signing import Verifier

# Every operation asks PostgreSQL; one that writes may lose it while it commits.
errors_of_all: Final = ("database_unavailable", "overloaded", "shutting_down", "unknown_outcome")
api_version: Final = "1"


def every_route(
    endpoints: Iterable[Endpoint],
    told: Mapping[str, Any],
    *,
    before: Before,
    authenticate: Authenticate,
    verifier: Verifier,
    addresses: ClientAddresses,
) -> list[BaseRoute]:
    """`told` is the document of these endpoints, which pages show too."""
    return [
        document_route(told),
        *routes(
            endpoints,
            before=before,
            authenticate=authenticate,
            verifier=verifier,
            addresses=addresses,
        ),
    ]


def document(endpoints: Iterable[Endpoint], public_url: str | None) -> dict[str, Any]:
    return openapi_document(
        "ydht user manager",
        api_version,
        endpoints,
        description="Accounts, sessions, API keys and usage.",
        server_url=public_url,
        errors=errors_of_all,
    )
