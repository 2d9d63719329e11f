"""What people and gateways ask of a user manager, and what it has promised them by its answers.

Each person works on one account at a time and waits for each answer, so what an account has is
known exactly, except for what was answered 504: that is found out by looking, or by asking again.
A request that was answered 503 has done nothing; so asking again must find nothing of it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec

from services.core.usage_report import Rollup
from tests.cluster.front_desk import (
    Desk,
    again_s,
    create_key,
    list_keys,
    log_in,
    me,
    poll_events,
    refresh,
    report_usage,
    revoke_key,
    rotate_key,
    sign_up,
    validate_key,
)
from tests.integration.usage_desk import rollup, this_minute

person_pause_s: Final = (0.02, 0.12)
gateway_pause_s: Final = (0.02, 0.1)
# As many live keys as a person has at most here; far fewer than may be listed at once.
live_keys_max: Final = 12

Json = dict[str, Any]


@dataclass(slots=True, eq=False)
class Key:
    """An API key. Its text is unknown where the answer was lost that had it."""

    id: int
    user_id: int
    name: str
    text: str | None
    live: bool = True
    rotated: bool = False
    # From when it is asked to end until that is answered it may be either.
    ending: bool = False


@dataclass(slots=True, eq=False)
class Account:
    id: int
    email: str
    password: str
    address: str
    keys: list[Key] = field(default_factory=list)
    # Names of keys that were not found after a 504. It is no promise that they are not there.
    unsure: set[str] = field(default_factory=set)

    def check_listed(self, listed: Iterable[Json]) -> None:
        """All that was promised is listed as it should be, and nothing else."""
        found = {each["id"]: each for each in listed}
        for key in self.keys:
            assert key.id in found, f"API key {key.id} of {self.email} is lost"
            active = found.pop(key.id)["is_active"]
            assert active == key.live, f"API key {key.id} of {self.email}: active is {active}"
        strange = [each for each in found.values() if each["name"] not in self.unsure]
        assert not strange, f"{self.email} has keys that nobody was told of: {strange}"


@dataclass(slots=True)
class Ledger:
    """What was acknowledged."""

    accounts: list[Account] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    revocations: int = 0
    # What there has to be an event of: whose key, and which.
    changes: list[tuple[int, int]] = field(default_factory=list)
    reports: int = 0
    rollups: list[Rollup] = field(default_factory=list)
    # Of the changes that a 504 had left unknown: how many had been applied, and how many not.
    found_applied: int = 0
    found_not_applied: int = 0

    def learn(self, what: str, *, unknown: bool, applied: bool) -> None:
        """Of a change that was tried until it was answered: whether an attempt was unknown, and
        whether the last one met what an earlier one had done."""
        assert unknown or not applied, f"{what}: every attempt was refused, or something is lost"
        self.found_applied += applied
        self.found_not_applied += unknown and not applied


class Person:
    """Opens accounts and makes use of them, one after the other."""

    _numbers = itertools.count(1)

    def __init__(self, desk: Desk, ledger: Ledger, draw: random.Random) -> None:
        self._desk = desk
        self._ledger = ledger
        self._draw = draw
        self._account = Account(0, "", "", "")
        self._access_token = ""
        self._refresh_token = ""

    async def live(self, over: Callable[[], bool]) -> None:
        doings = {
            self._look_at_account: 22,
            self._create: 24,
            self._list: 12,
            self._revoke: 12,
            self._rotate: 12,
            self._refresh: 12,
            self._log_in: 3,
            self._sign_up: 3,
        }
        await self._sign_up()
        while not over():
            (doing,) = self._draw.choices(list(doings), list(doings.values()))
            await doing()
            await asyncio.sleep(self._draw.uniform(*person_pause_s))

    async def check(self, account: Account) -> None:
        """The account is there, with its password and all its keys."""
        self._account = account
        await self._log_in()
        await self._look_at_account()
        await self._list()

    async def _sign_up(self) -> None:
        number = next(self._numbers)
        # An address of their own for each: an address may sign up only so often.
        address = f"198.18.{number // 250}.{number % 250 + 1}"
        new = Account(0, f"person-{number}@example.com", f"horse battery {number}", address)
        body = {"email": new.email, "username": f"person-{number}", "password": new.password}
        answer, unknown = await self._desk.settle(
            sign_up, body, headers={"X-Forwarded-For": address}
        )
        self._ledger.learn(new.email, unknown=unknown, applied=answer.status_code == 409)
        if answer.is_success:
            new.id = answer.json()["id"]
        self._account = new
        await self._log_in()
        self._ledger.accounts.append(new)

    async def _log_in(self) -> None:
        account = self._account
        body = {"email": account.email, "password": account.password}
        answer, _ = await self._desk.settle(
            log_in, body, headers={"X-Forwarded-For": account.address}
        )
        self._keep_tokens(answer)
        user_id = answer.json()["user"]["id"]
        # Nobody was told the id where the answer to the sign-up was lost.
        account.id = account.id or user_id
        assert user_id == account.id

    async def _refresh(self) -> None:
        body = {"refresh_token": self._refresh_token}
        answer, unknown = await self._desk.settle(refresh, body, headers=self._headers())
        self._ledger.learn("a refresh", unknown=unknown, applied=answer.status_code == 401)
        if answer.is_success:
            self._keep_tokens(answer)
        else:
            await self._log_in()

    async def _look_at_account(self) -> None:
        answer, _ = await self._desk.settle(me, headers=self._headers())
        shown = answer.json()
        assert (shown["id"], shown["email"]) == (self._account.id, self._account.email)

    async def _list(self) -> list[Json]:
        answer, _ = await self._desk.settle(list_keys, headers=self._headers())
        listed: list[Json] = answer.json()["api_keys"]
        self._account.check_listed(listed)
        return listed

    async def _create(self) -> None:
        account = self._account
        if sum(key.live for key in account.keys) >= live_keys_max:
            return await self._revoke()
        name = f"key {next(self._numbers)}"
        while True:
            answer = await self._desk.ask(create_key, {"name": name}, headers=self._headers())
            if answer.status_code == 201:
                made = answer.json()
                return self._add(Key(made["id"], account.id, name, made["key"]))
            if answer.status_code == 504:
                # To ask again could make another one.
                return await self._look_for(name)
            await asyncio.sleep(again_s)

    async def _look_for(self, name: str) -> None:
        self._account.unsure.add(name)
        found = [each for each in await self._list() if each["name"] == name]
        self._ledger.learn(name, unknown=True, applied=bool(found))
        for each in found:
            self._add(Key(each["id"], self._account.id, name, None))

    async def _revoke(self) -> None:
        if (key := self._some_key(lambda key: key.live)) is None:
            return
        key.ending = True
        await self._desk.settle(revoke_key, headers=self._headers(), id=key.id)
        key.live = key.ending = False
        self._ledger.revocations += 1
        self._ledger.changes.append((key.user_id, key.id))

    async def _rotate(self) -> None:
        if (key := self._some_key(lambda key: key.live and not key.rotated)) is None:
            return
        ends = self._draw.random() < 0.5
        key.ending = ends
        body = {"overlap": "0s" if ends else "1h"}
        answer, unknown = await self._desk.settle(
            rotate_key, body, headers=self._headers(), id=key.id
        )
        key.rotated, key.live, key.ending = True, not ends, False
        self._ledger.changes.append((key.user_id, key.id))
        made = answer.json()
        if answer.status_code == 201:
            self._add(Key(made["id"], key.user_id, key.name, made["key"]))
        else:
            self._add(Key(made["replaced_by"], key.user_id, key.name, None))
        self._ledger.learn(f"rotated {key.id}", unknown=unknown, applied=answer.status_code == 409)

    def _some_key(self, wanted: Callable[[Key], bool]) -> Key | None:
        fitting = [key for key in self._account.keys if wanted(key)]
        return self._draw.choice(fitting) if fitting else None

    def _add(self, key: Key) -> None:
        self._account.keys.append(key)
        self._ledger.keys.append(key)

    def _keep_tokens(self, answer: httpx.Response) -> None:
        tokens = answer.json()
        self._access_token, self._refresh_token = tokens["access_token"], tokens["refresh_token"]

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._access_token}",
            "X-Forwarded-For": self._account.address,
        }


class Gateway:
    """Asks what keys are good for, and reports usage until it is told that it was counted."""

    def __init__(self, name: str, desk: Desk, ledger: Ledger, draw: random.Random) -> None:
        self._name = name
        self._desk = desk
        self._ledger = ledger
        self._draw = draw
        self._sequence = 0

    async def serve(self, over: Callable[[], bool]) -> None:
        while not over():
            keys = [key for key in self._ledger.keys if key.text is not None]
            if keys and self._draw.random() < 0.6:
                await self.validate(self._draw.choice(keys))
            else:
                await self.report()
            await asyncio.sleep(self._draw.uniform(*gateway_pause_s))

    async def validate(self, key: Key) -> None:
        """It is good while it is live, and never again from when its end was acknowledged."""
        was_live = key.live
        answer = await self._desk.ask(validate_key, {"key": key.text})
        if answer.status_code == 503:
            return
        if answer.is_success:
            assert was_live, f"API key {key.id} is good again"
            told = answer.json()
            assert (told["key_id"], told["user_id"]) == (key.id, key.user_id)
        else:
            assert key.ending or not key.live, f"API key {key.id} is not good: {answer.text}"

    async def report(self) -> None:
        users = [account.id for account in self._ledger.accounts[-20:]] or [1]
        rows = [
            rollup(
                this_minute(),
                user_id=self._draw.choice(users),
                key_id=self._draw.randint(1, 5),
                operation=self._draw.choice(("get", "put")),
                requests=self._draw.randint(1, 100),
            )
            for _ in range(self._draw.randint(1, 20))
        ]
        self._sequence += 1
        body = {
            "sender": self._name,
            "sequence": self._sequence,
            "rollups": msgspec.to_builtins(rows),
        }
        answer, unknown = await self._desk.settle(report_usage, body)
        taken = answer.json()
        assert taken["dropped"] == 0
        self._ledger.learn("a report", unknown=unknown, applied=not taken["counted"])
        self._ledger.reports += 1
        self._ledger.rollups += rows


class Listener:
    """Polls the events of API keys, and goes on from the last it has seen, as a gateway does."""

    def __init__(self, desk: Desk) -> None:
        self.events: list[Json] = []
        self._desk = desk

    async def listen(self, over: Callable[[], bool]) -> None:
        """Until a poll that began after the end has brought nothing."""
        while True:
            was_over = over()
            last = len(self.events)
            answer, _ = await self._desk.settle(poll_events, after=last)
            page = answer.json()
            assert not page["reset"], f"after event {last}: {page}"
            ids = [event["id"] for event in page["events"]]
            assert ids == list(range(last + 1, last + 1 + len(ids))), f"after event {last}: {ids}"
            self.events += page["events"]
            if was_over and not ids:
                return
