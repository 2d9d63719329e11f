"""Settings: where values come from, what each kind accepts, one clear line for what is wrong."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.cluster import Member, node_id_chars_max, port_max
from services.core.errors import FatalError
from services.dhtnode.settings import NodeSettings
from services.runtime import setting_values as values
from services.runtime.env_file import file_bytes_max, generate_env, write_env
from services.runtime.settings import (
    DatabaseSettings,
    ServiceSettings,
    describe,
    load,
    setting,
)

good_secret = "Vb8rJ2mQx0LkTz5WnYc7PdSg1HfUe4Ao"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopSettings(DatabaseSettings):
    service: ClassVar[str] = "shop"
    port: int = setting("SHOP_PORT", values.port, default="8080", help="HTTP port")
    zone: str | None = setting("ZONE", values.identifier, help="Zone")
    ttl_ms: int = setting(
        "SHOP_TTL", values.duration_ms(1000, 86_400_000), default="1h", help="Lifetime"
    )
    proxies: tuple[values.Network, ...] = setting(
        "TRUSTED_PROXIES", values.networks, default="127.0.0.0/8", help="Proxies"
    )

    def check(self) -> None:
        if self.zone == "nowhere":
            raise FatalError("ZONE is 'nowhere', which contradicts having a port")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The least that a service starts with."""
    return {
        "DATA_DIR": str(tmp_path),
        "CLUSTER_SECRET": good_secret,
        "DATABASE_URL": "postgres://shop:hunter2@db/shop",
    }


def refusal(environ: dict[str, str], cls: type[Any] = ShopSettings) -> str:
    """The one line that loading these variables ends with."""
    with pytest.raises(FatalError) as caught:
        load(cls, environ)
    line = str(caught.value)
    assert "\n" not in line
    return line


def refused(parse: Callable[[str], object], text: str) -> str | None:
    """What the parser says against the text; None when it takes it. Anything else propagates."""
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return None


def test_unset_and_empty_variables_take_their_defaults(environ: dict[str, str]) -> None:
    loaded = load(ShopSettings, {**environ, "SHOP_PORT": "", "ZONE": ""})
    assert (loaded.port, loaded.link_port, loaded.zone) == (8080, 9080, None)
    assert loaded.ttl_ms == 3_600_000
    assert loaded.access_log is False
    assert loaded.disk_reserve_bytes == 2**30
    assert loaded.advertised_host == "127.0.0.1"


def test_settings_are_frozen_and_show_no_secret(environ: dict[str, str]) -> None:
    loaded = load(ShopSettings, environ)
    with pytest.raises(AttributeError):
        loaded.port = 1  # type: ignore[misc]
    for shown in (repr(loaded), str(loaded), f"{loaded}"):
        assert good_secret not in shown
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("SHOP_PORT", "http", "from 1 to 64535"),
        ("SHOP_PORT", "0", "from 1 to 64535"),
        ("SHOP_PORT", "65536", "from 1 to 64535"),
        ("SHOP_PORT", "8_080", "from 1 to 64535"),
        ("SHOP_PORT", "\uff18\uff10\uff18\uff10", "from 1 to 64535"),
        ("SHOP_PORT", "9" * 5000, "from 1 to 64535"),
        ("ACCESS_LOG", "maybe", "true or false"),
        ("DEBUG_ENABLED", "on", "true or false"),
        ("LOG_FORMAT", "xml", "console or json"),
        ("SHOP_TTL", "soon", "90s, 1h30m or 7d"),
        ("SHOP_TTL", "25h", "from 1s to 1d"),
        ("MEMORY_MAX", "lots", "512MiB or 2GB"),
        ("MEMORY_MAX", "12XB", "512MiB or 2GB"),
        ("MEMORY_MAX", "1MiB", "from 64MiB to 1EiB"),
        ("DISK_RESERVE", "2EiB", "from 0 to 1EiB"),
        ("DISK_RESERVE", "-1", "512MiB or 2GB"),
        ("BIND_HOST", "http://host", "without scheme"),
        ("BIND_HOST", "host:80", "without scheme"),
        ("BIND_HOST", "10.0.0.256", "without scheme"),
        ("ZONE", "../up", "letters, digits"),
        ("ZONE", "a" * 65, "1 to 64"),
        ("SHOP_PORT", "64536", "from 1 to 64535"),
        ("DATA_DIR", "~nosuchuser/x", "no user with a home directory"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "no bits after the prefix"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,", "separated by commas"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_is_accepted(
    environ: dict[str, str], name: str, text: str, accepted: str
) -> None:
    line = refusal({**environ, name: text})
    assert line.startswith(f"{name} is ")
    assert accepted in line
    assert text[:40] in line
    assert len(line) < 400


