"""One reading of `DATABASE_URL` for everything that connects to PostgreSQL.

    postgres[ql][+asyncpg]://user[:password]@host[:port][/database][?option=value&…]

The URL is the only source: `PG*` variables and `~/.pgpass` play no part, so that two services
with the same URL always reach the same database. User, password, host and database may be
percent-encoded; a directory as host (`?host=/run/postgresql`, or `%2Frun%2Fpostgresql`) means
the socket in it. The database defaults to the user's name, as it does in libpq.

Error texts never quote what was given, apart from option names known to libpq: in a URL whose
password was not percent-encoded, any other part may be a piece of that password.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from services.core.errors import FatalError

if TYPE_CHECKING:
    from sqlalchemy import URL

port_default = 5432

# sun_path holds 108 bytes, the last of them a NUL.
socket_path_bytes_max = 107

# PostgreSQL truncates longer identifiers silently, and then another database is meant.
identifier_bytes_max = 63

_SCHEMES = ("postgres", "postgresql", "postgresql+asyncpg")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_ENCRYPTED_MODES = frozenset({"require", "verify-ca", "verify-full"})
_OPTIONS = ("application_name", "connect_timeout", "host", "port", "sslcert", "sslkey", "sslmode",
            "sslrootcert")  # fmt: skip
# Options libpq has and this platform does not; naming them helps and cannot betray a password.
_LIBPQ_ONLY = frozenset(
    {"channel_binding", "client_encoding", "dbname", "gssencmode", "hostaddr", "keepalives",
     "options", "passfile", "password", "require_auth", "service", "sslcrl", "sslnegotiation",
     "sslpassword", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslsni",
     "target_session_attrs", "tcp_user_timeout", "user"}
)  # fmt: skip

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NOT_PRINTABLE = re.compile(r"[\x00-\x20\x7f]")


@dataclass(slots=True, frozen=True)
class DatabaseAddress:
    """Where a database is and how to be let in. Never shows the password."""

    host: str
    user: str
    database: str
    password: str = field(default="", repr=False)
    port: int = port_default
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    application_name: str = "ydht"
    connect_timeout_s: float = 5.0

    @property
    def is_socket(self) -> bool:
        return self.host.startswith("/")

    @property
    def place(self) -> str:
        """Where it is, for operators: a host and port, or the directory of a socket."""
        if self.is_socket:
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def asyncpg(self) -> dict[str, Any]:
        """Keyword arguments for `asyncpg.connect` and `asyncpg.create_pool`."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            # An empty password is still a password to asyncpg; without one it would look into
            # PGPASSWORD and ~/.pgpass.
            "password": self.password,
            "database": self.database,
            "ssl": self._ssl(),
            "direct_tls": False,
            "target_session_attrs": "any",
            "server_settings": {"application_name": self.application_name},
            "timeout": self.connect_timeout_s,
        }

    def sqlalchemy(self) -> tuple[URL, dict[str, Any]]:
        """The URL and `connect_args` for SQLAlchemy's asyncpg dialect, as alembic needs them.

        The URL names the dialect and the database only; how to get there travels as arguments,
        because SQLAlchemy reads TLS options of a URL differently than asyncpg does.
        """
        # Only migrations need SQLAlchemy, and it takes longer to import than a service to start.
        from sqlalchemy import URL

        return URL.create("postgresql+asyncpg"), self.asyncpg()

    def url(self) -> str:
        """The address as text, password included: for a child's environment, never for a log."""
        login = quote(self.user, safe="")
        if self.password:
            login += ":" + quote(self.password, safe="")
        bare = quote(self.host, safe=":") if not self.is_socket else ""
        host = f"[{bare}]" if ":" in bare else bare
        options = {
            "host": self.host if self.is_socket else None,
            "port": str(self.port) if self.is_socket else None,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "application_name": self.application_name,
            "connect_timeout": f"{self.connect_timeout_s:g}",
        }
        query = "&".join(
            f"{name}={quote(value, safe='/')}" for name, value in options.items() if value
        )
        port = "" if self.is_socket else f":{self.port}"
        return f"postgresql://{login}@{host}{port}/{quote(self.database, safe='')}?{query}"

    def _ssl(self) -> ssl.SSLContext | str | bool:
        if self.is_socket or self.sslmode == "disable":
            return False
        if self.sslmode not in _ENCRYPTED_MODES:
            return self.sslmode  # asyncpg itself tries with and without TLS.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.sslmode == "verify-full"
        try:
            if self.sslrootcert not in (None, "system"):
                # As libpq has it, a root certificate makes `require` verify the chain too.
                context.load_verify_locations(cafile=self.sslrootcert)
            elif self.sslmode == "require":
                context.verify_mode = ssl.CERT_NONE
            else:
                context.load_default_certs()
            if self.sslcert is not None:
                context.load_cert_chain(self.sslcert, self.sslkey)
        except (OSError, ssl.SSLError) as error:
            raise FatalError(
                "DATABASE_URL: the certificate or key named by sslrootcert, sslcert or sslkey"
                f" cannot be used: {error.strerror or error}"
            ) from error
        return context


