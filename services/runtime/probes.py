"""The three routes that every service has: /health, /ready and /metrics.

Healthy means the process answers. Ready means it can do what it is there for; a part that is
missing but not needed for that makes it `degraded`, which is still ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.runtime.accept import Offer, choose
from services.runtime.metrics import Metrics

Level = Literal["ready", "degraded", "unready"]
# How soon a balancer or a script should ask an unready service again.
retry_after_s = 1

_json_offer = Offer("application/json", "application/json")
_plain_offer = Offer("text/plain", "text/plain; version=0.0.4; charset=utf-8")
# Prometheus before 2.5 asks for drafts of OpenMetrics, which this is not.
_openmetrics_offer = Offer(
    "application/openmetrics-text",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    version_min=(1, 0, 0),
)
metrics_offers = (_json_offer, _openmetrics_offer, _plain_offer)


@dataclass(frozen=True, slots=True)
class Condition:
    """What a check found; the reason is for people."""

    level: Level
    reason: str = ""


ready = Condition("ready")


def degraded(reason: str) -> Condition:
    return Condition("degraded", reason)


def unready(reason: str) -> Condition:
    return Condition("unready", reason)


class Readiness:
    """Named checks, each a plain function of what the process knows already."""

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], Condition]] = {}

    def add(self, name: str, check: Callable[[], Condition]) -> None:
        if name in self._checks:
            raise ValueError(f"the check {name} is there already")
        self._checks[name] = check

    def look(self) -> tuple[Level, dict[str, str]]:
        """The worst level found, and the reason of every check that is not ready, by name."""
        found = {name: check() for name, check in self._checks.items()}
        reasons = {name: item.reason for name, item in found.items() if item.level != "ready"}
        levels = {item.level for item in found.values()}
        if "unready" in levels:
            return "unready", reasons
        return ("degraded" if "degraded" in levels else "ready"), reasons


def probe_routes(
    service: str,
    readiness: Readiness,
    metrics: Metrics,
    health: Callable[[], Mapping[str, object]] = dict,
) -> list[Route]:
    """The routes. `health` adds members to /health, and may turn its status into `degraded`."""

    async def answer_health(_: Request) -> Response:
        return _json({"status": "healthy", "service": service, **health()})

    async def answer_ready(_: Request) -> Response:
        level, reasons = readiness.look()
        response = _json({"status": level, "service": service, "reasons": reasons})
        if level == "unready":
            response.status_code = 503
            response.headers["Retry-After"] = str(retry_after_s)
        return response

    async def answer_metrics(request: Request) -> Response:
        offer = choose(",".join(request.headers.getlist("accept")), metrics_offers)
        if offer is _json_offer:
            response = _json(metrics.as_json())
        else:
            as_text = metrics.as_prometheus if offer is _plain_offer else metrics.as_openmetrics
            response = Response(as_text(), headers={"Content-Type": offer.content_type})
        response.headers["Vary"] = "Accept"
        return response

    return [
        Route("/health", answer_health),
        Route("/ready", answer_ready),
        Route("/metrics", answer_metrics),
    ]


def _json(document: Mapping[str, object]) -> Response:
    return Response(
        msgspec.json.encode(document),
        media_type="application/json",
        # A stale answer about health is worse than none.
        headers={"Cache-Control": "no-store"},
    )
