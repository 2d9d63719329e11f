"""What a gateway asks of a key that it does not know: whose it is, and what it may do.

There is one answer to all that is wrong with a key. Whoever tries keys must not learn from it
which ones were good once, or have the form of one.
"""

from __future__ import annotations

from typing import Final

from services.core.api_key import lookup_hash, well_formed
from services.core.errors import FixRequest
from services.core.key_checks import ValidateKey, ValidKey
from services.core.plans import plan_named
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.request_body import invalid_members
from services.usermanager.key_lookup import KeyLookups
from services.usermanager.last_used import LastUsed

refusal: Final = "The API key is unknown, was revoked, or has expired"


class KeyValidation:
    def __init__(self, lookups: KeyLookups, last_used: LastUsed, pepper_subkey: bytes) -> None:
        self._lookups = lookups
        self._last_used = last_used
        self._pepper_subkey = pepper_subkey

    async def validate(self, asked: ValidateKey) -> ValidKey:
        key = await self._lookups.find(self._hash_of(asked))
        if key is None:
            raise _refused()
        self._last_used.mark(key.id)
        plan = plan_named(key.plan)
        limits = plan.limits(key.rate_limit_per_minute)
        return ValidKey(
            user_id=key.user_id,
            key_id=key.id,
            scopes=key.scopes,
            prefix=None if key.prefix is None else key.prefix.decode(),
            expires_at=key.expires_at,
            plan=plan.name,
            requests_per_minute=limits.requests_per_minute,
            burst=limits.burst,
            held_to=key.rate_limit_per_minute,
            event_id=key.event_id,
        )

    async def is_good(self, key: str) -> bool:
        """Whether a key is good now; to ask does not count as using it. RetryLater."""
        return well_formed(key) and (
            await self._lookups.find(lookup_hash(self._pepper_subkey, key)) is not None
        )

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/validate-key",
                "validateKey",
                "Tell whose an API key is and what it may do",
                self._validate,
                access=Access.INTERNAL,
                body_type=ValidateKey,
                answer_type=ValidKey,
                errors=("invalid_api_key", "overloaded", "database_unavailable"),
                tag="Internal",
            )
        ]

    async def _validate(self, call: Call[None, None, ValidateKey]) -> ValidKey:
        return await self.validate(call.body)

    def _hash_of(self, asked: ValidateKey) -> bytes:
        if (asked.key is None) == (asked.key_hash is None):
            raise invalid_members([("key_hash", "is to be given, or key; one of the two")])
        if asked.key_hash is not None:
            return bytes.fromhex(asked.key_hash)
        if asked.key is None or not well_formed(asked.key):
            raise _refused()
        return lookup_hash(self._pepper_subkey, asked.key)


def _refused() -> FixRequest:
    return FixRequest("invalid_api_key", refusal, members={"valid": False})
