"""PostgreSQL killed and started again under a user manager at work: nothing that was acknowledged
is lost, nothing that was refused has happened, and it is healthy again by itself within seconds.

FAULT_SECONDS=60 in the environment runs the full figure (`make database-kills`); without it there
are some seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from services.core.errors import RestartLater
from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import database_name, embedded_address, user_name
from services.runtime.embedded_home import server_directory
from services.runtime.migrations import migrate
from services.usermanager.readiness import look_s
from tests.cluster.desk_traffic import Account, Gateway, Ledger, Listener, Person
from tests.cluster.front_desk import Desk
from tests.integration.node_process import NodeProcess, in_flight, shown_chars
from tests.integration.replicator_process import until_told
from tests.integration.usage_desk import added_up, fetch, stored
from tests.integration.usermanager_process import UserManagerProcess, usermanager_process
from tests.waiting import wait_until

seconds = float(os.environ.get("FAULT_SECONDS", "12"))
people = 24
gateways = 4
healthy_s_max = 5.0
# Longer than /ready can go on telling of what was: healthy is what stays so.
steady_s = 1.5 * look_s
password = "kR7v-Wm2xT9qLz4bNc8yHd3fGs6jPa5u"
# To recover may take a while on a machine that is busy with other tests.
start_s_max = 60.0
# Of hundreds of commits in such a time one is seen.
commit_s_max = 1.0
ready_line = "database system is ready to accept connections"
serving_title = f"postgres: {user_name} {database_name} "


class Postgres(NodeProcess):
    """The server that comes with the platform, in the process that `ydht db` is."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, "postgres")
        self.command = ("-m", "services.cli", "db", "--data-dir", str(data_dir))
        self.environment = {"EMBEDDED_DB_PASSWORD": password}
        self.address = embedded_address(data_dir, password)
        self.accepting_since_s = 0.0

    async def serve(self) -> None:
        await self.start()
        await self._until_ready(1)

    async def kill_first(self) -> None:
        """The first process alone: those that it has started end when they notice."""
        await self._amid_a_commit()
        self._first().kill()
        assert await self.ended() == RestartLater.exit_code, self.said

    async def kill_all(self) -> None:
        """Every process of it, as nearly at once as can be."""
        first = self._first()
        processes = [first, *first.children()]
        await self._amid_a_commit()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        await self.kill()

    async def kill_one(self) -> None:
        """One that serves a connection: the server ends all others, and recovers by itself."""
        times = self.said.count(ready_line)
        (await self._amid_a_commit()).kill()
        await self._until_ready(times + 1)

    async def _amid_a_commit(self) -> psutil.Process:
        """Return when a process is seen to commit, or after a while: it, or another that serves."""
        until_s = time.monotonic() + commit_s_max
        serving = [process for process in self._first().children() if _title(process)]
        assert serving, "no connection to kill"
        while time.monotonic() < until_s:
            for process in serving:
                if _title(process) == "COMMIT":
                    return process
            await asyncio.sleep(0.002)
        return serving[0]

    async def _until_ready(self, times: int) -> None:
        def ready() -> bool:
            assert self.process.returncode is None, f"PostgreSQL has ended:\n{self.said}"
            return self.said.count(ready_line) >= times

        await wait_until(ready, "PostgreSQL takes connections", seconds=start_s_max)
        self.accepting_since_s = time.monotonic()

    def _first(self) -> psutil.Process:
        pid_file = server_directory(self.data_dir) / "data" / "postmaster.pid"
        return psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))


def _title(process: psutil.Process) -> str:
    """What a process that serves one of our connections says it does; empty of any other."""
    with suppress(psutil.NoSuchProcess):
        title = " ".join(process.cmdline())
        if title.startswith(serving_title):
            return title.split()[-1]
    return ""


class Kills:
    """One after the other, each followed by proof that the user manager is healthy again."""

    def __init__(
        self, postgres: Postgres, usermanager: UserManagerProcess, desk: Desk, draw: random.Random
    ) -> None:
        self.done: Counter[str] = Counter()
        self.longest_healthy_s = 0.0
        self._postgres = postgres
        self._usermanager = usermanager
        self._desk = desk
        self._draw = draw
        self._kinds: list[Callable[[], Awaitable[str]]] = [
            self._kill,
            self._kill_all,
            self._kill_one,
            self._kill_and_leave,
            self._stop,
        ]

    async def run(self) -> None:
        until_s = time.monotonic() + seconds
        for kind in self._kinds:
            await self._one(kind)
        while time.monotonic() < until_s:
            await self._one(self._draw.choice(self._kinds))

    async def _one(self, kind: Callable[[], Awaitable[str]]) -> None:
        self.done[await kind()] += 1
        healthy_s = await self._healthy_since() - self._postgres.accepting_since_s
        assert healthy_s <= healthy_s_max, f"healthy again only after {healthy_s:.1f} s"
        self.longest_healthy_s = max(self.longest_healthy_s, healthy_s)
        # Some work is done, and the next comes at any moment of it.
        await asyncio.sleep(self._draw.uniform(0.0, 2.0))

    async def _healthy_since(self) -> float:
        """When it began to be ready and to refuse nothing, which it then did for a while."""
        since_s = self._postgres.accepting_since_s
        while since_s - self._postgres.accepting_since_s <= healthy_s_max:
            asked_s = time.monotonic()
            status, _ = await self._usermanager.readiness()
            if status != 200 or self._desk.refused_at_s >= since_s:
                since_s = asked_s
            elif asked_s - since_s >= steady_s:
                break
            await asyncio.sleep(0.05)
        return since_s

    async def _kill(self) -> str:
        await self._postgres.kill_first()
        await self._postgres.serve()
        return "postmaster killed"

    async def _kill_all(self) -> str:
        await self._postgres.kill_all()
        await self._postgres.serve()
        return "all its processes killed"

    async def _kill_one(self) -> str:
        await self._postgres.kill_one()
        return "one of its processes killed"

    async def _kill_and_leave(self) -> str:
        await self._postgres.kill_all()

        async def noticed() -> bool | None:
            return (await self._usermanager.readiness())[0] == 503 or None

        await until_told(noticed, "it has noticed that PostgreSQL is away")
        await asyncio.sleep(self._draw.uniform(0.0, 1.0))
        await self._postgres.serve()
        return "all killed and away until noticed"

    async def _stop(self) -> str:
        assert await self._postgres.terminate() == 0
        await self._postgres.serve()
        return "stopped in order"


