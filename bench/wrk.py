"""Load by wrk: the same script, and so the same cost of generating load, for whoever is measured.

The requests are made here, whole, and written to a file; the script reads them once and then sends
them in random order. What differs from one server to another is only their bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# One thread is enough: it generates more than anything measured here answers on two cores, and a
# second one would only take turns with the servers more often.
threads: Final = 1
connections: Final = 64
# wrk waits this long for an answer before it counts an error: what a request may take at most.
timeout_s: Final = 5
# Beyond the seconds asked for: starting, reading the requests, and the answers still to come.
grace_s: Final = 30.0

# Each request is preceded by its length in 8 digits, as they hold line ends themselves.
_length_digits: Final = 8
_script: Final = """\
local requests = {}
local count = 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local length = file:read(LENGTH_DIGITS)
    if not length then break end
    count = count + 1
    requests[count] = file:read(tonumber(length))
  end
  file:close()
  math.randomseed(tonumber(args[2]))
end

function request()
  return requests[math.random(count)]
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'FIGURES {"requests":%d,"bytes":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,' ..
    '"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}\\n',
    summary.requests, summary.bytes, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
""".replace("LENGTH_DIGITS", str(_length_digits))


@dataclass(slots=True, frozen=True)
class Loaded:
    """What wrk saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bytes_per_answer: float
    # Processor time of wrk itself.
    cpu_us: float
    # What is not right, in words; a run with any is no figure.
    errors: tuple[str, ...]


def installed() -> bool:
    return shutil.which("wrk") is not None


class Requests:
    """Requests in a file, for as long as the block runs."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="ydht-bench-wrk-")
        self.path = Path(self._directory.name) / "requests"
        self.script = Path(self._directory.name) / "load.lua"
        self.script.write_text(_script)
        with self.path.open("wb") as file:
            for one in requests:
                file.write(b"%0*d%b" % (_length_digits, len(one), one))

    def close(self) -> None:
        self._directory.cleanup()


def load(port: int, requests: Requests, seconds: float, seed: int) -> Loaded:
    """Send the requests for so many whole seconds."""
    command = [
        "wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s",
        f"--timeout={timeout_s}s", "-s", str(requests.script), f"http://127.0.0.1:{port}/",
        "--", str(requests.path), str(seed),
    ]  # fmt: skip
    before = os.times()
    told = subprocess.run(  # noqa: S603  A command of this module.
        command, capture_output=True, text=True, check=False, timeout=seconds + grace_s
    )
    after = os.times()
    figures = told.stdout.partition("FIGURES ")[2]
    if told.returncode or not figures:
        raise RuntimeError(f"wrk failed ({told.returncode}): {told.stdout}{told.stderr}")
    found = json.loads(figures)
    if not found["requests"]:
        raise RuntimeError(f"wrk got no answer from port {port}: {figures}")
    cpu_s = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    kinds = ("connect", "read", "write", "timeout", "status")
    return Loaded(
        requests=found["requests"],
        seconds=found["duration_us"] / 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        bytes_per_answer=found["bytes"] / found["requests"],
        cpu_us=cpu_s / found["requests"] * 1e6,
        errors=tuple(f"{found[kind]} errors of kind {kind}" for kind in kinds if found[kind]),
    )
