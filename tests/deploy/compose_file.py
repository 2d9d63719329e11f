"""compose.yaml, read as docker compose reads it with no variable set."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.deploy.started import Started
from tests.tidy.tree import root

our_image = "ydht:"


def compose() -> dict[str, Any]:
    """The whole document, with the default of every `${NAME:-default}` put in."""
    document = _put_in(yaml.safe_load((root / "compose.yaml").read_text()))
    assert isinstance(document, dict)
    return document


def _put_in(part: object) -> object:
    match part:
        case dict():
            return {key: _put_in(value) for key, value in part.items()}
        case list():
            return [_put_in(value) for value in part]
        case str():
            return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", part)
    return part


def containers() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def ours() -> dict[str, dict[str, Any]]:
    found = containers().items()
    return {name: each for name, each in found if each["image"].startswith(our_image)}


def started_by(name: str, container: dict[str, Any]) -> Started:
    environ = {key: str(value) for key, value in container.get("environment", {}).items()}
    # deploy/image/entry.sh tells each process the name of its container.
    shared = {"ADVERTISE_HOST": "0123456789ab"}
    return Started(f"compose.yaml: {name}", tuple(container["command"]), environ, shared)
