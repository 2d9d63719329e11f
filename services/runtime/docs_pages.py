"""The documentation of a service in a browser: openapi.json as a page, and a page of all errors.

Both are rendered once, from the same document that programs read, and are plain HTML with one style
sheet: no script, nothing from elsewhere, and a policy that allows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jinja2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from services.core.errors import CATALOGUE
from services.runtime.api_reference import reference_of
from services.runtime.docs_templates import (
    api_template,
    errors_template,
    layout_template,
    style_sheet,
)
from services.runtime.error_advice import advice

policy: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_headers: Final = {
    "Content-Security-Policy": policy,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # As long as a deployment may take to be noticed.
    "Cache-Control": "public, max-age=300",
}


def docs_routes(document: Mapping[str, Any]) -> list[BaseRoute]:
    """/docs, /docs/errors and the style sheet of both."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.DictLoader(
            {"layout": layout_template, "api": api_template, "errors": errors_template}
        ),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    told = reference_of(document)
    api = environment.get_template("api").render(told._asdict())
    errors = environment.get_template("errors").render(
        title=told.title, entries=[(entry, advice[entry.code]) for entry in CATALOGUE.values()]
    )
    return [
        _page("/docs", api, "text/html"),
        _page("/docs/errors", errors, "text/html"),
        _page("/docs/style.css", style_sheet, "text/css"),
    ]


def _page(path: str, content: str, media_type: str) -> Route:
    async def answer(_: Request) -> Response:
        return Response(content, headers=_headers, media_type=media_type)

    return Route(path, answer)
