"""A user manager, as services ask it: signed requests, typed both ways, that end in time.

    ValidKey, KeyEventPage, UsageTaken     what it answers
    FixRequest                             what it refuses for good: `invalid_api_key`, or a report
                                           that it cannot read
    RetryLater auth_unavailable            everything else: it is away, or says that it cannot tell

All that is asked may be asked twice: to look is no change, and a report counts once. So what a
connection loses that had been idle is sent again, once. Whose key cannot be looked up is told no
more than that: where the user manager is said to be, and what is wrong there, is for the log and
for readiness.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import urlencode

import httpx
import msgspec

from services.core.errors import CATALOGUE, FixRequest, RetryLater
from services.core.key_checks import KeyEventPage, KeyEventsQuery, ValidateKey, ValidKey
from services.core.usage_report import UsageReport, UsageTaken
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.metrics import Metrics
from services.runtime.request_body import decode_json
from services.runtime.shares import ShareLimit, Shares
from services.runtime.signed_client import signed_client

T = TypeVar("T")

# On one machine or in one network; who does not take a connection by then is not there.
connect_s_max: Final = 1.0
# A little more than what a user manager gives itself for a key (key_lookup.answer_s_max): a client
# waits behind it.
validate_s_max: Final = 4.5
# A report is a transaction, and nobody waits behind it.
report_s_max: Final = 10.0
# Beyond what it was asked to wait.
poll_grace_s: Final = 2.0
# Keys that nobody here has seen lately: the user manager gathers them into few statements, and
# answers a few hundred a second to each who asks.
validations: Final = ShareLimit(32, 2_000, 4.0, "auth_unavailable", "API keys being looked up")
# Those, a poll, a report, and one more of each while an earlier one is given up.
connections_max: Final = validations.at_once + 4
# Before a user manager lets go of an idle connection (client_connections.idle_s_max).
idle_s_max: Final = 30.0
# A page of 1,000 events has 60 KB.
answer_bytes_max: Final = 1 << 20
# Of a text that is passed on.
told_chars_max: Final = 200

_told_clients: Final = (
    "This API key was not seen here lately, and cannot be checked just now; nothing was done: try "
    "again"
)
_refused_for_good: Final = frozenset(("invalid_api_key", "invalid_body", "invalid_json"))


class _NoAnswerError(Exception):
    """It has not answered what it was asked; the text says why."""


class _Problem(msgspec.Struct, frozen=True):
    """What is read of a problem document."""

    code: str
    detail: str = ""


class UserManager:
    """A client of the user manager at this URL; use as an async context manager."""

    def __init__(self, url: str, cluster_secret: str, clock: Clock) -> None:
        self.url = url
        self._client = signed_client(
            cluster_secret,
            clock,
            base_url=url,
            answer_s_max=None,
            connect_s_max=connect_s_max,
            connections_max=connections_max,
            idle_s_max=idle_s_max,
            # Compressed, a short answer could become any long one.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )
        self._validations = Shares(validations)
        # Whether the last API key that was asked about could not be looked up.
        self._keeps_keys_back = False
        self._log = telemetry.logger("services.credentials")
        self.asked = 0
        self.failed = 0

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    def add_to(self, metrics: Metrics) -> None:
        metrics.add(
            "usermanager_requests", "counter", "Asked of the user manager", lambda: self.asked
        )
        metrics.add(
            "usermanager_failures",
            "counter",
            "Requests that the user manager has not answered, or cannot now",
            lambda: self.failed,
        )

    async def validate_key(self, asked: ValidateKey) -> ValidKey:
        async with self._validations.of(self):
            try:
                found = await self._ask(
                    "POST", "/validate-key", ValidKey, validate_s_max, msgspec.json.encode(asked)
                )
            except FixRequest:
                self._keeps_keys_back = False
                raise
            except RetryLater as error:
                if not self._keeps_keys_back:
                    # Said when it changes, not of every key.
                    self._keeps_keys_back = True
                    self._log.warning("API keys cannot be looked up", why=error.detail)
                raise RetryLater("auth_unavailable", _told_clients) from error
            self._keeps_keys_back = False
            return found

    async def key_events(self, asked: KeyEventsQuery) -> KeyEventPage:
        members = {"wait_s": asked.wait_s}
        if asked.after is not None:
            members["after"] = asked.after
        target = f"/key-events?{urlencode(members)}"
        return await self._ask("GET", target, KeyEventPage, asked.wait_s + poll_grace_s)

    async def take_usage(self, report: UsageReport) -> UsageTaken:
        return await self._ask(
            "POST", "/usage", UsageTaken, report_s_max, msgspec.json.encode(report)
        )

    async def _ask(
        self, method: str, target: str, of: type[T], seconds_max: float, body: bytes | None = None
    ) -> T:
        self.asked += 1
        try:
            async with asyncio.timeout(seconds_max):
                status, content = await self._send_again_if_lost(method, target, body)
            return _answer(status, content, of)
        except TimeoutError:
            raise self._away(f"it has not answered within {seconds_max:g} s") from None
        except httpx.RequestError as error:
            raise self._away(str(error) or type(error).__name__) from error
        except _NoAnswerError as error:
            raise self._away(str(error)) from error

    def _away(self, cause: str) -> RetryLater:
        self.failed += 1
        return RetryLater(
            "auth_unavailable",
            f"the user manager at {self.url} (USERMANAGER_URL) cannot be asked now: "
            f"{cause[:told_chars_max]}",
        )

    async def _send_again_if_lost(
        self, method: str, target: str, body: bytes | None
    ) -> tuple[int, bytes]:
        try:
            return await self._send(method, target, body)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            return await self._send(method, target, body)

    async def _send(self, method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        content = bytearray()
        async with self._client.stream(method, target, content=body, headers=headers) as answer:
            async for part in answer.aiter_raw():
                content += part
                if len(content) > answer_bytes_max:
                    raise _NoAnswerError(f"its answer is longer than {answer_bytes_max} bytes")
        return answer.status_code, bytes(content)


def _answer(status: int, content: bytes, of: type[T]) -> T:
    if status == httpx.codes.OK:
        try:
            return decode_json(content, of)
        except FixRequest as error:
            told = f"its answer is not what was asked for: {error.detail}"
            raise _NoAnswerError(told) from error
    try:
        problem = decode_json(content, _Problem)
    except FixRequest:
        told = f"what answers there (status {status}) is no user manager"
        raise _NoAnswerError(told) from None
    detail = problem.detail[:told_chars_max]
    if problem.code in _refused_for_good and status == CATALOGUE[problem.code].status:
        raise FixRequest(problem.code, detail)
    raise _NoAnswerError(f"it answers {problem.code[:told_chars_max]}: {detail}")
