"""Holds up whatever threads verify or hash, so that a test knows how many are at work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from services.usermanager.passwords import Passwords
from tests.waiting import patience_s


class PasswordGate:
    """Stands where the context of passlib stood, which does the work once the gate is open."""

    def __init__(self, passwords: Passwords) -> None:
        self._context: Any = passwords._context
        passwords._context = self
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.inside = 0
        self.most_inside = 0

    def open(self) -> None:
        self._open.set()

    def verify(self, password: str, kept: str) -> object:
        with self._passed():
            return self._context.verify(password, kept)

    def hash(self, password: str) -> object:
        with self._passed():
            return self._context.hash(password)

    @property
    def needs_update(self) -> Callable[[str], object]:
        found: Callable[[str], object] = self._context.needs_update
        return found

    @contextmanager
    def _passed(self) -> Iterator[None]:
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        assert self._open.wait(patience_s), "nobody has opened the gate"
        try:
            yield
        finally:
            with self._lock:
                self.inside -= 1
