"""API keys by names that tell them apart: a key and its successor have one name, until it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from services.core.usage_report import no_key_id
from services.usermanager.messages_api_keys import ApiKey

# As what, beside API keys, pages of the console are told.
console_name: Final = "console"


def told_apart(keys: Iterable[ApiKey]) -> dict[int, str]:
    """By their numbers; where several have one name, with what each key begins with."""
    keys = list(keys)
    often = Counter([console_name, *(key.name for key in keys)])
    return {
        key.id: key.name if often[key.name] == 1 else f"{key.name} ({key.key_prefix}…)"
        for key in keys
    }


def names_of_all(keys: Iterable[ApiKey]) -> dict[int, str]:
    """The same with the console among them, as the first."""
    return {no_key_id: console_name, **told_apart(keys)}
