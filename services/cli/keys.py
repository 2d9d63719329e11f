"""`ydht keys`: API keys of an account, for an operator without a browser."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import click
import msgspec

from services.cli.front_desk import FrontDesk, at_front_desk
from services.cli.options import data_dir_option, email_argument, json_option, text
from services.core.key_checks import scopes_all
from services.runtime.request_body import decode_json
from services.usermanager.messages_api_keys import (
    ApiKey,
    CreatedKey,
    CreateKey,
    expires_in_days_default,
    page_keys_max,
)
from services.usermanager.row_ids import id_max


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of an account, directly in the database.

    Whatever is changed, gateways hear of it within a second.

    Exit codes: 0 done, 65 refused, 67 no such account or key, 74 outcome unknown, 75 the database
    cannot be reached, 78 not set up.
    """


@keys.command()
@email_argument
@click.option("--name", type=text, required=True, help="What its owner is to know it by.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(scopes_all),
    help="What it may do; may be given several times.  [default: read, write]",
)
@click.option(
    "--expires-in-days",
    type=int,
    help=f"How long it is good, from now on.  [default: {expires_in_days_default}]",
)
@click.option("--no-expiry", is_flag=True, help="Good until it is revoked.")
@click.option("--prefix", type=text, help="Only for keys that begin with this.")
@click.option(
    "--rate-limit", type=int, help="Requests a minute, if they are to be fewer than the plan's."
)
@json_option
@data_dir_option
def create(
    email: str,
    name: str,
    scopes: tuple[str, ...],
    expires_in_days: int | None,
    prefix: str | None,
    rate_limit: int | None,
    *,
    no_expiry: bool,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Make an API key. It is shown this once: on the last line, alone."""
    if no_expiry and expires_in_days is not None:
        raise click.UsageError("--no-expiry and --expires-in-days contradict each other")
    asked: dict[str, object] = {
        "name": name,
        "prefix": prefix,
        "rate_limit_per_minute": rate_limit,
    }
    if scopes:
        asked["scopes"] = scopes
    if no_expiry or expires_in_days is not None:
        asked["expires_in_days"] = expires_in_days

    async def work(desk: FrontDesk) -> CreatedKey:
        # As over HTTP, so that what is refused there is refused here, in the same words.
        message = decode_json(msgspec.json.encode(asked), CreateKey)
        account = await desk.accounts.find(email)
        return await desk.api_keys.create(account.id, message, actor=desk.actor, client=None)

    made = at_front_desk(data_dir, work)
    if as_json:
        click.echo(msgspec.json.encode(made))
        return
    click.echo(f"API key {made.id} of {email}, {_until(made.expires_at)}. It is shown this once:")
    click.echo(made.key)


@keys.command(name="list")
@email_argument
@json_option
@data_dir_option
def list_command(email: str, *, as_json: bool, data_dir: Path) -> None:
    """List the API keys of an account, the newest first, also those that are not good any more."""

    async def work(desk: FrontDesk) -> None:
        account = await desk.accounts.find(email)
        if not as_json:
            click.echo(_columns.format("id", "key", "state", "scopes", "last used", "name"))
        cursor: str | None = None
        while True:
            page = await desk.api_keys.page(account.id, page_keys_max, cursor)
            for key in page.api_keys:
                click.echo(msgspec.json.encode(key) if as_json else _line(key))
            cursor = page.cursor
            if cursor is None:
                return

    at_front_desk(data_dir, work)


class KeyId(click.ParamType[int]):
    name = "id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = value if value.isascii() and value.isdecimal() and len(value) < 20 else "0"
        if not 1 <= int(number) <= id_max:
            self.fail(f"{value!r} is no ID: `ydht keys list` shows them in front", param, ctx)
        return int(number)


@keys.command()
@email_argument
@click.argument("key_id", metavar="ID", type=KeyId())
@json_option
@data_dir_option
def revoke(email: str, key_id: int, *, as_json: bool, data_dir: Path) -> None:
    """End an API key now and for good. ID is as `ydht keys list` shows it."""

    async def work(desk: FrontDesk) -> None:
        account = await desk.accounts.find(email)
        await desk.api_keys.revoke(account.id, key_id, actor=desk.actor, client=None)

    at_front_desk(data_dir, work)
    if as_json:
        click.echo(msgspec.json.encode({"id": key_id, "is_active": False}))
    else:
        click.echo(f"API key {key_id} of {email} is revoked")


# The name last, which is as long as it is.
_columns: Final = "{:>8}  {:<9}  {:<22}  {:<16}  {:<10}  {}"


def _line(key: ApiKey) -> str:
    return _columns.format(
        key.id,
        key.key_prefix,
        _state(key),
        ",".join(key.scopes),
        "never" if key.last_used_at is None else key.last_used_at.date().isoformat(),
        key.name,
    )


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at.date().isoformat()}"
    return _until(key.expires_at) if key.is_active else "expired"


def _until(end: datetime | None) -> str:
    return "good until revoked" if end is None else f"good until {end.date().isoformat()}"