@pytest.mark.parametrize(
    "weak",
    [
        "short",
        "a" * 64,
        "changeme" * 8,
        "changeme-changeme-changeme-secret",
        "my-super-secret-jwt-key-password-please",
        "abcabcabcabcabcabcabcabcabcabcabcabc",
        "0123456789abcdef" * 2,
        "password" + "1234567890" * 3,
        good_secret[:-1],
        good_secret + "\x07",
    ],
)
def test_a_weak_secret_is_refused_and_not_repeated_in_the_error(
    environ: dict[str, str], weak: str
) -> None:
    line = refusal({**environ, "CLUSTER_SECRET": weak})
    assert line.startswith("CLUSTER_SECRET is not acceptable: ")
    assert "ydht init" in line
    assert weak not in line


@settings(max_examples=200)
@given(st.text(alphabet=string.printable, min_size=1, max_size=80))
def test_a_secret_is_accepted_as_it_is_or_refused_without_being_shown(text: str) -> None:
    said = refused(values.secret, text)
    assert said is None or len(text) < 8 or text not in said


def test_every_generated_secret_is_strong_enough() -> None:
    for _ in range(300):
        for name, value in generate_env().items():
            assert values.secret(value) == value, name


def test_a_missing_secret_names_the_command_that_makes_it(environ: dict[str, str]) -> None:
    del environ["CLUSTER_SECRET"]
    assert "CLUSTER_SECRET is not set" in refusal(environ)
    assert "ydht init" in refusal(environ)


def test_a_missing_secret_names_the_file_that_was_looked_for(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """Or whoever stands in the wrong folder makes a second set of secrets."""
    del environ["CLUSTER_SECRET"]
    environ["DATA_DIR"] = str(tmp_path / "data")
    assert f"there is no {tmp_path}/data: name the data directory" in refusal(environ)
    (tmp_path / "data").mkdir()
    assert f"there is no {tmp_path}/data/ydht.env: name the data directory" in refusal(environ)
    file = tmp_path / "data" / "ydht.env"
    file.touch(mode=0o600)
    told = refusal(environ)
    assert f"nor is it in {file}: add it there as it was" in told
    assert "ydht init" not in told, "which would change nothing"


def test_a_secret_may_stand_in_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(good_secret + "\n")
    del environ["CLUSTER_SECRET"]
    environ["CLUSTER_SECRET_FILE"] = str(file)
    assert load(ShopSettings, environ).cluster_secret == good_secret


def test_a_variable_and_its_file_form_contradict_each_other(
    environ: dict[str, str], tmp_path: Path
) -> None:
    environ["DATABASE_URL_FILE"] = str(tmp_path / "url")
    assert refusal(environ) == "both DATABASE_URL and DATABASE_URL_FILE are set: keep one"


def test_a_file_form_that_cannot_be_read_says_which_and_why(
    environ: dict[str, str], tmp_path: Path
) -> None:
    del environ["CLUSTER_SECRET"]
    missing = {**environ, "CLUSTER_SECRET_FILE": str(tmp_path / "none")}
    assert "CLUSTER_SECRET_FILE names" in refusal(missing)
    assert "No such file" in refusal(missing)
    directory = {**environ, "CLUSTER_SECRET_FILE": str(tmp_path)}
    assert "cannot be read" in refusal(directory)
    contents = {"empty": b"\n", "not UTF-8": b"\xff\xfe", "larger": b"x" * (file_bytes_max + 1)}
    for expected, content in contents.items():
        (tmp_path / "odd").write_bytes(content)
        assert expected in refusal({**environ, "CLUSTER_SECRET_FILE": str(tmp_path / "odd")})


def test_only_secrets_have_a_file_form(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "port").write_text("9999")
    assert load(ShopSettings, {**environ, "SHOP_PORT_FILE": str(tmp_path / "port")}).port == 8080


def test_the_env_file_fills_in_what_the_environment_leaves_unset(tmp_path: Path) -> None:
    written = {**generate_env(), "SHOP_PORT": "8100", "ZONE": "east"}
    assert write_env(tmp_path / "ydht.env", written)
    loaded = load(ShopSettings, {"DATA_DIR": str(tmp_path), "ZONE": "west"})
    assert loaded.cluster_secret == written["CLUSTER_SECRET"]
    assert (loaded.port, loaded.zone) == (8100, "west")


def test_the_environment_outranks_the_env_file_even_by_its_file_form(tmp_path: Path) -> None:
    write_env(tmp_path / "ydht.env", generate_env())
    (tmp_path / "mine").write_text(good_secret)
    loaded = load(
        ShopSettings,
        {"DATA_DIR": str(tmp_path), "CLUSTER_SECRET_FILE": str(tmp_path / "mine")},
    )
    assert loaded.cluster_secret == good_secret


def test_a_wrong_value_in_the_env_file_names_the_file(tmp_path: Path) -> None:
    write_env(tmp_path / "ydht.env", {**generate_env(), "SHOP_PORT": "x"})
    line = refusal({"DATA_DIR": str(tmp_path)})
    assert line.startswith(f"SHOP_PORT (in {tmp_path}/ydht.env) is 'x': ")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o666])
