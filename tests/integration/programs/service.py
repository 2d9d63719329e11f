"""A small service: `service.py PORT [MOOD]…`.

It answers every GET, ends on SIGTERM and when its supervisor is gone, and prints each line it
finds in the query of a request. `deaf` ignores SIGTERM, `slow` takes 3 s to end, `dawdling` does
so when asked a second time, `unready` answers 503, `mute` nothing at all, `relapse` is unready
from its second life on, and `orphan` leaves a process of its group behind when it dies. `damaged`
refuses to run for good, `fragile` from its second life on, and `sickly` dies soon after it is
ready.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote_plus

from services.core.errors import FatalError
from services.runtime.supervised import watch_supervisor


def die() -> None:
    say("ydht service: out of breath")
    os._exit(1)


def refuse() -> None:
    say("looking at my files")
    error = FatalError("my log is damaged at byte 12: replace me")
    say(f"ydht service: {error}")
    sys.exit(error.exit_code)


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


# From its first answer to its death: the supervisor has seen by then that it is ready.
sickly_s = 0.3


async def serve(port: int, moods: set[str]) -> None:
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    asked = 0

    def on_sigterm() -> None:
        nonlocal asked
        asked += 1
        if "deaf" not in moods and ("dawdling" not in moods or asked == 2):
            loop.call_later(3.0 if "slow" in moods else 0.0, gone.set)

    loop.add_signal_handler(signal.SIGTERM, on_sigterm)
    watch_supervisor(gone.set, os.environ)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        _, _, query = head.split(b" ")[1].decode().partition("?")
        if query:
            say(unquote_plus(query))
        if "mute" in moods:
            await gone.wait()
        status = "503 Unavailable" if "unready" in moods else "200 OK"
        said = b"still counting"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(said)}\r\n\r\n".encode() + said)
        await writer.drain()
        writer.close()
        if "sickly" in moods:
            loop.call_later(sickly_s, die)

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    say("serving")
    async with server:
        await gone.wait()
    say("leaving, without an end of line", end="")


if __name__ == "__main__":
    moods = set(sys.argv[2:])
    past_life = Path(os.environ["DATA_DIR"]) / f"service-{sys.argv[1]}"
    if "relapse" in moods and past_life.exists():
        moods.add("unready")
    if "damaged" in moods or ("fragile" in moods and past_life.exists()):
        refuse()
    past_life.touch()
    if "orphan" in moods:
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    asyncio.run(serve(int(sys.argv[1]), moods))
