"""The user manager as its clients see it: each answer is checked against what is documented."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx

from services.core.errors import CATALOGUE
from services.runtime.clock import SystemClock
from services.runtime.problem import problem_type
from services.runtime.signing import SignedAuth, Signer
from tests.integration.node_process import secret

# Who waits for longer has given up: to a client it is a request that hangs.
request_s_max: Final = 10.0
poll_s: Final = 2
# A client that asks again without a pause only burns its core.
again_s: Final = 0.25
# Longer than any outage here: who is refused for so long would have had to be served.
settled_s_max: Final = 60.0


@dataclass(slots=True, frozen=True)
class Request:
    """One thing to ask, and the statuses that may come of it besides a refusal."""

    method: str
    path: str
    answers: frozenset[int]
    # What only reads is never left unknown.
    writes: bool = False
    signed: bool = False
    wait_s: float = 0.0


sign_up: Final = Request("POST", "/signup", frozenset({201, 409}), writes=True)
log_in: Final = Request("POST", "/login", frozenset({200}), writes=True)
refresh: Final = Request("POST", "/refresh", frozenset({200, 401}), writes=True)
me: Final = Request("GET", "/me", frozenset({200}))
create_key: Final = Request("POST", "/apikeys", frozenset({201}), writes=True)
list_keys: Final = Request("GET", "/apikeys?limit=1000", frozenset({200}))
rotate_key: Final = Request("POST", "/apikeys/{id}/rotate", frozenset({201, 409}), writes=True)
revoke_key: Final = Request("DELETE", "/apikeys/{id}", frozenset({204}), writes=True)
validate_key: Final = Request("POST", "/validate-key", frozenset({200, 401}), signed=True)
report_usage: Final = Request("POST", "/usage", frozenset({200}), writes=True, signed=True)
poll_events: Final = Request(
    "GET",
    f"/key-events?after={{after}}&wait_s={poll_s}",
    frozenset({200}),
    signed=True,
    wait_s=poll_s,
)


class Desk:
    """Asks, and counts and times the answers."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.statuses: Counter[int] = Counter()
        self.longest_s = 0.0
        # When the latest of the requests began that were refused, or left unknown.
        self.refused_at_s = 0.0
        self._url = url
        self._http = http
        self._auth = SignedAuth(Signer(secret, SystemClock()))

    async def ask(
        self,
        request: Request,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        **parts: int,
    ) -> httpx.Response:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(request.wait_s + request_s_max):
                answer = await self._http.request(
                    request.method,
                    self._url + request.path.format(**parts),
                    headers=headers,
                    auth=self._auth if request.signed else None,
                    json=body,
                )
        except TimeoutError:
            raise AssertionError(f"{request} was not answered in {request_s_max:g} s") from None
        took_s = time.monotonic() - began_s
        self.longest_s = max(self.longest_s, took_s - request.wait_s)
        self.statuses[answer.status_code] += 1
        if answer.status_code in (503, 504):
            self.refused_at_s = max(self.refused_at_s, began_s)
        _check_documented(request, answer)
        return answer

    async def settle(
        self,
        request: Request,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        **parts: int,
    ) -> tuple[httpx.Response, bool]:
        """Ask until it is told what came of it; and whether any time nobody could tell."""
        unknown = False
        async with asyncio.timeout(settled_s_max):
            while True:
                answer = await self.ask(request, body, headers=headers, **parts)
                if answer.status_code not in (503, 504):
                    return answer, unknown
                unknown = unknown or answer.status_code == 504
                await asyncio.sleep(again_s)


def _check_documented(request: Request, answer: httpx.Response) -> None:
    status = answer.status_code
    told = f"{request.method} {request.path} was answered {status}: {answer.text}"
    assert status in request.answers or status == 503 or (status == 504 and request.writes), told
    if status < 400:
        return
    assert answer.headers["Content-Type"] == problem_type, told
    problem = answer.json()
    assert CATALOGUE[problem["code"]].status == problem["status"] == status, told
    if status == 503:
        assert problem["code"] in ("database_unavailable", "overloaded"), told
        assert int(answer.headers["Retry-After"]) >= 1, told
    if status == 504:
        assert problem["operation_id"], told
