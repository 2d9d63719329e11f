"""The documentation: chapters that anybody may read, keep and print.

Most are the same for everybody, so browsers and proxies may keep what strangers are shown. Whoever
has logged in has their name on each page, which nobody else may keep.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape
from starlette.responses import Response

from services.core.errors import CATALOGUE, ErrorCode
from services.core.key import key_bytes_max
from services.core.ring import slot_count
from services.runtime.api_reference import Reference
from services.runtime.error_advice import advice
from services.usermanager.pages import docs_limits
from services.usermanager.pages.docs_references import References
from services.usermanager.pages.page import Audience, Handler, Page, Visit

# As long as a deployment may take to be noticed.
kept_s: Final = 300
away_status: Final = 503
retry_after_s: Final = 5


@dataclass(slots=True, frozen=True)
class Chapter:
    path: str
    title: str
    template: str
    # Of a chapter about a service's API: whose.
    service: str = ""


chapters: Final = (
    Chapter("/docs", "Quick start", "quick_start"),
    Chapter("/docs/consistency", "Consistency", "consistency"),
    Chapter("/docs/limits", "Limits", "limits"),
    Chapter("/docs/errors", "Errors", "errors"),
    Chapter("/docs/operate", "Running your own", "operate"),
    Chapter("/docs/api/gateway", "API: keys and values", "api", "gateway"),
    Chapter("/docs/api/keygen", "API: IDs", "api", "keygen"),
    Chapter("/docs/api/usermanager", "API: accounts", "api", "usermanager"),
)
_status_words: Final[Mapping[int, str]] = {
    4: "The request is wrong: sending it again changes nothing",
    5: "Something is wrong on this side",
}
_credentials: Final[Mapping[str, str]] = {
    "access_token": "Access token",
    "api_key": "API key",
    "api_key_as_bearer": "API key",
    "cluster_signature": "Services of the cluster alone",
}


class DocsPages:
    """`accounts_url` is where the user manager is, as examples name it."""

    def __init__(self, references: References, accounts_url: str) -> None:
        self._references = references
        self._accounts_url = accounts_url
        # A chapter is made anew only when its document has changed.
        self._made: dict[str, tuple[Reference, Markup]] = {}

    def pages(self) -> list[Page]:
        return [
            *(
                Page("GET", chapter.path, self._handler(chapter), Audience.ANYBODY)
                for chapter in chapters
            ),
            Page("GET", "/docs/api", self.to_api, Audience.ANYBODY),
        ]

    async def to_api(self, visit: Visit) -> Response:
        return visit.redirect("/docs/api/gateway")

    def _handler(self, chapter: Chapter) -> Handler:
        return functools.partial(self._api if chapter.service else self._plain, chapter)

    async def _plain(self, chapter: Chapter, visit: Visit) -> Response:
        return self._shown(
            chapter,
            visit,
            accounts_url=self._accounts_url,
            slot_count=slot_count,
            key_bytes_max=key_bytes_max,
            by_status=_by_status(),
            advice=advice,
            groups=docs_limits.groups(),
            plans=docs_limits.plan_rows(),
            status_words=_status_words,
        )

    async def _api(self, chapter: Chapter, visit: Visit) -> Response:
        reference = await self._references.of(chapter.service)
        if reference is None:
            response = visit.render(
                "docs/away.html", away_status, chapter=chapter, chapters=chapters
            )
            response.headers["Retry-After"] = str(retry_after_s)
            return response
        kept = self._made.get(chapter.service)
        if kept is None or kept[0] is not reference:
            body = visit.templates.render(
                "docs/_reference.html",
                visit,
                {"reference": reference, "coded": coded, "needs": needs},
            )
            kept = self._made[chapter.service] = (reference, Markup(body))  # noqa: S704  Escaped.
        return self._shown(chapter, visit, reference=reference, body=kept[1])

    def _shown(self, chapter: Chapter, visit: Visit, **context: object) -> Response:
        response = visit.render(
            f"docs/{chapter.template}.html",
            chapter=chapter,
            chapters=chapters,
            coded=coded,
            **context,
        )
        is_of_anybody = visit.signed_in is None and not visit.flash_was_shown
        keeping = f"public, max-age={kept_s}" if is_of_anybody else "private, no-cache"
        response.headers["Cache-Control"] = keeping
        # Who logs in is to see so at once.
        response.headers["Vary"] = "Cookie"
        return response


def _by_status() -> dict[int, list[ErrorCode]]:
    found: dict[int, list[ErrorCode]] = {}
    for entry in sorted(CATALOGUE.values(), key=lambda entry: entry.status):
        found.setdefault(entry.status, []).append(entry)
    return found


def coded(text: str) -> Markup:
    """Words of a document, in which what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        # One has no fellow: it means itself.
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def needs(credentials: list[str]) -> str:
    """What has to come with a request, in words; nothing if anybody may send it."""
    return " or ".join(dict.fromkeys(_credentials.get(name, name) for name in credentials))
