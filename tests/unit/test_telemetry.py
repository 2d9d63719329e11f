"""Log lines: one form for every source, with the request id, without secrets, of bounded length."""

from __future__ import annotations

import errno
import io
import json
import logging
import secrets
import string
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime import telemetry

api_key = "ydht_" + "".join(secrets.choice(string.ascii_letters) for _ in range(49))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def json_lines() -> tuple[io.StringIO, Any]:
    stream = io.StringIO()
    telemetry.configure("shop", "json", stream)
    return stream, telemetry.logger("shop.till")


def only_line(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    event: dict[str, Any] = json.loads(line)
    return event


def test_a_line_has_service_time_level_and_members() -> None:
    stream, log = json_lines()
    log.info("opened", till=3, drawers=["left", "right"])
    line = only_line(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "opened",
        "service": "shop",
        "level": "info",
        "till": 3,
        "drawers": ["left", "right"],
    }


def test_the_request_id_is_in_every_line_of_the_request() -> None:
    stream, log = json_lines()
    token = telemetry.request_id.set("abc")
    try:
        log.info("inside")
        logging.getLogger("asyncpg").warning("a library, %s", "inside")
    finally:
        telemetry.request_id.reset(token)
    log.info("outside")
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert (first["request_id"], second["request_id"]) == ("abc", "abc")
    assert second["event"] == "a library, inside"
    assert second["service"] == "shop"
    assert "request_id" not in third


def test_console_lines_are_single_lines_whatever_a_client_sends() -> None:
    stream = io.StringIO()
    telemetry.configure("shop", "console", stream)
    telemetry.logger("x").info("got\nlevel=fake \x1b[31mred", path="/a\r\nb\u2028c\x00")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_secrets_do_not_reach_a_line() -> None:
    stream, log = json_lines()
    try:
        int(f"{api_key} for postgres://joe:hunter2@db/x")
    except ValueError:
        log.exception(
            f"failed with {api_key}",
            password="hunter2",
            Authorization=f"Bearer {api_key}",
            nested={"api_key": "hunter2", "list": [{"jwt_secret": "hunter2"}, api_key]},
            deep={"a": {"b": {"c": {"d": api_key}}}},
        )
    logging.getLogger("asyncpg").warning("using %s", "postgres://joe:hunter2@db/x")
    assert api_key not in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert "[redacted]" in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "postgres://joe:hunter2@db/shop",
        "postgres://joe:hun@hunter2@db/shop",
        "postgres://joe:hunter2/x@db/shop",
        "postgres://joe:1/hunter2@db/shop",
        "postgres://joe:?#hunter2@db/shop",
        "https://hunter2@db/repository",
        "cannot reach (postgres://joe:hunter2@db/shop) or http://ok/",
        "Authorization: Bearer hunter2.x",
        "authorization: BEARER  hunter2",
        "headers={'authorization': 'Basic am9lOmh1bnRlcjI='}",
        "sent eyJhbGciOiJIUzI1NiJ9.eyJodW50ZXIyIjoxfQ.c2lnbmF0dXJl",
        "token=eyJhbGciOiJIUzI1NiJ9.eyJodW50ZXIyIjoxfQ",
    ],
)
def test_what_is_shaped_like_a_secret_is_redacted_wherever_it_stands(text: str) -> None:
    redacted = telemetry.redact(text)
    assert telemetry.redacted in redacted
    for secret in ("hunter2", "am9lO", "eyJ", "hun@"):
        assert secret not in redacted
    assert redacted.endswith(text[-5:]) or "@" not in text


@pytest.mark.parametrize(
    "text",
    [
        "http://node-1:8082/v1/kv/a",
        "http://node-1/people/joe@example.com",
        "mail joe@example.com",
        "12:30 @noon",
        "basic authentication is bearer of bad news",
        "ydht_short",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert telemetry.redact(text) == text


@pytest.mark.parametrize(
    "piece", ["://", "://a:b@", "eyJ-", "eyJ.", "bearer ", "bearer a", "ydht_"]
)
def test_redacting_a_hostile_text_takes_no_longer_than_reading_it(piece: str) -> None:
    # Looking at each piece again for every other would take hours.
    assert telemetry.redact(piece * 200_000)


def test_a_logger_that_nobody_configured_shows_no_secrets_and_no_local_variables() -> None:
    script = (
        "from services.runtime import telemetry\n"
        "log = telemetry.logger('shop.till')\n"
        "def fail():\n"
        "    drawer = 'hunter' + '2'\n"
        "    raise ValueError(f'no change at postgres://joe:{drawer}@db/x')\n"
        "try:\n"
        "    fail()\n"
        "except ValueError:\n"
        "    log.exception('jammed', url='postgres://joe:hunter2@db/x', password='hunter2')\n"
    )
    result = subprocess.run(  # noqa: S603  The script above.
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout == ""
    assert "jammed" in result.stderr
    assert "ValueError: no change" in result.stderr
    assert "hunter2" not in result.stderr


def test_a_librarys_traceback_is_tidied_like_ours() -> None:
    stream, _ = json_lines()
    try:
        int("postgres://joe:hunter2@db/x")
    except ValueError:
        logging.getLogger("asyncpg").exception("lost")
    line = only_line(stream)
    assert line.keys() == {"event", "level", "time", "service", "exception"}
    assert "Traceback" in line["exception"]
    assert "hunter2" not in line["exception"]


def test_a_key_at_the_cut_is_not_left_in_part() -> None:
    for filler in range(telemetry.line_chars_max - 120, telemetry.line_chars_max + 10, 7):
        stream, log = json_lines()
        log.info("x" * filler + api_key)
        assert api_key[:20] not in stream.getvalue()


def test_long_lines_are_cut_and_stay_json() -> None:
    stream, log = json_lines()
    log.info("e" * 100_000, many={str(n): "v" * 1000 for n in range(1000)}, more="m" * 100_000)
    assert len(stream.getvalue()) < 2 * telemetry.line_chars_max
    assert "[...]" in only_line(stream)["event"]


def test_the_end_of_a_long_traceback_survives() -> None:
    stream, log = json_lines()

    def deeper(depth: int) -> None:
        if depth == 0:
            raise RuntimeError("the reason" + "x" * 100)
        # Two alternating lines, which a traceback does not fold into one.
        if depth % 2:
            deeper(depth - 1)
        else:
            deeper(depth - 1)

    try:
        deeper(500)
    except RuntimeError:
        log.exception("failed")
    assert len(stream.getvalue()) < 2 * telemetry.line_chars_max
    shown = only_line(stream)["exception"]
    assert shown.startswith("Traceback")
    assert "[...]" in shown
    assert shown.endswith("the reason" + "x" * 100)


def test_libraries_that_narrate_are_quiet() -> None:
    stream, _ = json_lines()
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("httpx").info("HTTP Request: GET http://x")
    logging.getLogger("asyncio").debug("Using selector")
    assert stream.getvalue() == ""


def test_lines_that_cannot_be_written_do_not_disturb_the_service(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    telemetry.configure("shop", "json", Full())
    telemetry.logger("x").info("nobody hears this")
    assert capsys.readouterr().err == ""


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.text(max_size=10),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.integers(), inner),
            max_leaves=8,
        ),
    )
)
def test_any_members_make_a_line(members: dict[str, Any]) -> None:
    tidied = telemetry.tidy(None, "info", {**members, "event": "x"})
    assert json.dumps(tidied)
