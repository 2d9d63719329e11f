"""The gateway's public API, asked by a command with an API key.

What is refused for the moment (429, 503, 507) is asked again, when its Retry-After says, for as
long as the command has patience; and what nobody knows the outcome of, if to do it twice is no
harm. Whatever else is wrong ends the command, with an exit code that says what kind it is.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar
from urllib.parse import quote_from_bytes, urlsplit

import httpx
import msgspec

from services.cli.endings import (
    ConditionError,
    KeyNotAllowedError,
    NoSuchKeyError,
    NotAllowedError,
    NotDoneError,
    RefusedError,
    UnknownEndError,
    UnreachableError,
)
from services.core.errors import CATALOGUE, FatalError

T = TypeVar("T")

# A gateway has its own answer within 5 s; so long takes a large one over a poor line.
answer_s_max: Final = 30.0
connect_s_max: Final = 5.0
# Retries that are told no time: from the first on, twice as long each, and never longer.
pause_s_min: Final = 0.25
pause_s_max: Final = 4.0
connections_max: Final = 16
detail_chars_max: Final = 300
# Nothing was applied, and the same may be taken later.
passing: Final = frozenset((429, 503, 507))
# It may have been applied; 502 and whatever a proxy makes up come from between.
unclear: Final = frozenset((500, 502, 504))
_loopback: Final = frozenset(("localhost", "127.0.0.1", "::1"))


@dataclass(frozen=True, slots=True)
class Access:
    """Where the gateway is, and who asks it how."""

    url: str
    api_key: str
    namespace: str | None
    patience_s: float


class Refusal(msgspec.Struct, frozen=True):
    """What a problem document, or an item of a batch, says."""

    code: str = ""
    detail: str = ""
    etag: str | None = None
    operation_id: str | None = None
    # Of an answer, which says it in its head.
    status: int = 0

    @property
    def text(self) -> str:
        return " ".join(self.detail.split())[:detail_chars_max] or self.code


class Patience:
    """Waits between tries, and an end to them."""

    def __init__(self, patience_s: float) -> None:
        self._ends_s = asyncio.get_running_loop().time() + patience_s
        self._tries = 0

    async def wait(self, retry_after_s: float | None = None) -> bool:
        """Wait for the next try; False, at once, if its time would be too late."""
        pause_s = min(pause_s_min * 2**self._tries, pause_s_max)
        self._tries += 1
        # Spread, for others were refused along with this one.
        pause_s = random.uniform(0.5, 1) * pause_s + (retry_after_s or 0)  # noqa: S311 - no secret
        if asyncio.get_running_loop().time() + pause_s > self._ends_s:
            return False
        await asyncio.sleep(pause_s)
        return True


class KvClient:
    def __init__(self, access: Access) -> None:
        headers = [(b"X-API-Key", access.api_key.encode())]
        if access.namespace is not None:
            headers.append((b"X-Namespace", access.namespace.encode()))
        self.access = access
        self._http = httpx.AsyncClient(
            base_url=access.url,
            headers=headers,
            timeout=httpx.Timeout(answer_s_max, connect=connect_s_max),
            limits=httpx.Limits(max_connections=connections_max),
            # A proxy that the environment names knows no gateway on this machine.
            trust_env=urlsplit(access.url).hostname not in _loopback,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        repeatable: bool,
        reads: bool = False,
    ) -> httpx.Response:
        """The answer, which is a success; FatalError, with its exit code, if there is none.

        `repeatable` says that to do it twice is no harm, and `reads` that there is nothing to do.
        """
        patience = Patience(self.access.patience_s)
        # Whether an earlier try may have been applied.
        unknown = False
        while True:
            retry_after_s = None
            try:
                answer = await self._http.request(
                    method, path, params=params, headers=_in_bytes(headers), content=content
                )
            except (httpx.LocalProtocolError, httpx.InvalidURL) as error:
                raise RefusedError(f"this cannot be asked by HTTP: {error}") from error
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                trouble: FatalError = _unreachable(self.access.url, error)
            except (httpx.TransportError, httpx.DecodingError) as error:
                trouble = _broken(self.access.url, error, reads=reads)
                unknown = unknown or not reads
                if not repeatable:
                    raise trouble from error
            else:
                if answer.is_success:
                    return answer
                refusal = refusal_in(answer)
                trouble = ending(refusal, reads=reads)
                if answer.status_code in unclear:
                    unknown = unknown or not reads
                    if not repeatable or refusal.code == "internal":
                        raise trouble
                elif answer.status_code not in passing:
                    raise trouble
                retry_after_s = _retry_after_s(answer)
            if not await patience.wait(retry_after_s):
                _give_up(trouble, unknown=unknown)


def path_of(key: str) -> str:
    """The path of a single key, whatever is in it: also slashes, dots and line ends."""
    # A key may be `..`, which clients and proxies would take for a step upwards.
    return "/v1/kv/" + quote_from_bytes(key.encode(), safe="").replace(".", "%2E")


def told(answer: httpx.Response, kind: type[T]) -> T:
    """What the answer says; FatalError if it comes from something else than a gateway."""
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _no_gateway(answer.status_code, str(answer.url)) from None


def refusal_in(answer: httpx.Response) -> Refusal:
    """FatalError if no gateway would answer so."""
    status = answer.status_code
    try:
        found = msgspec.json.decode(answer.content, type=Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = Refusal()
    if found.code in CATALOGUE and (status != 404 or found.code == "key_not_found"):
        return msgspec.structs.replace(found, status=status)
    if status in passing or status in unclear:
        return Refusal(detail=f"something in between answers {status}", status=status)
    raise _no_gateway(status, str(answer.url))


def ending(refusal: Refusal, *, reads: bool = False) -> FatalError:
    """How a command ends of which this is all that can be said."""
    status, text = refusal.status, refusal.text
    if status in passing:
        return UnreachableError(f"nothing was changed: {text}")
    if status in (401, 403):
        kind = KeyNotAllowedError if refusal.code == "key_not_allowed" else NotAllowedError
        return kind(text)
    if status == 404:
        return NoSuchKeyError(text)
    if status == 412:
        there = "there is no value" if refusal.etag is None else f"its etag is {refusal.etag}"
        return ConditionError(f"{text}; {there}")
    if status not in unclear:
        return RefusedError(text)
    if reads:
        return NotDoneError(text)
    named = "" if refusal.operation_id is None else f" (operation {refusal.operation_id})"
    return UnknownEndError(f"it may have been done or not: {text}{named}; look before repeating it")


def _give_up(trouble: FatalError, *, unknown: bool) -> NoReturn:
    if unknown and not isinstance(trouble, UnknownEndError):
        raise UnknownEndError(f"it may have been done or not: in the end, {trouble}")
    raise trouble


def _unreachable(url: str, error: httpx.TransportError) -> FatalError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLError):
        return FatalError(f"{url} is not trusted: {cause}")
    words = str(error) or type(error).__name__
    return UnreachableError(f"no gateway can be reached at {url} ({words}): is YDHT_URL right?")


def _broken(url: str, error: Exception, *, reads: bool) -> FatalError:
    words = str(error) or type(error).__name__
    lost = f"{url} has not answered to the end ({words})"
    if reads:
        return UnreachableError(lost)
    return UnknownEndError(f"it may have been done or not: {lost}; look before repeating it")


def _no_gateway(status: int, url: str) -> FatalError:
    return FatalError(f"{url} answers {status} as no gateway would: is YDHT_URL right?")


def _retry_after_s(answer: httpx.Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _in_bytes(headers: Mapping[str, str] | None) -> dict[Any, Any]:
    """As text httpx would take ASCII alone."""
    return {name.encode(): text.encode() for name, text in (headers or {}).items()}
