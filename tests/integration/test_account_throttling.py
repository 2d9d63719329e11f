"""How often passwords may be tried over HTTP, by whom, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from services.runtime.database_url import DatabaseAddress
from services.usermanager.throttle import try_from_address
from tests.integration.accounts_world import World, accounts_world, good_password, refused
from tests.password_gate import PasswordGate
from tests.waiting import wait_until


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[World]:
    async with accounts_world(database_address) as world:
        yield world


async def test_throttling_per_account_whether_there_is_one_or_not(world: World) -> None:
    ada = await world.newcomer("ada")
    for number, email in enumerate(("ada@example.com", "unknown@example.com", "no address")):
        spellings = (email, email.upper(), f" {email} ")
        address = f"192.0.2.{number}"
        for attempt in range(10):
            spelling = spellings[attempt % 3] if "@" in email else email
            answer = await world.try_login(spelling, "wrong password", address)
            refused(answer, code="invalid_credentials")
        for password in ("wrong password", good_password):
            answer = await world.try_login(email, password, address)
            refused(answer, 429, "rate_limited")
            assert answer.headers["retry-after"] == "30"
    assert await ada.is_live(), "sessions that there are go on"
    verified = world.passwords.counters.verified
    await world.try_login("ada@example.com", address="192.0.2.0")
    assert world.passwords.counters.verified == verified, "a throttled guess is not even looked at"
    world.timeline.advance(30)
    answer = await world.try_login("ada@example.com", "wrong password", "192.0.2.0")
    refused(answer, code="invalid_credentials")
    refused(await world.try_login("ada@example.com", address="192.0.2.0"), 429, "rate_limited")
    world.timeline.advance(30)
    await world.log_in("ada", address="192.0.2.0")


async def test_who_guesses_locks_out_nobody_but_itself(world: World) -> None:
    await world.sign_up("ada")
    for number in range(40):
        # The other networks of its own site are no way around, and are locked out with it.
        guesser = f"2001:db8:1:{number:x}::1"
        answer = await world.try_login("ada@example.com", f"guess number {number}", guesser)
        assert answer.status_code == (401 if number < 10 else 429)
    await world.log_in("ada", address="2001:db8:2::1")
    await world.log_in("ada", address="192.0.2.1")


async def test_guesses_from_everywhere_come_to_an_end_too(world: World) -> None:
    """Of an account that there is and of one that there is not, after as many."""
    await world.sign_up("ada")
    for email in ("ada@example.com", "unknown@example.com"):
        await guess_from_everywhere(world, email)
        for address in ("203.0.113.1", "198.51.100.1"):
            answer = await world.try_login(email, address=address)
            refused(answer, 429, "rate_limited")
            assert answer.headers["retry-after"] == "6"
            assert "have come from elsewhere" in answer.json()["detail"]
    world.timeline.advance(6)
    await world.log_in("ada", address="198.51.100.1")


async def test_the_addresses_of_one_network_are_together_one_that_guesses(world: World) -> None:
    await world.sign_up("ada")
    answers = await guess(world, "ada@example.com", [f"192.0.2.{n}" for n in range(110)])
    assert [answer.status_code for answer in answers].count(401) == 10
    await world.log_in("ada", address="192.0.3.1")


async def test_who_guesses_from_everywhere_keeps_nobody_out_of_where_he_came_from_before(
    world: World,
) -> None:
    ada = await world.newcomer("ada")
    await world.log_in("ada", address="2001:db8:7:7::1")
    await ada.ask("POST", "/logout")
    await guess_from_everywhere(world, "ada@example.com")
    refused(await world.try_login("ada@example.com", address="203.0.113.1"), 429, "rate_limited")
    for address in ("127.0.0.1", "2001:db8:7:7::2"):
        for _ in range(9):
            answer = await world.try_login("ada@example.com", "mistyped", address)
            refused(answer, code="invalid_credentials")
        await world.log_in("ada", address=address)
    # What is next to it is somebody else's, and what is mistyped too often is throttled there too.
    for address in ("127.0.0.2", "2001:db8:7:8::1"):
        refused(await world.try_login("ada@example.com", address=address), 429, "rate_limited")
    await world.try_login("ada@example.com", "mistyped", "127.0.0.1")
    answer = await world.try_login("ada@example.com", address="127.0.0.1")
    refused(answer, 429, "rate_limited")
    assert "from your network: 10 at once, then one every 30 s" in answer.json()["detail"]
    world.timeline.advance(30)
    await world.log_in("ada", address="127.0.0.1")


async def test_a_network_is_known_for_a_month_or_as_long_as_a_session_goes_on(
    world: World,
) -> None:
    sessions = [await world.newcomer("ada"), await world.log_in("ada", address="192.0.2.9")]
    await world.sign_up("bob")
    email = "ada@example.com"

    async def known() -> list[bool]:
        addresses = ("127.0.0.1", "192.0.2.9", "192.0.2.10", "unknown")
        return [await world.networks.has(email, address) for address in addresses]

    assert await known() == [True, True, False, False]
    assert not await world.networks.has("bob@example.com", "127.0.0.1"), "nor is it another's"
    # As a crash of PostgreSQL does.
    await world.execute("TRUNCATE throttles")
    assert await known() == [True, True, False, False]
    await sessions[0].ask("POST", "/logout")
    assert await known() == [False, True, False, False]
    third = await world.log_in("ada")
    await third.ask("POST", "/logout")
    await sessions[1].ask("POST", "/logout")
    assert await known() == [True, False, False, False]
    world.timeline.advance(30 * 86_400)
    assert await known() == [False] * 4


async def test_a_client_without_an_address_is_known_by_that(world: World) -> None:
    await world.sign_up("ada")
    await world.log_in("ada", address="unknown")
    assert await world.networks.has("ada@example.com", "unknown")
    assert not await world.networks.has("ada@example.com", "192.0.2.1")


async def guess_from_everywhere(world: World, email: str) -> None:
    for batch in range(10):
        answers = await guess(world, email, [f"192.0.{batch}.{n}" for n in range(10)])
        assert [answer.status_code for answer in answers] == [401] * 10


async def guess(world: World, email: str, addresses: list[str]) -> list[httpx.Response]:
    return await asyncio.gather(
        *(world.try_login(email, "wrong password", address) for address in addresses)
    )


async def test_throttling_per_address_whatever_the_accounts(world: World) -> None:
    await world.sign_up("ada")
    for number in range(50):
        answer = await world.try_login(f"user{number}@example.com", address="192.0.2.1")
        refused(answer, code="invalid_credentials")
    answer = await world.try_login("ada@example.com", address="192.0.2.1")
    refused(answer, 429, "rate_limited")
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    await world.log_in("ada", address="192.0.2.2")
    world.timeline.advance(5)
    await world.log_in("ada", address="192.0.2.1")


async def test_throttling_per_network_where_a_customer_has_many_addresses(world: World) -> None:
    for number in range(50):
        answer = await world.try_login(f"u{number}@example.com", address=f"2001:db8::{number:x}")
        refused(answer, code="invalid_credentials")
    refused(await world.try_login("a@example.com", address="2001:db8::ffff"), 429, "rate_limited")
    refused(
        await world.try_login("a@example.com", address="2001:db8:0:1::1"),
        code="invalid_credentials",
    )


async def test_throttling_per_site_where_a_customer_has_many_networks(world: World) -> None:
    for batch in range(20):
        answers = await asyncio.gather(
            *(
                world.try_login(f"u{batch}.{n}@example.com", address=f"2001:db8:0:{batch}{n}::1")
                for n in range(10)
            )
        )
        assert [answer.status_code for answer in answers] == [401] * 10
    answer = await world.try_login("a@example.com", address="2001:db8:0:ffff::1")
    refused(answer, 429, "rate_limited")
    answer = await world.try_login("a@example.com", address="2001:db8:1::1")
    refused(answer, code="invalid_credentials")


async def test_logging_in_rightly_is_free_but_for_who_does_nothing_else(world: World) -> None:
    # The second time its network is known, and has a budget of its own.
    await world.newcomer("ada")
    for _ in range(100):
        await world.log_in("ada")
    answer = await world.try_login("ada@example.com")
    refused(answer, 429, "rate_limited")
    assert answer.headers["retry-after"] == "10"
    await world.log_in("ada", address="192.0.2.1")
    world.timeline.advance(10)
    await world.log_in("ada")
    refused(await world.try_login("ada@example.com"), 429, "rate_limited")


async def test_a_network_with_many_accounts_does_not_log_in_for_ever_either(world: World) -> None:
    await world.sign_up("ada")
    for _ in range(600):
        await world.throttle.take(try_from_address, "192.0.2.1")
    answer = await world.try_login("ada@example.com", address="192.0.2.1")
    refused(answer, 429, "rate_limited")
    await world.log_in("ada", address="192.0.2.2")
    world.timeline.advance(1)
    await world.log_in("ada", address="192.0.2.1")


async def test_many_guesses_at_once_are_no_way_around_the_throttle(world: World) -> None:
    await world.sign_up("ada")
    answers = await guess(world, "ada@example.com", ["192.0.2.1"] * 60)
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(401), statuses.count(429)) == (10, 50)
    assert world.passwords.counters.verified == 10


async def test_one_network_never_has_more_than_its_share_of_the_queue(world: World) -> None:
    """However many accounts it has, and although their passwords are right."""
    people = [f"member{number}" for number in range(10)]
    for name in (*people, "stranger"):
        await world.sign_up(name)
    gate = PasswordGate(world.passwords)
    crowd = [
        asyncio.create_task(world.try_login(f"{people[n % 10]}@example.com", address="192.0.2.1"))
        for n in range(40)
    ]
    networks = world.passwords.networks
    await wait_until(lambda: networks.refused == 8, "as many as may wait for the network do")
    await wait_until(lambda: world.passwords.waiting == 2, "two of four wait for their turn")
    stranger = asyncio.create_task(world.try_login("stranger@example.com", address="192.0.2.2"))
    await wait_until(lambda: world.passwords.waiting == 3, "and the stranger right behind them")
    gate.open()
    assert (await stranger).status_code == 200
    answers = await asyncio.gather(*crowd)
    for answer in answers:
        if answer.status_code != 200:
            refused(answer, 429, "rate_limited")
            assert int(answer.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers].count(200) == 32
    assert len(networks) == 0, "nobody is remembered who has gone"


@pytest.mark.parametrize(("name", "status"), [("ada", 200), ("unknown", 401)])
async def test_one_account_never_has_more_than_its_share_of_the_queue(
    world: World, name: str, status: int
) -> None:
    """From however many networks; whether or not there is such an account."""
    await world.sign_up("ada")
    gate = PasswordGate(world.passwords)
    crowd = [
        asyncio.create_task(world.try_login(f"{name}@example.com", address=f"192.0.{n}.1"))
        for n in range(20)
    ]
    accounts = world.passwords.accounts
    await wait_until(lambda: accounts.refused == 4, "as many as may wait for the account do")
    assert world.passwords.waiting == 2
    gate.open()
    statuses = [answer.status_code for answer in await asyncio.gather(*crowd)]
    assert (statuses.count(status), statuses.count(429)) == (16, 4)


async def test_signing_up_and_changing_passwords_have_the_same_share(world: World) -> None:
    ada = await world.newcomer("ada")
    change = {"current_password": good_password, "new_password": "a new password"}
    gate = PasswordGate(world.passwords)
    tasks = [asyncio.create_task(ada.ask("POST", "/me/password", json=change)) for _ in range(3)]
    await wait_until(lambda: world.passwords.waiting == 1, "two at work, one waiting")
    for number in range(3):
        document = {"email": f"{number}@b.c", "username": f"{number}", "password": good_password}
        tasks.append(asyncio.create_task(world.ask("POST", "/signup", json=document)))
    await wait_until(lambda: world.passwords.waiting == 2, "one more, and two wait for the network")
    gate.open()
    statuses = sorted([answer.status_code for answer in await asyncio.gather(*tasks)])
    assert statuses == [201, 201, 201, 204, 401, 401]


async def test_guessing_the_password_with_a_stolen_token_is_throttled(world: World) -> None:
    ada = await world.newcomer("ada")
    for number in range(10):
        guess = f"guess number {number}"
        if number % 2:
            answer = await ada.ask("DELETE", "/me", json={"password": guess})
        else:
            change = {"current_password": guess, "new_password": "a new password"}
            answer = await ada.ask("POST", "/me/password", json=change)
        refused(answer, code="invalid_credentials")
    answer = await ada.ask("DELETE", "/me", json={"password": good_password})
    refused(answer, 429, "rate_limited")
    await world.log_in("ada")


async def test_a_full_queue_of_passwords_is_503_and_costs_nobody_an_attempt(
    database_address: DatabaseAddress,
) -> None:
    async with accounts_world(database_address, waiting=3) as world:
        await world.sign_up("ada")
        await world.sign_up("bob")
        gate = PasswordGate(world.passwords)
        queue = [
            asyncio.create_task(
                world.try_login(f"{('ada', 'bob')[n % 2]}@example.com", address=f"192.0.2.{n}")
            )
            for n in range(5)
        ]
        await wait_until(lambda: world.passwords.waiting == 3, "two are at work, and three wait")
        for _ in range(12):
            answer = await world.try_login("eve@example.com", address="192.0.2.99")
            refused(answer, 503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
        document = {"email": "eve@example.com", "username": "eve", "password": good_password}
        refused(await world.ask("POST", "/signup", json=document), 503, "overloaded")
        gate.open()
        assert [answer.status_code for answer in await asyncio.gather(*queue)] == [200] * 5
        assert gate.most_inside == 2
        answer = await world.try_login("eve@example.com", address="192.0.2.99")
        refused(answer, code="invalid_credentials")
