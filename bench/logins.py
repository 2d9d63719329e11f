"""Logging in over HTTP: how many times a second, and how long for whom there is and is not.

The user manager is `python -m services.usermanager` in a process of its own, on an embedded
PostgreSQL that syncs its log. The rate is bound by argon2id, two at a time; the row below it is
what argon2id alone does in this process, with the same parameters and as many threads.

Then wrong passwords are tried one after another, in turn for accounts that there are, for ones
that are disabled and for names that nobody has. The medians should be the same: whoever could
tell them apart could tell who has an account. So that no try is throttled, they are spread over
accounts and over addresses of the loopback network, all of which Linux lets a client use.

    python -m bench.logins [--rounds N] [--seconds S] [--tries N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

import httpx
import uvloop

from bench.report import Row, quiet, show
from bench.usermanager_process import UserManagerProcess, usermanager
from services.runtime.postgres import Database
from services.usermanager.account_store import PostgresAccountStore
from services.usermanager.administration import Administration
from services.usermanager.audit import Audit
from services.usermanager.key_events import KeyEvents
from services.usermanager.passwords import Passwords, at_once_max, default_parameters

accounts = 50
in_flight = 8
tries_default = 200
password = "a password for the benchmark alone"  # noqa: S105  It guards nothing.
# A share of what throttles let through: 10 wrong passwords an account, 50 an address.
tries_per_address = 40
tries_per_account = 8


def email(kind: str, number: int) -> str:
    return f"{kind}-{number}@example.com"


async def fill(process: UserManagerProcess) -> None:
    """Accounts that there are, and as many that are disabled."""

    async def never() -> None:
        await asyncio.Event().wait()

    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(process.address))
        passwords = Passwords()
        stack.callback(passwords.close)
        store = PostgresAccountStore(database, Audit(database), KeyEvents(database, never))
        desk = Administration(store, passwords, "bench")
        for number in range(accounts):
            for kind in ("known", "disabled"):
                await desk.create(email(kind, number), f"{kind} {number}", password)
            await desk.set_active(email("disabled", number), is_active=False)


async def per_second(process: UserManagerProcess, seconds: float) -> float:
    """Logins with the right password, one after another on each connection."""
    logins = 0
    numbers = itertools.cycle(range(accounts))
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async def go_on(client: httpx.AsyncClient) -> None:
        nonlocal logins
        while loop.time() - began_s < seconds:
            await try_login(client, email("known", next(numbers)), password, 200)
            logins += 1

    async with client_of(process, "127.0.0.1") as client:
        await asyncio.gather(*(go_on(client) for _ in range(in_flight)))
    return logins / (loop.time() - began_s)


async def hashes_per_second(seconds: float) -> float:
    """Verifications in this process, with nothing around them."""
    passwords, verified = Passwords(), 0
    kept = await passwords.hash(password)
    began_s = time.perf_counter()

    async def go_on() -> None:
        nonlocal verified
        while time.perf_counter() - began_s < seconds:
            await passwords.verify(password, kept)
            verified += 1

    await asyncio.gather(*(go_on() for _ in range(at_once_max)))
    took_s = time.perf_counter() - began_s
    passwords.close()
    return verified / took_s


async def wrong_ms(process: UserManagerProcess, tries: int) -> dict[str, list[float]]:
    """How long each wrong login took, by kind. Who comes first changes from round to round."""
    took: dict[str, list[float]] = defaultdict(list)
    draw = random.Random(1)
    kinds = ["known", "disabled", "unknown"]
    clients = clients_in_turn(process)
    async with AsyncExitStack() as stack:
        for number in range(tries):
            draw.shuffle(kinds)
            for kind in kinds:
                client, is_new = next(clients)
                if is_new:
                    await stack.enter_async_context(client)
                    await client.get("/health")
                name = email(kind, number // tries_per_account)
                began_s = time.perf_counter()
                await try_login(client, name, "not the password", 401)
                took[kind].append((time.perf_counter() - began_s) * 1e3)
    return took


def clients_in_turn(process: UserManagerProcess) -> Iterator[tuple[httpx.AsyncClient, bool]]:
    """A client for each try, and whether it is its first: each has an address of its own."""
    for number in itertools.count(1):
        client = client_of(process, f"127.0.{number // 250}.{number % 250 + 2}")
        for use in range(tries_per_address):
            yield client, use == 0


def client_of(process: UserManagerProcess, address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{process.port}",
        transport=httpx.AsyncHTTPTransport(local_address=address),
        timeout=30,
    )


async def try_login(client: httpx.AsyncClient, name: str, tried: str, status: int) -> None:
    answer = await client.post("/login", json={"email": name, "password": tried})
    if answer.status_code != status:
        raise RuntimeError(f"a login was answered {answer.status_code}: {answer.text}")


async def measure(
    rounds: int, seconds: float, tries: int
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    async with usermanager() as process:
        await fill(process)
        logins, hashes = [], []
        for _ in range(rounds):
            logins.append(await per_second(process, seconds))
            hashes.append(await hashes_per_second(seconds))
        return logins, hashes, await wrong_ms(process, tries)


def spread(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"quartiles {low:.1f} and {high:.1f}; {len(values)} tries"


def rows(rounds: int = 3, seconds: float = 3.0, tries: int = tries_default) -> list[Row]:
    if tries > accounts * tries_per_account:
        raise ValueError(f"at most {accounts * tries_per_account} tries are not throttled")
    logins, hashes, wrong = uvloop.run(measure(rounds, seconds, tries))
    costs = default_parameters
    note = f"argon2id, {costs.memory_kib // 1024} MiB, passes: {costs.passes}, lanes: {costs.lanes}"
    return [
        Row(f"logins, {in_flight} in flight", statistics.median(logins), "per second", note),
        Row(f"argon2id alone, {at_once_max} threads", statistics.median(hashes), "per second"),
        *(
            Row(f"a wrong password, {kind} account", statistics.median(took), "ms", spread(took))
            for kind, took in sorted(wrong.items())
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--tries", type=int, default=tries_default)
    options = parser.parse_args()
    quiet()
    show("logins", rows(options.rounds, options.seconds, options.tries))


if __name__ == "__main__":
    main()
