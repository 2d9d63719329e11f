"""What pages ask of the gateway and of keygen, in the name of the tenant whose page it is.

    answer = await calls.of(visit.tenant).get("/v1/kv", params={"prefix": "a/", "limit": 100})
    answer = await calls.of(visit.tenant).ask("PUT", path_of(key), content=value, scopes=writing)

Requests are signed (runtime/console_requests.py): nobody's API key is known here. The answer is
httpx's, whatever its status; `check` makes a ClientError of a refusal, to be shown as a page. What
cannot be asked at all is RetryLater.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote_from_bytes

import httpx
import msgspec

from services.core.errors import CATALOGUE, ClientError, FixRequest, RetryLater, UnknownOutcome
from services.core.key_checks import Scope
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.console_requests import scope_header, tenant_header
from services.runtime.problem import path_chars_max
from services.runtime.signed_client import signed_client

T = TypeVar("T")

# The gateway gives a request 5 s; more than that is a gateway that is gone.
answer_s_max: Final = 10.0
connect_s_max: Final = 1.0
# What a replicator or a node shows of itself takes it milliseconds; one that hangs is told as one.
inside_answer_s_max: Final = 2.0
connections_max: Final = 64
# What a request of a page may do.
reading: Final[tuple[Scope, ...]] = ("read",)
writing: Final[tuple[Scope, ...]] = ("read", "write")
administering: Final[tuple[Scope, ...]] = ("read", "write", "admin")
# A supervisor has it back within a few seconds.
retry_after_s: Final = 2
# Of a text that is passed on.
told_chars_max: Final = 500

log = telemetry.logger("services.usermanager")


class _Problem(msgspec.Struct):
    code: str
    detail: str = ""


def path_of(key: bytes | str) -> str:
    """The path of a single key, whatever is in it: also slashes, dots and line ends."""
    raw = key.encode() if isinstance(key, str) else key
    # A key may be `..`, which clients and proxies would take for a step upwards.
    return "/v1/kv/" + quote_from_bytes(raw, safe="").replace(".", "%2E")


class PlatformCalls:
    """A signed client for each of the two. Usable until `close`."""

    def __init__(
        self,
        gateway_url: str,
        keygen_url: str,
        cluster_secret: str,
        clock: Clock,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.gateway, self.keygen, self.inside = (
            Service(
                name,
                signed_client(
                    cluster_secret,
                    clock,
                    base_url=url,
                    answer_s_max=answer_s,
                    connect_s_max=connect_s_max,
                    connections_max=connections_max,
                    transport=transport,
                ),
            )
            for name, url, answer_s in (
                ("data service", gateway_url, answer_s_max),
                ("ID service", keygen_url, answer_s_max),
                # Replicators and nodes, by whole URLs.
                ("cluster", "", inside_answer_s_max),
            )
        )

    async def close(self) -> None:
        for service in (self.gateway, self.keygen, self.inside):
            await service.client.aclose()

    def of(self, tenant: int) -> TenantCalls:
        """The gateway, asked in this tenant's name."""
        return TenantCalls(self.gateway, tenant)


@dataclass(slots=True, frozen=True)
class Service:
    """One of ours, as pages ask it."""

    name: str
    client: httpx.AsyncClient

    async def ask(self, method: str, target: str, **sent: Any) -> httpx.Response:
        try:
            return await self.client.request(method, target, **sent)
        except httpx.LocalProtocolError as error:
            raise _unfit(error) from error
        except httpx.HTTPError as error:
            raise self._away(method, error) from error

    @asynccontextmanager
    async def stream(self, method: str, target: str, **sent: Any) -> AsyncIterator[httpx.Response]:
        """For what is too large to hold: the answer's body arrives while it is read."""
        try:
            async with self.client.stream(method, target, **sent) as answer:
                yield answer
        except httpx.LocalProtocolError as error:
            raise _unfit(error) from error
        except httpx.HTTPError as error:
            raise self._away(method, error) from error

    def _away(self, method: str, error: httpx.HTTPError) -> ClientError:
        why = str(error) or type(error).__name__
        log.warning("a page cannot be answered", asked=self.name, reason=why)
        # What was never sent has changed nothing; what was may have.
        if method in ("GET", "HEAD") or isinstance(error, httpx.ConnectError | httpx.PoolTimeout):
            told = f"The {self.name} cannot be reached just now; nothing was changed"
            code = "keygen_unavailable" if self.name == "ID service" else "gateway_unavailable"
            return RetryLater(code, told, retry_after_s=retry_after_s)
        return UnknownOutcome(
            f"The {self.name} has not answered: what was asked for may have been done or not. Look "
            "before you try again"
        )


