"""Templates as pages: jinja2 with everything escaped, and what all templates can use.

    user          who has logged in, or none           asset("css/base.css")
    visit         the request for the page             csrf_token() of a form, csrf_field() in one
    nav           the console's own links              flash          what the last page left to say
    place         where this is, such as place.gateway_url
    usual_requests   what most API keys are tried with (example_requests.py)

A template gets besides what its handler passes to `Visit.render`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jinja2
from markupsafe import Markup

from services.usermanager.pages import csrf
from services.usermanager.pages.assets import Assets
from services.usermanager.pages.example_requests import usual_requests
from services.usermanager.pages.navigation import links_for
from services.usermanager.pages.user_agents import shown_agent

if TYPE_CHECKING:
    from services.usermanager.pages.page import Visit

_units: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(slots=True, frozen=True)
class Place:
    """What pages tell of where they are."""

    # Where clients reach the gateway.
    gateway_url: str


class Templates:
    def __init__(self, directory: Path, assets: Assets, place: Place) -> None:
        self._environment = jinja2.Environment(
            autoescape=True,
            loader=jinja2.FileSystemLoader(directory),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
        )
        self._environment.globals.update(
            asset=assets.url, place=place, usual_requests=usual_requests
        )
        self._environment.filters.update(
            size=shown_size,
            count=shown_count,
            moment=shown_moment,
            iso=iso_moment,
            agent=shown_agent,
        )

    def render(self, template: str, visit: Visit, context: Mapping[str, object]) -> str:
        signed_in = visit.begins or visit.signed_in

        def csrf_field() -> Markup:
            return Markup('<input type="hidden" name="{}" value="{}">').format(
                csrf.field, visit.csrf()
            )

        return self._environment.get_template(template).render(
            {
                "visit": visit,
                "user": None if signed_in is None else signed_in.user,
                "nav": links_for(visit),
                "path": visit.request.url.path,
                "csrf_token": visit.csrf,
                "csrf_field": csrf_field,
                **context,
            }
        )


def shown_size(size_bytes: float) -> str:
    """1536 as "1.5 KiB": of 1024 bytes each, with as many digits as people compare."""
    if size_bytes == 1:
        return "1 byte"
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(_units) - 1:
        size, unit = size / 1024, unit + 1
    digits = 0 if unit == 0 or size >= 100 else 1
    return f"{size:.{digits}f} {_units[unit]}"


def shown_count(number: float) -> str:
    return f"{number:,.0f}"


def shown_moment(moment: datetime) -> str:
    """For people, in UTC; scripts show it in their own time (time.js)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def iso_moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
