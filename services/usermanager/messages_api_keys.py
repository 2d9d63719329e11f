"""API keys as their owners ask for them and are told of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.core.duration import duration_chars_max
from services.core.key import key_bytes_max
from services.core.key_checks import Scope, scopes_all
from services.usermanager.row_ids import RowId

name_chars_max: Final = 100
# Ten years, as for values: a key for longer is one without an end, and says so.
expires_in_days_max: Final = 3_650
expires_in_days_default: Final = 90
per_minute_max: Final = (1 << 31) - 1
page_keys_max: Final = 1_000
page_keys_default: Final = 100

# That it can be read aloud is checked by who makes the key, as it is of the names of people.
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=name_chars_max,
        description="What its owner calls it: anything that can be read aloud",
    ),
]


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    scopes: Annotated[
        list[Scope], Meta(min_length=1, max_length=len(scopes_all), description="What it may do")
    ] = msgspec.field(default_factory=lambda: ["read", "write"])
    expires_in_days: Annotated[int, Meta(ge=1, le=expires_in_days_max)] | None = msgspec.field(
        default=expires_in_days_default
    )
    prefix: Annotated[str, Meta(min_length=1, max_length=key_bytes_max)] | None = None
    rate_limit_per_minute: Annotated[int, Meta(ge=1, le=per_minute_max)] | None = None


class RotateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    overlap: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=duration_chars_max,
            description="How long the old key is still good, such as 24h; 0s ends it at once",
        ),
    ] = "24h"


class KeyPath(msgspec.Struct, frozen=True):
    key_id: RowId


class KeyListQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=page_keys_max)] = page_keys_default
    cursor: Annotated[str, Meta(max_length=32)] | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it may be shown at any time. `is_active` is of the moment of the answer."""

    id: int
    name: str
    key_prefix: str
    scopes: list[Scope]
    prefix: str | None
    rate_limit_per_minute: int | None
    is_active: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: int | None
    last_used_at: datetime | None


class CreatedKey(ApiKey, frozen=True, kw_only=True):
    """The one answer that a key itself is in."""

    key: str


class KeyPage(msgspec.Struct, frozen=True):
    """Newest first. `count` is how many are on this page; with a cursor there are more."""

    api_keys: list[ApiKey]
    count: int
    cursor: str | None
