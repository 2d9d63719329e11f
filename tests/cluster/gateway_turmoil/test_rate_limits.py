"""A token bucket over real seconds, at real gateways: it admits what arithmetic says.

TRAFFIC_SECONDS=30 in the environment runs the full figure (`make traffic`).
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import pytest

from services.core.plans import free
from tests.cluster.gateway_platform import Platform, served
from tests.cluster.gateway_turmoil.platform import connected
from tests.integration.lane_world import Answer, Client, request

pytestmark = pytest.mark.asyncio(loop_scope="package")

seconds = max(10.0, float(os.environ.get("TRAFFIC_SECONDS", "10")))
connections = 8
# A fraction of the time in which a token comes, so that none waits for long to be taken.
tick_s = 0.04
per_s = Fraction(free.requests_per_minute, 60)
_limit = re.compile(rb'"default";r=(\d+);t=(\d+)')


@dataclass(slots=True, frozen=True)
class Span:
    """When something happened, at the soonest and at the latest."""

    soonest_s: float
    latest_s: float


def gained(since: Span, until: Span) -> tuple[Fraction, Fraction]:
    """Tokens that came from the one to the other, at least and at most."""
    least = max(0.0, until.soonest_s - since.latest_s)
    most = until.latest_s - since.soonest_s
    return Fraction(least) * per_s, Fraction(most) * per_s


def check_headers(answer: Answer, level: tuple[Fraction, Fraction]) -> None:
    """Between these levels of the bucket."""
    assert answer.field(b"ratelimit-policy") == b'"default";q=%d;w=60' % free.requests_per_minute
    limit = answer.field(b"ratelimit")
    assert limit is not None
    match = _limit.fullmatch(limit)
    assert match is not None, limit
    left, full_s = int(match[1]), int(match[2])
    least, most = max(Fraction(0), level[0]), min(Fraction(free.burst), level[1])
    assert floor(least) <= left <= floor(most), (answer, least, most)
    assert ceil((free.burst - most) / per_s) <= full_s <= ceil((free.burst - least) / per_s)
    wait = answer.field(b"retry-after")
    if answer.status == 429:
        # One may have come since it was refused.
        assert left == 0 or level[1] >= 1
        assert wait is not None
        # A token takes less than a second.
        assert wait == b"1"
    else:
        assert answer.status == 404
        assert wait is None


async def ask_at_once(clients: list[Client], content: bytes) -> tuple[list[Answer], Span]:
    began_s = time.monotonic()
    answers = await asyncio.gather(*(client.ask(content) for client in clients))
    return list(answers), Span(began_s, time.monotonic())


async def test_a_bucket_admits_what_arithmetic_says_and_tells_it_throughout(
    platform: Platform,
) -> None:
    tenant = await platform.tenant("free")
    content = request("GET", "/v1/kv/absent", *(await tenant.caller()).lines)
    async with connected(platform.fast, connections) as clients:
        first, began = await ask_at_once(clients[:1], content)
        assert first[0].status == 404
        admitted, refused = 1, 0
        now = began
        while now.soonest_s - began.latest_s < seconds:
            answers, now = await ask_at_once(clients, content)
            before = admitted
            admitted += sum(answer.status == 404 for answer in answers)
            refused += sum(answer.status == 429 for answer in answers)
            least, most = gained(began, now)
            # It was never so full that anything was lost, for that it is asked too often.
            for answer in answers:
                # Those who got in left a token less than there was, at the most.
                taken = before + (answer.status == 404)
                check_headers(answer, (free.burst + least - admitted, free.burst + most - taken))
            if any(answer.status == 429 for answer in answers):
                assert free.burst + least - admitted < 1, "a token was there, and nobody got it"
            assert admitted <= free.burst + most, "somebody got a token that was not there"
            await asyncio.sleep(tick_s)
    due = float(free.burst + sum(gained(began, now)) / 2)
    sys.stdout.write(
        f"\n{admitted} admitted and {refused:,} refused in {now.latest_s - began.soonest_s:.2f} s, "
        f"where {due:.2f} tokens were there\n"
    )
    assert admitted == pytest.approx(due, rel=0.02, abs=1)


async def test_two_gateways_have_two_buckets(platform: Platform) -> None:
    """As documented: limits hold for each gateway."""
    tenant = await platform.tenant("free")
    content = request("GET", "/v1/kv/absent", *(await tenant.caller()).lines)
    async with served(platform.gateway()) as other:
        await other.until_whole()
        for gateway in (platform.fast, other):
            async with connected(gateway, 1) as [client]:
                began_s = time.monotonic()
                answers = [await client.ask(content) for _ in range(2 * free.burst)]
                gained_most = (time.monotonic() - began_s) * per_s
            admitted = sum(answer.status == 404 for answer in answers)
            assert free.burst <= admitted <= free.burst + gained_most
