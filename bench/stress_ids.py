"""Keys by the million, from several keygens, each of them kept, and compared in the end.

    python -m bench.stress_ids [--keys N] [--kills N] [--restarts N] [--returns N] …

64 clients ask three keygens over one PostgreSQL, for single keys and for batches of up to 10,000 of
several sizes and accounts. With --kills so many keygens are killed meanwhile (kill -9), PostgreSQL
is with every twentieth of them, and of every ten commits one happens without a reply. What is there
twice in the end is told; the keygens are not asked whether it is.

Then clients take keys and return them, while keygens are stopped, killed and started again: what
one has must not be given to another until it has returned it.

The exit code is 1 if anything was there twice.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import uvloop

from bench.report import quiet
from bench.stress_tally import Times
from tests.cluster.keygen.installation import running_postgres
from tests.cluster.keygen.returning import Lives, returning
from tests.cluster.keygen.turmoil import Outcome, Plan, turmoil

kills_per_restart: Final = 20
cut_share: Final = 0.1
listed_max: Final = 20
told_every_s: Final = 10.0
mebibyte: Final = 1 << 20


class Now:
    """Tells how far something is, now and then."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._began_s = self._told_s = time.monotonic()

    def tell(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= told_every_s:
            self._told_s = now_s
            print(f"  {now_s - self._began_s:6.0f} s: {self._text()}", flush=True)


async def collect(plan: Plan) -> bool:
    """Whether no key was there twice."""
    times: defaultdict[str, Times] = defaultdict(Times)
    latest: list[Outcome] = []

    def told(outcome: Outcome) -> None:
        latest[:] = [outcome]
        now.tell()

    now = Now(lambda: f"{latest[0].crowd.total:,} keys, {latest[0].kills} kills")
    began_s = time.monotonic()
    with TemporaryDirectory(prefix="ydht-bench-") as name:
        outcome = await turmoil(
            plan, Path(name), lambda what, took_s: times[what].add(took_s), told
        )
    took_s = time.monotonic() - began_s
    collected = outcome.crowd.collected
    twice = list(collected.duplicates())
    print(
        f"{collected.total:,} keys, {collected.total - len(twice):,} of them unique, "
        f"{len(twice):,} duplicates; {collected.total / took_s:,.0f} keys per second in "
        f"{took_s:.0f} s, kept in {collected.memory_bytes / mebibyte:,.0f} MiB"
    )
    print(f"  {', '.join(twice[:listed_max]) or 'none is there twice'}")
    print(f"  {outcome}")
    print(
        f"  {'':<10}{'answered':>12}{'per second':>12}{'p50 ms':>10}{'p99 ms':>10}{'longest':>10}"
    )
    for what, of_it in times.items():
        rate, longest_ms = of_it.count / took_s, of_it.longest_s * 1e3
        print(
            f"  {what:<10}{of_it.count:>12,}{rate:>12,.0f}{of_it.percentile_ms(50):>10.1f}"
            f"{of_it.percentile_ms(99):>10.1f}{longest_ms:>10.1f}"
        )
    return not twice


async def give_back(keys: int) -> bool:
    """Whether no key was anybody's while it was somebody else's."""
    latest: list[Lives] = []

    def told(lives: Lives) -> None:
        latest[:] = [lives]
        now.tell()

    now = Now(lambda: str(latest[0]))
    with TemporaryDirectory(prefix="ydht-bench-") as name:
        async with running_postgres(Path(name)) as postgres:
            lives = await returning(Path(name), postgres.address, keys, told)
    print(lives)
    print(f"  had by two at once: {', '.join(lives.twice[:listed_max]) or 'none'}")
    return not lives.twice


async def run(plan: Plan, returns: int) -> bool:
    is_right = await collect(plan)
    return (await give_back(returns) if returns else True) and is_right


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stress_ids", description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--keygens", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--restarts", type=int, help="a twentieth of the kills")
    parser.add_argument("--returns", type=int, help="a hundredth of the keys; 0: none")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if min(options.keys, options.keygens, options.clients) < 1 or options.kills < 0:
        parser.error("there is at least one key, keygen and client")
    quiet()
    restarts, returns = options.restarts, options.returns
    plan = Plan(
        keys=options.keys,
        kills=options.kills,
        restarts=-(-options.kills // kills_per_restart) if restarts is None else restarts,
        cut_share=cut_share if options.kills else 0.0,
        keygens=options.keygens,
        clients=options.clients,
        seed=options.seed,
    )
    is_right = uvloop.run(run(plan, options.keys // 100 if returns is None else returns))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
