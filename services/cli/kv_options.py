"""What all commands of `ydht kv` are told: where the gateway is, who asks, and how patiently."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from services.cli.kv_client import Access
from services.cli.options import Duration, text
from services.core.errors import FatalError
from services.runtime import setting_values as values

url_default: Final = "http://127.0.0.1:8080"
key_variable: Final = "YDHT_API_KEY"
key_file_bytes_max: Final = 4096
# As issued, and with room for keys of other makes; what a header can hold.
_api_key: Final = re.compile(r"[\x21-\x7e]{1,512}")
exit_codes: Final = """
    Exit codes: 0 done; 1 not done, or not all; 2 wrong usage; 65 refused; 66 no such key; 73 the
    condition does not hold; 74 outcome unknown: it may have been done or not; 75 try later, or
    nobody can be reached; 77 the API key is not good, or not for this; 78 not set up; 130 Ctrl-C.
"""


class GatewayUrl(click.ParamType[str]):
    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return values.url(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


consistency_option = click.option(
    "--consistency",
    type=click.Choice(("eventual", "strong")),
    help="strong: linearizable, by a majority of the replicas.  [default: eventual]",
)


def access_options(patience: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options, and give the command an Access for them. `patience` is the usual one."""

    def added(command: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--url",
            type=GatewayUrl(),
            envvar="YDHT_URL",
            default=url_default,
            help=f"The gateway.  [default: YDHT_URL, or {url_default}]",
        )
        @click.option(
            "--key-file",
            type=click.Path(path_type=Path, dir_okay=False, allow_dash=False),
            envvar="YDHT_API_KEY_FILE",
            help="A file with the API key.  [default: YDHT_API_KEY_FILE; else YDHT_API_KEY]",
        )
        @click.option("--namespace", type=text, help="The keyspace to work in.  [default: default]")
        @click.option(
            "--patience",
            "patience_s",
            type=Duration(),
            default=patience,
            show_default=True,
            help="Go on trying for so long while a gateway says that later is better.",
        )
        @functools.wraps(command)
        def with_access(
            *words: Any,
            url: str,
            key_file: Path | None,
            namespace: str | None,
            patience_s: float,
            **more: Any,
        ) -> None:
            access = Access(url, _api_key_in(key_file), namespace, patience_s)
            command(access, *words, **more)

        return with_access

    return added


def _api_key_in(key_file: Path | None) -> str:
    """Never an option: who lists processes would read it."""
    if key_file is not None:
        try:
            with key_file.open("rb") as file:
                found = file.read(key_file_bytes_max).decode("latin-1").strip()
        except OSError as error:
            raise FatalError(f"the API key cannot be read: {error}") from error
        where = str(key_file)
    else:
        found, where = os.environ.get(key_variable, "").strip(), key_variable
        if not found:
            raise FatalError(
                f"{key_variable} is not set: give the API key there, or name a file by --key-file;"
                " `ydht up` shows one, and the console makes them"
            )
    if not _api_key.fullmatch(found):
        raise FatalError(f"{where} holds no API key, which is one word such as ydht_…")
    return found
