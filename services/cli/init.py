"""`ydht init`: the secrets of a new installation."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from services.cli.datadir import unusable
from services.cli.options import data_dir_option
from services.core.errors import FatalError
from services.runtime.env_file import env_file_name, generate_env, write_env

# What was written with the secrets of a ydht.env, and cannot be read with others.
_made_with_secrets = ("pg/data", "nodes")


def make_secrets(data_dir: Path) -> bool:
    """Make `ydht.env`, and say so; False if it is there, and then it stays as it is.

    FatalError where data is but its secrets are not: new ones would open none of it.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(data_dir, error) from error
    path = data_dir / env_file_name
    data = next(
        (data_dir / name for name in _made_with_secrets if (data_dir / name).exists()), None
    )
    if data is not None and not path.exists():
        raise FatalError(
            f"{path} is missing, and {data} was made with the secrets in it: bring the file back,"
            f" or move {data_dir} away to begin anew"
        )
    made = write_env(path, generate_env())
    if made:
        click.echo(f"Wrote {path} with new secrets, readable by you only.")
    if (who := _who_else_writes(data_dir)) is not None:
        click.echo(f"warning: {data_dir} holds secrets, and {who} can replace them", err=True)
    return made


def _who_else_writes(directory: Path) -> str | None:
    """Who, besides this user and root, may put other files in the place of ours."""
    found = directory.stat()
    if found.st_uid not in (os.geteuid(), 0):
        return f"its owner, user id {found.st_uid},"
    if (mode := stat.S_IMODE(found.st_mode)) & 0o022:
        return f"{'everybody' if mode & 0o002 else 'its group'} (mode {mode:04o})"
    return None


@click.command()
@data_dir_option
def init(data_dir: Path) -> None:
    """Make the secrets of a new installation, once."""
    if not make_secrets(data_dir):
        click.echo(f"{data_dir / env_file_name} is already there and stays as it is.")
