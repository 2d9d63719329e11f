"""Listings as the data pages show them: a page of keys, and the namespaces there are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from services.core.errors import ClientError
from services.usermanager.pages.console_data_changes import where
from services.usermanager.pages.console_data_links import link, namespace_default, shown
from services.usermanager.pages.gateway_calls import TenantCalls, administering, check, told

# What fits a screen or two. A page costs the nodes the same wherever in a namespace it is.
page_keys: Final = 100
namespaces_shown_max: Final = 1000


class ListedKey(msgspec.Struct, frozen=True):
    key: str
    size: int
    etag: str
    updated_at: datetime
    expires_at: datetime | None


class Listing(msgspec.Struct, frozen=True):
    keys: list[ListedKey]
    prefixes: list[str]
    cursor: str | None


class Namespace(msgspec.Struct, frozen=True):
    name: str
    kind: str
    max_items: int | None
    keys: int
    bytes: int

    @property
    def shown(self) -> str:
        return shown(self.name)


class Namespaces(msgspec.Struct, frozen=True):
    namespaces: list[Namespace]
    cursor: str | None


@dataclass(slots=True, frozen=True)
class Row:
    """A key in a list, or a group of keys in a tree."""

    # What is shown of it, and what it is called as a whole.
    name: str
    title: str
    url: str
    # Of a group: where its own rows come from.
    level_url: str = ""
    key: ListedKey | None = None


@dataclass(slots=True, frozen=True)
class View:
    """What somebody looks at: all that stands in the address but for the cursor."""

    namespace: str
    prefix: str
    view: str
    delimiter: str

    def link(self, **more: str) -> str:
        members = {"namespace": self.namespace, "prefix": self.prefix}
        members |= {"view": self.view, "delimiter": self.delimiter}
        return link(**{**members, **more})

    def crumbs(self) -> list[tuple[str, str]]:
        """The prefix in steps, each with where it leads."""
        steps, begins = [], ""
        for part in self.prefix.split(self.delimiter)[:-1]:
            begins += part + self.delimiter
            steps.append((shown(part) + self.delimiter, self.link(prefix=begins)))
        return steps

    def rows(self, listing: Listing) -> list[Row]:
        """Keys and groups in one order, which is that of their bytes."""
        begins = self._level
        rows = [
            (key.key, Row(self._name(key.key, begins), shown(key.key), self._key_url(key), key=key))
            for key in listing.keys
        ]
        rows += [
            (
                prefix,
                Row(
                    self._name(prefix, begins),
                    shown(prefix),
                    self.link(prefix=prefix),
                    self.link(prefix=prefix, part="level"),
                ),
            )
            for prefix in listing.prefixes
        ]
        return [row for _, row in sorted(rows, key=lambda each: each[0].encode())]

    @property
    def _level(self) -> str:
        """What need not be said again of each key: the prefix up to its last delimiter."""
        if self.view == "list":
            return ""
        return self.prefix[: self.prefix.rfind(self.delimiter) + 1]

    @staticmethod
    def _name(key: str, begins: str) -> str:
        return shown(key.removeprefix(begins)) or "(nothing behind the prefix)"

    def _key_url(self, key: ListedKey) -> str:
        return link("/key", namespace=self.namespace, key=key.key)


# Of the cursors that lead back: as long as the longest dozen, which an address has room for.
trail_chars_max: Final = 4_000
# In a trail, the first page, which has no cursor. Cursors have no such sign.
_first: Final = "."


@dataclass(slots=True, frozen=True)
class Trail:
    """The pages before this one, as far as they are remembered, the last of them as the last.

    A listing tells only where it goes on, so an address brings where it has been. What is too long
    to be brought is forgotten from its beginning; from there, the first page is the way back.
    """

    cursors: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Trail:
        return cls(tuple(text.split(","))) if text else cls(())

    def behind(self, cursor: str) -> str:
        """The trail of the next page, where this one has the cursor."""
        cursors = [*self.cursors, cursor or _first]
        while len(text := ",".join(cursors)) > trail_chars_max:
            del cursors[0]
        return text

    def back(self) -> dict[str, str] | None:
        """What the address of the page before says; None if it is not known."""
        if not self.cursors:
            return None
        *before, cursor = self.cursors
        told = {"cursor": "" if cursor == _first else cursor, "trail": ",".join(before)}
        return {name: text for name, text in told.items() if text}


async def list_keys(
    calls: TenantCalls,
    namespace: str,
    prefix: str,
    *,
    delimiter: str = "",
    limit: int = page_keys,
    cursor: str = "",
) -> Listing:
    asked: dict[str, Any] = {"prefix": prefix, "limit": limit}
    asked |= {"delimiter": delimiter} if delimiter else {}
    asked |= {"cursor": cursor} if cursor else {}
    answer = await calls.get("/v1/kv", params=asked, headers=where(namespace))
    return told(check(answer), Listing)


async def list_namespaces(calls: TenantCalls, cursor: str = "") -> Namespaces:
    asked: dict[str, Any] = {"limit": namespaces_shown_max}
    asked |= {"cursor": cursor} if cursor else {}
    answer = await calls.get("/v1/namespaces", params=asked, scopes=administering)
    return told(check(answer), Namespaces)


async def known_namespaces(calls: TenantCalls, named: str) -> tuple[list[Namespace], str]:
    """All there are, the default one and the one that is named among them; and, if they cannot be
    told now, why. Keys can be read while nobody tells of namespaces."""
    trouble = ""
    try:
        found = (await list_namespaces(calls)).namespaces
    except ClientError as error:
        found, trouble = [], error.detail
    missing = {namespace_default, named} - {namespace.name for namespace in found}
    found += [Namespace(name, "store", None, 0, 0) for name in missing]
    return sorted(found, key=lambda each: (each.name != namespace_default, each.name)), trouble
