"""Run simulated scenarios from a terminal: many seeds, or the one that failed.

python -m tests.simulation [--seed N | --seeds N] [--scenario NAME] [--jobs N]
python -m tests.simulation --broken RULE [--seeds N]     how many seeds until its removal shows
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module

from tests.simulation.scenario import Scenario, SeedFailedError, run_seeds
from tests.sources import run_sources

names = ("links", "lying_disk", "node", "cluster")


def _scenarios() -> dict[str, Scenario]:
    """What they run is compiled where it can be, unless it was said before that it must not."""
    return {name: getattr(import_module(f"tests.simulation.{name}"), name) for name in names}


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least one, or nothing is shown")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--seeds", type=_count, default=300, help="run seeds 0 to N-1")
    parser.add_argument("--scenario", choices=names, help="only this one")
    parser.add_argument("--broken", metavar="RULE", help="without this rule, or `list` for all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    options = parser.parse_args()
    one = options.seed
    seeds = range(options.seeds) if one is None else range(one, one + 1)
    jobs = options.jobs if one is None else 1
    if options.broken is not None:
        return look_for(options.broken, seeds, jobs)
    for name, scenario in _scenarios().items():
        if options.scenario not in (None, name):
            continue
        started_s = time.monotonic()
        try:
            totals = run_seeds(name, scenario, seeds, jobs=jobs)
        except SeedFailedError as failure:
            sys.stderr.write(f"{failure}\n")
            return 1
        sums = ", ".join(f"{number:,} {key}" for key, number in sorted(totals.items()))
        took_s = time.monotonic() - started_s
        done = f"seed {one}" if one is not None else f"{len(seeds):,} seeds"
        sys.stdout.write(f"{name}: {done} in {took_s:.1f} s, 0 violations: {sums}\n")
    return 0


def look_for(rule: str, seeds: range, jobs: int) -> int:
    """Whether clusters without this rule are seen to go wrong."""
    # A rule is taken out by putting something else into its place, which no compiled code allows.
    run_sources()
    removals = import_module("tests.simulation.broken").removals
    if rule not in removals:
        sys.stderr.write(f"the rules are {', '.join(removals)}\n")
        return 1
    cluster = _scenarios()["cluster"]
    try:
        run_seeds("cluster", cluster, seeds, jobs=jobs, within=removals[rule], sources=True)
    except SeedFailedError as failure:
        sys.stdout.write(f"without {rule}: {failure}\n")
        sys.stdout.write(f"without {rule}: caught by seed {failure.seed:,}\n")
        return 0
    sys.stdout.write(f"without {rule}: not caught by {len(seeds):,} seeds\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
