"""Errors as clients see them: problem+json (RFC 9457) for everything that is not a success."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from services.core.errors import ClientError, FixRequest, InternalError
from services.runtime import telemetry

problem_type = "application/problem+json"
# On every problem: it is of one request of one client. Caches may keep a 404, a 405 and a 414
# unasked, and know nothing of API keys, so they would show one tenant's to another.
problem_caching = {"Cache-Control": "no-store"}
problem_lines = f"Content-Type: {problem_type}\r\nCache-Control: no-store\r\n".encode()
# Enough to recognise the path one has asked for; the rest would only echo a client's noise.
path_chars_max = 200

# What the framework itself refuses with, as codes of the catalogue.
_framework_codes: Mapping[int, str] = {
    400: "invalid_body",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    431: "headers_too_large",
}


def problem_response(error: ClientError) -> Response:
    return Response(
        msgspec.json.encode(error.problem(telemetry.request_id.get())),
        status_code=error.status,
        headers=problem_caching | dict(error.headers),
        media_type=problem_type,
    )


def problem_parts(error: ClientError, request_id: bytes) -> tuple[int, bytes, bytes]:
    """The same where there is no Response: status, header lines, each with its end, and body."""
    lines = b"".join(
        [
            b"%s: %s\r\n" % (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in error.headers.items()
        ]
    )
    body = msgspec.json.encode(error.problem(request_id.decode("ascii")))
    return error.status, problem_lines + lines, body


async def answer_client_error(_: Request, error: Exception) -> Response:
    """Starlette's handler for our own tree."""
    if not isinstance(error, ClientError):
        raise error
    return problem_response(error)


async def answer_framework_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for what Starlette raises: no such route, wrong method, a bad form."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code < 400:
        return Response(status_code=error.status_code, headers=error.headers)
    code = _framework_codes.get(error.status_code)
    if code is None:
        return problem_response(InternalError())
    detail = error.detail
    path = request.url.path[:path_chars_max]
    if code == "not_found":
        detail = f"Nothing is at {path}"
    elif code == "method_not_allowed":
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not possible at {path}, only {allowed}"
    return problem_response(FixRequest(code, detail, headers=dict(error.headers or {})))