@asynccontextmanager
async def running_postgres(data_dir: Path) -> AsyncIterator[Postgres]:
    """Stopped in order at the end, so that nothing of it is left."""
    postgres = Postgres(data_dir)
    try:
        await postgres.serve()
        await asyncio.to_thread(migrate, postgres.address)
        yield postgres
    finally:
        if postgres.process.returncode is None:
            await postgres.terminate()


async def check_promises(desk: Desk, ledger: Ledger, draw: random.Random) -> None:
    """Everything that was acknowledged, asked for as its owners and gateways do."""
    reader = Gateway("reader", desk, ledger, draw)

    async def check_account(account: Account) -> None:
        await Person(desk, ledger, draw).check(account)

    calls = [partial(check_account, account) for account in ledger.accounts]
    calls += [partial(reader.validate, key) for key in ledger.keys if key.text is not None]
    refused = desk.statuses[503]
    await in_flight(8, calls)
    assert desk.statuses[503] == refused, "what is refused was not checked"


async def check_tables(address: DatabaseAddress, ledger: Ledger, listener: Listener) -> None:
    """Usage adds up, and the listener has missed no event and heard of every change."""
    assert await stored(address) == added_up(ledger.rollups)
    rows = await fetch(address, "SELECT id, user_id, key_id FROM key_events ORDER BY id")
    assert listener.events == [dict(row) for row in rows]
    heard = Counter((event["user_id"], event["key_id"]) for event in listener.events)
    assert not Counter(ledger.changes) - heard


async def check_process(usermanager: UserManagerProcess, pid: int) -> None:
    """It is the one that was started, and nothing in it has failed."""
    assert usermanager.process.pid == pid
    metrics = await usermanager.metrics()
    usermanager.check_no_traceback()
    restarts = {name: count for name, count in metrics.items() if name.startswith("loop_restarts")}
    assert not restarts
    code = await usermanager.terminate()
    assert code == 0, usermanager.said[-shown_chars:]
    usermanager.check_no_traceback()


def told(desk: Desk, ledger: Ledger, kills: Kills) -> str:
    by_status = ", ".join(f"{status}: {count:,}" for status, count in sorted(desk.statuses.items()))
    by_kind = ", ".join(f"{kind} {count}" for kind, count in kills.done.items())
    return (
        f"{desk.statuses.total():,} requests ({by_status}), {desk.longest_s:.1f} s at most\n"
        f"{kills.done.total()} kills ({by_kind}); healthy again after at most "
        f"{kills.longest_healthy_s:.2f} s\n"
        f"acknowledged: {len(ledger.accounts):,} accounts, {len(ledger.keys):,} keys, "
        f"{ledger.revocations:,} revocations, {ledger.reports:,} usage reports; "
        f"of unknown outcome: {ledger.found_applied} had been applied, "
        f"{ledger.found_not_applied} not; lost: 0\n"
    )


@pytest.mark.timeout(240 + 10 * seconds)
async def test_no_kill_of_postgresql_loses_what_was_acknowledged_or_leaves_it_unhealthy(
    tmp_path: Path,
) -> None:
    draw = random.Random(20261205)
    ledger = Ledger()
    # The client lets connections go before the server does, so that none is lost in between.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
    async with (
        running_postgres(tmp_path / "pg") as postgres,
        usermanager_process(tmp_path / "data", postgres.address) as usermanager,
        httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as http,
    ):
        pid = usermanager.process.pid
        desk = Desk(usermanager.url, http)
        kills = Kills(postgres, usermanager, desk, draw)
        listener = Listener(desk)
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(people):
                group.create_task(Person(desk, ledger, draw).live(ended.is_set))
            for number in range(gateways):
                gateway = Gateway(f"gateway-{number}", desk, ledger, draw)
                group.create_task(gateway.serve(ended.is_set))
            group.create_task(listener.listen(ended.is_set))
            await wait_until(lambda: len(ledger.accounts) >= people, "everybody has signed up")
            await kills.run()
            ended.set()
        await check_promises(desk, ledger, draw)
        await check_tables(postgres.address, ledger, listener)
        await check_process(usermanager, pid)
    assert ledger.revocations > 0
    assert desk.statuses[503] > 0
    sys.stdout.write(told(desk, ledger, kills))