@dataclass(slots=True, frozen=True)
class TenantCalls:
    gateway: Service
    tenant: int

    async def get(self, target: str, **sent: Any) -> httpx.Response:
        return await self.ask("GET", target, **sent)

    async def ask(
        self,
        method: str,
        target: str,
        *,
        scopes: Collection[Scope] = reading,
        headers: Mapping[str, str] | None = None,
        **sent: Any,
    ) -> httpx.Response:
        """`sent` is as httpx has it: params, content, json. Of the scopes, prefix deletes and
        namespaces take `administering`, whatever else changes something `writing`."""
        whole = self._headers(scopes, headers)
        return await self.gateway.ask(method, target, headers=whole, **sent)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        target: str,
        *,
        scopes: Collection[Scope] = reading,
        headers: Mapping[str, str] | None = None,
        **sent: Any,
    ) -> AsyncIterator[httpx.Response]:
        whole = self._headers(scopes, headers)
        async with self.gateway.stream(method, target, headers=whole, **sent) as answer:
            yield answer

    def _headers(
        self, scopes: Collection[Scope], headers: Mapping[str, str] | None
    ) -> list[tuple[bytes, bytes]]:
        """In bytes: names of namespaces and metadata are UTF-8, which httpx takes no text of."""
        claims = {tenant_header: str(self.tenant), scope_header: ",".join(scopes)}
        both = {**claims, **(headers or {})}
        return [(name.encode("ascii"), value.encode()) for name, value in both.items()]


def _unfit(error: httpx.LocalProtocolError) -> FixRequest:
    """For what somebody wants said in a header that has no place there. Nothing was sent."""
    return FixRequest("invalid_header", f"This cannot be asked for over HTTP: {error}")


def told(answer: httpx.Response, of: type[T], code: str = "gateway_unavailable") -> T:
    """The document of an answer that is no refusal; RetryLater, with this code, if it is none that
    is understood here: while versions change, the one who answers may be of another one."""
    try:
        return msgspec.json.decode(answer.content, type=of)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        path = answer.request.url.path[:path_chars_max]
        log.warning("an answer is not understood", path=path, reason=str(error))
        raise RetryLater(
            code, "It answered what is not understood here: is it of another version?"
        ) from error


def check(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is no refusal; else what it refuses with, to be raised."""
    if answer.status_code >= 400:
        raise refusal_of(answer)
    return answer


def refusal_of(answer: httpx.Response) -> ClientError:
    """The error of an answer whose body has been read."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem("")
    detail = problem.detail[:told_chars_max]
    entry = CATALOGUE.get(problem.code)
    # What we are refused for ourselves is no business of who looks at a page.
    if entry is None or problem.code == "unauthorized" or entry.status == 500:
        log.error("a page is refused", status=answer.status_code, code=problem.code or None)
        return RetryLater("gateway_unavailable", f"It answered with {answer.status_code}")
    if entry.status == 504:
        return UnknownOutcome(detail)
    if entry.retryable:
        wait = answer.headers.get("retry-after", "")
        wait_s = int(wait) if wait.isdecimal() and len(wait) < 7 else retry_after_s
        return RetryLater(entry.code, detail, retry_after_s=wait_s)
    return FixRequest(entry.code, detail)
