"""Every measurement there is, or those named: `python -m bench [NAME …]`.

A run of all of them is written to `bench/results/` as well.
"""

from __future__ import annotations

import argparse
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
    results,
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
    named = parser.parse_args().names
    names = named or list(suites)
    if unknown := [name for name in names if name not in suites]:
        parser.error(f"there is no measurement {unknown[0]!r}; there is {', '.join(suites)}")
    quiet()
    print("\n".join(results.surroundings()))
    measured = {}
    for name in names:
        measured[name] = suites[name]()
        show(name, measured[name])
    if not named:
        print(f"written to {results.write(measured)}")


if __name__ == "__main__":
    main()