def test_an_env_file_that_others_may_touch_is_refused(
    environ: dict[str, str], tmp_path: Path, mode: int
) -> None:
    write_env(tmp_path / "ydht.env", generate_env())
    (tmp_path / "ydht.env").chmod(mode)
    line = refusal(environ)
    assert f"{mode:04o}" in line
    assert "chmod 600" in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("export ZONE=east", "line 1 is not NAME=value"),
        ("# fine\n\nZONE east", "line 3 is not NAME=value"),
        ("ZONE='east'", "line 1: ZONE is quoted"),
        ("ZONE=east\nZONE=west", "line 2: ZONE is set a second time"),
        ("DATA_DIR=/elsewhere", "DATA_DIR says where this file is"),
        ("ZONE=" + "x" * file_bytes_max, "larger than"),
    ],
)
def test_an_env_file_that_can_be_misread_is_refused(
    environ: dict[str, str], tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "ydht.env").write_text(content)
    (tmp_path / "ydht.env").chmod(0o600)
    line = refusal(environ)
    assert expected in line
    assert "east" not in line


def test_tls_settings_come_all_together_and_must_exist(
    environ: dict[str, str], tmp_path: Path
) -> None:
    environ["LINK_TLS_CERT"] = str(tmp_path / "cert.pem")
    assert "LINK_TLS_CERT is set without LINK_TLS_KEY" in refusal(environ)
    environ["LINK_TLS_KEY"] = environ["LINK_TLS_CA"] = environ["LINK_TLS_CERT"]
    assert "not a readable file" in refusal(environ)
    assert "not a readable file" in refusal({**environ, "LINK_TLS_CERT": "c" * 5000})
    (tmp_path / "cert.pem").touch()
    assert load(ShopSettings, environ).link_tls_ca == tmp_path / "cert.pem"


def test_the_checks_of_every_class_run(environ: dict[str, str]) -> None:
    assert "ADVERTISE_HOST is ::" in refusal({**environ, "ADVERTISE_HOST": "::"})
    assert "contradicts having a port" in refusal({**environ, "ZONE": "nowhere"})
    del environ["DATABASE_URL"]
    assert "neither DATABASE_URL nor EMBEDDED_DB_PASSWORD" in refusal(environ)


def test_a_database_url_is_never_shown(environ: dict[str, str]) -> None:
    line = refusal({**environ, "DATABASE_URL": "mysql://root:hunter2@db/shop"})
    assert line.startswith("DATABASE_URL is not acceptable: it must start with postgresql://")
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://db/shop", "names no user"),
        ("postgres://joe:hunter2@/shop", "names no host"),
        ("postgres://joe:hunter2@db:port/shop", "a port that is not a number"),
        ("postgres://joe:hunter2#@db/shop", "holds a '#'"),
        ("postgres://joe:hunter2@db/shop?sslmode=nope", "an sslmode other than"),
        ("postgres://joe:hunter2@db/shop?sslrootcert=" + "c" * 5000, "that is not there"),
        ("postgres://joe:hunter2\n@db/shop", "a line break"),
    ],
)
def test_a_database_url_that_no_driver_could_use_stops_the_start(
    environ: dict[str, str], url: str, expected: str
) -> None:
    line = refusal({**environ, "DATABASE_URL": url})
    assert line.startswith("DATABASE_URL is not acceptable: it ")
    assert expected in line
    assert "hunter2" not in line


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_every_scheme_that_is_read_is_accepted(environ: dict[str, str], scheme: str) -> None:
    url = f"{scheme}://joe:hunter2@db/shop"
    assert load(ShopSettings, {**environ, "DATABASE_URL": url}).database_url == url


