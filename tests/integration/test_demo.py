"""The demo account of `ydht up`, as one start after another finds it, on a real database."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from services.cli.demo import DemoNews, demo_email, demo_username, find_demo
from services.cli.demo_file import Demo, demo_file_name
from services.cli.front_desk import front_desk
from services.runtime.database_url import DatabaseAddress
from services.usermanager.account_store import Account
from services.usermanager.api_keys import live_keys_max
from services.usermanager.messages_api_keys import ApiKey, CreateKey
from tests.integration.usermanager_process import good_password, key_pepper, usermanager_process


@dataclass
class Start:
    """What each start of `ydht up` does about the demo, for one data directory."""

    directory: Path
    environ: dict[str, str]

    @property
    def file(self) -> Path:
        return self.directory / demo_file_name

    async def news(self, *, wanted: bool = True) -> DemoNews:
        news = await find_demo(self.directory, self.environ, wanted=wanted)
        said = " ".join(news.remarks)
        if news.demo is not None:
            for hidden in (news.demo.password, news.demo.api_key):
                assert hidden is None or hidden not in said, "no remark has a secret"
        return news

    async def demo(self) -> Demo:
        """The demo of a start that has nothing to remark."""
        news = await self.news()
        assert news.remarks == ()
        assert news.demo is not None
        return news.demo

    async def remarked(self, *texts: str) -> Demo | None:
        """The demo of a start that remarks one thing, in which all of these are said."""
        news = await self.news()
        (remark,) = news.remarks
        for text in texts:
            assert text in remark
        return news.demo

    async def keys(self) -> list[ApiKey]:
        async with front_desk(self.environ) as desk:
            account = await desk.accounts.find(demo_email)
            return (await desk.api_keys.page(account.id, 1_000, None)).api_keys

    async def works(self, demo: Demo | None) -> tuple[bool, bool]:
        """Whether the password opens the account, and the API key is good and the account's."""
        assert demo is not None
        async with front_desk(self.environ) as desk:
            account = await desk.accounts.find(demo.email)
            found = None if demo.api_key is None else await desk.look_up(demo.api_key)
            return (
                demo.password is not None
                and await desk.passwords.verify(demo.password, account.password_hash),
                found is not None and found.user_id == account.id,
            )


@pytest.fixture
def start(tmp_path: Path, database_address: DatabaseAddress) -> Start:
    return another_start(tmp_path / "data", database_address)


def another_start(
    directory: Path, address: DatabaseAddress, *, pepper: str = key_pepper, **environ: str
) -> Start:
    directory.mkdir(exist_ok=True)
    named = {"DATA_DIR": str(directory), "DATABASE_URL": address.url(), "KEY_PEPPER": pepper}
    return Start(directory, {**named, **environ})


@pytest.fixture
async def connection(database_address: DatabaseAddress) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**database_address.asyncpg())
    yield connection
    await connection.close()


async def accounts(start: Start) -> list[Account]:
    async with front_desk(start.environ) as desk:
        return list(await desk.accounts.page(0, 1_000))


def kept(start: Start) -> dict[str, str | None]:
    found: dict[str, str | None] = json.loads(start.file.read_text())
    return found


# As it should be.


async def test_the_demo_is_opened_once_and_is_the_same_at_every_start(start: Start) -> None:
    demo = await start.demo()
    assert await start.works(demo) == (True, True)
    written = start.file.stat()
    assert stat.S_IMODE(written.st_mode) == 0o600
    assert kept(start) == {
        "email": demo_email,
        "password": demo.password,
        "api_key": demo.api_key,
    }
    assert await start.demo() == demo
    assert start.file.stat().st_mtime_ns == written.st_mtime_ns, "there was nothing to write"
    (account,) = await accounts(start)
    assert (account.plan, account.is_operator, account.is_active) == ("developer", True, True)
    (key,) = await start.keys()
    assert (key.scopes, key.expires_at) == (["read", "write", "admin"], None)
    assert (key.prefix, key.rate_limit_per_minute) == (None, None)
    assert [path.name for path in start.directory.iterdir()] == [demo_file_name]


