"""The requests that are not for one key: batches, what the gateway asks for, and the quota."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from services.core.hlc import rfc3339
from services.core.id_requests import (
    Ids,
    IdsQuery,
    count_max,
    ids_per_day_told,
    path_of_ids,
    path_of_quota,
)
from services.core.permute import number_spelled
from services.keygen.issuing import Issuing
from services.keygen.lots import Drawn
from services.keygen.messages import (
    Claims,
    CountPath,
    GivenKey,
    KeyQuery,
    QuotaAnswer,
    TenantQuotaAnswer,
    id_of,
)
from services.keygen.quotas import Account, Quotas
from services.runtime.clock import Clock
from services.runtime.credential import Credential
from services.runtime.endpoints import Access, Call, Encoded, Endpoint, Raw
from services.runtime.text_members import Wrong, refusal

# Each answer has keys that nobody else gets: not for a HEAD, which would not show them.
path_of_keys: Final = "/api/keys/{count}"

errors_of_giving: Final = (
    "quota_exhausted",
    "limit_reached",
    "database_unavailable",
    "overloaded",
    "shutting_down",
)


class KeyApi:
    def __init__(self, issuing: Issuing, clock: Clock) -> None:
        self._issuing = issuing
        self._quotas: Quotas = issuing.quotas
        self._clock = clock

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/get-key",
                "getKey",
                "Get a key of 7 characters",
                None,
                access=Access.API_KEY,
                scope="write",
                answer_type=Raw("A key", ("text/plain",)),
                errors=errors_of_giving,
                description="Where KEYGEN_ANONYMOUS is set, also without an API key.",
                tag="Keys",
            ),
            Endpoint(
                "GET",
                "/api/key",
                "getOneKey",
                "Get a key, with what there is to tell of it",
                None,
                access=Access.API_KEY,
                scope="write",
                query_type=KeyQuery,
                answer_type=GivenKey,
                errors=errors_of_giving,
                tag="Keys",
            ),
            Endpoint(
                "GET",
                path_of_keys,
                "getKeys",
                "Get many keys",
                self._give,
                access=Access.API_KEY,
                scope="write",
                counted_as="ids",
                path_type=CountPath,
                query_type=KeyQuery,
                answer_type=list[GivenKey],
                errors=(*errors_of_giving, "invalid_query"),
                description=f"1 to {count_max}. If not all of them fit the quota, none is given.",
                tag="Keys",
            ),
            Endpoint(
                "GET",
                "/quota",
                "getQuota",
                "See how many keys this API key may have on this day, and has had",
                self._tell_quota,
                access=Access.API_KEY,
                scope="read",
                counted_as="quota",
                answer_type=QuotaAnswer,
                errors=("database_unavailable", "overloaded", "shutting_down"),
                tag="Keys",
            ),
            Endpoint(
                "POST",
                path_of_ids,
                "makeIds",
                "Give keys to a tenant of the gateway",
                self._give_to_gateway,
                access=Access.INTERNAL,
                query_type=IdsQuery,
                header_type=Claims,
                answer_type=Ids,
                errors=errors_of_giving,
                tag="Internal",
            ),
            Endpoint(
                "GET",
                path_of_quota,
                "getQuotaOfTenant",
                "Tell a service how many keys a tenant may have on this day, and has had",
                self._tell_quota_of_tenant,
                access=Access.INTERNAL,
                header_type=Claims,
                answer_type=TenantQuotaAnswer,
                errors=("database_unavailable", "overloaded", "shutting_down"),
                tag="Internal",
            ),
        ]

    async def _give(self, call: Call[CountPath, KeyQuery, None]) -> Encoded:
        count, credential = _count_of(call.path.count), call.credential
        account = self._account(credential)
        drawn = await self._issuing.issue(credential.tenant, account, call.query.size, count)
        taken = rfc3339(self._clock.wall_ms())
        parts: list[bytes] = []
        for one in drawn:
            parts.append(_documents(one, taken))
            # A part takes a millisecond, and there may be twenty.
            await asyncio.sleep(0)
        return Encoded(b"[" + b",".join(parts) + b"]")

    async def _give_to_gateway(self, call: Call[None, IdsQuery, None]) -> Ids:
        account, query = self._account_claimed(call.headers), call.query
        drawn = await self._issuing.issue(account.tenant, account, query.size, query.count)
        return Ids([key.decode("ascii") for one in drawn for key in one.keys])

    async def _tell_quota(self, call: Call[None, None, None]) -> QuotaAnswer:
        return QuotaAnswer(*await self._quotas.quota(self._account(call.credential)))

    async def _tell_quota_of_tenant(self, call: Call[None, None, None]) -> TenantQuotaAnswer:
        own = await self._quotas.quota(self._account_claimed(call.headers))
        of_all = await self._quotas.of_tenant(call.headers.tenant)
        return TenantQuotaAnswer(*own, keys=list(of_all.keys), days=list(of_all.days))

    def _account_claimed(self, claims: Claims) -> Account:
        try:
            limit = ids_per_day_told(claims.ids_per_day or None)
        except ValueError as error:
            raise refusal([Wrong("X-Ydht-Ids-Per-Day", str(error), "invalid_header")]) from error
        return self._quotas.account(claims.tenant, claims.key_id, limit)

    def _account(self, credential: Credential) -> Account:
        return self._quotas.account(credential.tenant, credential.key_id, credential.ids_per_day)


def _count_of(text: str) -> int:
    if text.isascii() and text.isdecimal() and 1 <= len(text) <= 5 and 1 <= int(text) <= count_max:
        return int(text)
    raise refusal([Wrong("count", f"is not a whole number from 1 to {count_max}")])


def _documents(drawn: Drawn, taken: str) -> bytes:
    """What is told of each, without the brackets of the list."""
    reserved = rfc3339(drawn.reserved_ms)
    given = [
        GivenKey(id_of(number_spelled(key)), key.decode("ascii"), len(key), reserved, taken)
        for key in drawn.keys
    ]
    return msgspec.json.encode(given)[1:-1]
