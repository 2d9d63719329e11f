"""Keygens that are killed, over a PostgreSQL that is killed and whose replies to commits are lost,
while a crowd collects keys: of any size, for a test and for `make stress-ids`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.keygen.commit_cutter import CommitCutter
from tests.cluster.keygen.crowd import Crowd
from tests.cluster.keygen.hard_client import hard_client
from tests.cluster.keygen.installation import running_keygens, running_postgres
from tests.cluster.test_database_kills import Postgres
from tests.waiting import wait_until

# Between one kill and the next: some hit the growing of pools, some what is steady.
pause_s = (0.2, 1.0)
# Small, so that there is much to reserve, and to lose.
range_size = 100


@dataclass(slots=True, frozen=True)
class Plan:
    keys: int
    kills: int
    restarts: int
    # Of every commit that a keygen asks for, so often its reply is lost.
    cut_share: float
    keygens: int = 3
    clients: int = 64
    seed: int = 7


@dataclass(slots=True)
class Outcome:
    crowd: Crowd
    kills: int = 0
    restarts: int = 0
    commits: int = 0
    cut: int = 0

    def __str__(self) -> str:
        crowd = self.crowd
        refusals = ", ".join(f"{count:,} {code}" for code, count in crowd.refusals.most_common())
        return (
            f"{self.kills} keygens and {self.restarts} times PostgreSQL were killed; of "
            f"{self.commits:,} commits {self.cut:,} were not answered; {crowd.lost:,} answers were "
            f"lost; refused for now: {refusals or 'nobody'}"
        )


async def turmoil(
    plan: Plan,
    directory: Path,
    took: Callable[[str, float], None] = lambda _, __: None,
    told: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Until there are as many keys as planned, and all is killed that is to be. `told` now and
    then. AssertionError if keys are not given out again by themselves, or an answer is wrong."""
    async with (
        running_postgres(directory) as postgres,
        CommitCutter(postgres.address) as cutter,
        running_keygens(
            directory, cutter.address.url(), plan.keygens, RANGE_SIZE=str(range_size)
        ) as keygens,
        hard_client(plan.clients) as http,
    ):
        cutter.share = plan.cut_share
        crowd = Crowd(keygens, http, allowed=plan.keys, took=took)
        outcome = Outcome(crowd)
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.run(plan.clients, plan.seed))
            await _disturb(plan, outcome, postgres, told)
            while crowd.total < plan.keys:
                await _until_more(crowd)
                told(outcome)
            # With nothing of it near an end, and all that was killed running again.
            await _until_more(crowd)
            crowd.stopped = True
        outcome.cut, outcome.commits = cutter.cut, cutter.cut + cutter.passed
        return outcome


async def _disturb(
    plan: Plan, outcome: Outcome, postgres: Postgres, told: Callable[[Outcome], None]
) -> None:
    draw, crowd = random.Random(plan.seed), outcome.crowd
    for number in range(1, plan.kills + 1):
        # There are keys to be had until the last kill.
        crowd.allowed = plan.keys * number // (plan.kills + 1)
        # Nor are all kills over while most of the keys are still to come.
        while crowd.total < plan.keys * (number - 1) // (plan.kills + 1):
            await _until_more(crowd)
            told(outcome)
        await asyncio.sleep(draw.uniform(*pause_s))
        victim = draw.choice(crowd.keygens)
        await victim.kill()
        await victim.serve()
        outcome.kills += 1
        if number * plan.restarts // plan.kills > outcome.restarts:
            await draw.choice([postgres.kill_first, postgres.kill_all])()
            await postgres.serve()
            outcome.restarts += 1
        told(outcome)
    crowd.allowed = plan.keys


async def _until_more(crowd: Crowd) -> None:
    before = crowd.total
    await wait_until(lambda: crowd.total > before + 100, "keys are given out by themselves")
