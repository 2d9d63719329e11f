"""Keys one by one, beside a bare uvicorn that says hello; what refills cost; and keys in batches.

One keygen as it is by default and one whose ranges are so large that none is refilled, over one
PostgreSQL and one user manager; and the least that an ASGI application can be, behind uvicorn with
uvloop and httptools. All three are sent the same request, with an API key, by 64 connections of
wrk; answers have 7 characters. Runs alternate, and each round has an account of its own, so that
the keygen as it is begins every run with nothing, and refills as it goes. Ratios are those of the
runs of one round: the median, and from which to which.

    python -m bench.keygen [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg
import httpx
import uvloop

from bench.cpu import cpu_seconds
from bench.gateway import Run, median, note_of, sampled_every_s
from bench.http_connection import ConnectionEndedError, connect, request
from bench.node_process import secret
from bench.report import Row, quiet, show
from bench.usermanager_process import (
    UserManagerProcess,
    database_cpu_s,
    key_pepper,
    usermanager,
)
from bench.wrk import Requests, installed, load
from services.core.permute import Permutation, material_bytes
from services.keygen.pool import range_keys_max, ready_keys
from tests.free_ports import free_port
from tests.integration.keygen_process import KeygenProcess

rate_floor: Final = 2.0
p99_ratio_max: Final = 1.5
batch_keys: Final = 10_000
batches_s: Final = 2.0
# What takes a new account past its first, small range.
first_keys: Final = 100
made_keys: Final = 1_000_000
made_floor: Final = 300_000
password: Final = "a password for the load alone"  # noqa: S105  It guards nothing.

ours: Final = "/get-key"
steady: Final = "/get-key, no refills"
bare: Final = "uvicorn hello"

_hello: Final = b"0k3Zq1a"
_key: Final = re.compile(rb"[0-9A-Za-z]{7}")


class Side:
    """Whom the same request is sent to."""

    def __init__(self, name: str, port: int, pid: int, *, unique: bool = True) -> None:
        self.name = name
        self.port = port
        self.pid = pid
        self.unique = unique
        self.seen: set[bytes] = set()

    def fault(self, status: int, body: bytes) -> str | None:
        """What is wrong with an answer."""
        if status != 200 or not _key.fullmatch(body):
            return f"answered {status}: {body[:300]!r}"
        if self.unique and body in self.seen:
            return f"{body!r} was given twice"
        self.seen.add(body)
        return None


# -- the peer


async def hello(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[object]],
    send: Callable[[dict[str, object]], Awaitable[None]],
) -> None:
    """The application that uvicorn serves: the least that answers so many bytes."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_hello))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _hello})


@asynccontextmanager
async def uvicorn_hello() -> AsyncIterator[Side]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", "bench.keygen:hello", "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--lifespan", "off",
        "--no-access-log", "--log-level", "warning",
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(trust_env=False) as client:

            async def listening() -> bool:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
                except httpx.TransportError:
                    return False

            began_s = time.monotonic()
            while not await listening():
                if process.returncode is not None or time.monotonic() - began_s > 30:
                    raise RuntimeError("uvicorn did not begin to serve")
                await asyncio.sleep(0.05)
        yield Side(bare, port, process.pid, unique=False)
    finally:
        process.terminate()
        await process.wait()


# -- ours


async def api_key_of(manager: UserManagerProcess, number: int) -> str:
    """Of a new account whose plan has no limit."""
    email = f"load-{number}@example.com"
    who = {"email": email, "password": password}
    url = f"http://127.0.0.1:{manager.port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        answer = await client.post("/signup", json={**who, "username": f"load-{number}"})
        answer.raise_for_status()
        connection = await asyncpg.connect(**manager.address.asyncpg())
        await connection.execute("UPDATE users SET plan = 'developer' WHERE email = $1", email)
        await connection.close()
        answer = await client.post("/login", json=who)
        token = answer.raise_for_status().json()["access_token"]
        answer = await client.post(
            "/apikeys", json={"name": "load"}, headers={"Authorization": f"Bearer {token}"}
        )
        api_key: str = answer.raise_for_status().json()["key"]
        return api_key


