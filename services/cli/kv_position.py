"""Where a long command goes on after a break: a small file beside what it reads or writes.

It also says what the position is of: of another file, prefix or gateway it would be none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from services.cli.endings import NotDoneError, RefusedError

# What is done again after `kill -9`, at most, is what this time brings.
note_every_s: Final = 1.0
position_bytes_max: Final = 64 << 10

Position = Mapping[str, Any]


class PositionFile:
    def __init__(self, path: Path, of: Mapping[str, str]) -> None:
        self._path = path
        self._of = dict(of)
        self._noted_s = 0.0

    def read(self) -> Position | None:
        """Where to go on; None if there is no break to go on after."""
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(position_bytes_max))
            of, position = found["of"], found["position"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NotDoneError(f"{self._path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError):
            raise RefusedError(f"{self._path} is no position of ours: remove it") from None
        if not isinstance(of, dict) or not isinstance(position, dict):
            raise RefusedError(f"{self._path} is no position of ours: remove it")
        if of != self._of:
            told = ", ".join(f"{name} {text}" for name, text in of.items())
            raise RefusedError(
                f"{self._path} is the position of something else ({told}): remove it, or name"
                " another one"
            )
        return position

    def is_due(self) -> bool:
        return time.monotonic() - self._noted_s >= note_every_s

    def write(self, position: Position) -> None:
        """Whole or not at all."""
        self._noted_s = time.monotonic()
        document = json.dumps({"of": self._of, "position": dict(position)})
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            beside.write_text(document + "\n")
            beside.replace(self._path)
        except OSError as error:
            raise NotDoneError(f"{self._path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
