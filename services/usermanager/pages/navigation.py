"""The links that the console has on each of its pages. A page joins by one line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.usermanager.pages.page import Visit


@dataclass(slots=True, frozen=True)
class Entry:
    label: str
    path: str
    # A symbol of templates/components/icons.html.
    icon: str
    operators_only: bool = False


@dataclass(slots=True, frozen=True)
class Link:
    """An entry on one page: `is_here` if the page is it, or one below it."""

    label: str
    path: str
    icon: str
    is_here: bool


entries: Final[Sequence[Entry]] = (
    Entry("Overview", "/console", "home"),
    Entry("Data", "/console/data", "database"),
    Entry("API keys", "/console/keys", "key"),
    Entry("Usage", "/console/usage", "chart"),
    Entry("IDs", "/console/ids", "hash"),
    Entry("Cluster", "/console/cluster", "nodes", operators_only=True),
    Entry("Account", "/console/account", "person"),
)


def links_for(visit: Visit) -> list[Link]:
    """Those that the visitor may follow."""
    signed_in = visit.signed_in
    if signed_in is None:
        return []
    return [
        Link(entry.label, entry.path, entry.icon, _is_at(entry.path, visit.request.url.path))
        for entry in entries
        if signed_in.user.is_operator or not entry.operators_only
    ]


def _is_at(path: str, here: str) -> bool:
    # The overview stands above all others.
    return here == path or (path != "/console" and here.startswith(f"{path}/"))
