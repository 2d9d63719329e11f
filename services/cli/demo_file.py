"""`DATA_DIR/demo.json`: the password and the API key of the demo account, for the next `ydht up`.

Nobody else has them: the database keeps hashes. So the file is its owner's alone, as `ydht.env` is.
"""

from __future__ import annotations

import os
import stat
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from services.runtime.disk import SystemDisk
from services.usermanager.passwords import password_chars_max, password_chars_min

demo_file_name: Final = "demo.json"
# Three short texts; a longest password takes 12 bytes of JSON for each of its characters.
file_bytes_max: Final = 16 * 1024


class Demo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody needs to use the demo account, and `demo` in `up.json`. None is what nobody
    knows: a password that its owner has changed, an API key that could not be made."""

    email: str
    password: (
        Annotated[str, Meta(min_length=password_chars_min, max_length=password_chars_max)] | None
    )
    api_key: str | None


class UnusableError(Exception):
    """The file must not be used, or cannot be; the text completes "demo.json ..."."""


def read_demo(directory: Path) -> Demo | None:
    """None if there is no file. UnusableError."""
    try:
        # A link, or a pipe that nobody writes to, is none of ours.
        descriptor = os.open(
            directory / demo_file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
        with os.fdopen(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            content = file.read(file_bytes_max)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableError(f"cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise UnusableError(f"has mode {mode:04o}, so that others may have read it")
    try:
        return msgspec.json.decode(content, type=Demo)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec names the member that is wrong, and never what is in it.
        raise UnusableError(f"is not what was written to it ({error})") from error


def keep_demo(directory: Path, demo: Demo) -> None:
    """Durably replace the file; it is never seen in part. OSError."""
    text = msgspec.json.format(msgspec.json.encode(demo), indent=2) + b"\n"
    with closing(SystemDisk()) as disk:
        disk.replace(directory / demo_file_name, text)
