"""Reports of usage: each counts exactly once, whatever happens to it on the way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.core.errors import ClientError, FixRequest, RetryLater, UnknownOutcome
from services.core.usage_report import (
    Rollup,
    UsageReport,
    UsageTaken,
    count_max,
    rows_per_report_max,
)
from services.runtime.database_url import DatabaseAddress
from services.usermanager.usage import senders_kept_days
from services.usermanager.usage_store import reports_remembered
from tests.integration.test_postgres_pool import Proxy
from tests.integration.usage_desk import (
    Desk,
    added_up,
    fetch,
    random_rollups,
    report,
    rollup,
    stored,
    this_minute,
    usage_desk,
)

counted = UsageTaken(counted=True, dropped=0)
repeated = UsageTaken(counted=False, dropped=0)
# Kills a backend now and then, when it is in the middle of something of ours.
kill_sql = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND state <> 'idle' AND backend_type = 'client backend'
    ORDER BY random() LIMIT 1
"""


@pytest.fixture
async def desk(database_address: DatabaseAddress) -> AsyncIterator[Desk]:
    async with usage_desk(database_address) as desk:
        yield desk


async def until_answered(desk: Desk, sent: UsageReport) -> tuple[UsageTaken, list[ClientError]]:
    """As a gateway does: again, until there is an answer."""
    met: list[ClientError] = []
    while True:
        try:
            return await desk.usage.take(sent), met
        except (RetryLater, UnknownOutcome) as error:
            met.append(error)
            await asyncio.sleep(0.01)


