"""Logs: one line per event, the same form for our own code and for every library.

`configure` is called once, by the process that owns stdout. A line carries the service and,
while a request is being answered, its id. Nothing on a hot path logs; counters do that work.

Not in any line: values of members whose names speak of secrets, local variables of a traceback,
and anything shaped like one of our API keys, a JWT, the credential of an Authorization header, or
the user and password of a URL, wherever it stands. When in doubt a piece too much is redacted.
Lines are bounded, because parts of them come from clients.

All of this is done by a logger itself, whether or not `configure` has been called: without it
warnings go to stderr in a plainer form, and nothing else does.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# The id of the request that the current task answers; "-" outside of any.
no_request_id = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=no_request_id)

# A traceback of ordinary depth fits; a client cannot fill the disk with one request.
line_chars_max = 16 * 1024
# What is nested further is left out: as text it would escape the look at its names.
value_depth_max = 4
value_items_max = 32

redacted = "[redacted]"
_secret_name = re.compile(
    r"passw|secret|api[-_]?key|authorization|cookie|pepper|signature|token|credential",
    re.IGNORECASE,
)
# None of these can be made to look at the same text again and again: clients choose it.
_key_or_jwt = re.compile(r"ydht_[0-9A-Za-z]{43,}|(?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]+)?")
# A word of lower-case letters alone is prose: "basic authentication".
_credential = re.compile(r"(?i:\b(bearer|basic))\s+(?=[a-z]*[^a-z\s])[^\s\"',;]+")
_after_scheme = re.compile(r"(?<=://)\S+")
_control = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Of a traceback the newlines are part of the form.
_control_but_newline = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def configure(
    service: str, log_format: str, stream: TextIO | None = None, *, level: int = logging.INFO
) -> None:
    """Send every log of this process to the stream (stdout by default), as console text or JSON."""
    stream = stream or sys.stdout
    finish: list[Processor] = [
        _drop_meta,
        _add_service(service),
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), timestamp_key="time"),
    ]
    handler = _LineHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_drop_meta, *_make_ready()], processors=finish
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    # These libraries narrate; what a client sends wrong is counted, not logged.
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("asyncio", "asyncpg", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose calls are an event and members: log.info("listening", port=8080)."""
    bound: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Its own, not those of structlog's configuration: by default that prints tracebacks
        # with every local variable in them.
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *_make_ready(),
            _hand_over,
        ],
    )
    return bound


def _hand_over(
    to: WrappedLogger, method: str, event: EventDict
) -> tuple[tuple[EventDict], dict[str, Any]]:
    """To the standard library, which is not to add a traceback of its own: ours is redacted."""
    args, kwargs = structlog.stdlib.ProcessorFormatter.wrap_for_formatter(to, method, event)
    return args, {**kwargs, "exc_info": None}


def _make_ready() -> list[Processor]:
    """What is done to every event, of our code and of libraries, before it becomes a line."""
    return [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_request_id,
        structlog.processors.format_exc_info,
        tidy,
    ]


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines; a reader that went away ends the logs, never the service."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name.
        error = sys.exc_info()[1]
        if isinstance(error, BrokenPipeError):
            self._write_to_nowhere()
        elif not isinstance(error, OSError):
            super().handleError(record)

    def _write_to_nowhere(self) -> None:
        """Lines that are buffered would fail once more at exit, and spoil the exit code."""
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


def _drop_meta(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Take out what structlog's formatter hands from one of its steps to the next."""
    event.pop("_record", None)
    event.pop("_from_structlog", None)
    return event


def _add_service(service: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def _add_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    current = request_id.get()
    if current != no_request_id:
        event["request_id"] = current
    return event


def tidy(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Redact secrets, escape control characters, and cut what is too long.

    Members are given what the earlier ones left of the line; the middle of a long one goes, for
    the end of a traceback says what happened.
    """
    left = line_chars_max
    tidied: MutableMapping[str, Any] = {}
    for name, value in event.items():
        control = _control_but_newline if name == "exception" else _control
        tidied[name] = clean = _tidy_value(name, value, control, max(left, 16))
        left -= len(name) + len(str(clean))
    return tidied


def _tidy_value(
    name: str, value: Any, control: re.Pattern[str], chars_max: int, depth: int = 1
) -> Any:
    if _secret_name.search(name):
        return redacted
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth > value_depth_max:
        return "[...]"
    if isinstance(value, Mapping):
        share = chars_max // max(1, min(len(value), value_items_max))
        return {
            str(key): _tidy_value(str(key), item, control, share, depth + 1)
            for key, item in list(value.items())[:value_items_max]
        }
    if isinstance(value, list | tuple | set | frozenset):
        share = chars_max // max(1, min(len(value), value_items_max))
        return [
            _tidy_value("", item, control, share, depth + 1)
            for item in list(value)[:value_items_max]
        ]
    return _tidy_text(str(value), control, chars_max)


def _tidy_text(text: str, control: re.Pattern[str], chars_max: int) -> str:
    # Redacting first: a cut must not split a key into two harmless-looking halves.
    text = redact(text)
    text = control.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    if len(text) > chars_max:
        half = max(chars_max // 2 - 8, 1)
        text = f"{text[:half]} [...] {text[-half:]}"
    return text


def redact(text: str) -> str:
    """The text without what is shaped like a secret."""
    text = _key_or_jwt.sub(redacted, text)
    text = _credential.sub(rf"\1 {redacted}", text)
    return _after_scheme.sub(_redact_login, text)


def _redact_login(match: re.Match[str]) -> str:
    """`user:password@host/...` without the login. Where that ends is anybody's guess.

    Passwords that nobody has percent-encoded hold any of `@`, `/` and `:`. So it is all that
    stands before the last `@`, unless that is a plain path.
    """
    login, at, rest = match[0].rpartition("@")
    if not at or ("/" in login and ":" not in login):
        return match[0]
    return f"{redacted}@{rest}"
