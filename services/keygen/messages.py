"""What a keygen is asked, and what it tells, as JSON."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.core.id_requests import (
    KeyUse,
    ids_per_day_header,
    key_id_header,
    returned_max,
    size_min,
)
from services.core.permute import size_max
from services.runtime.console_requests import tenant_header

# Of /get-key, and of what the gateway asks for unless it is told otherwise.
short_size: Final = size_min
size_default: Final = 8
# The largest integer that every JSON reader keeps exact.
integer_exact_max: Final = (1 << 53) - 1
# Longer than any key; what is rejected is told again with the reason.
returned_chars_max: Final = 64
row_id_max: Final = (1 << 63) - 1

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class KeyQuery(msgspec.Struct, frozen=True):
    size: Annotated[int, Meta(ge=size_default, le=size_max, description="Characters of each")] = (
        size_default
    )


class CountPath(msgspec.Struct, frozen=True):
    # Bounds of a path would make a count that is out of them a path that is not there.
    count: str


class GivenKey(msgspec.Struct, frozen=True, rename="camel"):
    """Never given to anybody else. `id` is the number that the key spells in base62, as text where
    it is beyond 2^53."""

    id: int | str
    key: str
    size: int
    # When its range was reserved, and when it was given out.
    creation_date: Time
    taken_date: Time


class ReturnKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: Annotated[
        list[Annotated[str, Meta(max_length=returned_chars_max)]], Meta(max_length=returned_max)
    ]


class Rejected(msgspec.Struct, frozen=True):
    key: str
    reason: str


class Returned(msgspec.Struct, frozen=True):
    """Keys that are taken back are given out again, to the same account, once their range is
    closed and they have rested for RETURN_REST, ten minutes unless it is set otherwise."""

    returned: int
    rejected: list[Rejected]


class QuotaAnswer(msgspec.Struct, frozen=True):
    """Of this API key on this day. Without a limit `limit` is null. `used` counts what keygens have
    set aside for it too, for some seconds."""

    used: int
    limit: int | None
    resets_at: Time


class TenantQuotaAnswer(QuotaAnswer, frozen=True, kw_only=True):
    """With what each API key of the tenant has used on this day, the most first, and all of them on
    each of the last days, this one as the last."""

    keys: list[KeyUse]
    days: list[int]


class Claims(
    msgspec.Struct,
    frozen=True,
    rename={
        "tenant": tenant_header,
        "key_id": key_id_header,
        "ids_per_day": ids_per_day_header,
    },
):
    """In whose name a service asks."""

    tenant: Annotated[int, Meta(ge=0, le=row_id_max)]
    key_id: Annotated[int, Meta(ge=0, le=row_id_max)]
    ids_per_day: Annotated[
        str, Meta(max_length=20, description="A number, or `unlimited`; else as of the plan free")
    ] = ""


class HeldKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    # Text, as longer than what every reader of JSON takes for an integer.
    index: Annotated[str, Meta(pattern="^[0-9]{1,29}$")]


class HeldKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of these keys may this very instance yet give out?"""

    instance_id: str
    tenant: Annotated[str, Meta(pattern="^[0-9]{1,20}$")]
    keys: Annotated[list[HeldKey], Meta(max_length=returned_max)]


class HeldAnswer(msgspec.Struct, frozen=True):
    held: list[bool]


def id_of(number: int) -> int | str:
    return number if number <= integer_exact_max else str(number)
