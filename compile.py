"""Compile the hot modules with mypyc: `make compile`, and `make run` when one of them has changed.

They are ordinary Python, and run as such where there is no C compiler. Compiled, with all services
on two cores, a gateway answers a third more reads a second, and a quarter more writes: most of
their time goes into many small functions, with no hot spot among them that anything else
would make faster.

What is compiled lies beside its source, and wins over it wherever services are started. A service
refuses to start on what is older than its source (services/runtime/compiled.py). Tests within
their own process run the sources (tests/sources.py), as they put other parts in the place of some;
the simulation, run by its command, and everything that starts services run what is compiled.

What inherits from a class of a compiled module has to be compiled too. Such a module has no class
with keywords behind its bases, as those of msgspec have, which would be ignored; it has no async
generators, does not write `x.y += 1` where `y` comes from a class that is not compiled, and a
generator expression in it would be a list; mypyc warns of that, and it fails.

    python compile.py [--remove]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

modules = (
    "services/core/ballots.py",
    "services/core/bucket.py",
    "services/core/change.py",
    "services/core/digest.py",
    "services/core/hlc.py",
    "services/core/key.py",
    "services/core/messages.py",
    "services/core/operations.py",
    "services/core/paxos.py",
    "services/core/permute.py",
    "services/core/placement.py",
    "services/core/record.py",
    "services/core/wire.py",
    "services/dhtnode/acceptor.py",
    "services/dhtnode/cells.py",
    "services/dhtnode/frame.py",
    "services/dhtnode/handlers.py",
    "services/dhtnode/index.py",
    "services/dhtnode/namespace.py",
    "services/dhtnode/promises.py",
    "services/dhtnode/replica.py",
    "services/dhtnode/replica_state.py",
    "services/dhtnode/runs.py",
    "services/dhtnode/table.py",
    "services/gateway/answers.py",
    "services/gateway/calls.py",
    "services/gateway/changes.py",
    "services/gateway/cluster.py",
    "services/gateway/gets.py",
    "services/gateway/kv.py",
    "services/gateway/options.py",
    "services/gateway/reads.py",
    "services/gateway/seams.py",
    "services/keygen/askers.py",
    "services/keygen/lane.py",
    "services/keygen/lots.py",
    "services/keygen/pool.py",
    "services/keygen/quotas.py",
    "services/keygen/unbounded.py",
    "services/replicator/answers.py",
    "services/replicator/counters.py",
    "services/replicator/eventual.py",
    "services/replicator/items.py",
    "services/replicator/key_turns.py",
    "services/replicator/requests.py",
    "services/replicator/retries.py",
    "services/replicator/stamps.py",
    "services/replicator/strong.py",
    "services/replicator/strong_learning.py",
    "services/replicator/strong_operation.py",
    "services/replicator/write.py",
    "services/runtime/allowance.py",
    "services/runtime/body_room.py",
    "services/runtime/connection.py",
    "services/runtime/credential.py",
    "services/runtime/credentials.py",
    "services/runtime/exchange.py",
    "services/runtime/fast_exchange.py",
    "services/runtime/fastlane.py",
    "services/runtime/fleet.py",
    "services/runtime/histogram.py",
    "services/runtime/lane_bodies.py",
    "services/runtime/lane_route.py",
    "services/runtime/lane_turns.py",
    "services/runtime/link.py",
    "services/runtime/log/frame.py",
    "services/runtime/log/log.py",
    "services/runtime/metering.py",
    "services/runtime/request_head.py",
    "services/runtime/request_ids.py",
    "services/runtime/speakers.py",
)

root = Path(__file__).resolve().parent
build_dir = "build/compiled"
# What holds the code of all; each module beside its source only takes its part from there.
library = "ydht"
build = "--build"
shown_lines = 30


def main() -> int:
    if (lacking := what_is_lacking()) is not None:
        say(f"{lacking}: services run as plain Python, with a quarter less requests a second. On ")
        say("Debian and Ubuntu `apt-get install gcc python3-dev` and `make compile` change that.\n")
        return 0
    remove()
    # In a process of its own: mypyc ends its process on an error, and only prints a warning.
    command = [sys.executable, __file__, build]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)  # noqa: S603  Ourselves.
    told = done.stdout + done.stderr
    warned = [line for line in told.splitlines() if line.startswith("services/")]
    if not done.returncode and not warned and found_from_anywhere():
        for path in made():
            # What need not be made anew keeps its time, and would seem older than its source.
            path.touch()
        return 0
    remove()
    say("\n".join((warned or told.splitlines())[-shown_lines:]) + "\n")
    say("The hot modules could not be compiled: services run as plain Python.\n")
    return 1


def found_from_anywhere() -> bool:
    """Whether a service that runs in another folder finds what was compiled, as it does where the
    installation has this folder on its path."""
    command = [sys.executable, "-P", "-c", f"import {library}__mypyc"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)  # noqa: S603  A fixed one.
    if done.returncode:
        say(done.stderr + "Is it installed by an older Makefile? make clean, then make again.\n")
    return not done.returncode


def what_is_lacking() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(os.environ.get("CC", compiler).split()[0]) is None:
        return "there is no C compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "the C headers of Python are missing"
    return None


def remove() -> None:
    """Have services run the sources again."""
    for path in made():
        path.unlink()


def made() -> list[Path]:
    """Whatever was compiled, for whichever Python."""
    return [*root.glob(f"{library}__mypyc.*.so"), *(root / "services").rglob("*.so")]


def build_all() -> None:
    """Compile, on as many cores as there are. What is wrong is printed, and ends the process."""
    from mypyc.build import mypycify
    from setuptools import setup
    from setuptools.command.build_ext import build_ext

    class BuildAtOnce(build_ext):  # type: ignore[misc]
        def build_extensions(self) -> None:
            compiler: Any = self.compiler
            compile_one = compiler.compile

            def compile_all(sources: list[str], **options: Any) -> list[str]:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    made = pool.map(lambda source: compile_one([source], **options), sources)
                    return [path for paths in made for path in paths]

            compiler.compile = compile_all
            super().build_extensions()

    setup(
        name="ydht-compiled",
        packages=[],
        py_modules=[],
        ext_modules=mypycify(
            list(modules),
            opt_level="2",
            debug_level="0",
            multi_file=True,
            group_name=library,
            target_dir=build_dir,
        ),
        cmdclass={"build_ext": BuildAtOnce},
        script_args=["--quiet", "build_ext", "--inplace", "--build-temp", f"{build_dir}/objects"],
    )


def say(text: str) -> None:
    sys.stderr.write(text)


if __name__ == "__main__":
    if sys.argv[1:] == [build]:
        build_all()
    elif sys.argv[1:] == ["--remove"]:
        remove()
    else:
        sys.exit(main())