async def keygen(
    stack: AsyncExitStack, directory: Path, manager: UserManagerProcess, **environment: str
) -> KeygenProcess:
    process = KeygenProcess(
        directory / "data",
        manager.address.url(),
        CLUSTER_SECRET=secret,
        KEY_PEPPER=key_pepper,
        USERMANAGER_URL=f"http://127.0.0.1:{manager.port}",
        KEYGEN_ANONYMOUS="false",
        **environment,
    )
    stack.push_async_callback(process.clear)
    await process.serve()
    await process.until_leased()
    return process


def side_of(name: str, process: KeygenProcess) -> Side:
    return Side(name, process.port, process.process.pid)


# -- one run


async def sample(side: Side, content: bytes, faults: list[str]) -> None:
    """Ask now and then, until cancelled, and look whether the answers are right."""
    connection = await connect(side.port)
    try:
        while True:
            answer = await connection.ask(content)
            if fault := side.fault(answer.status, answer.body):
                faults.append(fault)
            await asyncio.sleep(sampled_every_s)
    except ConnectionEndedError as error:
        faults.append(str(error))
    finally:
        connection.close()


async def measure(side: Side, api_key: str, seconds: float) -> Run:
    content = request("GET", "/get-key", side.port, f"X-API-Key: {api_key}\r\n")
    seen_before, faults = len(side.seen), list[str]()
    requests = Requests([content])
    try:
        before, database_before_s = cpu_seconds({side.name: side.pid}), database_cpu_s()
        sampling = asyncio.create_task(sample(side, content, faults))
        loaded = await asyncio.to_thread(load, side.port, requests, seconds, 0)
        after, database_after_s = cpu_seconds({side.name: side.pid}), database_cpu_s()
        sampling.cancel()
        await asyncio.wait([sampling])
    finally:
        requests.close()
    used_s = {name: after[name] - before[name] for name in after}
    if side.unique:
        used_s["PostgreSQL"] = database_after_s - database_before_s
    return Run(
        loaded=loaded,
        cpu_us={name: seconds / loaded.requests * 1e6 for name, seconds in used_s.items()},
        sampled=len(side.seen) - seen_before,
        faults=(*loaded.errors, *faults),
    )


async def batches(side: Side, api_key: str, seconds: float) -> float:
    """Keys per second, in batches of the most that one request may ask for, one at a time."""
    content = request("GET", f"/api/keys/{batch_keys}", side.port, f"X-API-Key: {api_key}\r\n")
    connection = await connect(side.port)
    given, began_s = 0, time.monotonic()
    while time.monotonic() - began_s < seconds:
        answer = await connection.ask(content)
        if answer.status != 200:
            raise RuntimeError(f"a batch was answered {answer.status}: {answer.body[:300]!r}")
        given += batch_keys
    connection.close()
    return given / (time.monotonic() - began_s)


# -- all runs


@dataclass(slots=True)
class Measured:
    # By the names of sides.
    runs: defaultdict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    # Of the keygen as it is by default, in each of its runs.
    refills: list[float] = field(default_factory=list)
    # Keys per second.
    batches: list[float] = field(default_factory=list)


