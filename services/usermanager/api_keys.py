"""API keys as their owners have them: made, listed, revoked, and rotated.

A key is good until it expires or is revoked. To rotate one is to make another like it, good for as
long as the first was made for, while the first goes on until the overlap ends, or its own end if
that is sooner. A key is rotated once: of two who try, and of a client that lost the answer and
tries again, the second is told which key there is now.

Every change is one transaction, with its entry in the audit log and the event that has gateways
look the key up again. Changes to the keys of one account come one after another.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any, Final

from services.core.api_key import displayed, lookup_hash, new_key
from services.core.duration import format_duration, parse_duration
from services.core.errors import FixRequest
from services.core.key import key_bytes_max
from services.core.key_checks import Scope, scopes_all
from services.core.plans import free, plan_named
from services.runtime.endpoints import Call, Client, Endpoint
from services.runtime.postgres import Connection, Database
from services.runtime.request_body import invalid_members
from services.usermanager import api_key_store as store
from services.usermanager import audit
from services.usermanager.api_key_store import NewKey, StoredKey
from services.usermanager.audit import Audit, Note
from services.usermanager.key_events import KeyEvents
from services.usermanager.messages_api_keys import (
    ApiKey,
    CreatedKey,
    CreateKey,
    KeyListQuery,
    KeyPage,
    KeyPath,
    RotateKey,
)
from services.usermanager.names import check_legible, problem_of
from services.usermanager.row_ids import page_below
from services.usermanager.throttle import Limit, Throttle

# Of one account at a time: one for each service and machine of a large installation. Keys that were
# rotated count for as long as they are good.
live_keys_max: Final = 100
# And beyond these, so that who has all of them can still rotate: so many old ones at a time. To
# rotate without an overlap makes no key more, and is always possible.
overlapping_keys_max: Final = 20
# Of those that are no longer good, this many are kept for their owners to look back at.
dead_keys_max: Final = 200
# Each key that is made, by itself or by a rotation, leaves two entries in the audit log, one of
# them when it is revoked, for as long as the log is kept. All keys can be replaced twice in one go;
# who makes and revokes them in a loop leaves a megabyte and a half a day. To revoke a key costs
# nothing: it is never refused to somebody whose key was stolen, and each key is revoked but once.
keys_made: Final = Limit("keys made of account", 200, 60)
# Who needs longer to bring out a new key wants two keys, not a rotation.
overlap_ms_max: Final = 30 * 86_400_000


class ApiKeys:
    """The keys of all accounts. `actor` and `client` are for the audit log."""

    def __init__(
        self,
        database: Database,
        events: KeyEvents,
        log: Audit,
        throttle: Throttle,
        pepper_subkey: bytes,
    ) -> None:
        self._database = database
        self._events = events
        self._audit = log
        self._throttle = throttle
        self._pepper_subkey = pepper_subkey

    async def create(
        self, user_id: int, asked: CreateKey, *, actor: str, client: Client | None
    ) -> CreatedKey:
        """A new key of the account. Nobody is ever told it again."""
        if problem := problem_of(check_legible, asked.name):
            raise invalid_members([("name", problem)])
        key = new_key(secrets.randbelow)
        days = asked.expires_in_days
        new = NewKey(
            lookup_hash(self._pepper_subkey, key),
            displayed(key),
            asked.name,
            _in_order(asked.scopes),
            _prefix_bytes(asked.prefix),
            asked.rate_limit_per_minute,
            None if days is None else timedelta(days=days),
        )
        async with self._database.transaction() as connection:
            plan = await _lock_account(connection, user_id)
            _check_rate_limit(plan, asked.rate_limit_per_minute)
            live = await store.count_live(connection, user_id)
            if live.total >= live_keys_max:
                raise _too_many(
                    f"{live.total} API keys are good, {live.replaced} of them rotated ones whose "
                    f"overlap goes on; {live_keys_max} is the most: revoke one first"
                )
            stored = await store.insert(connection, user_id, new)
            await store.forget_dead(connection, user_id, dead_keys_max)
            details = {"key_id": stored.id, "name": stored.name, "scopes": stored.scopes}
            note = Note("key_created", actor, client, details)
            await self._audit.write(connection, user_id, note)
        return _created(stored, key)

    async def page(self, user_id: int, limit: int, cursor: str | None) -> KeyPage:
        below_id = page_below(cursor, "GET /apikeys")
        async with self._database.connection() as connection:
            # One more than is shown tells whether there is another page.
            found = await store.page(connection, user_id, below_id, limit + 1)
            plan = await store.plan_of(connection, user_id) or free.name
        shown = [_shown(key, plan) for key in found[:limit]]
        more = len(found) > limit
        return KeyPage(shown, len(shown), str(shown[-1].id) if more else None)

    async def revoke(self, user_id: int, key_id: int, *, actor: str, client: Client | None) -> None:
        """End a key now and for good. One that was revoked before is left as it is."""
        async with self._events.transaction() as connection:
            key = await _hold(connection, user_id, key_id)
            if key.revoked_at is not None:
                return
            await store.revoke(connection, key_id)
            note = Note("key_revoked", actor, client, {"key_id": key_id})
            await self._audit.write(connection, user_id, note)
            await self._events.add(connection, user_id, key_id)

    async def rotate(
        self, user_id: int, key_id: int, overlap_ms: int, *, actor: str, client: Client | None
    ) -> CreatedKey:
        """A new key like this one, which ends with the overlap."""
        key = new_key(secrets.randbelow)
        key_hash = lookup_hash(self._pepper_subkey, key)
        async with self._events.transaction() as connection:
            await _lock_account(connection, user_id)
            old = await _hold(connection, user_id, key_id)
            _check_rotatable(old)
            if overlap_ms:
                live = await store.count_live(connection, user_id)
                if live.total >= live_keys_max + overlapping_keys_max:
                    raise _too_many(
                        f"{live.total} API keys are good, {live.replaced} of them rotated ones "
                        f"whose overlap goes on; {live_keys_max}, and {overlapping_keys_max} that "
                        "overlap, is the most: rotate with an overlap of 0s, or revoke one first"
                    )
            new = await store.insert(connection, user_id, _like(old, key_hash, displayed(key)))
            await store.replace(connection, key_id, new.id, timedelta(milliseconds=overlap_ms))
            await store.forget_dead(connection, user_id, dead_keys_max)
            details = {"key_id": key_id, "into": new.id, "overlap": format_duration(overlap_ms)}
            note = Note("key_rotated", actor, client, details)
            await self._audit.write(connection, user_id, note)
            await self._events.add(connection, user_id, key_id)
        return _created(new, key)

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "POST",
                "/apikeys",
                "createApiKey",
                "Make an API key, which is shown this once",
                self.create_own,
                body_type=CreateKey,
                status=201,
                answer_type=CreatedKey,
                errors=("limit_reached", "rate_limited"),
                tag="API keys",
            ),
            Endpoint(
                "GET",
                "/apikeys",
                "listApiKeys",
                "List API keys, the newest first",
                self.list_own,
                query_type=KeyListQuery,
                answer_type=KeyPage,
                errors=("invalid_cursor",),
                tag="API keys",
            ),
            Endpoint(
                "DELETE",
                "/apikeys/{key_id}",
                "revokeApiKey",
                "Revoke an API key, everywhere within a second",
                self.revoke_own,
                path_type=KeyPath,
                status=204,
                errors=("not_found",),
                tag="API keys",
            ),
            Endpoint(
                "POST",
                "/apikeys/{key_id}/rotate",
                "rotateApiKey",
                "Make another API key like this one, which ends when an overlap is over",
                self.rotate_own,
                path_type=KeyPath,
                body_type=RotateKey,
                body_optional=True,
                status=201,
                answer_type=CreatedKey,
                errors=("not_found", "already_exists", "limit_reached", "rate_limited"),
                tag="API keys",
            ),
        ]

    async def create_own(self, call: Call[None, None, CreateKey]) -> CreatedKey:
        user_id = call.caller.user_id
        await self._throttle.take(keys_made, str(user_id))
        return await self.create(user_id, call.body, actor=audit.user(user_id), client=call.client)

    async def list_own(self, call: Call[None, KeyListQuery, None]) -> KeyPage:
        return await self.page(call.caller.user_id, call.query.limit, call.query.cursor)

    async def revoke_own(self, call: Call[KeyPath, None, None]) -> None:
        user_id = call.caller.user_id
        await self.revoke(user_id, call.path.key_id, actor=audit.user(user_id), client=call.client)

    async def rotate_own(self, call: Call[KeyPath, None, RotateKey]) -> CreatedKey:
        user_id = call.caller.user_id
        await self._throttle.take(keys_made, str(user_id))
        return await self.rotate(
            user_id,
            call.path.key_id,
            overlap_ms_of(call.body.overlap),
            actor=audit.user(user_id),
            client=call.client,
        )


def overlap_ms_of(text: str) -> int:
    """An overlap as people write it; FixRequest if it is none or too long."""
    try:
        overlap_ms = parse_duration(text)
    except ValueError as error:
        raise invalid_members([("overlap", str(error))]) from None
    if overlap_ms > overlap_ms_max:
        problem = f"is longer than {format_duration(overlap_ms_max)}"
        raise invalid_members([("overlap", problem)])
    return overlap_ms


async def _lock_account(connection: Connection, user_id: int) -> str:
    plan = await store.lock_account(connection, user_id)
    if plan is None:
        # It was good when the request came in.
        raise FixRequest("unauthorized", "The account was closed or disabled")
    return plan


async def _hold(connection: Connection, user_id: int, key_id: int) -> StoredKey:
    key = await store.hold(connection, user_id, key_id)
    if key is None:
        # Whether another account has one is nobody's business.
        raise FixRequest("not_found", f"There is no API key {key_id}")
    return key


def _check_rotatable(key: StoredKey) -> None:
    if key.replaced_by is not None:
        raise FixRequest(
            "already_exists",
            f"The API key was rotated before, into key {key.replaced_by}; rotate that one",
            members={"replaced_by": key.replaced_by},
        )
    if not key.is_active:
        raise FixRequest(
            "not_found", "The API key was revoked or has expired; make a new one instead"
        )


def _check_rate_limit(plan: str, per_minute: int | None) -> None:
    allowed = plan_named(plan).requests_per_minute
    if per_minute is not None and per_minute > allowed:
        problem = f"is {per_minute}, more than the {allowed} that the plan {plan} allows"
        raise invalid_members([("rate_limit_per_minute", problem)])


def _too_many(detail: str) -> FixRequest:
    # Not one of the codes that mean later: only its owner can make room.
    return FixRequest("limit_reached", detail)


def _prefix_bytes(prefix: str | None) -> bytes | None:
    """As the keys begin that the API key is held to."""
    if prefix is None:
        return None
    try:
        encoded = prefix.encode()
    except UnicodeEncodeError:
        raise invalid_members([("prefix", "is not Unicode text")]) from None
    if len(encoded) > key_bytes_max:
        problem = f"is {len(encoded)} bytes in UTF-8; keys have at most {key_bytes_max}"
        raise invalid_members([("prefix", problem)])
    return encoded


def _in_order(scopes: list[Scope]) -> list[Scope]:
    return [scope for scope in scopes_all if scope in scopes]


def _like(old: StoredKey, key_hash: bytes, key_prefix: str) -> NewKey:
    return NewKey(
        key_hash,
        key_prefix,
        old.name,
        old.scopes,
        old.prefix,
        old.rate_limit_per_minute,
        # As long as its owner wanted the first to be good. Never what an overlap has left of that,
        # because what was rotated once is not rotated again.
        None if old.expires_at is None else old.expires_at - old.created_at,
    )


def _shown(key: StoredKey, plan: str) -> ApiKey:
    per_minute = key.rate_limit_per_minute
    if per_minute is not None:
        # What a plan allowed that the account no longer has comes back with it.
        per_minute = min(per_minute, plan_named(plan).requests_per_minute)
    return ApiKey(**{**_members(key), "rate_limit_per_minute": per_minute})


def _created(key: StoredKey, text: str) -> CreatedKey:
    return CreatedKey(**_members(key), key=text)


def _members(key: StoredKey) -> dict[str, Any]:
    # One by one: dataclasses.asdict, which copies each value, takes forty times as long, 11 ms
    # for the 320 keys that an account can have.
    return {
        "id": key.id,
        "name": key.name,
        "key_prefix": key.key_prefix,
        "scopes": key.scopes,
        "prefix": None if key.prefix is None else key.prefix.decode(),
        "rate_limit_per_minute": key.rate_limit_per_minute,
        "is_active": key.is_active,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "replaced_by": key.replaced_by,
        "last_used_at": key.last_used_at,
    }
