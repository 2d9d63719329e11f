"""`ydht user`: accounts, for an operator without a browser."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

import click
import msgspec

from services.cli.endings import RefusedError
from services.cli.front_desk import FrontDesk, at_front_desk
from services.cli.options import data_dir_option, email_argument, json_option, text
from services.core.plans import account_plans, free
from services.usermanager.account_store import Account
from services.usermanager.accounts import user as shown
from services.usermanager.names import parse_email

# So much of a list is read from the database at a time.
page_accounts: Final = 1_000
# Above the longest password, each of whose characters takes four bytes at most.
password_bytes_max: Final = 8 * 1024

_plan = click.Choice(account_plans)
_password_stdin = click.option(
    "--password-stdin", is_flag=True, help="Read the password from the first line of stdin."
)


@click.group()
def user() -> None:
    """Open, list and change accounts, directly in the database.

    Whatever is changed, gateways hear of it within a second.

    Exit codes: 0 done, 65 refused, 67 no such account, 74 outcome unknown, 75 the database cannot
    be reached, 78 not set up.
    """


@user.command()
@email_argument
@click.option("--username", type=text, help="What to call them.  [default: EMAIL up to its @]")
@click.option("--plan", type=_plan, default=free.name, show_default=True)
@click.option(
    "--operator",
    "is_operator",
    is_flag=True,
    help="Make them an operator, as `ydht user operator` does.",
)
@_password_stdin
@json_option
@data_dir_option
def create(
    email: str,
    username: str | None,
    plan: str,
    *,
    is_operator: bool,
    password_stdin: bool,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Open an account. Asks for its password."""
    password = _new_password(from_stdin=password_stdin)
    name = email.partition("@")[0] if username is None else username

    async def work(desk: FrontDesk) -> Account:
        return await desk.accounts.create(email, name, password, plan=plan, is_operator=is_operator)

    account = at_front_desk(data_dir, work)
    _say(account, f"opened account {account.id}, plan {account.plan}", as_json=as_json)


@user.command(name="list")
@json_option
@data_dir_option
def list_command(*, as_json: bool, data_dir: Path) -> None:
    """List all accounts in the order of their ids."""

    async def work(desk: FrontDesk) -> None:
        if not as_json:
            click.echo(_columns.format("id", "plan", "state", "opened", "email, username"))
        last = 0
        while page := await desk.accounts.page(last, page_accounts):
            for account in page:
                click.echo(_as_json(account) if as_json else _line(account))
            last = page[-1].id

    at_front_desk(data_dir, work)


@user.command(name="plan")
@email_argument
@click.argument("plan", type=_plan)
@json_option
@data_dir_option
def plan_command(email: str, plan: str, *, as_json: bool, data_dir: Path) -> None:
    """Give an account another plan: free, pro or developer."""
    account = at_front_desk(data_dir, lambda desk: desk.accounts.set_plan(email, plan))
    _say(account, f"has plan {account.plan}", as_json=as_json)


@user.command()
@email_argument
@json_option
@data_dir_option
def disable(email: str, *, as_json: bool, data_dir: Path) -> None:
    """End all sessions of an account, and refuse its API keys and logins."""
    _set_active(email, data_dir, is_active=False, as_json=as_json)


@user.command()
@email_argument
@json_option
@data_dir_option
def enable(email: str, *, as_json: bool, data_dir: Path) -> None:
    """Let an account log in again, and take its API keys."""
    _set_active(email, data_dir, is_active=True, as_json=as_json)


@user.command()
@email_argument
@_password_stdin
@json_option
@data_dir_option
def password(email: str, *, password_stdin: bool, as_json: bool, data_dir: Path) -> None:
    """Give an account a new password, and end all its sessions."""
    new = _new_password(from_stdin=password_stdin)
    account = at_front_desk(data_dir, lambda desk: desk.accounts.reset_password(email, new))
    _say(account, "has the new password; all sessions are ended", as_json=as_json)


@user.command()
@email_argument
@click.argument("address", type=text)
@json_option
@data_dir_option
def admit(email: str, address: str, *, as_json: bool, data_dir: Path) -> None:
    """Let an account log in from the network of ADDRESS, however much is guessed at it elsewhere.

    As if it had just logged in from there: for 30 days, with the right password, and with ten
    tries before it is one in 30 s. ADDRESS is as the user manager sees it.
    """

    async def work(desk: FrontDesk) -> tuple[Account, str]:
        account = await desk.accounts.find(email)
        folded = parse_email(account.email).folded
        return account, await desk.networks.admit(account.id, folded, address, desk.actor)

    account, network = at_front_desk(data_dir, work)
    _say(account, f"can log in from {network}", as_json=as_json)


@user.command()
@email_argument
@click.option("--remove", is_flag=True, help="Make it an account like any other again.")
@json_option
@data_dir_option
def operator(email: str, *, remove: bool, as_json: bool, data_dir: Path) -> None:
    """Make an account an operator's, or with --remove one like any other.

    Operators are to see the cluster page of the web console. Until there is one, it is only told of
    the account, as is_operator.
    """
    account = at_front_desk(
        data_dir, lambda desk: desk.accounts.set_operator(email, is_operator=not remove)
    )
    _say(account, "is no operator" if remove else "is an operator", as_json=as_json)


def _set_active(email: str, data_dir: Path, *, is_active: bool, as_json: bool) -> None:
    def work(desk: FrontDesk) -> Awaitable[Account]:
        return desk.accounts.set_active(email, is_active=is_active)

    _say(
        at_front_desk(data_dir, work),
        "is enabled" if is_active else "is disabled; all sessions are ended",
        as_json=as_json,
    )


def _new_password(*, from_stdin: bool) -> str:
    """A password that was typed twice, or the first line of stdin. Never an argument: those are
    seen by everybody on the machine, and kept by shells."""
    if not from_stdin:
        if not sys.stdin.isatty():
            raise click.UsageError(
                "there is no terminal to ask for the password at: give it by --password-stdin"
            )
        return click.prompt("New password", hide_input=True, confirmation_prompt=True)
    line = sys.stdin.buffer.readline(password_bytes_max + 1)
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise RefusedError("the password on stdin is not UTF-8") from error


# Addresses and names last, which are as long as they are, and may be as wide as they like.
_columns: Final = "{:>8}  {:<9}  {:<18}  {:<10}  {}"


def _line(account: Account) -> str:
    state = "active" if account.is_active else "disabled"
    if account.is_operator:
        state += ", operator"
    return _columns.format(
        account.id,
        account.plan,
        state,
        account.created_at.date().isoformat(),
        f"{account.email}, {account.username}",
    )


def _say(account: Account, what: str, *, as_json: bool) -> None:
    click.echo(_as_json(account) if as_json else f"{account.email}: {what}")


def _as_json(account: Account) -> str:
    return msgspec.json.encode(shown(account)).decode()
