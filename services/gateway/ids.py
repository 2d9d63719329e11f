"""IDs: POST /v1/ids, which keygen makes.

Keygen is asked in the tenant's name, by a signed request (core/id_requests.py), and where it
refuses, the code of its problem document is passed on. It is asked once. If no answer comes some
IDs may be lost, which is no harm: gaps are allowed.
"""

from __future__ import annotations

from typing import Final

import httpx
import msgspec

from services.core.errors import CATALOGUE, ClientError, FixRequest, RetryLater
from services.core.id_requests import (
    Ids,
    IdsQuery,
    ids_per_day_header,
    ids_per_day_text,
    key_id_header,
    path_of_ids,
)
from services.gateway.messages_keys import UnconditionalHeaders
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.console_requests import tenant_header
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.signed_client import signed_client

# Keygen serves from memory; it waits for PostgreSQL only where a pool has run dry.
asked_s: Final = 5.0
connect_s: Final = 1.0
# Each may wait for as long as a pool is filled.
connections_max: Final = 100
# A supervisor has it back within a few seconds.
retry_after_s: Final = 2
# What of keygen's refusals is the client's to hear.
_passed_on: Final = frozenset(
    (
        "quota_exhausted",
        "limit_reached",
        "rate_limited",
        "database_unavailable",
        "overloaded",
        "shutting_down",
    )
)

log = telemetry.logger("services.gateway")


class _Problem(msgspec.Struct):
    code: str
    detail: str = ""


class IdSource:
    """Asks keygen. Usable until `close`."""

    def __init__(
        self,
        keygen_url: str,
        cluster_secret: str,
        clock: Clock,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = keygen_url
        # Said once when it goes and once when it comes back, however many ask meanwhile.
        self._is_away = False
        self._client = signed_client(
            cluster_secret,
            clock,
            base_url=keygen_url,
            answer_s_max=asked_s,
            connect_s_max=connect_s,
            connections_max=connections_max,
            transport=transport,
        )

    async def close(self) -> None:
        await self._client.aclose()

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/v1/ids",
                "makeIds",
                "Make IDs that nobody else has",
                self._make,
                access=Access.API_KEY,
                scope="write",
                counted_as="ids",
                query_type=IdsQuery,
                header_type=UnconditionalHeaders,
                bodiless=True,
                answer_type=Ids,
                errors=(
                    "quota_exhausted",
                    "limit_reached",
                    "keygen_unavailable",
                    "database_unavailable",
                    "overloaded",
                    "shutting_down",
                ),
                tag="IDs",
            )
        ]

    async def _make(self, call: Call[None, IdsQuery, None]) -> Ids:
        credential, query = call.credential, call.query
        headers = {
            tenant_header: str(credential.tenant),
            key_id_header: str(credential.key_id),
            ids_per_day_header: ids_per_day_text(credential.ids_per_day),
        }
        try:
            answer = await self._client.post(
                path_of_ids, params={"count": query.count, "size": query.size}, headers=headers
            )
        except httpx.HTTPError as error:
            # Clients are told no addresses of ours.
            if not self._is_away:
                self._is_away = True
                why = str(error) or type(error).__name__
                log.warning("keygen cannot be asked", url=self._url, reason=why)
            raise _unavailable("keygen cannot be reached") from error
        if self._is_away:
            self._is_away = False
            log.info("keygen answers again", url=self._url)
        if answer.status_code != 200:
            raise self._refusal(answer)
        try:
            ids = msgspec.json.decode(answer.content, type=Ids)
        except ValueError as error:
            raise _unavailable("keygen gave an answer that makes no sense") from error
        if len(ids.ids) != query.count:
            raise _unavailable(f"keygen gave {len(ids.ids)} IDs, and not {query.count}")
        return ids

    @staticmethod
    def _refusal(answer: httpx.Response) -> ClientError:
        try:
            problem = msgspec.json.decode(answer.content, type=_Problem)
        except ValueError:
            problem = _Problem("")
        entry = CATALOGUE.get(problem.code)
        if entry is None or problem.code not in _passed_on:
            log.error(
                "keygen refuses the gateway", status=answer.status_code, code=problem.code or None
            )
            return _unavailable(f"keygen answered with status {answer.status_code}")
        if entry.status in FixRequest.statuses:
            return FixRequest(problem.code, problem.detail)
        wait = answer.headers.get("retry-after", "")
        wait_s = int(wait) if wait.isdecimal() and len(wait) < 7 else retry_after_s
        return RetryLater(problem.code, problem.detail, retry_after_s=wait_s)


def _unavailable(why: str) -> RetryLater:
    return RetryLater("keygen_unavailable", f"No IDs now: {why}", retry_after_s=retry_after_s)
