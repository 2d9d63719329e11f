"""What gateways ask to learn which API keys they have to look up again."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.usermanager.row_ids import id_max

# Shorter than what proxies and connection trackers let a silent connection live.
wait_s_max: Final = 60
wait_s_default: Final = 25


class KeyEventsQuery(msgspec.Struct, frozen=True):
    """Without `after` the answer is only where the events stand, and comes at once."""

    after: Annotated[int, Meta(ge=0, le=id_max)] | None = None
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
