"""How much of anything there may be, for the documentation: by the constants that hold it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from services.core.deletions import prefix_keys_max
from services.core.id_requests import count_max, returned_max, size_min
from services.core.key import key_bytes_max, namespace_bytes_max
from services.core.listings import list_limit_max
from services.core.operations import batch_bytes_max, batch_items_max, day_ms, ttl_ms_max
from services.core.permute import size_max
from services.core.plans import Plan, account_plans, plans
from services.core.record import user_metadata_bytes_max, value_bytes_max
from services.runtime.listener import head_bytes_max
from services.usermanager.api_keys import live_keys_max, overlap_ms_max
from services.usermanager.messages_api_keys import expires_in_days_max
from services.usermanager.pages.render import shown_count
from services.usermanager.passwords import password_chars_max, password_chars_min


class Limit(NamedTuple):
    what: str
    most: str
    # The code of the error that goes beyond it; none if there is no such.
    code: str
    note: str = ""


class Group(NamedTuple):
    id: str
    title: str
    limits: Sequence[Limit]


class PlanRow(NamedTuple):
    name: str
    requests_per_minute: str
    burst: str
    ids_per_day: str
    caches: str


def groups() -> list[Group]:
    return [
        Group("values", "Keys and values", list(_values())),
        Group("many", "Many at a time", list(_many())),
        Group("ids", "IDs", list(_ids())),
        Group("accounts", "Accounts", list(_accounts())),
    ]


def plan_rows() -> list[PlanRow]:
    return [_plan_row(plans[name]) for name in account_plans]


def _values() -> Iterator[Limit]:
    yield Limit("Key", f"1 to {key_bytes_max} bytes", "key_too_long", "of UTF-8, slashes included")
    yield Limit("Value", _size(value_bytes_max), "value_too_large", "any bytes")
    yield Limit(
        "Metadata",
        _size(user_metadata_bytes_max),
        "metadata_too_large",
        "names and values of X-Metadata-* together",
    )
    yield Limit("Namespace", f"1 to {namespace_bytes_max} bytes", "invalid_namespace")
    yield Limit("Time to live", f"{shown_count(ttl_ms_max // day_ms)} days", "invalid_ttl")
    yield Limit("Headers of a request", _size(head_bytes_max), "headers_too_large")


def _many() -> Iterator[Limit]:
    yield Limit("Operations of a batch", shown_count(batch_items_max), "invalid_body")
    yield Limit("Body of a batch, and its answer", _size(batch_bytes_max), "body_too_large")
    yield Limit("Keys on a page of a list", shown_count(list_limit_max), "invalid_query")
    yield Limit(
        "Keys that one prefix delete takes",
        shown_count(prefix_keys_max),
        "",
        "its cursor goes on from there",
    )


def _ids() -> Iterator[Limit]:
    yield Limit("Characters of an ID", f"{size_min} to {size_max}", "invalid_query")
    yield Limit("IDs of one request", shown_count(count_max), "invalid_query")
    yield Limit("IDs that are returned at once", shown_count(returned_max), "invalid_body")


def _accounts() -> Iterator[Limit]:
    yield Limit("API keys that are good at once", shown_count(live_keys_max), "limit_reached")
    yield Limit("Life of an API key", f"{shown_count(expires_in_days_max)} days", "invalid_body")
    yield Limit(
        "Overlap of a key that is rotated", f"{overlap_ms_max // day_ms} days", "invalid_body"
    )
    yield Limit(
        "Password",
        f"{password_chars_min} to {shown_count(password_chars_max)} characters",
        "invalid_body",
    )


def _plan_row(plan: Plan) -> PlanRow:
    return PlanRow(
        plan.name,
        shown_count(plan.requests_per_minute),
        shown_count(plan.burst),
        "unlimited" if plan.ids_per_day is None else shown_count(plan.ids_per_day),
        shown_count(plan.caches_max),
    )


def _size(size_bytes: int) -> str:
    """In the units of 1024 that limits are round in."""
    unit, name = (1 << 20, "MiB") if size_bytes >= 1 << 20 else (1 << 10, "KiB")
    return f"{size_bytes / unit:g} {name}"