async def measured(rounds: int, seconds: float) -> Measured:
    found = Measured()
    with TemporaryDirectory(prefix="ydht-bench-") as name:
        async with AsyncExitStack() as stack:
            manager = await stack.enter_async_context(usermanager())
            peer = await stack.enter_async_context(uvicorn_hello())
            usual = await keygen(stack, Path(name), manager)
            wide = await keygen(stack, Path(name), manager, RANGE_SIZE=str(range_keys_max))
            sides = [side_of(ours, usual), peer, side_of(steady, wide)]
            for number in range(rounds + 1):
                api_key = await api_key_of(manager, number)
                for _ in range(first_keys):
                    await wide.call("GET", "/get-key", api_key=api_key)
                # Both know the API key by now: what is compared is what refills cost.
                await usual.call("GET", "/quota", api_key=api_key)
                usual_before, wide_before = await refills_of(usual), await refills_of(wide)
                # Whoever comes first changes, as what comes before may warm or disturb.
                turn = sides if number % 2 else sides[::-1]
                runs = [(side, await measure(side, api_key, seconds)) for side in turn]
                if await refills_of(wide) != wide_before:
                    raise RuntimeError("the keygen that was not to refill its pool has done so")
                if not number:
                    # A round to warm up.
                    continue
                found.refills.append(await refills_of(usual) - usual_before)
                found.batches.append(await batches(sides[0], api_key, batches_s))
                for side, run in runs:
                    found.runs[side.name].append(run)
    return found


async def refills_of(process: KeygenProcess) -> float:
    return (await process.metrics())["pool_refills"]


def made(size: int) -> float:
    """Keys of consecutive counters per second of this core, in batches as pools make them."""
    permutation = Permutation(bytes(material_bytes), size)
    began_s = time.process_time()
    for first in range(0, made_keys, ready_keys):
        permutation.keys(first, ready_keys)
    return made_keys / (time.process_time() - began_s)


def rows(rounds: int = 5, seconds: float = 5.0) -> list[Row]:
    if not installed():
        print("nothing is measured: wrk, which makes the load, is not installed")
        return []
    found = uvloop.run(measured(rounds, seconds))
    shown = []
    for name in (ours, steady, bare):
        shown += side_rows(name, found.runs[name])
    shown += ratio_rows(found)
    for size in (7, 16):
        note = f"of this core, each made of a counter; at least {made_floor:,}"
        shown.append(Row(f"keys of {size} characters made", made(size), "per second", note))
    batched = f"{batch_keys:,} with what there is to tell of each, one request at a time"
    return [*shown, Row("/api/keys, batches", statistics.median(found.batches), "keys/s", batched)]


# -- what they come to


def side_rows(name: str, runs: Sequence[Run]) -> list[Row]:
    found = []
    good = [run for run in runs if not run.faults]
    if good:
        cpu = ", ".join(
            f"{process} {statistics.median(run.cpu_us[process] for run in good):.1f}"
            for process in good[0].cpu_us
        )
        note = f"{note_of(good)}; us of CPU: {cpu}"
        found.append(Row(name, median(good, "per_second"), "per second", note))
    if faults := [fault for run in runs for fault in run.faults]:
        what = f"left out, for errors such as: {faults[0]}"
        found.append(Row(f"{name}: runs", len(runs) - len(good), "", what))
    return found


def ratio_rows(found: Measured) -> list[Row]:
    rounds = [
        dict(zip(found.runs, runs, strict=True)) for runs in zip(*found.runs.values(), strict=True)
    ]
    good = [runs for runs in rounds if not any(run.faults for run in runs.values())]
    if not good:
        return []
    rates = [runs[ours].per_second / runs[bare].per_second for runs in good]
    p99s = [runs[ours].loaded.p99_ms / runs[steady].loaded.p99_ms for runs in good]
    bytes_each = {name: run.loaded.bytes_per_answer for name, run in good[0].items()}
    return [
        Row(
            f"{ours} / {bare}",
            statistics.median(rates),
            "x",
            f"at least {rate_floor:g}; {min(rates):.2f} to {max(rates):.2f}; answers of "
            f"{bytes_each[ours]:.0f} and {bytes_each[bare]:.0f} bytes in all",
        ),
        Row(
            f"p99, {ours} / {steady}",
            statistics.median(p99s),
            "x",
            f"at most {p99_ratio_max:g}; {min(p99s):.2f} to {max(p99s):.2f}; "
            f"{statistics.median(found.refills):g} refills in each run",
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.keygen", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    quiet()
    found = rows(options.rounds, options.seconds)
    show("keygen", found)
    return 1 if any("left out" in row.note for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
