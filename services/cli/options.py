"""Options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path

import click

from services.cli.datadir import unusable
from services.core.duration import parse_duration
from services.runtime import setting_values as values


class DataDirectoryPath(click.ParamType[Path]):
    """The name of a data directory, read as services read DATA_DIR. It need not be there yet."""

    name = "directory"

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        text = os.fspath(value)
        if not text:
            # As a path it would be the current directory, which then fills with our files.
            self.fail("it is empty; name a directory, such as ./data", param, ctx)
        try:
            text.encode()
            path = values.path(text)
        except UnicodeEncodeError:
            # It is printed, logged and published, all of which are text.
            self.fail(f"{text!r} is not UTF-8; choose another name", param, ctx)
        except ValueError as error:
            self.fail(f"{text!r}: {error}", param, ctx)
        if path.exists() and not path.is_dir():
            raise unusable(path, NotADirectoryError())
        return path


class Text(click.ParamType[str]):
    """Words that are kept, or compared with what is: not just any bytes that a shell passes."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is not UTF-8", param, ctx)
        return value


class Duration(click.ParamType[float]):
    """A time as people write it, such as `90s` or `1h30m`; in seconds."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if not isinstance(value, str):
            return value
        try:
            return parse_duration(value) / 1000
        except ValueError as error:
            self.fail(str(error), param, ctx)


data_dir_option = click.option(
    "--data-dir",
    type=DataDirectoryPath(),
    envvar="DATA_DIR",
    default="./data",
    help="Directory that holds all state.  [default: DATA_DIR, or ./data]",
)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, for scripts."
)
text = Text()
email_argument = click.argument("email", metavar="EMAIL", type=text)