def parse_database_url(url: str) -> DatabaseAddress:
    """Read a `DATABASE_URL`. FatalError says which part is wrong, without quoting it."""
    if _NOT_PRINTABLE.search(url):
        raise _wrong("holds a space, a line break or a control character; percent-encode it")
    if "#" in url:
        raise _wrong("holds a '#'; inside a password write it as %23")
    if _BROKEN_ESCAPE.search(url):
        raise _wrong("holds a '%' that starts no escape; inside a password write it as %25")
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() not in _SCHEMES:
        raise _wrong("must start with postgresql:// (or postgres://, postgresql+asyncpg://)")
    before, _, query = rest.partition("?")
    authority, _, database = before.partition("/")
    login, found, location = authority.rpartition("@")
    if not found:
        raise _wrong("names no user: write postgresql://user:password@host/database")
    user, _, password = login.partition(":")
    options = _options(query)
    host, port = _location(location, options)
    address = DatabaseAddress(
        host=host,
        port=port,
        user=_identifier(user, "user"),
        password=_decoded(password, "password"),
        database=_identifier(database or user, "database"),
        **_tls(options),
        **_given(options, "application_name", str),
        **{
            f"{name}_s": seconds
            for name, seconds in _given(options, "connect_timeout", _seconds).items()
        },
    )
    _refuse_contradictions(address)
    return address


def _wrong(what: str) -> FatalError:
    return FatalError(f"DATABASE_URL {what}")


def _decoded(text: str, part: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _wrong(f"has a {part} whose percent-encoding is not UTF-8") from None
    if "\0" in decoded:
        raise _wrong(f"has a {part} with a NUL in it, which PostgreSQL cannot carry")
    return decoded


def _identifier(text: str, part: str) -> str:
    name = _decoded(text, part)
    if not name:
        raise _wrong(f"names no {part}: write postgresql://user:password@host/database")
    if len(name.encode()) > identifier_bytes_max:
        raise _wrong(f"has a {part} longer than PostgreSQL's {identifier_bytes_max} bytes")
    return name


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in query.split("&") if query else ():
        name, found, value = item.partition("=")
        if name == "ssl":
            name = "sslmode"  # How SQLAlchemy's asyncpg dialect spells it.
        if name not in _OPTIONS:
            which = f"the option {name}" if name in _LIBPQ_ONLY else "an option"
            raise _wrong(
                f"has {which} that is not supported (supported: {', '.join(_OPTIONS)});"
                " a '?' or '&' inside a password is written %3F or %26"
            )
        if not found or not value:
            raise _wrong(f"gives the option {name} no value")
        if name in options:
            raise _wrong(f"gives the option {name} twice")
        options[name] = _decoded(value, f"value of {name}")
    return options


def _location(location: str, options: Mapping[str, str]) -> tuple[str, int]:
    if location.startswith("["):
        bare, closed, after = location[1:].partition("]")
        if not closed or (after and not after.startswith(":")):
            raise _wrong("has an IPv6 host that is not written as [address]:port")
        port_text = after[1:]
    else:
        bare, _, port_text = location.partition(":")
    host = _decoded(bare, "host")
    if host and "host" in options:
        raise _wrong("names a host twice: before the path and as ?host=")
    if port_text and "port" in options:
        raise _wrong("names a port twice: behind the host and as ?port=")
    host = host or options.get("host", "")
    if not host:
        raise _wrong("names no host: write user@host, or ?host=/directory for a socket")
    if "," in host or "," in port_text:
        raise _wrong("names several hosts; give the one that accepts writes")
    return host, _port(port_text or options.get("port", str(port_default)))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise _wrong(
            "has a port that is not a number from 1 to 65535;"
            " a '/', ':', '?' or '@' inside a password is written %2F, %3A, %3F or %40"
        )
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 < seconds <= 600:
        raise _wrong("has a connect_timeout that is not a number of seconds from 1 to 600")
    return seconds


def _given(options: Mapping[str, str], name: str, read: Callable[[str], Any]) -> dict[str, Any]:
    return {name: read(options[name])} if name in options else {}


def _tls(options: Mapping[str, str]) -> dict[str, Any]:
    mode = options.get("sslmode", "prefer")
    if mode not in _SSL_MODES:
        raise _wrong(f"has an sslmode other than {', '.join(_SSL_MODES)}")
    if "sslkey" in options and "sslcert" not in options:
        raise _wrong("has an sslkey without the sslcert it belongs to")
    files = {name: options[name] for name in ("sslrootcert", "sslcert", "sslkey")
             if name in options}  # fmt: skip
    for name, path in files.items():
        if name == "sslrootcert" and path == "system":
            continue
        # Path.is_file() would raise what it does not expect, such as a name that is too long.
        if not os.path.isfile(path):  # noqa: PTH113
            raise _wrong(f"names a file in {name} that is not there")
    return {"sslmode": mode, **files}


def _refuse_contradictions(address: DatabaseAddress) -> None:
    if address.is_socket:
        if address.sslmode in _ENCRYPTED_MODES:
            raise _wrong(f"asks for sslmode={address.sslmode} on a socket, which has no TLS")
        socket = f"{address.host}/.s.PGSQL.{address.port}"
        if len(socket.encode()) > socket_path_bytes_max:
            raise _wrong(f"names a socket whose path is over {socket_path_bytes_max} bytes long")
    if address.sslmode not in _ENCRYPTED_MODES and address.sslrootcert is not None:
        raise _wrong(
            f"gives an sslrootcert that sslmode={address.sslmode} would not insist on;"
            " write sslmode=verify-full"
        )
