"""What a user manager does with accounts and API keys, done by a command on the same database.

Nothing here decides anything: the rules are those of `services.usermanager`, and so are the entries
in the audit log and the events by which gateways hear of it. No user manager need run.

How a command ends tells a script what became of it; each has its name in sysexits.h:

    0   done
    65  refused: what was asked is not allowed, or somebody else has the name    EX_DATAERR
    67  there is no such account or API key                                      EX_NOUSER
    74  PostgreSQL was lost while it committed: look before trying again         EX_IOERR
    75  PostgreSQL cannot be reached; nothing was changed                        EX_TEMPFAIL
    78  something has to be set up first, such as the schema                     EX_CONFIG
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from services.cli.endings import NotThereError, RefusedError, UnknownEndError, UnreachableError
from services.core.api_key import lookup_hash, lookup_subkey
from services.core.errors import ClientError, FatalError, FixRequest, RetryLater, UnknownOutcome
from services.runtime import setting_values as values
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.migrations import DatabaseToolSettings, choose_address
from services.runtime.postgres import Database
from services.runtime.settings import load, setting
from services.usermanager import api_key_store, audit
from services.usermanager.account_store import PostgresAccountStore
from services.usermanager.administration import Administration
from services.usermanager.api_key_store import LiveKey
from services.usermanager.api_keys import ApiKeys
from services.usermanager.audit import Audit
from services.usermanager.key_events import KeyEvents
from services.usermanager.known_networks import KnownNetworks
from services.usermanager.passwords import Passwords
from services.usermanager.readiness import schema_trouble
from services.usermanager.throttle import Throttle

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDeskSettings(DatabaseToolSettings):
    key_pepper: str = setting(
        "KEY_PEPPER",
        values.secret,
        required=True,
        secret=True,
        help="API keys are stored as HMAC under it; that of the user managers",
    )


class FrontDesk:
    """The nouns of a user manager, for one command, on a database that has its tables."""

    def __init__(self, database: Database, passwords: Passwords, key_pepper: str) -> None:
        log = Audit(database)
        events = KeyEvents(database, _never)
        clock = SystemClock()
        throttle = Throttle(database, clock)
        operator = _operator()
        store = PostgresAccountStore(database, log, events)
        self.passwords = passwords
        self.accounts = Administration(store, passwords, operator)
        self.networks = KnownNetworks(database, clock, log)
        # Who does it, as the audit log calls them.
        self.actor = audit.operator(operator)
        self.database = database
        self._pepper_subkey = lookup_subkey(key_pepper)
        self.api_keys = ApiKeys(database, events, log, throttle, self._pepper_subkey)

    async def look_up(self, api_key: str) -> LiveKey | None:
        """Whose an API key is, and what it may do, if it is good now."""
        key_hash = lookup_hash(self._pepper_subkey, api_key)
        async with self.database.connection() as connection:
            found = await api_key_store.look_up(connection, [key_hash])
        return found[0] if found else None


def at_front_desk(data_dir: Path, work: Callable[[FrontDesk], Awaitable[T]]) -> T:
    """Have the work done; FatalError, with an exit code of those above, if it cannot be."""
    settings = load(FrontDeskSettings, {**os.environ, "DATA_DIR": str(data_dir)})

    async def done() -> T:
        async with _opened(settings) as desk:
            return await work(desk)

    try:
        return asyncio.run(done())
    except ClientError as error:
        raise _ending(error, settings) from error


@asynccontextmanager
async def front_desk(environ: Mapping[str, str]) -> AsyncIterator[FrontDesk]:
    """The desk that these variables, and `DATA_DIR/ydht.env`, mean. ClientError of the block and
    FatalError pass as they are."""
    async with _opened(load(FrontDeskSettings, environ)) as desk:
        yield desk


@asynccontextmanager
async def _opened(settings: FrontDeskSettings) -> AsyncIterator[FrontDesk]:
    passwords = Passwords()
    try:
        async with Database(_address(settings), connections_max=1) as database:
            if (trouble := await schema_trouble(database)) is not None:
                raise FatalError(f"the database cannot be used: {trouble}")
            yield FrontDesk(database, passwords, settings.key_pepper)
    finally:
        passwords.close()


async def _never() -> None:
    """A command waits for no events, and so for no end of waiting."""
    await asyncio.Event().wait()


def _operator() -> str:
    """The user of this machine who runs the command, by what nobody sets for himself."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _address(settings: FrontDeskSettings) -> DatabaseAddress:
    return choose_address(settings.data_dir, settings.database_url, settings.embedded_db_password)


def _ending(error: ClientError, settings: FrontDeskSettings) -> FatalError:
    match error:
        case FixRequest(code="not_found"):
            return NotThereError(error.detail)
        case FixRequest():
            return RefusedError(error.detail)
        case RetryLater():
            remedy = "is it running? `ydht up` or `ydht db` starts it"
            if settings.database_url is not None:
                remedy = f"is it running at {_address(settings).place}, where DATABASE_URL says?"
            return UnreachableError(f"nothing was changed: {error.detail}; {remedy}")
        case UnknownOutcome():
            return UnknownEndError(
                f"it may have been done or not: {error.detail}; look before trying again"
            )
        case _:
            raise error
