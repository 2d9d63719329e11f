"""The demo account of `ydht up`: for who wants to store a value before anything else.

An operator with the plan developer, and an API key without an end that may do all. It is opened
once; every later start finds it, and whatever became of it meanwhile:

    account                            then
    none                               it is opened, with the password in demo.json if there is one
    disabled                           stays so: whoever did that wanted no demo
    a stranger's, of the same address  is left alone
    with a password of its owner's     keeps it, and is shown without
    and no demo.json                   gets a new password: nobody has the old one
    without the API key of demo.json   gets another key; those made here before are revoked

It is the demo's if what demo.json has opens it, or else if it is an operator's, which nobody
becomes by signing up. The database is changed first and the file last: whoever is killed in between
leaves a password or a key that nobody has, and the next start does as the table says.

Nothing of this keeps `ydht up` from starting. The password and the key are in what is returned and
in the file, and in no remark.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import asyncpg

from services.cli.demo_file import Demo, UnusableError, demo_file_name, keep_demo, read_demo
from services.cli.front_desk import FrontDesk, front_desk
from services.core.errors import ClientError, FatalError, FixRequest, UnknownOutcome
from services.core.plans import developer
from services.usermanager.account_store import Account
from services.usermanager.messages_api_keys import CreateKey, page_keys_max

# A name that nobody can have mail at, and that no sign-up comes upon by chance.
demo_email: Final = "demo@ydht.example"
demo_username: Final = "ydht demo"
# 24 characters, 144 bits.
password_bytes: Final = 18
# Two passwords and a handful of statements take half a second; the start does not wait for long.
demo_s_max: Final = 15.0


@dataclass(slots=True, frozen=True)
class DemoNews:
    """What a start says of the demo account; with none, a remark says why, unless none is there."""

    demo: Demo | None = None
    remarks: tuple[str, ...] = ()


async def find_demo(directory: Path, environ: Mapping[str, str], *, wanted: bool) -> DemoNews:
    """The demo account, opened if it is not there. Not `wanted`: only whether it is."""
    try:
        async with asyncio.timeout(demo_s_max), front_desk(environ) as desk:
            account = DemoAccount(desk, directory)
            return await (account.prepare() if wanted else account.remind())
    except TimeoutError:
        why = f"the database did not answer within {demo_s_max:g} s"
    except UnknownOutcome as error:
        why = f"it may be there or not: {error.detail}"
    except ClientError as error:
        why = error.detail
    except (FatalError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        why = str(error) or type(error).__name__
    again = "the next `ydht up` tries again, or does without by --no-demo"
    return DemoNews(remarks=(f"no demo account: {' '.join(why.split())}; {again}",))


class DemoAccount:
    """The demo account as one start finds it, and what that makes necessary."""

    def __init__(self, desk: FrontDesk, directory: Path) -> None:
        self._desk = desk
        self._directory = directory
        self._remarks: list[str] = []

    async def remind(self) -> DemoNews:
        """Whether a demo account of an earlier start is still good."""
        account = await self._found()
        if account is None or not account.is_active:
            return DemoNews()
        if not account.is_operator and not (self._directory / demo_file_name).exists():
            return DemoNews()
        return DemoNews(
            remarks=(
                f"the demo account {demo_email} of an earlier start is still good:"
                f" {user_command('disable', self._directory)} ends it",
            )
        )

    async def prepare(self) -> DemoNews:
        kept = self._kept()
        account = await self._found()
        if account is None:
            first = kept.password if kept and kept.password else _new_password()
            account, is_new = await self._open(first)
            if is_new:
                kept = Demo(demo_email, first, kept.api_key if kept else None)
        if not account.is_active:
            return self._none(
                f"{demo_email} is disabled; {user_command('enable', self._directory)} lets it in"
            )
        password = await self._good_password(account, kept)
        api_key = await self._good_key(account, kept)
        if not (password or api_key or account.is_operator):
            return self._none(
                f"{demo_email} is the address of somebody's account, which is left alone"
            )
        if password is None:
            password = await self._another_password(kept)
        if api_key is None:
            api_key = await self._another_key(account, kept)
        demo = Demo(demo_email, password, api_key)
        if demo != kept:
            self._keep(demo)
        return DemoNews(demo, tuple(self._remarks))

    def _kept(self) -> Demo | None:
        try:
            return read_demo(self._directory)
        except UnusableError as error:
            path = self._directory / demo_file_name
            self._remarks.append(f"{path} {error}: the demo has another password and API key")
            return None

    def _keep(self, demo: Demo) -> None:
        try:
            keep_demo(self._directory, demo)
        except OSError as error:
            self._remarks.append(
                f"{self._directory / demo_file_name} can't be written: {error.strerror}; the next"
                " `ydht up` makes another password and API key for the demo"
            )

    async def _found(self) -> Account | None:
        try:
            return await self._desk.accounts.find(demo_email)
        except FixRequest as error:
            if error.entry.code != "not_found":
                raise
            return None

    async def _open(self, password: str) -> tuple[Account, bool]:
        """The account, and whether it was opened here."""
        try:
            account = await self._desk.accounts.create(
                demo_email, demo_username, password, plan=developer.name, is_operator=True
            )
        except FixRequest as error:
            # Another `ydht up` on the same database may have been first.
            found = await self._found() if error.entry.code == "already_exists" else None
            if found is None:
                raise
            return found, False
        return account, True

    async def _good_password(self, account: Account, kept: Demo | None) -> str | None:
        """The password that was kept, if it is the account's."""
        if kept is None or kept.password is None:
            return None
        is_right = await self._desk.passwords.verify(kept.password, account.password_hash)
        return kept.password if is_right else None

    async def _good_key(self, account: Account, kept: Demo | None) -> str | None:
        """The API key that was kept, if it is good and the account's."""
        if kept is None or kept.api_key is None:
            return None
        found = await self._desk.look_up(kept.api_key)
        return kept.api_key if found is not None and found.user_id == account.id else None

    async def _another_password(self, kept: Demo | None) -> str | None:
        if kept is not None:
            self._remarks.append(
                f"the demo account {demo_email} has a password that its owner gave it;"
                f" {user_command('password', self._directory)} gives it another"
            )
            return None
        password = _new_password()
        await self._desk.accounts.reset_password(demo_email, password)
        return password

    async def _another_key(self, account: Account, kept: Demo | None) -> str | None:
        name = _key_name(self._directory)
        page = await self._desk.api_keys.page(account.id, page_keys_max, None)
        for key in page.api_keys:
            if key.is_active and key.name == name:
                with suppress(FixRequest):  # Its owner was quicker.
                    await self._desk.api_keys.revoke(
                        account.id, key.id, actor=self._desk.actor, client=None
                    )
        asked = CreateKey(name, ["read", "write", "admin"], expires_in_days=None)
        try:
            made = await self._desk.api_keys.create(
                account.id, asked, actor=self._desk.actor, client=None
            )
        except FixRequest as error:
            self._remarks.append(f"the demo account {demo_email} has no API key: {error.detail}")
            return None
        if kept is not None and kept.api_key is not None:
            self._remarks.append(
                "the API key in demo.json was not good any more, so the demo has another"
            )
        return made.key

    def _none(self, why: str) -> DemoNews:
        return DemoNews(remarks=(*self._remarks, f"no demo account: {why}"))


def user_command(verb: str, directory: Path) -> str:
    """The command by which an operator changes the demo account, to be pasted."""
    return f"`ydht user {verb} {demo_email} --data-dir {shlex.quote(str(directory))}`"


def _new_password() -> str:
    return secrets.token_urlsafe(password_bytes)


def _key_name(directory: Path) -> str:
    """What the keys are called that are made for this data directory: another one on the same
    database has its own, and neither revokes the other's."""
    return f"demo {blake2b(str(directory).encode(), digest_size=4).hexdigest()}"
