"""The data page: the keys of a namespace, as a tree or as a list, a page at a time."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import msgspec
from starlette.responses import Response

from services.usermanager.pages.console_data_curl import Curl
from services.usermanager.pages.console_data_links import here, link, namespace_default, shown
from services.usermanager.pages.console_data_listing import Trail, View, known_namespaces, list_keys
from services.usermanager.pages.gateway_calls import PlatformCalls
from services.usermanager.pages.page import Page, Visit

# What keys are often put together with.
delimiters: Final = ("/", ":")


class Browse(msgspec.Struct, frozen=True):
    """`part` is what a script asks for: the rows of one level of the tree."""

    namespace: str = namespace_default
    prefix: str = ""
    view: Literal["tree", "list"] = "tree"
    delimiter: Literal["/", ":"] = "/"
    cursor: str = ""
    # Where the pages before began, for a way back (Trail).
    trail: str = ""
    part: Literal["", "level"] = ""


class DataPages:
    def __init__(self, calls: PlatformCalls, gateway_url: str) -> None:
        self._calls = calls
        self._gateway_url = gateway_url

    def pages(self) -> list[Page]:
        return [Page("GET", here, self.show)]

    async def show(self, visit: Visit) -> Response:
        asked = visit.query(Browse)
        if asked.part == "level":
            return await self._level(visit, asked)
        calls = self._calls.of(visit.tenant)
        view = View(asked.namespace, asked.prefix, asked.view, asked.delimiter)
        listing, (namespaces, trouble) = await asyncio.gather(
            list_keys(
                calls,
                asked.namespace,
                asked.prefix,
                delimiter=asked.delimiter if asked.view == "tree" else "",
                cursor=asked.cursor,
            ),
            known_namespaces(calls, asked.namespace),
        )
        trail = Trail.of(asked.trail)
        back = trail.back() if asked.cursor else None
        current = next(each for each in namespaces if each.name == asked.namespace)
        return visit.render(
            "console/_data_listing.html" if _is_part(visit) else "console/data.html",
            asked=asked,
            shown=shown,
            link=link,
            view=view,
            rows=view.rows(listing),
            crumbs=view.crumbs(),
            next_url=view.link(cursor=listing.cursor, trail=trail.behind(asked.cursor))
            if listing.cursor
            else "",
            back_url="" if back is None else view.link(**back),
            more_url=view.link(cursor=listing.cursor, part="level") if listing.cursor else "",
            namespaces=namespaces,
            namespace=current,
            trouble=trouble,
            delimiters=delimiters,
            lines=Curl(self._gateway_url, asked.namespace).of_prefix(asked.prefix, asked.delimiter),
        )

    async def _level(self, visit: Visit, asked: Browse) -> Response:
        """More rows of the tree: those below a group, or the next ones."""
        view = View(asked.namespace, asked.prefix, asked.view, asked.delimiter)
        listing = await list_keys(
            self._calls.of(visit.tenant),
            asked.namespace,
            asked.prefix,
            delimiter=asked.delimiter,
            cursor=asked.cursor,
        )
        return visit.render(
            "console/_data_level.html",
            asked=asked,
            rows=view.rows(listing),
            more_url=view.link(cursor=listing.cursor, part="level") if listing.cursor else "",
        )


def _is_part(visit: Visit) -> bool:
    """Whether only the list is asked for. Whoever comes back by the browser's history has nothing
    of the page any more, and says so."""
    return visit.is_htmx and "hx-history-restore-request" not in visit.request.headers
