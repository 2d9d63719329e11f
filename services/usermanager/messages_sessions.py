"""What sessions are asked for, and what they answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

from services.usermanager.messages_accounts import Password, User
from services.usermanager.names import typed_email_chars_max
from services.usermanager.row_ids import RowId

# What a page of sessions has at most: an account has no more of them.
page_max: Final = 100
page_default: Final = 50
# Far more than ours have.
refresh_token_chars_max: Final = 1024


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: Annotated[
        str, msgspec.Meta(max_length=typed_email_chars_max, examples=["ada@example.com"])
    ]
    password: Password


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    refresh_token: Annotated[str, msgspec.Meta(max_length=refresh_token_chars_max)]


class LoggedIn(msgspec.Struct, frozen=True):
    access_token: str
    refresh_token: str
    # Seconds until the access token expires.
    expires_in: int
    user: User
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  A kind of token, not one.


class SessionPage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, msgspec.Meta(ge=1, le=page_max)] = page_default
    cursor: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class SessionPath(msgspec.Struct, frozen=True):
    session_id: RowId


class SessionShown(msgspec.Struct, frozen=True):
    id: int
    created_at: datetime
    # When the session last got a token: by its login, or a refresh.
    last_used_at: datetime
    expires_at: datetime
    address: str
    user_agent: str
    # Whether it is the one that asks.
    current: bool


class SessionList(msgspec.Struct, frozen=True):
    sessions: list[SessionShown]
    count: int
    # What to send as `cursor` for the next page; null at the end.
    cursor: str | None
