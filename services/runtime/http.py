"""How every service speaks HTTP: one function that assembles the Starlette application.

From the outside in: the request's id, counters and the answer to bugs (edge.py); the bound on
bodies (request_body.py); errors as problem+json (problem.py); then the routes, among them
/health, /ready and /metrics (probes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.types import Lifespan

from services.runtime.edge import RequestCounters, RequestEdge
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness, probe_routes
from services.runtime.problem import Refuse, as_problem, exception_handlers
from services.runtime.request_body import BodyLimit, body_s_default, largest_body_bytes_default


def application(
    service: str,
    routes: Sequence[BaseRoute],
    *,
    metrics: Metrics,
    readiness: Readiness,
    lifespan: Lifespan[Starlette] | None = None,
    health: Callable[[], Mapping[str, object]] = dict,
    middleware: Sequence[Middleware] = (),
    access_log: bool = False,
    counters: RequestCounters | None = None,
    body_bytes_max: int = largest_body_bytes_default,
    body_s_max: float = body_s_default,
    refuse: Refuse = as_problem,
) -> Starlette:
    """A Starlette application with everything that services share around the routes.

    `body_bytes_max` is the largest body that any route takes; a route that takes less adds a
    BodyLimit of its own. `middleware` stands between the limit on bodies and the routes. `counters`
    are given by who answers requests beside the application, and counts them too. `refuse` shows
    errors, of whatever layer.
    """
    counters = counters or RequestCounters()
    counters.add_to(metrics)
    app = Starlette(
        routes=[*probe_routes(service, readiness, metrics, health), *routes],
        middleware=[
            Middleware(RequestEdge, counters=counters, access_log=access_log, refuse=refuse),
            Middleware(BodyLimit, bytes_max=body_bytes_max, seconds_max=body_s_max),
            *middleware,
        ],
        exception_handlers=exception_handlers(refuse),
        lifespan=lifespan,
    )
    # /health/ is a mistake to be told of, not a redirect to follow.
    app.router.redirect_slashes = False
    return app
