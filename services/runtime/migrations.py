"""Bringing a database's schema to a revision. The revisions are in `migrations/versions`."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import services
from services.core.errors import FatalError, RestartLater
from services.runtime.database_url import DatabaseAddress, parse_database_url
from services.runtime.embedded import embedded_address
from services.runtime.embedded_home import is_runtime_directory
from services.runtime.settings import (
    data_dir_setting,
    database_url_setting,
    embedded_db_password_setting,
    load,
)

if TYPE_CHECKING:
    from alembic.config import Config

# `alembic.context`, which every env.py uses, is one per process: threads take turns.
_alembic_is_global = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseToolSettings:
    """What a command needs that works on the database alone, and not as a service."""

    data_dir: Path = data_dir_setting()
    database_url: str | None = database_url_setting()
    embedded_db_password: str | None = embedded_db_password_setting()


def address_from(environ: Mapping[str, str]) -> DatabaseAddress:
    """The database that these variables, and `DATA_DIR/ydht.env`, mean."""
    settings = load(DatabaseToolSettings, environ)
    return choose_address(settings.data_dir, settings.database_url, settings.embedded_db_password)


def choose_address(
    data_dir: Path, database_url: str | None, embedded_password: str | None
) -> DatabaseAddress:
    """`DATABASE_URL` if it is set, else the embedded server of the data directory."""
    if database_url is not None:
        return parse_database_url(database_url)
    if embedded_password is None:
        raise FatalError(
            f"neither DATABASE_URL nor EMBEDDED_DB_PASSWORD is set, nor is there a ydht.env in"
            f" {data_dir}: run `ydht init`, or name a PostgreSQL by DATABASE_URL"
        )
    return embedded_address(data_dir, embedded_password)


def scripts_directory() -> Path:
    """Beside the package, wherever that is installed; never looked for from where we stand."""
    return Path(os.path.realpath(services.__file__)).parent.parent / "migrations"


def alembic_config(address: DatabaseAddress) -> Config:
    """What alembic's commands take. `env.py` finds the address in its attributes."""
    from alembic.config import Config  # Brings SQLAlchemy, which no service needs to start.

    config = Config(attributes={"address": address})
    # The value is a configparser template.
    config.set_main_option("script_location", str(scripts_directory()).replace("%", "%%"))
    return config


def migrate(address: DatabaseAddress, revision: str = "head") -> None:
    """Upgrade to a revision; does nothing when already there. One process at a time does it.

    Runs an event loop of its own: in a coroutine, call it by `asyncio.to_thread`.
    FatalError says why it cannot; what an unfinished revision did is rolled back.
    """
    from alembic import command
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _alembic_is_global:
            command.upgrade(alembic_config(address), revision)
    except CommandError as error:
        raise FatalError(
            f"the database cannot be migrated: {_one_line(error)}; was it migrated by a newer"
            " version of ydht? Then run that one"
        ) from error
    except (OSError, SQLAlchemyError) as error:
        cause = _one_line(getattr(error, "orig", None) or error)
        raise RestartLater(
            f"the database could not be migrated: {cause}; {_advice(address)}"
        ) from error


def _advice(address: DatabaseAddress) -> str:
    if is_runtime_directory(Path(address.host)):
        return "is it running? `ydht db` starts it"
    return "check DATABASE_URL: is it running there, and may its user change the schema?"


def _one_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