# What lint takes for something to listen on is refused here.
@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::", "0:0:0:0:0:0:0:0"])  # noqa: S104
def test_an_address_to_listen_on_is_not_advertised_when_nobody_can_connect_to_it(
    environ: dict[str, str], everywhere: str
) -> None:
    loaded = load(ShopSettings, {**environ, "BIND_HOST": everywhere})
    with pytest.raises(FatalError, match="ADVERTISE_HOST is not set") as caught:
        _ = loaded.advertised_host
    assert everywhere in str(caught.value)
    given_too = {**environ, "BIND_HOST": everywhere, "ADVERTISE_HOST": "node-1.internal"}
    assert load(ShopSettings, given_too).advertised_host == "node-1.internal"
    assert "nobody can connect" in refusal({**environ, "ADVERTISE_HOST": everywhere})


def test_a_name_that_settings_take_is_one_that_the_cluster_map_takes() -> None:
    longest = "n" * node_id_chars_max
    assert values.identifier(longest) == longest
    assert Member(longest, "0" * 32, "host", 8082, 9082).node_id == longest
    for name in (longest + "n", "", ".hidden", "-n", "a/b", "n\n"):
        assert refused(values.identifier, name) is not None
        with pytest.raises(ValueError, match="node id"):
            Member(name, "0" * 32, "host", 8082, 9082)


def test_the_last_http_port_leaves_room_for_its_links(environ: dict[str, str]) -> None:
    last = load(ShopSettings, {**environ, "SHOP_PORT": "64535"})
    assert last.link_port == port_max


@pytest.mark.parametrize(
    "text",
    [
        "host:8080",
        "ftp://host",
        "http://",
        "http://a b",
        "http://u:p@host",
        "http://host?x=1",
        "http://host#x",
        "http://host:0",
        "http://host:99999",
        "http://[::1",
        "http://-x",
        "javascript:alert(1)",
    ],
)
def test_what_is_no_base_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="http://host:8080"):
        values.url(text)


def test_urls_lose_their_trailing_slash_and_keep_their_order() -> None:
    assert values.url("http://[::1]:80/base/") == "http://[::1]:80/base"
    assert values.url_list("http://b:1/, http://a:1") == ("http://b:1", "http://a:1")
    with pytest.raises(ValueError, match="once"):
        values.url_list("http://a, http://a/")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1KiB", 1024),
        ("1kB", 1000),
        ("2 GB", 2 * 10**9),
        ("3tib", 3 << 40),
    ],
)
def test_sizes_have_decimal_and_binary_units(text: str, expected: int) -> None:
    assert values.size_bytes()(text) == expected


@given(st.integers(0, 10**18 - 1) | st.integers(0, 2**20).map(lambda number: number << 40))
def test_a_size_is_shown_as_a_text_that_is_read_as_the_same(size_bytes: int) -> None:
    assert values.size_bytes()(values.format_size(size_bytes)) == size_bytes


def test_the_range_of_a_segment_is_told_in_units_for_people(environ: dict[str, str]) -> None:
    with pytest.raises(FatalError, match=r"LOG_SEGMENT is '5MiB': use a size from 16MiB to 1GiB$"):
        load(NodeSettings, {**environ, "LOG_SEGMENT": "5MiB"})


@settings(max_examples=300)
@given(st.text(max_size=40))
def test_no_text_makes_a_parser_fail_otherwise_than_by_refusing(text: str) -> None:
    parsers = [
        values.integer(0, 10),
        values.port,
        values.boolean,
        values.one_of("a", "b"),
        values.duration_ms(0, 10**12),
        values.size_bytes(),
        values.text(),
        values.host,
        values.url,
        values.url_list,
        values.database_url,
        values.identifier,
        values.networks,
        values.secret,
    ]
    for parse in parsers:
        assert refused(parse, text) != ""


def test_every_variable_is_described_for_the_documentation() -> None:
    rows = {row.name: row for row in describe(ShopSettings)}
    assert rows["SHOP_PORT"].default == "8080"
    assert rows["CLUSTER_SECRET"].default == "required"
    assert rows["MEMORY_MAX"].default == ""
    assert all(row.help for row in rows.values())


def test_a_field_that_names_no_variable_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="port does not say"):
        describe(ServiceSettings)
