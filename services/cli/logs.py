"""What the services print: onto the terminal, each line with its service's name, and into files.

Nothing here waits and nothing here grows. A terminal that does not keep up (Ctrl-S, a slow ssh)
loses lines and is told how many; the files have them. A service that prints without end fills
two files of fixed size and no memory. A full disk costs the files lines, not the services.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import click

# A service keeps this much twice: the current file and the one before it.
log_file_bytes_max = 16 * 1024 * 1024
# A longer line goes on in the next one: a stack trace is far shorter, a binary dump far longer.
line_bytes_max = 16 * 1024
# One read of a service's pipe; the kernel's pipe holds as much.
read_bytes_max = 64 * 1024
# What a stalled terminal may owe before lines are dropped: a few screens' worth of scroll-back.
terminal_bytes_max = 256 * 1024
# One write is at most what a pipe that reports itself writable surely takes (PIPE_BUF on Linux).
terminal_write_bytes = 4096
# How many of a process's last lines are kept, to find the one that says why it ended: behind it
# may stand the frame of a traceback and a line or two of somebody else's.
last_lines_max = 5
# How much of that line is quoted; the log has all of it.
quoted_chars_max = 500

# Wide enough for `replicator-2`; longer names push their own lines only.
name_columns = 12
name_colours = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green")

# Services print what clients send them. Shown raw, a control character could move the cursor,
# rename the window or worse, so the terminal gets its escape instead. Files keep the bytes.
_controls = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != 0x09}


# How our own processes end when they must: `ydht dhtnode: …`, or `ydht: …` of a command.
_own_words = re.compile(r"ydht(?: [\w-]+)?: (?P<words>.+)")


def _shown(line: bytes) -> str:
    """A line as text that is safe to show."""
    return line.decode(errors="backslashreplace").rstrip("\r").translate(_controls)


class LineSplitter:
    """Bytes in, whole lines out (without their ends), holding at most one line's worth.

    A line longer than the limit comes out in pieces of the limit's size, whatever the pieces
    its bytes came in.
    """

    def __init__(self, bytes_max: int = line_bytes_max) -> None:
        self._bytes_max = bytes_max
        self._partial = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._partial = (self._partial + data).split(b"\n")
        if max(map(len, lines), default=0) > self._bytes_max:
            lines = [piece for line in lines for piece in self._pieces(line)]
        if len(self._partial) > self._bytes_max:
            *pieces, self._partial = self._pieces(self._partial)
            lines += pieces
        return lines

    def rest(self) -> list[bytes]:
        """The last line, if its end never came."""
        partial, self._partial = self._partial, b""
        return [partial] if partial else []

    def _pieces(self, line: bytes) -> list[bytes]:
        size = self._bytes_max
        return [line[at : at + size] for at in range(0, len(line), size)] or [line]


class RotatingFile:
    """An append-only log of bounded size: when full it becomes `<name>.1`, replacing that."""

    def __init__(self, path: Path, bytes_max: int = log_file_bytes_max) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._descriptor: int | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append whole lines. OSError when the disk won't take them; the next may fit again."""
        descriptor = self._opened()
        if self._size and self._size + len(data) > self._bytes_max:
            self.close()
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            descriptor = self._opened()
        self._size += os.write(descriptor, data)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _opened(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._size = os.fstat(self._descriptor).st_size
        return self._descriptor


class Terminal:
    """Where the user watches. Writing never waits; what does not fit is counted and dropped."""

    def __init__(self, descriptor: int, *, bytes_max: int = terminal_bytes_max) -> None:
        self._descriptor, self._ask_first = _open_again(descriptor)
        self._loop = asyncio.get_running_loop()
        self._colours = os.isatty(descriptor) and "NO_COLOR" not in os.environ
        self._bytes_max = bytes_max
        self._buffer = bytearray()
        self._dropped = 0
        self._waiting = False
        self._gone = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._prefixes: dict[str, str] = {}

    def show(self, name: str, lines: Sequence[bytes]) -> None:
        """Show the lines of one service, each behind its name."""
        if self._gone or not lines:
            return
        prefix = self._prefix(name)
        for number, line in enumerate(lines):
            if len(self._buffer) >= self._bytes_max:
                self._dropped += len(lines) - number
                break
            self._buffer += f"{prefix}{_shown(line)}\n".encode()
        self._flush()

    def print(self, text: str) -> None:
        """Show a text of our own, as it stands."""
        if not self._gone:
            self._buffer += text.encode(errors="backslashreplace") + b"\n"
            self._flush()

    async def drain(self, seconds: float) -> None:
        """Give the terminal a last chance to take what it owes."""
        try:
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        except TimeoutError:
            self._give_up()

    def close(self) -> None:
        self._give_up()
        os.close(self._descriptor)

    def _prefix(self, name: str) -> str:
        if name not in self._prefixes:
            label = f"{name:<{name_columns}} | "
            if self._colours:
                colour = name_colours[len(self._prefixes) % len(name_colours)]
                label = click.style(label, fg=colour)
            self._prefixes[name] = label
        return self._prefixes[name]

    def _flush(self) -> None:
        """Write until everything is out or the terminal is full."""
        if self._ask_first and not self._waiting:
            self._wait_for_room()
        while self._buffer and not self._waiting:
            self._write_some()

    def _write_some(self) -> None:
        try:
            written = os.write(self._descriptor, self._buffer[:terminal_write_bytes])
        except BlockingIOError:
            self._wait_for_room()
            return
        except OSError:
            # The terminal was closed, or the reader of our pipe has left. The log files go on.
            self._give_up()
            return
        del self._buffer[:written]
        if not self._buffer and self._dropped:
            note = f"({self._dropped} lines not shown: this terminal was too slow; see the logs)"
            self._dropped = 0
            self._buffer += f"{note}\n".encode()

    def _wait_for_room(self) -> None:
        try:
            self._loop.add_writer(self._descriptor, self._on_room)
        except PermissionError:
            # A regular file or /dev/null: always takes what it is given, can't be waited for.
            self._ask_first = False
        else:
            self._waiting = True
            self._drained.clear()

    def _on_room(self) -> None:
        self._write_some()
        if not self._buffer:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._loop.remove_writer(self._descriptor)
            self._waiting = False
        self._drained.set()

    def _give_up(self) -> None:
        self._gone = True
        self._buffer.clear()
        self._stop_waiting()


def _open_again(descriptor: int) -> tuple[int, bool]:
    """A descriptor for the same terminal or pipe, and whether writing to it may block.

    The non-blocking flag belongs to the open file, and ours is shared with the shell that
    started us; opening it anew makes the flag our own. Where that is refused (a socket, the
    terminal of another user) the caller writes only when told that there is room.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        try:
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{descriptor}", flags), False
        except OSError:
            # Refused, or there is no /proc. The other way needs nothing, and does as well.
            pass
    return os.dup(descriptor), True


class ServiceLog:
    """Everything one service says, split into lines for the terminal and its own file."""

    def __init__(self, name: str, file: RotatingFile, terminal: Terminal) -> None:
        self.name = name
        self._last_lines: deque[bytes] = deque(maxlen=last_lines_max)
        self._file = file
        self._terminal = terminal
        self._splitter = LineSplitter()
        self._file_failed = False

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def last_word(self) -> str | None:
        """The line by which the newest process says why it ended, without our own name before it.

        Ours end with a line that begins with `ydht`. Of others it is the last with a word in it.
        """
        lines = [_shown(line).strip() for line in reversed(self._last_lines)]
        named = [found for line in lines if (found := _own_words.fullmatch(line)) is not None]
        if named:
            return named[0]["words"][:quoted_chars_max]
        with_words = (line for line in lines if any(map(str.isalnum, line)))
        return next(with_words, "")[:quoted_chars_max] or None

    def forget(self) -> None:
        """Another process begins: what the last one said is not its cause."""
        self._last_lines.clear()

    def take(self, data: bytes) -> None:
        self._heard(self._splitter.feed(data))

    def end_of_output(self) -> None:
        """The process is gone: a line without its end is a line all the same."""
        self._heard(self._splitter.rest())

    def say(self, text: str) -> None:
        """A line of the supervisor's own, among the service's."""
        self._keep([text.encode(errors="backslashreplace")])

    def close(self) -> None:
        self.end_of_output()
        self._file.close()

    def _heard(self, lines: list[bytes]) -> None:
        if lines:
            self._last_lines.extend(lines[-last_lines_max:])
            self._keep(lines)

    def _keep(self, lines: list[bytes]) -> None:
        self._terminal.show(self.name, lines)
        try:
            self._file.write(b"\n".join(lines) + b"\n")
        except OSError as error:
            if not self._file_failed:
                note = f"{self.path} can't be written ({error.strerror}): lines are missing there"
                self._terminal.show(self.name, [note.encode(errors="backslashreplace")])
            self._file_failed = True
        else:
            self._file_failed = False


class OutputPipe:
    """The pipe that one process prints into, read as fast as it is filled.

    Give `writing_end` to the process, then call `read`. The pipe ends when every process that
    holds the writing end is gone, which may be later than the process it was made for.
    """

    def __init__(self, log: ServiceLog) -> None:
        self._log = log
        self._reading_end, self.writing_end = os.pipe()
        os.set_blocking(self._reading_end, False)
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()

    def read(self) -> None:
        """Close our copy of the writing end and pass on what arrives, until the end."""
        os.close(self.writing_end)
        self.writing_end = -1
        self._loop.add_reader(self._reading_end, self._on_readable)

    async def finish(self, seconds: float) -> None:
        """Wait for the end, but not for a left-over process that keeps the pipe open."""
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            self._on_readable()
        self.close()

    def close(self) -> None:
        self._loop.remove_reader(self._reading_end)
        os.close(self._reading_end)
        if self.writing_end >= 0:
            os.close(self.writing_end)
        self._log.end_of_output()

    def _on_readable(self) -> None:
        try:
            data = os.read(self._reading_end, read_bytes_max)
        except BlockingIOError:
            return
        if data:
            self._log.take(data)
        else:
            self._loop.remove_reader(self._reading_end)
            self._ended.set()
