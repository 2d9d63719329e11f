"""What a service makes of its command line: nothing, for it is told everything by variables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from services.runtime.settings import ServiceSettings, describe

# What a shell expects of a program that was called wrongly.
wrong_usage_code: Final = 2


def answer_arguments(settings_type: type[ServiceSettings], arguments: Sequence[str]) -> int | None:
    """The exit code if there is nothing to run; None if the service is to start."""
    if not arguments:
        return None
    service = settings_type.service
    if arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage(settings_type))
        return 0
    sys.stderr.write(
        f"ydht {service}: {arguments[0]!r} means nothing here: a service takes no arguments, it is"
        f" told everything by variables of its environment; --help lists them\n"
    )
    return wrong_usage_code


def usage(settings_type: type[ServiceSettings]) -> str:
    """Every variable that the service reads, for a terminal."""
    rows = describe(settings_type)
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        default = f"  [{row.default}]" if row.default else ""
        lines.append(f"  {row.name:<{width}}  {row.help}{default}\n")
    return (
        f"usage: python -m services.{settings_type.service}\n\n"
        "Runs one service until it is asked to stop. It reads these variables, also from\n"
        "DATA_DIR/ydht.env, and an empty one counts as unset:\n\n" + "".join(lines)
    )
