"""What options of several commands may be."""

from __future__ import annotations

import os
from pathlib import Path

import click


class DataDirectoryPath(click.Path):
    """The name of a data directory. Whether it can be used is found by using it."""

    def __init__(self, *, file_okay: bool = True) -> None:
        # access(2), which click would ask, may be wrong.
        super().__init__(file_okay=file_okay, readable=False, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        text = os.fspath(value)
        if not text:
            # As a path it would be the current directory, which then fills with our files.
            self.fail("it is empty; name a directory, such as ./data", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            # It is printed, logged and published, all of which are text.
            self.fail(f"{text!r} is not UTF-8; choose another name", param, ctx)
        return super().convert(value, param, ctx)
