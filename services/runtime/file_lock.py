"""A lock on a file: gone with its holders, however they end, and able to say who they are.

Used for directories that one process owns, and to know when the last of several processes that
inherited the descriptor is gone. The file stays: removing it would let two hold the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

# For the account that runs the service only, like everything beside it.
lock_mode = 0o600
# A process id and what may stand around it.
pid_chars_max = 20


class FileLock:
    """An flock, held until `release` or the death of everybody who inherited the descriptor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        self._signed = False

    @property
    def held(self) -> bool:
        return self.descriptor >= 0

    def take(self) -> bool:
        """Whether it is ours now; made if it is missing. Never waits. OSError names the file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(str(self.path), flags, lock_mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            os.close(descriptor)
            raise self._named(error) from error
        self.descriptor = descriptor
        return True

    def sign(self) -> None:
        """Leave our process id in the file, for those who find it locked."""
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            raise self._named(error) from error
        self._signed = True

    def holder(self) -> int | None:
        """The process id of who has signed it; None if nobody has, or not yet."""
        try:
            with self.path.open("rb") as file:
                said = file.read(pid_chars_max).strip()
        except OSError:
            return None
        return int(said) if said.isdigit() else None

    def release(self) -> None:
        """Let go; once more is harmless."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        try:
            if self._signed:
                # Emptied, so that a pid is never read that stopped holding it.
                os.ftruncate(descriptor, 0)
        except OSError as error:
            raise self._named(error) from error
        finally:
            self._signed = False
            os.close(descriptor)

    def _named(self, error: OSError) -> OSError:
        code = error.errno or errno.EIO
        return OSError(code, os.strerror(code), str(self.path))