async def test_the_demo_logs_in_and_its_key_has_the_limits_of_its_plan(
    start: Start, database_address: DatabaseAddress
) -> None:
    demo = await start.demo()
    async with usermanager_process(start.directory, database_address) as usermanager:
        asked = {"email": demo.email, "password": demo.password}
        answer = await usermanager.call("POST", "/login", asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["user"]["is_operator"] is True
        found = (await usermanager.ask("POST", "/validate-key", {"key": demo.api_key})).json()
    assert (found["requests_per_minute"], found["burst"]) == (60_000_000, 1_000_000)
    assert found["scopes"] == ["read", "write", "admin"]


# Cut short.


async def test_an_account_whose_password_nobody_wrote_down_gets_another(start: Start) -> None:
    async with front_desk(start.environ) as desk:
        await desk.accounts.create(
            demo_email, demo_username, good_password, plan="developer", is_operator=True
        )
    assert await start.works(await start.demo()) == (True, True)
    assert len(await accounts(start)) == 1


async def test_what_could_not_be_written_down_works_now_and_is_replaced_at_the_next_start(
    start: Start,
) -> None:
    in_the_way = start.directory / f"{demo_file_name}.tmp"
    in_the_way.mkdir()
    first = await start.remarked("demo.json can't be written")
    assert await start.works(first) == (True, True)
    in_the_way.rmdir()
    second = await start.demo()
    assert await start.works(second) == (True, True)
    assert await start.works(first) == (False, False), "nothing is left that nobody knows of"
    assert await start.demo() == second
    assert sum(key.is_active for key in await start.keys()) == 1
    assert len(await accounts(start)) == 1


async def test_a_draft_that_a_killed_start_left_is_in_nobodys_way(start: Start) -> None:
    (start.directory / f"{demo_file_name}.tmp").write_text("half of")
    demo = await start.demo()
    assert await start.demo() == demo
    assert [path.name for path in start.directory.iterdir()] == [demo_file_name]


async def test_a_lost_file_is_a_new_password_and_key_of_the_same_account(start: Start) -> None:
    first = await start.demo()
    start.file.unlink()
    second = await start.demo()
    assert second.password != first.password
    assert await start.works(second) == (True, True)
    assert await start.works(first) == (False, False)
    assert len(await accounts(start)) == 1


def others_may_read(file: Path) -> None:
    file.chmod(0o644)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def fill(file: Path) -> None:
    file.write_bytes(b"\xff" * 100_000)


def retype(file: Path) -> None:
    file.write_text('{"email": "demo@ydht.example", "password": 7, "api_key": null}')


def weaken(file: Path) -> None:
    file.write_text('{"email": "demo@ydht.example", "password": "short", "api_key": null}')


def link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize("spoil", [others_may_read, cut, empty, fill, retype, weaken, link, pipe])
async def test_a_file_that_is_of_no_use_is_replaced_and_nothing_in_it_is_good_any_more(
    start: Start, spoil: Callable[[Path], None]
) -> None:
    first = await start.demo()
    spoil(start.file)
    second = await start.remarked(str(start.file), "another password and API key")
    assert await start.works(second) == (True, True)
    assert await start.works(first) == (False, False)
    assert stat.S_IMODE(start.file.lstat().st_mode) == 0o600
    assert await start.demo() == second


async def test_a_directory_in_the_place_of_the_file_is_told_and_the_demo_works(
    start: Start,
) -> None:
    start.file.mkdir()
    news = await start.news()
    assert await start.works(news.demo) == (True, True)
    unread, unwritten = news.remarks
    assert "cannot be read: Is a directory" in unread
    assert "can't be written" in unwritten


# What its owner did meanwhile.


async def test_a_password_of_its_owner_is_left_alone_and_the_key_is_good_as_before(
    start: Start,
) -> None:
    first = await start.demo()
    async with front_desk(start.environ) as desk:
        await desk.accounts.reset_password(demo_email, good_password)
    for _ in range(2):
        demo = await start.remarked("a password that its owner gave it", "ydht user password")
        assert demo == Demo(demo_email, None, first.api_key)
        assert kept(start)["password"] is None
    owners = Demo(demo_email, good_password, first.api_key)
    assert await start.works(owners) == (True, True)
    start.file.unlink()
    assert await start.works(await start.demo()) == (True, True)


async def test_a_revoked_key_is_replaced_and_the_password_stays(start: Start) -> None:
    first = await start.demo()
    (key,) = await start.keys()
    async with front_desk(start.environ) as desk:
        account = await desk.accounts.find(demo_email)
        await desk.api_keys.revoke(account.id, key.id, actor=desk.actor, client=None)
    second = await start.remarked("was not good any more")
    assert second is not None
    assert (second.password, second.api_key != first.api_key) == (first.password, True)
    assert await start.works(second) == (True, True)
    assert await start.demo() == second


async def test_a_disabled_demo_stays_disabled_until_it_is_enabled(start: Start) -> None:
    demo = await start.demo()
    async with front_desk(start.environ) as desk:
        await desk.accounts.set_active(demo_email, is_active=False)
    assert await start.remarked(f"{demo_email} is disabled", "`ydht user enable") is None
    (account,) = await accounts(start)
    assert not account.is_active
    async with front_desk(start.environ) as desk:
        await desk.accounts.set_active(demo_email, is_active=True)
    assert await start.demo() == demo
    assert await start.works(demo) == (True, True)


async def test_what_an_operator_took_from_the_demo_is_not_given_back(start: Start) -> None:
    demo = await start.demo()
    async with front_desk(start.environ) as desk:
        await desk.accounts.set_operator(demo_email, is_operator=False)
        await desk.accounts.set_plan(demo_email, "free")
    assert await start.demo() == demo
    (account,) = await accounts(start)
    assert (account.plan, account.is_operator) == ("free", False)


async def test_with_as_many_keys_as_can_be_the_demo_has_its_password(start: Start) -> None:
    first = await start.demo()
    (key,) = await start.keys()
    async with front_desk(start.environ) as desk:
        account = await desk.accounts.find(demo_email)
        await desk.api_keys.revoke(account.id, key.id, actor=desk.actor, client=None)
        for number in range(live_keys_max):
            asked = CreateKey(f"robot {number}")
            await desk.api_keys.create(account.id, asked, actor=desk.actor, client=None)
    demo = await start.remarked("has no API key", "revoke one first")
    assert demo == Demo(demo_email, first.password, None)


# Strangers, and other places.


async def test_an_account_that_a_stranger_has_of_this_address_is_left_alone(start: Start) -> None:
    async with front_desk(start.environ) as desk:
        stranger = await desk.accounts.create(demo_email, "a stranger", good_password)
    assert await start.remarked("somebody's account") is None
    assert await accounts(start) == [stranger]
    assert await start.keys() == []
    assert not start.file.exists()
    # Nor is it told as the demo of an earlier start.
    assert await start.news(wanted=False) == DemoNews()
    # What was good elsewhere makes it nobody's either.
    start.file.write_text(json.dumps({"email": demo_email, "password": "12345678", "api_key": "x"}))
    start.file.chmod(0o600)
    assert await start.remarked("somebody's account") is None
    assert await start.keys() == []


async def test_a_user_name_that_a_stranger_has_is_told(start: Start) -> None:
    async with front_desk(start.environ) as desk:
        await desk.accounts.create("bob@example.com", demo_username, good_password)
    assert await start.remarked("no demo account", "username", "--no-demo") is None
    assert len(await accounts(start)) == 1


async def test_a_directory_that_moves_to_another_database_keeps_its_password(
    start: Start, connection: asyncpg.Connection
) -> None:
    first = await start.demo()
    await connection.execute("DELETE FROM users")
    second = await start.remarked("was not good any more")
    assert second is not None
    assert second.password == first.password
    assert await start.works(second) == (True, True)
    assert await start.demo() == second


async def test_two_directories_on_one_database_do_not_take_each_others_key(
    start: Start, tmp_path: Path, database_address: DatabaseAddress
) -> None:
    first = await start.demo()
    other = another_start(tmp_path / "other", database_address)
    second = await other.demo()
    assert await start.works(second) == (True, True)
    assert await start.works(first) == (False, True)
    seen = await start.remarked("a password that its owner gave it")
    assert seen == Demo(demo_email, None, first.api_key)
    assert await other.demo() == second
    assert len(await accounts(start)) == 1


async def test_with_another_pepper_the_demo_has_another_key(
    start: Start, database_address: DatabaseAddress
) -> None:
    first = await start.demo()
    other = another_start(
        start.directory, database_address, pepper="qW3eR5tZ7uI9oP1aS2dF4gH6jK8lY0xC"
    )
    second = await other.remarked("was not good any more")
    assert second is not None
    assert second.password == first.password
    assert await other.works(second) == (True, True)


# Without one.


async def test_who_wants_no_demo_has_none_and_hears_of_one_that_is_there(start: Start) -> None:
    assert await start.news(wanted=False) == DemoNews()
    assert await accounts(start) == []
    assert not start.file.exists()
    demo = await start.demo()
    news = await start.news(wanted=False)
    assert news.demo is None
    (remark,) = news.remarks
    assert f"`ydht user disable {demo_email} --data-dir {start.directory}` ends it" in remark
    assert await start.works(demo) == (True, True)
    async with front_desk(start.environ) as desk:
        await desk.accounts.set_active(demo_email, is_active=False)
    assert await start.news(wanted=False) == DemoNews()


async def test_without_a_database_there_is_one_line_and_no_demo(
    tmp_path: Path, empty_database_address: DatabaseAddress
) -> None:
    away = another_start(
        tmp_path / "away", DatabaseAddress(host="127.0.0.1", port=9, user="ada", database="shop")
    )
    assert await away.remarked("no demo account: ", "the next `ydht up` tries again") is None
    bare = another_start(tmp_path / "bare", empty_database_address)
    assert await bare.remarked("the database cannot be used") is None
    assert not bare.file.exists()


async def test_a_database_that_only_reads_is_one_line(
    start: Start, connection: asyncpg.Connection, database_address: DatabaseAddress
) -> None:
    await connection.execute(
        f'ALTER DATABASE "{database_address.database}" SET default_transaction_read_only = on'
    )
    assert await start.remarked("no demo account: ", "read-only") is None
    assert not start.file.exists()
