"""What is known of API keys, for how long, and what ends it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import traceback

import pytest

from services.core.errors import FixRequest, RetryLater
from services.core.plans import Limits, free
from services.runtime.credentials import (
    again_s,
    fresh_s,
    refused_max,
    refused_s,
    stale_s,
    tries_max,
)
from services.runtime.guessing import address_limits, site_limits, subjects_max, turns
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness
from tests.unit.key_world import KeyWorld, here, key_world, pepper
from tests.waiting import wait_until


async def test_a_key_is_looked_up_once_and_then_known() -> None:
    async with key_world() as world:
        key = world.keys.make(7, prefix="user:", scopes=["read", "admin"])
        assert world.cached(key) is None
        credential = await world.find(key)
        assert (credential.tenant, credential.key_id) == (7, 1)
        assert (credential.may_read, credential.may_write, credential.may_admin) == (1, 0, 1)
        assert credential.key_prefix == b"user:"
        assert world.cached(key) is credential
        assert await world.find(key) is credential
        assert world.keys.asked == 1


async def test_who_asks_for_one_unknown_key_at_once_is_one_question() -> None:
    async with key_world() as world:
        key = world.keys.make()
        world.keys.hold()
        finds = [asyncio.create_task(world.find(key)) for _ in range(1_000)]
        await wait_until(lambda: world.keys.held == 1, "the key is asked for")
        for leaver in finds[::3]:
            leaver.cancel()
        await world.settle()
        world.keys.go_on()
        found = await asyncio.gather(*finds, return_exceptions=True)
        stayed = [one for one in found if not isinstance(one, asyncio.CancelledError)]
        assert len(stayed) == 666
        assert set(map(id, stayed)) == {id(world.cached(key))}
        assert world.keys.asked == 1


async def test_a_refusal_is_one_question_too_and_an_error_for_each() -> None:
    async with key_world() as world:
        key = world.keys.make()
        world.keys.of(key).revoked = True
        errors = await asyncio.gather(
            *(world.find(key) for _ in range(100)), return_exceptions=True
        )
        assert {type(error) for error in errors} == {FixRequest}
        assert len(set(map(id, errors))) == 100
        longest = max(
            len(traceback.extract_tb(error.__traceback__))
            for error in errors
            if isinstance(error, FixRequest)
        )
        assert longest < 5
        assert world.keys.asked == 1


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"ydht_",
        b"ydht_" + b"0" * 49,
        b"\xff" * 54,
        b"ydht_" + "ä".encode() * 24 + b"0",
        b"x" * 100_000,
    ],
)
async def test_what_cannot_be_a_key_is_refused_without_asking(key: bytes) -> None:
    async with key_world() as world:
        for _ in range(100):
            assert await world.refusal(key) == "invalid_api_key"
        assert world.keys.asked == 0
        assert len(world.credentials.guesses) == 0


async def test_a_mistyped_key_is_refused_without_asking() -> None:
    async with key_world() as world:
        key = world.keys.make()
        for wrong in (key[:-1], key + b"0", key.swapcase(), b" " + key, key + b"\n"):
            assert await world.refusal(wrong) == "invalid_api_key"
        assert world.keys.asked == 0


async def test_a_known_key_is_fresh_for_a_minute_and_then_looked_up_on_use() -> None:
    async with key_world() as world:
        key = world.keys.make()
        credential = await world.find(key)
        world.after(fresh_s - 0.001)
        assert world.cached(key) is credential
        await world.settle()
        assert world.keys.asked == 1
        world.after(0.001)
        assert world.now_s() >= credential.usable_until_s
        for _ in range(100):
            assert world.cached(key) is credential
        await world.settle()
        assert world.keys.asked == 2
        assert credential.usable_until_s == world.now_s() + fresh_s


async def test_what_changed_is_known_after_the_refresh_by_who_kept_the_credential() -> None:
    async with key_world() as world:
        key = world.keys.make(scopes=["read"])
        credential = await world.find(key)
        world.keys.of(key).members = {"scopes": ["write"], "prefix": "a"}
        world.after(fresh_s)
        assert world.cached(key) is credential
        await world.settle()
        assert (credential.may_read, credential.may_write) == (False, True)
        assert credential.key_prefix == b"a"


async def test_without_a_user_manager_a_known_key_goes_on_for_a_quarter_of_an_hour() -> None:
    async with key_world() as world:
        key = world.keys.make()
        began_s = world.now_s()
        credential = await world.find(key)
        world.keys.away = True
        while world.now_s() < began_s + stale_s:
            assert await world.find(key) is credential
            await world.settle()
            world.after(1.0)
        assert await world.refusal(key) == "auth_unavailable"
        # Tried now and then, not for every request.
        assert world.keys.asked <= 3 + (stale_s - fresh_s) / again_s
        world.keys.away = False
        assert (await world.find(key)).usable_until_s == world.now_s() + fresh_s


async def test_a_key_that_is_unknown_while_the_user_manager_is_away_is_not_refused() -> None:
    async with key_world() as world:
        key = world.keys.make()
        world.keys.away = True
        for _ in range(3 * address_limits.burst):
            assert await world.refusal(key) == "auth_unavailable"
        world.keys.away = False
        assert (await world.find(key)).tenant == 7


async def test_a_key_that_a_refresh_finds_refused_is_dead_at_once() -> None:
    async with key_world() as world:
        key = world.keys.make()
        credential = await world.find(key)
        world.keys.of(key).revoked = True
        world.after(fresh_s)
        assert world.cached(key) is credential
        await world.settle()
        assert world.now_s() >= credential.usable_until_s
        assert world.cached(key) is None
        world.keys.away = True
        assert await world.refusal(key) == "invalid_api_key"


async def test_a_key_ends_when_it_says_and_nobody_has_to_be_asked() -> None:
    async with key_world() as world:
        key = world.keys.make(expires_at=world.in_s(90))
        credential = await world.find(key)
        world.after(fresh_s)
        assert world.cached(key) is credential
        await world.settle()
        assert credential.usable_until_s == pytest.approx(90)
        world.after(29.9)
        assert world.cached(key) is credential
        world.keys.away = True
        asked = world.keys.asked
        world.after(0.2)
        assert world.now_s() >= credential.usable_until_s
        assert await world.refusal(key) == "invalid_api_key"
        assert world.keys.asked == asked


async def test_a_key_that_the_user_manager_ends_later_than_our_clock_says_is_over() -> None:
    async with key_world() as world:
        key = world.keys.make(expires_at=world.in_s(-0.001))
        assert await world.refusal(key) == "invalid_api_key"
        assert len(world.credentials) == 0


async def test_a_revoked_key_is_dead_with_the_event_also_for_who_kept_it() -> None:
    async with key_world() as world:
        key, other = world.keys.make(7), world.keys.make(7)
        credential, kept = await world.find(key), await world.find(other)
        world.keys.revoke(key)
        assert world.cached(key) is credential
        await world.hear()
        assert world.now_s() >= credential.usable_until_s
        assert world.cached(key) is None
        assert world.cached(other) is kept
        assert await world.refusal(key) == "invalid_api_key"


async def test_nobody_waits_longer_than_a_request_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.runtime.credentials.find_s_max", 0.02)
    async with key_world() as world:
        known, unknown = world.keys.make(), world.keys.make()
        credential = await world.find(known)
        world.keys.tell(99, None)
        world.keys.forget_events()
        await world.hear()
        world.keys.hold()
        assert await world.refusal(unknown) == "auth_unavailable"
        assert await world.find(known) is credential
        world.keys.go_on()
        assert (await world.find(unknown)).tenant == 7


async def test_a_key_that_an_event_has_named_is_not_used_on_trust() -> None:
    async with key_world() as world:
        key, other = world.keys.make(7), world.keys.make(8)
        for one in (key, other):
            await world.find(one)
        world.keys.revoke(key)
        await world.hear()
        world.keys.away = True
        assert await world.refusal(key) == "auth_unavailable"
        assert (await world.find(other)).tenant == 8


async def test_a_plan_that_changed_is_in_force_with_the_event() -> None:
    async with key_world() as world:
        one, two = world.keys.make(7), world.keys.make(7)
        credentials = [await world.find(key) for key in (one, two)]
        credentials[0].allowance.take(10, 0)
        world.keys.change_plan(7, "pro")
        await world.hear()
        for key, credential in zip((one, two), credentials, strict=True):
            assert world.cached(key) is None
            assert await world.find(key) is credential
            assert b";q=6000;" in credential.allowance.lines(0)
        assert b";r=0;" in credentials[1].allowance.lines(0)


async def test_an_answer_from_before_an_event_that_was_heard_is_not_believed() -> None:
    async with key_world() as world:
        key = world.keys.make()
        world.keys.hold()
        finding = asyncio.create_task(world.refusal(key))
        await wait_until(lambda: world.keys.held == 1, "the key is asked for")
        # It was looked up as good. Then it is revoked, and the event overtakes the answer.
        world.keys.revoke(key)
        await world.hear()
        world.keys.go_on()
        assert await finding == "invalid_api_key"
        assert world.keys.asked == 2


async def test_an_answer_from_before_an_event_of_the_account_is_not_believed_either() -> None:
    async with key_world() as world:
        key = world.keys.make()
        credential = await world.find(key)
        world.after(fresh_s)
        world.keys.hold()
        assert world.cached(key) is credential
        await wait_until(lambda: world.keys.held == 1, "the key is refreshed")
        world.keys.change_plan(7, "pro")
        await world.hear()
        assert world.cached(key) is None
        finding = asyncio.create_task(world.find(key))
        await world.settle()
        world.keys.go_on()
        assert await finding is credential
        assert b";q=6000;" in credential.allowance.lines(0)
        assert world.keys.asked == 3


async def test_an_answer_of_another_history_is_not_believed() -> None:
    async with key_world() as world:
        for _ in range(10):
            world.keys.tell(99, None)
        await world.hear()
        key = world.keys.make()
        world.keys.hold()
        finding = asyncio.create_task(world.refusal(key))
        await wait_until(lambda: world.keys.held == 1, "the key is asked for")
        world.keys.restore(2)
        world.keys.of(key).revoked = True
        await world.hear()
        world.keys.go_on()
        assert await finding == "invalid_api_key"


async def test_an_answer_from_before_the_first_poll_is_not_believed() -> None:
    world = KeyWorld()
    async with world.credentials:
        key = world.keys.make()
        early = world.keys.make()
        await world.find(early)
        world.keys.hold()
        finding = asyncio.create_task(world.refusal(key))
        await wait_until(lambda: world.keys.held == 1, "the key is asked for")
        for one in (key, early):
            world.keys.revoke(one)
        await world.hear()
        world.keys.go_on()
        assert await finding == "invalid_api_key"
        assert world.cached(early) is None
        assert await world.refusal(early) == "invalid_api_key"


async def test_an_answer_from_before_what_is_remembered_of_events_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with key_world() as world:
        monkeypatch.setattr(world.news, "_remembered_max", 2)
        key = world.keys.make()
        world.keys.hold()
        finding = asyncio.create_task(world.refusal(key))
        await wait_until(lambda: world.keys.held == 1, "the key is asked for")
        world.keys.revoke(key)
        for tenant in range(20, 25):
            world.keys.tell(tenant, None)
        await world.hear()
        world.keys.go_on()
        assert await finding == "invalid_api_key"
        assert world.keys.asked == 2


async def test_a_key_that_changes_whenever_it_is_looked_up_is_given_up() -> None:
    async with key_world() as world:
        key = world.keys.make()
        finding = asyncio.create_task(world.refusal(key))
        for number in range(1, tries_max + 1):
            world.keys.hold()
            await wait_until(
                lambda: world.keys.held == 1 and world.keys.asked == number,  # noqa: B023  Awaited.
                "the key is asked for",
            )
            world.keys.change_plan(7, "free")
            await world.hear()
            world.keys.go_on()
            await asyncio.sleep(0)
        assert await finding == "auth_unavailable"
        assert world.keys.asked == tries_max
        assert (await world.find(key)).tenant == 7


@pytest.mark.parametrize("lost", ["restored", "forgotten"])
async def test_when_events_are_lost_every_key_is_looked_up_before_its_next_use(lost: str) -> None:
    async with key_world() as world:
        for _ in range(5):
            world.keys.tell(99, None)
        await world.hear()
        keys = [world.keys.make(tenant) for tenant in range(10)]
        for key in keys:
            await world.find(key)
        world.keys.of(keys[0]).revoked = True
        if lost == "restored":
            world.keys.restore(3)
        else:
            world.keys.tell(99, None)
            world.keys.forget_events()
        await world.hear()
        assert [world.cached(key) for key in keys] == [None] * 10
        assert await world.refusal(keys[0]) == "invalid_api_key"
        for key in keys[1:]:
            assert world.cached(key) is not None or await world.find(key)
        assert world.keys.asked == 20
        # From here on events are heard again.
        world.keys.revoke(keys[1])
        await world.hear()
        assert world.cached(keys[1]) is None


async def test_when_events_are_lost_and_the_user_manager_is_away_again_keys_go_on() -> None:
    async with key_world() as world:
        key = world.keys.make()
        credential = await world.find(key)
        world.keys.tell(99, None)
        world.keys.forget_events()
        await world.hear()
        world.keys.away = True
        assert await world.find(key) is credential
        # And is tried again in the background.
        asked = world.keys.asked
        world.after(again_s)
        assert world.cached(key) is credential
        await world.settle()
        assert world.keys.asked == asked + 1


async def test_what_was_missed_while_the_user_manager_was_away_is_heard_when_it_is_back() -> None:
    async with key_world() as world:
        key, other = world.keys.make(7), world.keys.make(8)
        for one in (key, other):
            await world.find(one)
        world.keys.away = True
        world.keys.revoke(key)
        await world.hear()
        assert world.news.condition().level == "degraded"
        assert await world.find(key)
        world.keys.away = False
        await world.hear()
        assert world.news.condition().level == "ready"
        assert await world.refusal(key) == "invalid_api_key"
        assert world.cached(other) is not None


async def test_a_refused_key_is_remembered_for_seconds() -> None:
    async with key_world() as world:
        key = world.keys.make()
        world.keys.of(key).revoked = True
        for _ in range(100):
            assert await world.refusal(key) == "invalid_api_key"
        assert world.keys.asked == 1
        world.keys.of(key).revoked = False
        world.after(refused_s)
        assert (await world.find(key)).tenant == 7


async def test_an_event_lets_a_refused_key_be_tried_again_at_once() -> None:
    async with key_world() as world:
        key = world.keys.make()
        world.keys.of(key).revoked = True
        assert await world.refusal(key) == "invalid_api_key"
        world.keys.of(key).revoked = False
        world.keys.tell(7, None)
        await world.hear()
        assert (await world.find(key)).tenant == 7


async def test_who_tries_keys_is_slowed_down_and_known_keys_beside_are_not() -> None:
    async with key_world() as world:
        good, unknown = world.keys.make(), world.keys.make()
        await world.find(good)
        stranger = KeyWorld().keys
        stranger.make()
        guesses = [stranger.make() for _ in range(100)]
        codes = [await world.refusal(guess) for guess in guesses]
        tries = address_limits.burst
        assert codes == ["invalid_api_key"] * tries + ["rate_limited"] * (100 - tries)
        assert world.keys.asked == 1 + tries
        assert world.cached(good) is not None
        world.after(fresh_s)
        # Tokens have come back; they are used up again by further tries.
        for guess in guesses[tries:]:
            await world.refusal(guess)
        assert world.cached(good) is not None
        await world.settle()
        world.keys.tell(7, None)
        await world.hear()
        assert (await world.find(good)).tenant == 7
        with pytest.raises(RetryLater) as caught:
            await world.find(unknown, here)
        assert caught.value.headers == {"Retry-After": "2"}
        assert (await world.find(unknown, "192.0.2.2")).tenant == 7


async def test_one_wrong_key_sent_forever_locks_nobody_out() -> None:
    async with key_world() as world:
        wrong = KeyWorld().keys.make()
        for _ in range(600):
            assert await world.refusal(wrong) == "invalid_api_key"
            world.after(0.5)
        assert (await world.find(world.keys.make())).tenant == 7


async def test_many_guesses_at_once_are_no_way_around_that() -> None:
    async with key_world() as world:
        strangers = KeyWorld().keys
        codes = await asyncio.gather(*(world.refusal(strangers.make()) for _ in range(1_000)))
        assert set(codes) == {"invalid_api_key", "rate_limited"}
        assert address_limits.burst <= world.keys.asked < address_limits.burst + turns.at_once
        assert codes.count("invalid_api_key") == world.keys.asked


async def test_many_good_keys_of_one_address_at_once_are_all_let_in() -> None:
    async with key_world() as world:
        keys = [world.keys.make(tenant) for tenant in range(1_000)]
        found = await asyncio.gather(*map(world.find, keys))
        assert [credential.tenant for credential in found] == list(range(1_000))


async def test_past_the_most_lookups_new_keys_wait_and_known_ones_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.runtime.credentials.lookups_max", 3)
    async with key_world() as world:
        known = world.keys.make()
        credential = await world.find(known)
        world.keys.hold()
        finds = [asyncio.create_task(world.find(world.keys.make())) for _ in range(3)]
        await wait_until(lambda: world.keys.held == 3, "the keys are asked for")
        assert await world.refusal(world.keys.make()) == "overloaded"
        world.after(fresh_s)
        assert world.cached(known) is credential
        world.keys.tell(99, None)
        world.keys.forget_events()
        world.keys.go_on()
        await asyncio.gather(*finds)
        world.keys.hold()
        finds = [asyncio.create_task(world.find(world.keys.make())) for _ in range(3)]
        await wait_until(lambda: world.keys.held == 3, "the keys are asked for")
        await world.hear()
        assert world.cached(known) is None
        assert await world.find(known) is credential
        assert world.keys.asked == 7
        world.keys.go_on()
        await asyncio.gather(*finds)


async def test_good_keys_are_no_guesses() -> None:
    async with key_world() as world:
        for _ in range(10 * address_limits.burst):
            assert (await world.find(world.keys.make())).tenant == 7


async def test_a_network_of_ipv6_is_one_address_and_a_site_has_a_limit_too() -> None:
    async with key_world() as world:
        strangers = KeyWorld().keys
        rng = random.Random(5)

        async def tries(network: int) -> int:
            taken = 0
            for _ in range(40):
                address = f"2001:db8:7:{network:x}::{rng.randrange(1 << 16):x}"
                taken += await world.refusal(strangers.make(), address) == "invalid_api_key"
            return taken

        assert [await tries(network) for network in range(6)] == [30, 30, 30, 30, 0, 0]
        assert site_limits.burst == 120
        assert await world.refusal(strangers.make(), "unknown") == "invalid_api_key"


async def test_the_table_of_addresses_is_bounded() -> None:
    async with key_world() as world:
        guesses = world.credentials.guesses
        for number in range(subjects_max + 1_000):
            guesses.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        assert len(guesses) == subjects_max


async def test_refused_keys_are_bounded() -> None:
    async with key_world() as world:
        strangers = KeyWorld().keys
        keys = [strangers.make() for _ in range(refused_max + 50)]
        for number, key in enumerate(keys):
            await world.refusal(key, f"10.0.{number >> 8}.{number & 255}")
        asked = world.keys.asked
        assert await world.refusal(keys[-1]) == "invalid_api_key"
        assert world.keys.asked == asked
        assert await world.refusal(keys[0]) == "invalid_api_key"
        assert world.keys.asked == asked + 1


async def test_past_the_bound_the_key_that_was_not_used_for_longest_goes() -> None:
    async with key_world(credentials_max=3) as world:
        keys = [world.keys.make(tenant) for tenant in range(4)]
        first = await world.find(keys[0])
        for key in keys[1:3]:
            await world.find(key)
        world.after(fresh_s)
        assert world.cached(keys[0]) is first
        await world.settle()
        second = world.cached(keys[1])
        await world.settle()
        assert second is not None
        await world.find(keys[3])
        assert len(world.credentials) == 3
        assert world.cached(keys[0]) is first
        assert world.cached(keys[2]) is None
        # Who kept the one that went is told, and its buckets wait until they are full.
        await world.find(keys[2])
        assert len(world.credentials) == 3
        evicted = {key for key in keys if world.cached(key) is None}
        assert len(evicted) == 1
        assert len(world.allowances) == 4
        world.credentials.tidy()
        assert len(world.allowances) == 3


async def test_an_evicted_key_finds_its_bucket_as_it_left_it() -> None:
    async with key_world(credentials_max=1) as world:
        key, other = world.keys.make(7), world.keys.make(8)
        credential = await world.find(key)
        for _ in range(10):
            assert credential.allowance.take(1, 0) == 0
        await world.find(other)
        assert world.now_s() >= credential.usable_until_s
        world.credentials.tidy()
        assert (await world.find(key)).allowance.take(1, 0) > 0


async def test_what_is_of_no_use_any_more_is_forgotten() -> None:
    async with key_world() as world:
        for tenant in range(50):
            await world.find(world.keys.make(tenant))
        ended = world.keys.make(99)
        await world.find(ended)
        world.after(stale_s - 1)
        world.credentials.tidy()
        assert len(world.credentials) == 51
        world.after(1)
        world.credentials.tidy()
        assert len(world.credentials) == len(world.allowances) == 0
        gc.collect()
        assert (await world.find(ended)).tenant == 99


async def test_the_console_needs_no_key_is_not_counted_and_has_a_bucket_of_its_own() -> None:
    async with key_world() as world:
        key = world.keys.make(7)
        (await world.find(key)).allowance.take(10, 0)
        console = world.credentials.of_console(7, ["read"])
        assert (console.tenant, console.key_id, console.tally) == (7, 0, None)
        assert (console.may_read, console.may_write, console.may_admin) == (True, False, False)
        assert console.allowance.take(1, 0) == 0
        assert console.usable_until_s > 1e12
        again = world.credentials.of_console(7)
        assert again.may_admin
        assert again.allowance is console.allowance
        assert world.keys.asked == 1


@pytest.mark.parametrize(
    ("of_free", "expected"),
    [
        (free.limits(), {"plain": (100, 10), "held": (60, 6), "at_plan": (100, 10)}),
        # Also a key that its owner holds to just what the plan has in the table of plans.
        (Limits(1_000, 50), {"plain": (1_000, 50), "held": (60, 6), "at_plan": (100, 10)}),
        (Limits(50, 2), {"plain": (50, 2), "held": (50, 2), "at_plan": (50, 2)}),
        (
            Limits(60_000, 10_000),
            {"plain": (60_000, 10_000), "held": (60, 6), "at_plan": (100, 10)},
        ),
    ],
)
async def test_a_gateway_may_give_the_plan_free_other_limits_and_no_other_plan(
    of_free: Limits, expected: dict[str, tuple[int, int]]
) -> None:
    async with key_world(of_free=of_free) as world:
        made = {
            "plain": world.keys.make(7),
            "held": world.keys.make(8, held_to=60),
            "at_plan": world.keys.make(9, held_to=100),
            "rich": world.keys.make(10, plan="pro"),
            "rich_held": world.keys.make(11, plan="pro", held_to=100),
        }
        expected = {**expected, "rich": (6_000, 600), "rich_held": (100, 10)}
        for name, key in made.items():
            lines = (await world.find(key)).allowance.lines(0)
            per_minute, burst = expected[name]
            told = b';q=%d;w=60\r\nRateLimit: "default";r=%d;' % (per_minute, burst)
            assert told in lines, (name, lines)


async def test_two_keys_that_are_said_to_be_one_replace_each_other() -> None:
    async with key_world(credentials_max=2) as world:
        keys = [world.keys.make(7, key_id=5) for _ in range(2)]
        others = [world.keys.make(tenant) for tenant in (8, 9)]
        for _ in range(2):
            for key in keys:
                found = await world.find(key)
                assert found.key_id == 5
                assert found is world.cached(key)
        assert world.cached(keys[0]) is None
        world.keys.tell(7, 5)
        await world.hear()
        assert not any(world.cached(key) for key in keys)
        # Forgetting and refusing them fails nobody.
        for key in (*others, *keys):
            await world.find(key)
        for key in keys:
            world.keys.revoke(key)
        await world.hear()
        assert len(world.credentials) <= 2
        world.after(stale_s + 1)
        world.credentials.tidy()
        assert len(world.credentials) == 0


async def test_who_ends_while_a_key_is_looked_up_says_so() -> None:
    world = KeyWorld()
    async with world.credentials:
        world.keys.hold()
        finding = asyncio.create_task(world.refusal(world.keys.make()))
        await wait_until(lambda: world.keys.held == 1, "the key is asked for")
    assert await finding == "shutting_down"


async def test_keys_found_and_changed_at_random_are_never_used_against_what_was_heard() -> None:
    rng = random.Random(23)
    async with key_world(credentials_max=6) as world:
        keys = [world.keys.make(tenant) for tenant in (1, 1, 2, 2, 3, 3, 4, 4)]
        dead: set[bytes] = set()
        finds: list[asyncio.Task[object]] = []
        for _ in itertools.repeat(None, 3_000):
            key = rng.choice(keys)
            match rng.randrange(9):
                case 0:
                    world.keys.hold()
                case 1 | 2:
                    world.keys.go_on()
                case 3 if len(dead) < 5:
                    world.keys.revoke(key)
                    dead.add(key)
                    await world.hear()
                case 4:
                    world.keys.tell(rng.randint(1, 4), None)
                case 5:
                    await world.hear()
                case 6:
                    world.after(rng.choice((0.1, 10, fresh_s)))
                case _:
                    finds.append(asyncio.create_task(world.find(key, rng.choice("abcdef"))))
            await asyncio.sleep(0)
            for one in dead:
                assert world.cached(one) is None
        world.keys.go_on()
        await asyncio.gather(*finds, return_exceptions=True)
        await world.hear()
        for key in keys:
            world.after(60)
            if key in dead:
                assert await world.refusal(key, "z") == "invalid_api_key"
            else:
                assert (await world.find(key, "z")).key == key


async def test_the_figures_are_on_metrics_and_the_state_in_readiness() -> None:
    world = KeyWorld()
    metrics, readiness = Metrics(), Readiness()
    world.credentials.add_to(metrics)
    world.credentials.watch(readiness)
    level, reasons = readiness.look()
    assert level == "degraded"
    assert "it has not been asked yet" in reasons["usermanager"]
    async with world.credentials:
        await world.hear()
        assert readiness.look() == ("ready", {})
        key = world.keys.make()
        await world.find(key)
        await world.find(key)
        await world.refusal(b"no key")
        shown = metrics.as_json()
    expected = {
        "credentials": 1,
        "credentials_hits": 1,
        "credentials_misses": 2,
        "credentials_lookups": 1,
        "credentials_refused": 1,
        "key_news_in_touch": 1,
        "key_news_polls": 1,
        "credential_lookups_pending": 0,
    }
    assert {name: shown[name] for name in expected} == expected
    assert len(pepper) == 32
