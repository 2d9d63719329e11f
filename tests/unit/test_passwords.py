"""Passwords: what may be one, what a hash costs, and how many are computed at once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.errors import RetryLater
from services.usermanager.passwords import (
    Argon2Parameters,
    Passwords,
    _hash_of_nothing,
    at_once_max,
    default_parameters,
    password_chars_max,
    password_problem,
    waiting_max,
)
from tests.integration.accounts_world import cheap
from tests.password_gate import PasswordGate
from tests.waiting import wait_until


@pytest_asyncio.fixture
async def passwords() -> AsyncIterator[Passwords]:
    made = Passwords(cheap)
    yield made
    made.close()


def test_a_password_has_8_to_1024_characters_of_any_kind() -> None:
    for good in (
        "12345678",
        " " * 8,
        "Шалтай-Болтай",
        "密码密码密码密码",
        "\x00" * 8,
        "a" * 1024,
        "😀" * 1024,
    ):
        assert password_problem(good) is None
    for bad in ("", "1234567", "😀" * 7, "a" * 1025):
        assert password_problem(bad) == "is not 8 to 1024 characters long"
    half = password_problem("half of it: \ud83d")
    assert half is not None
    assert "half of a character" in half


async def test_a_password_is_verified_exactly(passwords: Passwords) -> None:
    kept = await passwords.hash(" a pass word ")
    assert await passwords.verify(" a pass word ", kept)
    for other in (
        "a pass word",
        " a pass word",
        " A pass word ",
        " a pass word \x00",
        "",
        "x" * 1024,
    ):
        assert not await passwords.verify(other, kept)


@settings(max_examples=30)
@given(st.text(min_size=1, max_size=80))
def test_any_text_verifies_against_its_own_hash_and_only_that(text: str) -> None:
    async def check() -> None:
        passwords = Passwords(cheap)
        try:
            kept = await passwords.hash(text)
            assert await passwords.verify(text, kept)
            assert not await passwords.verify(text + "x", kept)
        finally:
            passwords.close()

    asyncio.run(check())


async def test_accents_may_be_typed_in_either_form_but_kinds_of_letters_differ(
    passwords: Passwords,
) -> None:
    kept = await passwords.hash("cafe\u0301 123")
    assert await passwords.verify("café 123", kept)
    assert not await passwords.verify("\uff43afé 123", kept)


@pytest.mark.parametrize(
    "character", ["a", "é", "密", "😀", "\U0001d160", "\ufb2c", "\x00", "\ufdfa"]
)
async def test_the_longest_password_of_any_character_is_hashed(
    passwords: Passwords, character: str
) -> None:
    # Some of these are three characters of four bytes once they are normalised.
    longest = character * password_chars_max
    kept = await passwords.hash(longest)
    assert await passwords.verify(longest, kept)
    assert not await passwords.verify(longest[:-1] + "b", kept)


async def test_a_hash_says_argon2id_and_what_it_cost() -> None:
    assert default_parameters == Argon2Parameters(46 * 1024, 1, 1, 16, 32)
    passwords = Passwords()
    try:
        first, second = await passwords.hash("same"), await passwords.hash("same")
    finally:
        passwords.close()
    form = r"\$argon2id\$v=19\$m=47104,t=1,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}"
    assert re.fullmatch(form, first)
    assert first != second, "each has a salt of its own"
    assert not passwords.needs_rehash(first)


@pytest.mark.parametrize(
    "other",
    [
        Argon2Parameters(memory_kib=128, passes=1),
        Argon2Parameters(memory_kib=64, passes=2),
        Argon2Parameters(memory_kib=64, passes=1, lanes=2),
    ],
)
async def test_a_hash_of_other_parameters_is_verified_and_needs_a_new_one(
    passwords: Passwords, other: Argon2Parameters
) -> None:
    older = Passwords(other)
    try:
        kept = await older.hash("password")
    finally:
        older.close()
    assert await passwords.verify("password", kept)
    assert passwords.needs_rehash(kept)
    assert not passwords.needs_rehash(await passwords.hash("password"))


async def test_nobody_has_any_password_and_the_price_is_that_of_one_verification(
    passwords: Passwords,
) -> None:
    verified: list[str] = []
    context: Any = passwords._context

    class Watching:
        def verify(self, password: str, kept: str) -> bool:
            verified.append(kept)
            return bool(context.verify(password, kept))

    kept = await passwords.hash("password")
    passwords._context = Watching()
    assert not await passwords.verify("password", None)
    assert await passwords.verify("password", kept)
    assert len(verified) == passwords.counters.verified == 2
    # The same but for salt and hash, and those of the same lengths.
    for nobodys, somebodys in zip(*(text.split("$") for text in verified), strict=True):
        assert len(nobodys) == len(somebodys)
    assert verified[0].split("$")[:4] == verified[1].split("$")[:4]


async def test_two_are_computed_at_once_some_wait_and_the_next_is_told_to_come_later() -> None:
    passwords = Passwords(cheap)
    kept = await passwords.hash("password")
    gate = PasswordGate(passwords)
    tasks = [
        asyncio.create_task(passwords.verify("password", kept))
        for _ in range(at_once_max + waiting_max)
    ]
    await wait_until(lambda: gate.inside == at_once_max, "two are at work")
    await wait_until(lambda: passwords.waiting == waiting_max, "the rest wait")
    for _ in range(3):
        with pytest.raises(RetryLater) as refused:
            await passwords.verify("password", kept)
        assert refused.value.code == "overloaded"
        assert refused.value.retry_after_s >= 1
    assert passwords.counters.refused == 3
    gate.open()
    assert await asyncio.gather(*tasks) == [True] * (at_once_max + waiting_max)
    assert gate.most_inside == at_once_max
    assert passwords.waiting == 0
    passwords.close()


async def test_who_finds_the_queue_full_is_told_how_long_it_takes() -> None:
    passwords = Passwords(cheap, at_once=2, waiting=20)
    gate = PasswordGate(passwords)
    asked = time.monotonic()
    first = [asyncio.create_task(passwords.hash("password")) for _ in range(2)]
    await wait_until(lambda: gate.inside == 2, "both are at work, slowly")
    await asyncio.sleep(1.0)
    gate.open()
    await asyncio.gather(*first)
    # Both count a tenth each: 0.05 s, moved towards what they took.
    took_s = time.monotonic() - asked
    held = PasswordGate(passwords)
    queue = [asyncio.create_task(passwords.hash("password")) for _ in range(22)]
    await wait_until(lambda: passwords.waiting == 20, "as many wait as can")
    with pytest.raises(RetryLater) as refused:
        await passwords.hash("password")
    assert 2 <= refused.value.retry_after_s <= 1 + 20 * (0.05 + 0.2 * took_s) / 2
    held.open()
    await asyncio.gather(*queue)
    passwords.close()


async def test_who_has_waited_too_long_is_told_to_come_later_and_leaves_its_place() -> None:
    passwords = Passwords(cheap, at_once=1, waiting=1, wait_s=0.05)
    gate = PasswordGate(passwords)
    working = asyncio.create_task(passwords.hash("password"))
    await wait_until(lambda: gate.inside == 1, "one is at work, slowly")
    for number in (1, 2):
        with pytest.raises(RetryLater) as refused:
            await passwords.hash("password")
        assert refused.value.code == "overloaded"
        assert refused.value.detail.startswith("Within 0.05 s it was not this password's turn")
        assert (passwords.counters.refused, passwords.waiting) == (number, 0)
    gate.open()
    assert await passwords.verify("password", await working)
    passwords.close()


async def test_the_event_loop_goes_on_while_passwords_are_computed() -> None:
    passwords = Passwords()
    turns = 0
    computing = asyncio.create_task(passwords.hash("password"))
    while not computing.done():
        turns += 1
        await asyncio.sleep(0.001)
    passwords.close()
    assert turns > 5


async def test_who_leaves_while_waiting_frees_a_place_but_not_a_thread() -> None:
    passwords = Passwords(cheap, at_once=1, waiting=1)
    kept = await passwords.hash("password")
    gate = PasswordGate(passwords)
    working, waiting = [asyncio.create_task(passwords.verify("x", kept)) for _ in range(2)]
    await wait_until(lambda: gate.inside == 1 and passwords.waiting == 1, "one works, one waits")
    waiting.cancel()
    working.cancel()
    for task in (working, waiting):
        with suppress(asyncio.CancelledError):
            await task
    # The thread still works for the one that left, so the next has to wait for it.
    next_one = asyncio.create_task(passwords.verify("password", kept))
    await wait_until(lambda: passwords.waiting == 1, "the next waits")
    assert gate.inside == 1
    gate.open()
    assert await next_one
    assert gate.most_inside == 1
    passwords.close()


async def test_a_closed_one_says_that_it_is_shutting_down(passwords: Passwords) -> None:
    passwords.close()
    for _ in range(at_once_max + 1):
        with pytest.raises(RetryLater) as refused:
            await passwords.hash("password")
        assert refused.value.code == "shutting_down"


def test_each_process_makes_up_the_hash_that_nobody_has_the_password_of() -> None:
    one, other = (_hash_of_nothing(cheap) for _ in range(2))
    assert one != other
