"""Any DATABASE_URL, read once for asyncpg and for alembic."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FatalError
from services.runtime.database_url import DatabaseAddress, parse_database_url

# Everything that fits a URL once it is percent-encoded; NUL and lone surrogates cannot.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
names = texts.filter(lambda name: 0 < len(name.encode()) <= 63)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "POSTGRES"])
def test_every_scheme_in_use_means_the_same(scheme: str) -> None:
    address = parse_database_url(f"{scheme}://ada:pw@db.example:6543/shop")
    assert (address.host, address.port) == ("db.example", 6543)
    assert (address.user, address.password, address.database) == ("ada", "pw", "shop")


def test_what_a_url_leaves_out_has_the_defaults_of_libpq() -> None:
    address = parse_database_url("postgresql://ada@db")
    assert (address.port, address.database, address.sslmode) == (5432, "ada", "prefer")
    assert address.password == ""


def test_asyncpg_is_told_everything_so_that_no_pg_variable_is_read() -> None:
    arguments = parse_database_url("postgres://ada@db/shop?application_name=x").asyncpg()
    assert arguments["password"] == ""
    assert arguments["direct_tls"] is False
    assert arguments["target_session_attrs"] == "any"
    assert arguments["server_settings"] == {"application_name": "x"}


def test_sqlalchemy_gets_the_same_arguments_and_a_url_without_secrets() -> None:
    address = parse_database_url("postgres://ada:s3cret@db:1234/shop")
    url, arguments = address.sqlalchemy()
    assert url.drivername == "postgresql+asyncpg"
    assert "s3cret" not in url.render_as_string(hide_password=False)
    assert arguments == address.asyncpg()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:pw@/shop?host=/run/postgresql",
        "postgresql://ada:pw@%2Frun%2Fpostgresql/shop",
        "postgresql://ada:pw@/shop?host=%2Frun%2Fpostgresql&port=5432",
    ],
)
def test_a_directory_as_host_is_a_socket(url: str) -> None:
    address = parse_database_url(url)
    assert address.is_socket
    assert address.asyncpg()["host"] == "/run/postgresql"
    assert address.asyncpg()["ssl"] is False


def test_an_ipv6_address_stands_in_brackets() -> None:
    address = parse_database_url("postgres://ada@[::1]:7777/shop")
    assert (address.host, address.port) == ("::1", 7777)
    assert parse_database_url("postgres://ada@[fe80::2]").port == 5432
    assert parse_database_url(address.url()) == address


def test_require_encrypts_without_verifying_as_it_does_in_libpq() -> None:
    context = parse_database_url("postgres://ada@db/shop?sslmode=require").asyncpg()["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize(("mode", "checks_name"), [("verify-ca", False), ("verify-full", True)])
def test_verify_modes_verify_against_the_systems_authorities(mode: str, checks_name: bool) -> None:
    context = parse_database_url(f"postgres://ada@db/shop?sslmode={mode}").asyncpg()["ssl"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname is checks_name


@pytest.mark.parametrize(("mode", "given"), [("disable", False), ("prefer", "prefer")])
def test_modes_without_a_promise_are_asyncpgs_own(mode: str, given: object) -> None:
    assert parse_database_url(f"postgres://a@db?sslmode={mode}").asyncpg()["ssl"] == given
    assert parse_database_url(f"postgres://a@db?ssl={mode}").asyncpg()["ssl"] == given


def test_a_root_certificate_that_is_not_one_is_named_as_the_cause(tmp_path: Path) -> None:
    root = tmp_path / "root.crt"
    root.write_text("not a certificate")
    address = parse_database_url(f"postgres://a@db?sslmode=verify-full&sslrootcert={root}")
    with pytest.raises(FatalError, match="certificate or key named by sslrootcert"):
        address.asyncpg()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "must start with postgresql://"),
        ("mysql://ada:hunter2@db", "must start with postgresql://"),
        ("postgres:/ada:hunter2@db", "must start with"),
        ("postgres://db/shop", "names no user"),
        ("postgres://:hunter2@db/shop", "names no user"),
        ("postgres://ada:hunter2@/shop", "names no host"),
        ("postgres://ada:hunter2@db:5432x/shop", "port that is not a number"),
        ("postgres://ada:hunter2@db:0/shop", "port that is not a number"),
        ("postgres://ada:hunter2@db:65536/shop", "port that is not a number"),
        ("postgres://ada:hunter2@db:٣٣/shop", "port that is not a number"),
        ("postgres://ada:hunter2@a,b/shop", "several hosts"),
        ("postgres://ada:hunter2@[::1/shop", "IPv6"),
        ("postgres://ada:hunter2@db/shop?host=/run", "host twice"),
        ("postgres://ada:hunter2@db:1/shop?port=2", "port twice"),
        ("postgres://ada:hunter2@db?sslmode=maybe", "sslmode other than disable, allow"),
        ("postgres://ada:hunter2@db?sslmode=", "no value"),
        ("postgres://ada:hunter2@db?sslmode=require&sslmode=disable", "twice"),
        ("postgres://ada:hunter2@db?ssl=require&sslmode=disable", "twice"),
        ("postgres://ada:hunter2@db?channel_binding=require", "option channel_binding"),
        ("postgres://ada:hunter2@db?hunter2=1", "an option that is not supported"),
        ("postgres://ada:hunter2@db?sslrootcert=/nowhere&sslmode=verify-ca", "not there"),
        ("postgres://ada:hunter2@db?sslkey=/etc/hostname", "sslkey without the sslcert"),
        ("postgres://ada:hunter2@db?sslrootcert=system", "would not insist"),
        ("postgres://ada:hunter2@/shop?host=/run&sslmode=require", "no TLS"),
        ("postgres://ada:hunter2@/shop?host=/" + "x" * 100, "over 107 bytes"),
        ("postgres://ada:hunter2@db?connect_timeout=soon", "connect_timeout"),
        ("postgres://ada:hunter2@db?connect_timeout=nan", "connect_timeout"),
        ("postgres://ada:hunter2%@db/shop", "%25"),
        ("postgres://ada:hunter2%zz@db/shop", "%25"),
        ("postgres://ada:hunter2%ff@db/shop", "not UTF-8"),
        ("postgres://ada:hunter2%00@db/shop", "NUL"),
        ("postgres://ada:hunter2#1@db/shop", "%23"),
        ("postgres://ada:hunter2/x@db/shop", "names no user"),
        ("postgres://ada:hunter2?x@db/shop", "names no user"),
        ("postgres://ada:hunter2 @db/shop", "space"),
        ("postgres://ada:hunter2@db/shop\n", "line break"),
        ("postgres://ada:hunter2@db/" + "x" * 64, "63 bytes"),
    ],
)
def test_a_wrong_url_is_refused_by_naming_the_part_and_never_the_password(
    url: str, complaint: str
) -> None:
    with pytest.raises(FatalError) as refusal:
        parse_database_url(url)
    assert complaint in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(user=names, password=texts, database=names)
def test_any_user_password_and_database_survive_the_url(
    user: str, password: str, database: str
) -> None:
    parts = [quote(part, safe="") for part in (user, password, database)]
    address = parse_database_url("postgres://{}:{}@db/{}".format(*parts))
    assert (address.user, address.password, address.database) == (user, password, database)
    assert parse_database_url(address.url()) == address


@given(texts)
def test_any_text_is_either_an_address_or_a_plain_refusal(text: str) -> None:
    for url in (text, f"postgres://{text}", f"postgres://ada@db/{text}", f"postgres://a@db?{text}"):
        try:
            address = parse_database_url(url)
        except FatalError:
            continue
        assert address.user
        assert address.host


def test_the_password_is_in_no_repr() -> None:
    address = DatabaseAddress(host="db", user="ada", database="shop", password="hunter2")
    assert "hunter2" not in repr(address)
    assert "hunter2" not in str(address)
