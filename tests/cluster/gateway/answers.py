"""Answers of a gateway: what they must be, and what is waited for where replicas may differ.

An eventual read asks one replica, which may not know yet what another has acknowledged. So a test
that has put something reads until it is there; a strong read has it at once.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import httpx

from services.core.errors import CATALOGUE
from tests.cluster.gateway_platform import Caller
from tests.integration.replicator_process import until_told

time_form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def told(answer: httpx.Response, status: int = 200) -> Any:
    """The JSON of the answer, once its status is what it should be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, once all of it is as documented."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    document = answer.json()
    code = document["code"]
    entry = CATALOGUE[code]
    assert document["type"] == f"/docs/errors#{code}"
    assert document["title"] == document["error"] == entry.title
    assert document["status"] == entry.status == answer.status_code
    assert document["request_id"] == answer.headers["X-Request-ID"]
    assert document["detail"]
    assert set(document) - {
        "type", "title", "status", "code", "error", "detail", "request_id"
    } <= {"etag", "operation_id", "member", "errors"}  # fmt: skip
    assert ("Retry-After" in answer.headers) == entry.retryable
    return answer.status_code, code


def raw(answer: httpx.Response) -> bytes:
    """The value, once it has been found."""
    assert answer.status_code == 200, answer.text
    return answer.content


def seconds_until(text: str) -> float:
    assert time_form.fullmatch(text), text
    return datetime.fromisoformat(text).timestamp() - time.time()


async def put(robot: Caller, target: str, body: bytes = b"v") -> str:
    """Put a value; its etag."""
    etag: str = told(await robot.put(target, body))["etag"]
    return etag


async def found(
    reader: Caller, target: str, etag: str | None, *, method: str = "GET"
) -> httpx.Response:
    """The answer about this version, or, with None, about what is not there."""

    async def look() -> httpx.Response | None:
        answer = await reader.ask(method, target)
        if etag is None:
            return answer if answer.status_code == 404 else None
        return answer if answer.headers.get("ETag") == f'"{etag}"' else None

    if reader.headers.get("X-Consistency") == "strong":
        answer = await look()
        assert answer is not None, f"{target} is not what a strong write has made it"
        return answer
    return await until_told(look, f"{target} is of version {etag}")


async def gone(reader: Caller, target: str) -> None:
    """Wait until what was deleted, or has expired, is not found any more."""

    async def look() -> httpx.Response | None:
        answer = await reader.get(target)
        return answer if answer.status_code == 404 else None

    assert problem(await until_told(look, f"{target} is gone")) == (404, "key_not_found")
