"""Settings: read once from the environment into a frozen object, and checked together.

A service declares a frozen dataclass whose fields say where they come from:

    @dataclass(frozen=True, slots=True, kw_only=True)
    class GatewaySettings(ServiceSettings):
        service: ClassVar[str] = "gateway"
        port: int = setting("GATEWAY_PORT", port, default="8080", help="HTTP port")

and `load(GatewaySettings, os.environ)` fills it or raises FatalError with one line that names
the variable, what is wrong with it, and what is accepted. Nothing reads the environment later.

A variable's value is the first of
    1. `NAME` in the environment, or the content of the file that `NAME_FILE` names (both is an
       error; only secrets have the file form),
    2. the same two in `DATA_DIR/ydht.env`, which `ydht init` writes,
    3. the default.
An empty value counts as unset.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from services.core.errors import FatalError
from services.runtime import setting_values as values
from services.runtime.env_file import env_file_name, read_env, read_secret_file

S = TypeVar("S")

link_port_offset = values.link_port_offset
# Long enough to recognise a value in an error line, short enough for the line to stay one.
shown_chars_max = 80


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a field comes from and what it may be. `default` is text, as a user would write it."""

    env: str
    parse: Callable[[str], Any]
    help: str
    default: str | None
    required: bool
    secret: bool


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of a table of settings, for people."""

    name: str
    default: str
    help: str


def setting(
    env: str,
    parse: Callable[[str], Any],
    *,
    help: str,  # noqa: A002  The word users of argparse and click know.
    default: str | None = None,
    required: bool = False,
    secret: bool = False,
) -> Any:
    """Declare a field. Without a default and not required, an unset variable is None.

    A secret has a `*_FILE` form, is left out of repr(), and its text is in no error.
    """
    about = Setting(env, parse, help, default, required, secret)
    if required:
        return dataclasses.field(repr=not secret, metadata={"setting": about})
    return dataclasses.field(
        default_factory=lambda: None if default is None else parse(default),
        repr=not secret,
        metadata={"setting": about},
    )


def data_dir_setting() -> Any:
    return setting("DATA_DIR", values.path, default="./data", help="Directory that holds all state")


def database_url_setting() -> Any:
    return setting(
        "DATABASE_URL",
        values.database_url,
        secret=True,
        help="PostgreSQL to use; unset: the embedded one",
    )


def embedded_db_password_setting() -> Any:
    return setting(
        "EMBEDDED_DB_PASSWORD",
        values.secret,
        secret=True,
        help="Password of the embedded PostgreSQL; `ydht init` makes it",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What every service has. Each adds its own fields, and names its port's variable."""

    service: ClassVar[str]
    port: int

    data_dir: Path = data_dir_setting()
    bind_host: str = setting(
        "BIND_HOST", values.host, default="127.0.0.1", help="Address to listen on"
    )
    advertise_host: str | None = setting(
        "ADVERTISE_HOST",
        values.host,
        help="Address that other services reach this one at; unset: BIND_HOST",
    )
    cluster_secret: str = setting(
        "CLUSTER_SECRET",
        values.secret,
        required=True,
        secret=True,
        help="Shared by all services; authenticates links and internal requests",
    )
    link_tls_cert: Path | None = setting(
        "LINK_TLS_CERT", values.path, help="Certificate for links, PEM; unset: links without TLS"
    )
    link_tls_key: Path | None = setting(
        "LINK_TLS_KEY", values.path, help="Key of LINK_TLS_CERT, PEM"
    )
    link_tls_ca: Path | None = setting(
        "LINK_TLS_CA", values.path, help="Authorities that sign the certificates of links, PEM"
    )
    memory_max_bytes: int | None = setting(
        "MEMORY_MAX",
        values.size_bytes(minimum=64 * 2**20),
        help="Memory past which puts are refused, such as 2GiB; unset: no ceiling",
    )
    disk_reserve_bytes: int = setting(
        "DISK_RESERVE",
        values.size_bytes(),
        default="1GiB",
        help="Free disk space below which puts are refused",
    )
    log_format: str = setting(
        "LOG_FORMAT", values.one_of("console", "json"), default="console", help="Form of log lines"
    )
    access_log: bool = setting(
        "ACCESS_LOG", values.boolean, default="false", help="Log a line for each request"
    )
    debug_enabled: bool = setting(
        "DEBUG_ENABLED", values.boolean, default="false", help="Open the routes made for debugging"
    )

    @property
    def link_port(self) -> int:
        return self.port + link_port_offset

    @property
    def advertised_host(self) -> str:
        """What a service tells others to reach it at; FatalError when nobody could."""
        if self.advertise_host is None and values.is_any_address(self.bind_host):
            raise FatalError(
                f"BIND_HOST is {self.bind_host}, every address of this machine, and "
                "ADVERTISE_HOST is not set: set it to the one that other services reach it by"
            )
        return self.advertise_host or self.bind_host

    def check(self) -> None:
        """Refuse settings that contradict each other.

        `load` runs the check of every class in the inheritance, so none calls another's.
        """
        if self.advertise_host is not None and values.is_any_address(self.advertise_host):
            raise FatalError(
                f"ADVERTISE_HOST is {self.advertise_host}, which nobody can connect to: "
                "use an address or name that other machines reach this one by"
            )
        tls = {
            "LINK_TLS_CERT": self.link_tls_cert,
            "LINK_TLS_KEY": self.link_tls_key,
            "LINK_TLS_CA": self.link_tls_ca,
        }
        given = [name for name, value in tls.items() if value is not None]
        missing = [name for name, value in tls.items() if value is None]
        if given and missing:
            raise FatalError(
                f"{given[0]} is set without {missing[0]}: TLS on links needs {', '.join(tls)}"
            )
        for name, value in tls.items():
            # Path.is_file() would raise what it does not expect, such as a name that is too long.
            if value is not None and not os.path.isfile(value):  # noqa: PTH113
                raise FatalError(f"{name} is {str(value)!r}, which is not a readable file")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings(ServiceSettings):
    """What a service that uses PostgreSQL has besides."""

    database_url: str | None = database_url_setting()
    embedded_db_password: str | None = embedded_db_password_setting()

    def check(self) -> None:
        if self.database_url is None and self.embedded_db_password is None:
            raise FatalError(
                "neither DATABASE_URL nor EMBEDDED_DB_PASSWORD is set: name a PostgreSQL by "
                "DATABASE_URL, or run `ydht init` and use the embedded one"
            )