async def test_a_report_counts_once_however_often_it_is_sent(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    first = report(1, rollup(requests=3), rollup(requests=4, status=404))
    assert await desk.usage.take(first) == counted
    assert await desk.usage.take(first) == repeated
    # Another sender's first report is another report.
    assert await desk.usage.take(report(1, rollup(requests=5), sender="other")) == counted
    minute = first.rollups[0].minute
    assert {key[4]: sums[0] for key, sums in (await stored(database_address)).items()} == {
        200: 8,
        404: 4,
    }
    assert all(key[0] == minute for key in await stored(database_address))
    assert (desk.usage.counters.reports, desk.usage.counters.repeated) == (2, 1)
    assert (desk.usage.counters.rows, desk.usage.counters.dropped) == (3, 0)


async def test_reports_may_overtake_each_other(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    order = list(range(200))
    random.Random(5).shuffle(order)
    sent = [report(number, rollup(requests=number)) for number in order]
    for each in sent:
        assert await desk.usage.take(each) == counted
    for each in sent:
        assert await desk.usage.take(each) == repeated
    assert sum(sums[0] for sums in (await stored(database_address)).values()) == sum(order)
    # Nothing but one range is left of all of them, behind which is what is taken for counted.
    (row,) = await fetch(database_address, "SELECT counted::text FROM usage_senders")
    assert row[0] == f"{{(,{199 - reports_remembered}),[0,200)}}"


async def test_a_report_from_too_far_behind_is_refused_and_not_guessed_about(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    newest = 10 * reports_remembered
    assert await desk.usage.take(report(newest, rollup())) == counted
    assert await desk.usage.take(report(newest - reports_remembered, rollup())) == counted
    for sequence in (newest - reports_remembered - 1, 0):
        with pytest.raises(FixRequest, match="begins anew takes another name") as refused:
            await desk.usage.take(report(sequence, rollup()))
        assert refused.value.members == {"member": "sequence"}
    assert sum(sums[0] for sums in (await stored(database_address)).values()) == 2


async def test_numbers_with_holes_are_remembered_within_bounds(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    for number in range(0, 4 * reports_remembered, 2):
        await desk.usage.take(report(number))
    (row,) = await fetch(
        database_address, "SELECT (SELECT count(*) FROM unnest(counted)) FROM usage_senders"
    )
    assert 2 <= row[0] <= reports_remembered // 2 + 1
    assert await desk.usage.take(report(4 * reports_remembered - 5)) == counted


async def test_of_copies_that_arrive_at_once_one_counts(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    rows = random_rollups(random.Random(7), 300)
    sent = report(count_max, *rows)
    answers = await asyncio.gather(*(desk.usage.take(sent) for _ in range(20)))
    assert sorted(answer.counted for answer in answers) == [False] * 19 + [True]
    assert await stored(database_address) == added_up(rows)


async def send_all(desk: Desk, reports: Sequence[UsageReport], draw: random.Random) -> list[str]:
    """A gateway that sends each report until it is answered, some again later; its troubles."""
    troubles: list[str] = []
    answered = []
    for sent in reports:
        answer, met = await until_answered(desk, sent)
        troubles += [error.code for error in met]
        # Only after an unknown outcome may it have been counted before the answer says so.
        assert answer.counted or any(isinstance(error, UnknownOutcome) for error in met)
        answered.append(sent)
        if draw.random() < 0.3:
            again, _ = await until_answered(desk, draw.choice(answered))
            assert again == repeated
    return troubles


async def kill_on_and_on(address: DatabaseAddress, draw: random.Random) -> None:
    killer = await asyncpg.connect(**address.asyncpg())
    try:
        while True:
            await killer.execute(kill_sql)
            await asyncio.sleep(draw.random() * 0.02)
    finally:
        await killer.close()


async def test_many_gateways_whose_connections_are_killed_are_counted_to_the_last_request(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    draw = random.Random(11)
    # All about the same rows, so that reports stand in each other's way as much as they can.
    plans = {
        sender: [
            report(number, *random_rollups(draw, 60, minutes=3), sender=sender)
            for number in range(1, 26)
        ]
        for sender in (f"gateway-{n}" for n in range(12))
    }
    killing = asyncio.create_task(kill_on_and_on(database_address, draw))
    async with usage_desk(database_address) as other:
        troubles = await asyncio.gather(
            *(
                send_all((desk, other)[index % 2], reports, random.Random(index))
                for index, reports in enumerate(plans.values())
            )
        )
    killing.cancel()
    with suppress(asyncio.CancelledError):
        await killing
    sent = [row for reports in plans.values() for each in reports for row in each.rollups]
    assert await stored(database_address) == added_up(sent)
    # It was as bad as it was meant to be.
    assert len([code for codes in troubles for code in codes]) > 20


async def test_a_commit_whose_answer_is_lost_is_not_counted_again(
    database_address: DatabaseAddress, tmp_path: Path
) -> None:
    proxy = Proxy(database_address)
    host = await proxy.start(tmp_path)
    commits = 0

    def cut_before_its_answer(chunk: bytes) -> bool:
        nonlocal commits
        commits += b"COMMIT" in chunk
        return b"COMMIT" in chunk

    try:
        async with usage_desk(replace(database_address, host=host)) as desk:
            await desk.usage.tidy()
            proxy.cut_after = cut_before_its_answer
            sent = report(1, rollup(requests=7))
            with pytest.raises(UnknownOutcome):
                await desk.usage.take(sent)
            proxy.cut_after = lambda _: False
            assert commits == 1
            assert await desk.usage.take(sent) == repeated
    finally:
        await proxy.stop()
    assert [sums[0] for sums in (await stored(database_address)).values()] == [7]


async def test_a_report_that_fails_in_the_middle_has_not_begun(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    """Its number is claimed first, and given back with the rest."""
    await desk.usage.tidy()
    blocker = await asyncpg.connect(**database_address.asyncpg())
    await desk.usage.take(report(1, rollup()))
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT * FROM usage_rollups FOR UPDATE")
    taking = asyncio.create_task(desk.usage.take(report(2, rollup())))
    waits_sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while not await blocker.fetchval(waits_sql):
        await blocker.execute("SELECT pg_sleep(0.01)")
    await blocker.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    )
    with pytest.raises(RetryLater, match="database_unavailable"):
        await taking
    await transaction.rollback()
    await blocker.close()
    assert await desk.usage.take(report(2, rollup())) == counted
    assert [sums[0] for sums in (await stored(database_address)).values()] == [2]


numbers = st.one_of(st.integers(0, 100), st.sampled_from((count_max, count_max - 1, 0)))
rows = st.builds(
    rollup,
    minute=st.sampled_from((None,)),
    user_id=st.integers(0, 1),
    key_id=st.sampled_from((0, 1, count_max)),
    operation=st.sampled_from(("get", "ids", "a" + 31 * "_")),
    status=st.sampled_from((100, 200, 599)),
    requests=numbers,
    bytes_in=numbers,
    bytes_out=numbers,
    latency_us=numbers,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reports=st.lists(st.lists(rows, max_size=12), min_size=1, max_size=4))
async def test_rows_are_added_up_as_one_would_by_hand_and_stop_at_the_largest_number(
    desk: Desk, database_address: DatabaseAddress, reports: list[list[Rollup]]
) -> None:
    await fetch(database_address, "TRUNCATE usage_rollups, usage_senders")
    for number, each in enumerate(reports):
        await desk.usage.take(report(number, *each))
    by_hand = added_up(row for each in reports for row in each)
    bounded = {key: tuple(min(n, count_max) for n in sums) for key, sums in by_hand.items()}
    found = await stored(database_address)
    # An example that spans the turn of a minute has rows of both.
    assert found == bounded


async def test_senders_are_forgotten_once_their_reports_could_not_be_counted_again(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    for sender in ("old", "young"):
        await desk.usage.take(report(1, rollup(), sender=sender))
    for sender, days in (("old", senders_kept_days + 1), ("young", senders_kept_days - 1)):
        await fetch(
            database_address,
            "UPDATE usage_senders SET seen_at = now() - make_interval(days => $2)"
            " WHERE sender = $1",
            sender,
            days,
        )
    await desk.usage.tidy()
    left = await fetch(database_address, "SELECT sender FROM usage_senders")
    assert [row[0] for row in left] == ["young"]


async def test_a_sender_that_reports_again_just_then_is_not_waited_for(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    for sender in ("one", "two", "three"):
        await desk.usage.take(report(1, rollup(), sender=sender))
    await fetch(database_address, "UPDATE usage_senders SET seen_at = '2020-01-01'")
    async with desk.database.transaction() as holder:
        await holder.execute("SELECT FROM usage_senders WHERE sender = 'two' FOR UPDATE")
        async with asyncio.timeout(5):
            await desk.usage.tidy()
        left = await fetch(database_address, "SELECT sender FROM usage_senders")
        assert [row[0] for row in left] == ["two"]


async def test_a_user_that_does_not_exist_is_counted_all_the_same(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    await desk.usage.take(report(1, rollup(user_id=987_654)))
    assert [key[1] for key in await stored(database_address)] == [987_654]


async def test_an_empty_report_is_a_report(desk: Desk) -> None:
    assert await desk.usage.take(report(1)) == counted
    assert await desk.usage.take(report(1, rollup())) == repeated


async def test_the_largest_report_is_taken_whole(
    desk: Desk, database_address: DatabaseAddress
) -> None:
    minute = this_minute()
    many = [rollup(minute, key_id=number, requests=2) for number in range(rows_per_report_max)]
    assert await desk.usage.take(report(1, *many)) == counted
    assert await stored(database_address) == added_up(many)
