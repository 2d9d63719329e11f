"""`ydht init`: the secrets of a new installation."""

from __future__ import annotations

from pathlib import Path

import click

from services.cli.datadir import unusable
from services.runtime.env_file import env_file_name, generate_env, write_env

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="DATA_DIR",
    default="./data",
    show_default=True,
    help="Directory that holds all state.",
)


def make_secrets(data_dir: Path) -> bool:
    """Make `ydht.env`, and say so; False if it is there, and then it stays as it is."""
    if data_dir.exists() and not data_dir.is_dir():
        raise unusable(data_dir, NotADirectoryError())
    path = data_dir / env_file_name
    made = write_env(path, generate_env())
    if made:
        click.echo(f"Wrote {path} with new secrets, readable by you only.")
    return made


@click.command()
@data_dir_option
def init(data_dir: Path) -> None:
    """Make the secrets of a new installation, once."""
    if not make_secrets(data_dir):
        click.echo(f"{data_dir / env_file_name} is already there and stays as it is.")
