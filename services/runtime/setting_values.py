"""What the text of a setting may be: one parser per kind of value.

A parser takes text and returns the value, or raises ValueError whose text completes the sentence
"NAME is 'text': ..." by saying what is accepted. It never repeats the text, which may be a secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from services.core.cluster import node_id_chars_max, node_id_pattern, port_max, zone_pattern
from services.core.duration import format_duration, parse_duration
from services.core.errors import FatalError
from services.runtime.database_url import parse_database_url

T = TypeVar("T")
Parser = Callable[[str], T]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# HMAC-SHA256 and HS256 want 256 bits; 32 characters of base64 or hex carry at least 128.
secret_chars_min = 32
# 32 random hex digits show about 14 different ones; fewer than 8 is somebody's keyboard.
secret_distinct_chars_min = 8
# What is left of a secret once well-known words are taken out must still be hard to guess.
secret_chars_left_min = 16
_weak_words = re.compile(
    r"change[-_ ]?(?:me|it|this)|secret|password|passwort|default|example|admin|insecure"
    r"|development|production|testing|test|your|key|jwt|token|qwertyuiop|abcdefghij|1234567890|[^a-z0-9]",
    re.IGNORECASE,
)

_host_label = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
host_chars_max = 253  # The longest name that DNS can carry.
# Links listen this far above HTTP, everywhere.
link_port_offset = 1000

_booleans = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_size = re.compile(r"(\d{1,18})\s*([A-Za-z]*)", re.ASCII)
_size_units = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "pib": 2**50,
    "eib": 2**60,
}
_binary_units = ("", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def integer(minimum: int, maximum: int) -> Parser[int]:
    accepted = f"use a whole number from {minimum} to {maximum}"

    def parse(text: str) -> int:
        # int() alone also takes underscores, spaces and the digits of other scripts.
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(accepted)
        return int(text)

    return parse


def port(text: str) -> int:
    """The HTTP port of a service; the port of its links, above it, must be one too."""
    return integer(1, port_max - link_port_offset)(text)


def boolean(text: str) -> bool:
    try:
        return _booleans[text.lower()]
    except KeyError:
        raise ValueError("use true or false (1, 0, yes and no are also understood)") from None


def one_of(*choices: str) -> Parser[str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"use {' or '.join(choices)}")
        return text

    return parse


def duration_ms(minimum_ms: int, maximum_ms: int) -> Parser[int]:
    """Go-style durations, in milliseconds."""

    def parse(text: str) -> int:
        try:
            value = parse_duration(text)
        except ValueError:
            raise ValueError("use a duration such as 90s, 1h30m or 7d, or seconds") from None
        if not minimum_ms <= value <= maximum_ms:
            least, most = format_duration(minimum_ms), format_duration(maximum_ms)
            raise ValueError(f"use a duration from {least} to {most}")
        return value

    return parse


def size_bytes(minimum: int = 0, maximum: int = 2**60) -> Parser[int]:
    """Bytes, with decimal (MB) or binary (MiB) units."""

    def parse(text: str) -> int:
        match = _size.fullmatch(text)
        unit = _size_units.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError("use a number of bytes, or one with a unit such as 512MiB or 2GB")
        value = int(match[1]) * unit
        if not minimum <= value <= maximum:
            raise ValueError(f"use a size from {format_size(minimum)} to {format_size(maximum)}")
        return value

    return parse


def format_size(size_bytes: int) -> str:
    """The shortest text that `size_bytes` reads as exactly this."""
    units = iter(_binary_units)
    unit = next(units)
    while size_bytes and size_bytes % 1024 == 0 and (larger := next(units, None)) is not None:
        size_bytes, unit = size_bytes // 1024, larger
    return f"{size_bytes}{unit}"


def text(characters_max: int = 256) -> Parser[str]:
    def parse(value: str) -> str:
        if len(value) > characters_max or not value.isprintable():
            raise ValueError(f"use at most {characters_max} printable characters")
        return value

    return parse


def host(text: str) -> str:
    """A host name or an IP address (IPv6 without brackets)."""
    if _is_address(text):
        return text
    labels = text.removesuffix(".").split(".")
    # All-digit last labels are mistyped IPv4 addresses, never names.
    if (
        len(text) > host_chars_max
        or not all(map(_host_label.fullmatch, labels))
        or labels[-1].isdigit()
    ):
        raise ValueError("use a host name or an IP address, without scheme and port")
    return text


def is_any_address(text: str) -> bool:
    """Whether it is a way to say "every address here", which can be listened on, not reached."""
    return _is_address(text) and ipaddress.ip_address(text).is_unspecified


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def url(text: str) -> str:
    """An http or https URL that other paths are appended to; a trailing slash is dropped."""
    accepted = "use a URL such as http://host:8080, without credentials, query or fragment"
    try:
        parts = urlsplit(text)
        host(parts.hostname or "")
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError(accepted) from None
    if (
        parts.scheme not in ("http", "https")
        or not port_is_fine
        or "@" in parts.netloc
        or any(character in text for character in "?# \t\r\n\\")
    ):
        raise ValueError(accepted)
    return text.rstrip("/")


def url_list(text: str) -> tuple[str, ...]:
    """URLs separated by commas, each named once, in the order given."""
    try:
        urls = tuple(url(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"separate several by commas, and for each {error}") from None
    if len(set(urls)) != len(urls):
        raise ValueError("name each URL once")
    return urls


def database_url(text: str) -> str:
    """A PostgreSQL URL that the one function that drivers get their parts from can read."""
    try:
        parse_database_url(text)
    except FatalError as error:
        raise ValueError(f"it {str(error).removeprefix('DATABASE_URL ')}") from None
    return text


def path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("use a path without zero bytes")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("its ~ names no user with a home directory; use a full path") from None


def identifier(text: str) -> str:
    """A name of a node, replicator or the like: fit for a directory and for a metric's label."""
    if not node_id_pattern.fullmatch(text):
        raise ValueError(
            f"use 1 to {node_id_chars_max} letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return text


def zone(text: str) -> str:
    """A name for what fails together, as the cluster map has it."""
    if not zone_pattern.fullmatch(text):
        raise ValueError(f"use up to {node_id_chars_max} letters, digits, '.', '_' or '-'")
    return text


def networks(text: str) -> tuple[Network, ...]:
    """IP networks separated by commas, for those who are believed; a lone address is a network of
    one. All addresses there are is no network."""
    try:
        found = tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError(
            "use networks such as 10.0.0.0/8 or fd00::/8 (no bits after the prefix), "
            "separated by commas"
        ) from None
    everybody = next((network for network in found if network.prefixlen == 0), None)
    if everybody is not None:
        raise ValueError(
            f"{everybody} is the whole internet: anybody could claim any address, and no attempt "
            "at a password or a key would be throttled; name your proxies"
        )
    return found


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages as browsers name them, separated by commas; or `*` for all."""
    if text == "*":
        return (text,)
    try:
        found = url_list(text)
    except ValueError as error:
        raise ValueError(f"use * or origins: {error}") from None
    for origin in found:
        if urlsplit(origin).path:
            raise ValueError(f"{origin} has a path; an origin is scheme, host and port alone")
    return tuple(origin.lower() for origin in found)


def origin(url: str) -> str:
    """The origin that a URL is of, as browsers name it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def secret(text: str) -> str:
    """A secret that cannot be guessed: long, varied, and not made of well-known words."""
    advice = f"use at least {secret_chars_min} random characters; `ydht init` makes such secrets"
    if len(text) < secret_chars_min:
        raise ValueError(f"it has {len(text)} characters; {advice}")
    if not text.isprintable() or not text.isascii():
        raise ValueError(f"it has characters other than printable ASCII; {advice}")
    repeats_itself = text in (text + text)[1:-1]
    if len(set(text)) < secret_distinct_chars_min or repeats_itself:
        raise ValueError(f"it repeats itself; {advice}")
    if len(_weak_words.sub("", text)) < secret_chars_left_min:
        raise ValueError(f"it is made of well-known words; {advice}")
    return text
