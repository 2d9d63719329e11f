"""The page after sign-up: the first API key, shown this once, with something to try it on.

A key is made for who has never had one; so to load the page again makes no other.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from services.usermanager.api_keys import ApiKeys
from services.usermanager.messages_api_keys import CreateKey
from services.usermanager.pages.page import Page, Visit

key_name: Final = "first key"


class Welcome:
    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    def pages(self) -> list[Page]:
        return [
            Page("GET", "/console/welcome", self.show),
            Page("POST", "/console/welcome/key", self.make_key),
        ]

    async def show(self, visit: Visit) -> Response:
        return visit.render("welcome.html", has_keys=await self._has_keys(visit))

    async def make_key(self, visit: Visit) -> Response:
        """By htmx as soon as the page is there; by a button where there are no scripts."""
        if await self._has_keys(visit):
            return visit.redirect("/console/welcome")
        made = await self._api_keys.create_own(visit.call(CreateKey(key_name)))
        template = "_first_key.html" if visit.is_htmx else "welcome.html"
        return visit.render(template, made=made, has_keys=True)

    async def _has_keys(self, visit: Visit) -> bool:
        return (await self._api_keys.page(visit.user.id, 1, None)).count > 0
