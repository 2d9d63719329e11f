"""What accounts are asked for, and what they answer.

The rules of names and new passwords are the nouns' own, in the handlers, which name every member
that breaks one; here they are told to readers of the API.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from services.usermanager.names import (
    email_chars_max,
    typed_email_chars_max,
    typed_username_chars_max,
    username_chars_max,
)
from services.usermanager.passwords import password_chars_max, password_chars_min

Email = Annotated[
    str,
    msgspec.Meta(
        description=f"At most {email_chars_max} characters, with white space around it dropped."
        " Compared without regard to case.",
        examples=["ada@example.com"],
        max_length=typed_email_chars_max,
        extra_json_schema={"minLength": 3},
    ),
]
Username = Annotated[
    str,
    msgspec.Meta(
        description=f"At most {username_chars_max} characters in its normalised form (NFKC), which"
        " is the one that is shown. Unique without regard to case.",
        examples=["ada"],
        max_length=typed_username_chars_max,
        extra_json_schema={"minLength": 1},
    ),
]
NewPassword = Annotated[
    str,
    msgspec.Meta(
        description="Any characters; normalised (NFC), never trimmed.",
        extra_json_schema={
            "format": "password",
            "minLength": password_chars_min,
            "maxLength": password_chars_max,
        },
    ),
]
# One that is to be checked is right or wrong, however short.
Password = Annotated[
    str, msgspec.Meta(max_length=password_chars_max, extra_json_schema={"format": "password"})
]


class User(msgspec.Struct, frozen=True):
    id: int
    email: str
    username: str
    is_active: bool
    created_at: datetime
    plan: str
    is_operator: bool


class Signup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: Email
    username: Username
    password: NewPassword


class PasswordChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current_password: Password
    new_password: NewPassword


class Closing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    password: Password
