"""Every measurement there is, or those named: `python -m bench [NAME …]`."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable

from bench import (
    fastlane,
    gateway,
    keygen,
    link,
    logins,
    node,
    repair,
    replicator,
    table,
    usage,
    usermanager,
)
from bench.report import Row, quiet, show

suites: dict[str, Callable[[], list[Row]]] = {
    "fastlane": fastlane.rows,
    "gateway": gateway.rows,
    "link": link.rows,
    "table": table.rows,
    "node": node.rows,
    "replicator": replicator.rows,
    "repair": repair.rows,
    "usermanager": usermanager.rows,
    "logins": logins.rows,
    "usage": usage.rows,
    "keygen": keygen.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(suites)}")
    names = parser.parse_args().names or list(suites)
    if unknown := [name for name in names if name not in suites]:
        parser.error(f"there is no measurement {unknown[0]!r}; there is {', '.join(suites)}")
    quiet()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}")
    for name in names:
        show(name, suites[name]())


if __name__ == "__main__":
    main()
