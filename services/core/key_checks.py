"""What those who check API keys ask of a user manager: whose a key is, and which have changed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from services.core.api_key import lookup_hash_bytes

Scope = Literal["read", "write", "admin"]
# In the order in which they are always told.
scopes_all: Final[tuple[Scope, ...]] = ("read", "write", "admin")

# A whole key and whatever surrounds it by mistake.
asked_key_chars_max: Final = 256
# Events are numbered by a bigint of PostgreSQL.
event_id_max: Final = 2**63 - 1
# Shorter than what proxies and connection trackers let a silent connection live.
wait_s_max: Final = 60
wait_s_default: Final = 25


class ValidateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two. Gateways send the hash, so that keys do not travel."""

    key_hash: (
        Annotated[
            str,
            Meta(
                pattern=r"^[0-9a-f]+(?![\s\S])",
                min_length=2 * lookup_hash_bytes,
                max_length=2 * lookup_hash_bytes,
            ),
        ]
        | None
    ) = None
    key: Annotated[str, Meta(max_length=asked_key_chars_max)] | None = None


class ValidKey(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a key is and what it may do, until `expires_at` or an event after `event_id`.

    The limits are those of this key as the table of plans has them: those of the plan, or less. For
    who gives a plan other limits there is `held_to`: what the key's owner holds it to, if anything.
    """

    valid: bool = True
    user_id: int
    key_id: int
    scopes: list[Scope]
    prefix: str | None
    expires_at: datetime | None
    plan: str
    requests_per_minute: int
    burst: int
    held_to: int | None = None
    event_id: int


class KeyEventsQuery(msgspec.Struct, frozen=True):
    """Without `after` the answer is only where the events stand, and comes at once."""

    after: Annotated[int, Meta(ge=0, le=event_id_max)] | None = None
    wait_s: Annotated[int, Meta(ge=0, le=wait_s_max)] = wait_s_default


class KeyEvent(msgspec.Struct, frozen=True):
    """What is to be looked up again: one API key, or all of an account where key_id is null."""

    id: int
    user_id: int
    key_id: int | None


class KeyEventPage(msgspec.Struct, frozen=True):
    """Events in the order in which they took effect. `last` is where to go on from; after `reset`
    some are lost to whoever asked, who must look up everything again."""

    events: list[KeyEvent]
    last: int
    reset: bool
