"""The first page: what this is, on one screen, with something to try at once."""

from __future__ import annotations

from starlette.responses import Response

from services.usermanager.pages import demo_key
from services.usermanager.pages.demo_key import DemoKey
from services.usermanager.pages.page import Audience, Page, Visit


class Landing:
    def __init__(self, demo: DemoKey) -> None:
        self._demo = demo

    def pages(self) -> list[Page]:
        return [
            Page("GET", "/", self.show, Audience.ANYBODY),
            Page("POST", demo_key.path, self._demo.give, Audience.ANYBODY),
        ]

    async def show(self, visit: Visit) -> Response:
        return visit.render("landing.html", has_demo=self._demo.is_offered(visit))
