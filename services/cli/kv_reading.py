"""Lines of a file or a pipe, with their numbers, while they come in.

A thread reads, for what is piped in may be long in coming, and answers of the gateway should not
wait for it. It is left alone at the end: nothing else ends a read of a terminal.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from typing import Final, NamedTuple

from services.cli.endings import NotDoneError
from services.core.value_lines import line_bytes_max

chunk_bytes: Final = 256 << 10
# Read ahead, besides what a line that is not whole yet takes.
chunks_max: Final = 4
_mark: Final = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line without its end. One that is too long has no text."""

    number: int
    text: bytes | None


class Splitter:
    """Lines out of chunks, however these are cut. What is too long is passed over to its end."""

    def __init__(self, bytes_max: int = line_bytes_max) -> None:
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = 0
        self._number = 0

    def feed(self, chunk: bytes) -> Iterator[Line]:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            self._keep(part)
            yield self._line()
        self._keep(rest)

    def end(self) -> Iterator[Line]:
        """What stands behind the last line end."""
        if self._size:
            yield self._line()

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._bytes_max:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _line(self) -> Line:
        text = None if self._size > self._bytes_max else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._number += 1
        if text is not None and self._number == 1:
            text = text.removeprefix(_mark)
        return Line(self._number, None if text is None else text.strip())


class Chunks:
    """What a descriptor has, piece by piece; `read_bytes` are those that were taken."""

    def __init__(self, descriptor: int) -> None:
        self.read_bytes = 0
        self._descriptor = descriptor
        self._queue: asyncio.Queue[bytes | OSError] = asyncio.Queue(chunks_max)
        self._loop = asyncio.get_running_loop()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        threading.Thread(target=self._read, name="import-reader", daemon=True).start()
        while True:
            chunk = await self._queue.get()
            if isinstance(chunk, OSError):
                raise NotDoneError(f"the lines cannot be read: {chunk.strerror}") from chunk
            if not chunk:
                return
            self.read_bytes += len(chunk)
            yield chunk

    def _read(self) -> None:
        chunk: bytes | OSError = b"begun"
        while chunk and not isinstance(chunk, OSError):
            try:
                chunk = os.read(self._descriptor, chunk_bytes)
            except OSError as error:
                chunk = error
            handing_over = self._queue.put(chunk)
            try:
                asyncio.run_coroutine_threadsafe(handing_over, self._loop).result()
            except (RuntimeError, CancelledError):
                # The loop has ended, and nobody wants it any more.
                handing_over.close()
                return
