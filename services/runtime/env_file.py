"""`DATA_DIR/ydht.env`: the secrets of one installation, made once and readable by their owner only.

Format: UTF-8 lines of `NAME=value`; blank lines and lines beginning with `#` are skipped. Values
stand as they are: no quotes, no `export`, no expansion. What a shell would read differently is
refused instead of guessed at.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from services.core.errors import FatalError
from services.runtime.disk import SystemDisk

env_file_name = "ydht.env"
# A file of settings is a page or two; anything larger is the wrong file.
file_bytes_max = 64 * 1024
# 32 random bytes are 256 bits, as much as HMAC-SHA256 can use.
secret_bytes = 32
_line = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")


def generate_env() -> dict[str, str]:
    """Fresh secrets for a new installation."""
    names = ("JWT_SECRET", "CLUSTER_SECRET", "KEY_PEPPER", "EMBEDDED_DB_PASSWORD")
    return {name: secrets.token_urlsafe(secret_bytes) for name in names}


def write_env(path: Path, variables: Mapping[str, str]) -> bool:
    """Write the file, mode 0600, durably. False if there is one already, which stays untouched.

    The file appears whole or not at all, whoever else writes it at the same moment: writers take
    turns at a draft, which becomes the file by a rename. Who is killed leaves it to the next.
    """
    lines = [
        "# Secrets of this installation, made by `ydht init`. Keep them; keep them to yourself.",
        *(f"{name}={value}" for name, value in variables.items()),
    ]
    draft = path.with_name(f".{path.name}.draft")
    try:
        if os.path.lexists(path) and not os.path.lexists(draft):
            return False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _turn_at(draft) as file:
            if os.path.lexists(path):
                return False
            file.truncate(0)
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
            draft.rename(path)
            SystemDisk().sync_directory(path.parent)
    except OSError as error:
        raise FatalError(f"cannot write {path}: {error.strerror}") from error
    return True


@contextmanager
def _turn_at(draft: Path) -> Iterator[TextIO]:
    """The draft, locked; nothing is left under its name afterwards."""
    while True:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # While we waited, the writer before us has renamed or removed what we had opened.
            if _is_named(draft, descriptor):
                try:
                    yield file
                finally:
                    draft.unlink(missing_ok=True)
                return


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def read_env(path: Path) -> dict[str, str]:
    """The variables of the file; none when there is no file.

    A file that others may read is refused: whoever could read the secrets once has them.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(file_bytes_max + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise FatalError(f"cannot read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise FatalError(
            f"{path} has mode {mode:04o} and holds secrets: others must not read it; "
            f"run `chmod 600 {path}`, and replace the secrets if they may have been seen"
        )
    return _parse_env(path, _decoded(str(path), content))


def read_secret_file(variable: str, path: Path) -> str:
    """What the file named by a `*_FILE` variable holds, without the newline at its end."""
    try:
        with path.open("rb") as file:
            content = file.read(file_bytes_max + 1)
    except OSError as error:
        raise FatalError(
            f"{variable} names {path}, which cannot be read: {error.strerror}"
        ) from error
    text = _decoded(f"{variable} names {path}, which", content).rstrip("\r\n")
    if not text:
        raise FatalError(f"{variable} names {path}, which is empty")
    return text


def _decoded(subject: str, content: bytes) -> str:
    if len(content) > file_bytes_max:
        raise FatalError(f"{subject} is larger than {file_bytes_max} bytes: is it the right file?")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise FatalError(f"{subject} is not UTF-8 text: is it the right file?") from None


def _parse_env(path: Path, text: str) -> dict[str, str]:
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        # The line itself stays out of every message: it may be a secret.
        match = _line.fullmatch(line.rstrip())
        if match is None:
            raise FatalError(f"{path} line {number} is not NAME=value")
        name, value = match.groups()
        if value[:1] in ("'", '"'):
            raise FatalError(f"{path} line {number}: {name} is quoted; values stand without quotes")
        if name in variables:
            raise FatalError(f"{path} line {number}: {name} is set a second time")
        if name == "DATA_DIR":
            raise FatalError(
                f"{path} line {number}: DATA_DIR says where this file is and cannot be set in it"
            )
        variables[name] = value
    return variables