def check_distinct(secrets: Mapping[str, str | None]) -> None:
    """Refuse to have one secret under two names."""
    for (one, first), (other, second) in combinations(secrets.items(), 2):
        if first is not None and first == second:
            raise FatalError(
                f"{one} and {other} are the same: whoever learned one would have the other; "
                "`ydht init` makes a secret for each"
            )


def load(cls: type[S], environ: Mapping[str, str]) -> S:
    """Read every field of the class, check them together, and return the frozen object."""
    fields = list(_settings_of(cls))
    env_path = _data_dir(fields, environ) / env_file_name
    sources = [_Source("", environ), _Source(f" (in {env_path})", read_env(env_path))]
    found: dict[str, Any] = {}
    for name, about in fields:
        value = _find(about, sources)
        if value is None and about.required:
            raise FatalError(f"{about.env} is not set ({about.help}){_where_to(about, env_path)}")
        if value is not None:
            found[name] = value
    settings = cls(**found)
    for klass in reversed(cls.__mro__):
        check = vars(klass).get("check")
        if check is not None:
            check(settings)
    return settings


def variable_of(cls: type[Any], field_name: str) -> str:
    """The variable that a field is read from, for messages."""
    return next(about.env for name, about in _settings_of(cls) if name == field_name)


def describe(cls: type[Any]) -> list[SettingRow]:
    """Every variable of a settings class, in the order of declaration, for a table."""
    return [
        SettingRow(about.env, "required" if about.required else about.default or "", about.help)
        for _, about in _settings_of(cls)
    ]


@dataclass(frozen=True, slots=True)
class _Source:
    """Variables, and how an error says that one came from here."""

    origin: str
    variables: Mapping[str, str]

    def get(self, name: str) -> str | None:
        return self.variables.get(name) or None


def _settings_of(cls: type[Any]) -> Iterator[tuple[str, Setting]]:
    for field in dataclasses.fields(cls):
        about = field.metadata.get("setting")
        if about is None:
            raise TypeError(f"{cls.__name__}.{field.name} does not say which variable it is")
        yield field.name, about


def _where_to(about: Setting, env_path: Path) -> str:
    """What to do about a variable that was looked for in vain, to complete the sentence."""
    if not about.secret:
        return ": set it"
    path = env_path.absolute()
    # Not Path.exists(), which fails below a directory that is closed to us.
    if os.path.lexists(path):
        return f", nor is it in {path}: add it there as it was, or set it"
    missing = path if os.path.isdir(path.parent) else path.parent  # noqa: PTH112  Likewise.
    return (
        f", and there is no {missing}: name the data directory of your installation by --data-dir "
        "or DATA_DIR, or set it; for a new installation run `ydht init`"
    )


def _data_dir(fields: list[tuple[str, Setting]], environ: Mapping[str, str]) -> Path:
    """Where ydht.env lies; only the environment itself can say."""
    about = next(about for _, about in fields if about.env == "DATA_DIR")
    directory = _find(about, [_Source("", environ)])
    return directory if directory is not None else values.path(about.default or ".")


def _find(about: Setting, sources: list[_Source]) -> Any:
    """The parsed value from the first source that has one, or None."""
    for source in sources:
        text, origin = source.get(about.env), source.origin
        file_variable = f"{about.env}_FILE"
        file_path = source.get(file_variable) if about.secret else None
        if text is not None and file_path is not None:
            raise FatalError(f"both {about.env} and {file_variable} are set{origin}: keep one")
        if file_path is not None:
            text = read_secret_file(file_variable, Path(file_path))
            origin = f" (read from {file_path})"
        if text is not None:
            return _parse(about, text, origin)
    return None


def _parse(about: Setting, text: str, origin: str) -> Any:
    try:
        return about.parse(text)
    except ValueError as error:
        shown = "not acceptable" if about.secret else _shown(text)
        raise FatalError(f"{about.env}{origin} is {shown}: {error}") from None


def _shown(text: str) -> str:
    cut = text if len(text) <= shown_chars_max else text[:shown_chars_max] + "..."
    return re.sub(r"[\r\n]", " ", repr(cut))
