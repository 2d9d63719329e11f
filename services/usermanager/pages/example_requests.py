"""The requests that a new API key is shown with, to be tried at once: those that it may make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote

from services.core.key import key_bytes_max
from services.core.key_checks import Scope
from services.usermanager.pages.gateway_calls import path_of

_name: Final = "greeting"
_value: Final = "hello, world"


class Request(NamedTuple):
    """`target` is a path with its query, as a request line has it."""

    method: str
    target: str
    body: str = ""


def requests_for(scopes: Sequence[Scope], prefix: str | None) -> list[Request]:
    """What shows that a key works, by no more than its scopes and its prefix let it do."""
    begins = f"/v1/kv?prefix={quote(prefix or '', safe='')}"
    if "write" in scopes:
        path = _path_below(prefix or "")
        put = Request("PUT", path, _value)
        return [put, Request("GET", path)] if "read" in scopes else [put]
    if "read" in scopes:
        return [Request("GET", f"{begins}&limit=10")]
    # Which only counts; nobody deletes by no prefix at all.
    return [Request("DELETE", f"{begins if prefix else begins + _name}&dry_run=true")]


def _path_below(prefix: str) -> str:
    key = prefix + _name
    if len(key.encode()) > key_bytes_max:
        key = prefix
    # With its slashes, as people write it, unless a client would take them away.
    is_plain = not {"", ".", ".."} & set(key.split("/"))
    return "/v1/kv/" + quote(key, safe="/") if is_plain else path_of(key)


# Those of a key that may do what most may.
usual_requests: Final = tuple(requests_for(["read", "write"], None))
