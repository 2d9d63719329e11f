"""Errors as clients see them: problem+json (RFC 9457) for everything that is not a success."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

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


# How a service shows an error: as a problem, unless people look at its answers too.
Refuse = Callable[[Request, ClientError], Response]


def as_problem(_: Request, error: ClientError) -> Response:
    return problem_response(error)


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


def exception_handlers(refuse: Refuse) -> dict[Any, ExceptionHandler]:
    """Starlette's handlers for our own tree, and for what Starlette raises."""

    async def answer_client_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, ClientError):
            raise error
        return refuse(request, error)

    async def answer_framework_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        if error.status_code < 400:
            return Response(status_code=error.status_code, headers=error.headers)
        return refuse(request, _of_framework(request, error))

    return {ClientError: answer_client_error, HTTPException: answer_framework_error}


def _of_framework(request: Request, error: HTTPException) -> ClientError:
    """No such route, wrong method, a bad form."""
    code = _framework_codes.get(error.status_code)
    if code is None:
        return InternalError()
    detail = error.detail
    path = request.url.path[:path_chars_max]
    if code == "not_found":
        detail = f"Nothing is at {path}"
    elif code == "method_not_allowed":
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not possible at {path}, only {allowed}"
    return FixRequest(code, detail, headers=dict(error.headers or {}))
