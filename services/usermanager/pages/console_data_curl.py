"""What a page does, as a line for a terminal: the same requests, with an API key of one's own.

Everything that a tenant chose is quoted for a POSIX shell, whatever is in it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from services.usermanager.pages.console_data_links import namespace_default, namespace_header

# Expanded by the shell, so not quoted as the rest is.
_key_header = '-H "X-API-Key: $YDHT_API_KEY"'


class Line(NamedTuple):
    """A curl line and what it does."""

    words: str
    text: str


class Curl:
    """The lines of one namespace at a gateway."""

    def __init__(self, gateway_url: str, namespace: str) -> None:
        self._url = gateway_url.rstrip("/")
        self._namespace = namespace

    def of_key(self, key: str) -> list[Line]:
        path = _key_path(key)
        return [
            Line("Read the value", self._line("GET", path)),
            Line(
                "Read it by a majority of the replicas",
                self._line("GET", path, headers={"X-Consistency": "strong"}),
            ),
            Line("Put a file in its place", self._line("PUT", path, data="@value.bin")),
            Line(
                "Put it, unless somebody else has changed it meanwhile",
                self._line("PUT", path, headers={"If-Match": '"<etag>"'}, data="@value.bin"),
            ),
            Line("Let it expire in an hour", self._line("PATCH", path, "ttl=1h")),
            Line("Count up by one", self._line("POST", f"{path}/incr", "by=1")),
            Line("Delete it", self._line("DELETE", path)),
        ]

    def of_prefix(self, prefix: str, delimiter: str) -> list[Line]:
        begins = f"prefix={quote(prefix, safe='')}"
        grouped = f"{begins}&delimiter={quote(delimiter, safe='')}&limit=100"
        lines = [
            Line("List keys", self._line("GET", "/v1/kv", f"{begins}&limit=100")),
            Line(f"List them grouped by {delimiter}", self._line("GET", "/v1/kv", grouped)),
            Line(
                "Put many at once",
                self._line(
                    "POST",
                    "/v1/batch",
                    headers={"Content-Type": "application/json"},
                    data='{"operations": [{"op": "put", "key": "a", "value": "1", "ttl": "1h"}]}',
                ),
            ),
        ]
        if prefix:
            counted = self._line("DELETE", "/v1/kv", f"{begins}&dry_run=true")
            lines += [
                Line("Count what deleting the prefix would delete", counted),
                Line("Delete all keys with the prefix", self._line("DELETE", "/v1/kv", begins)),
            ]
        return lines

    @classmethod
    def of_namespaces(cls, gateway_url: str) -> list[Line]:
        everywhere = cls(gateway_url, namespace_default)
        a_cache = '{"kind": "cache", "max_items": 10000}'
        json_sent = {"Content-Type": "application/json"}
        one = "/v1/namespaces/sessions"
        return [
            Line("List namespaces", everywhere._line("GET", "/v1/namespaces")),
            Line("Declare a cache", everywhere._line("PUT", one, headers=json_sent, data=a_cache)),
            Line("Empty a namespace and forget it", everywhere._line("DELETE", one)),
        ]

    def _line(
        self,
        method: str,
        path: str,
        query: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        data: str = "",
    ) -> str:
        target = self._url + path + (f"?{query}" if query else "")
        # Or curl would take `..` for a step upwards, as it is asked to by the URL's standard.
        stays = "--path-as-is " if "/." in path or "%2E" in path else ""
        called = "" if method == "GET" else f"-X {method} "
        parts = [f"curl -sS {stays}{called}{shlex.quote(target)}", _key_header]
        named = {} if self._namespace == namespace_default else {namespace_header: self._namespace}
        parts += [
            f"-H {shlex.quote(f'{name}: {value}')}"
            for name, value in {**named, **(headers or {})}.items()
        ]
        if data:
            parts.append(f"--data-binary {shlex.quote(data)}")
        return " \\\n  ".join(parts)


def _key_path(key: str) -> str:
    """With its slashes, as people write it."""
    return "/v1/kv/" + quote(key, safe="/")
