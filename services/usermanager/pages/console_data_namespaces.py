"""The page of namespaces: which there are, declaring one, and emptying one for good."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response

from services.core.errors import FixRequest
from services.usermanager.pages.console_data_changes import check_header_name
from services.usermanager.pages.console_data_curl import Curl
from services.usermanager.pages.console_data_links import here, link, namespace_path, shown
from services.usermanager.pages.console_data_listing import list_namespaces
from services.usermanager.pages.gateway_calls import PlatformCalls, administering, check
from services.usermanager.pages.page import Page, Visit, errors_of

namespaces_path: Final = f"{here}/namespaces"
# Where a refusal that names no field belongs.
_field_of: Final = {
    "invalid_namespace": "name",
    "already_exists": "kind",
    "limit_reached": "kind",
    "not_found": "name",
}


class Cursor(msgspec.Struct, frozen=True):
    cursor: str = ""


class NamespacePages:
    def __init__(self, calls: PlatformCalls, gateway_url: str) -> None:
        self._calls = calls
        self._lines = Curl.of_namespaces(gateway_url)

    def pages(self) -> list[Page]:
        return [
            Page("GET", namespaces_path, self.show),
            Page("POST", namespaces_path, self.declare),
        ]

    async def show(self, visit: Visit) -> Response:
        return await self._shown(visit, visit.query(Cursor).cursor)

    async def declare(self, visit: Visit) -> Response:
        fields = await visit.fields()
        name, kind = fields.get("name", ""), fields.get("kind", "")
        try:
            wanted = declaration(name, kind, fields.get("max_items", ""))
            answer = await self._calls.of(visit.tenant).ask(
                "PUT", namespace_path(name), json=wanted, scopes=administering
            )
            check(answer)
        except FixRequest as error:
            found = errors_of(error)
            if "" in found:
                found = {_field_of.get(error.code, ""): found[""]}
            return await self._shown(visit, "", 400, fields, found)
        visit.say(f"The namespace {shown(name)} is a {kind} now")
        return visit.redirect(namespaces_path)

    async def _shown(
        self,
        visit: Visit,
        cursor: str,
        status: int = 200,
        fields: dict[str, str] | None = None,
        errors: dict[str, str] | None = None,
    ) -> Response:
        page = await list_namespaces(self._calls.of(visit.tenant), cursor)
        return visit.render(
            "console/data_namespaces.html",
            status,
            namespaces=page.namespaces,
            next_url=link("/namespaces", cursor=page.cursor) if page.cursor else "",
            is_first=not cursor,
            link=link,
            lines=self._lines,
            fields=fields or {},
            errors=errors or {},
        )


def declaration(name: str, kind: str, max_items: str) -> dict[str, object]:
    """What the gateway is asked for; FixRequest names the field that is wrong."""
    if not name:
        raise _wrong("name", "Fill this in")
    check_header_name(name)
    if kind not in ("store", "cache"):
        raise _wrong("kind", "Choose a store or a cache")
    if kind == "store":
        return {"kind": kind}
    if not (max_items.isascii() and max_items.isdigit() and len(max_items) < 16):
        raise _wrong("max_items", "Say how many keys it is to keep, as a whole number")
    return {"kind": kind, "max_items": int(max_items)}


def _wrong(field: str, words: str) -> FixRequest:
    return FixRequest("invalid_body", words, members={"member": field})
