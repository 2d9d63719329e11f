"""The commands of `ydht`. They are imported when they are used, not before."""

from __future__ import annotations

import importlib
import logging
import resource
import sys
from dataclasses import dataclass

import click

from services.core.errors import FatalError

# What a shell says of a program that Ctrl-C has ended.
interrupted_exit_code = 130
# With fewer, imports, event loops and pipes fail, each in its own way and none in plain words.
descriptors_min = 64
descriptors_advised = 4096


@dataclass(slots=True, frozen=True)
class LazyCommand:
    """Where a command is, and what it does: `ydht --help` is answered without importing it."""

    module: str
    attribute: str
    help: str


commands = {
    "init": LazyCommand(
        "services.cli.init", "init", "Make the secrets of a new installation, once."
    ),
    "up": LazyCommand("services.cli.up", "up", "Start everything, and keep it up until Ctrl-C."),
    "db": LazyCommand("services.cli.db", "db", "Run the embedded PostgreSQL alone."),
    "migrate": LazyCommand(
        "services.cli.db", "migrate_command", "Bring the database schema up to date."
    ),
    "user": LazyCommand("services.cli.user", "user", "Open, list and change accounts."),
    "keys": LazyCommand(
        "services.cli.keys", "keys", "Make, list and revoke API keys of an account."
    ),
    "kv": LazyCommand(
        "services.cli.kv", "kv", "Get, put and list values through a gateway, also by the file."
    ),
    "ids": LazyCommand("services.cli.ids", "ids", "Make IDs, and see whose one is."),
    "node": LazyCommand("services.cli.node", "node", "Look into the directory of a node."),
    "cluster": LazyCommand(
        "services.cli.cluster", "cluster", "See how the cluster is, and compare replicas now."
    ),
    "top": LazyCommand(
        "services.cli.top", "top", "Watch all services at work: rates, latencies, lag, logs."
    ),
}


class CommandLine(click.Group):
    """The commands by name; a FatalError from any of them is one line and its exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = commands.get(cmd_name)
        if lazy is None:
            return None
        command: click.Command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in commands.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            _refuse_too_few_descriptors()
            # Not for --help and --version, which should not wait for it.
            from services.runtime import telemetry

            # Commands speak for themselves; logs are for what goes wrong in the parts they use.
            telemetry.configure("ydht", "console", sys.stderr, level=logging.WARNING)
            return super().invoke(ctx)
        except FatalError as error:
            click.echo(f"ydht: {' '.join(str(error).split())}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(interrupted_exit_code)


def _refuse_too_few_descriptors() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < descriptors_min:
        raise FatalError(
            f"at most {limit} files may be open at once, and {descriptors_min} are needed at"
            f" least: raise the limit, as by `ulimit -n {descriptors_advised}`"
        )


@click.command(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ydht", message="ydht %(version)s")
def main() -> None:
    """A key-value store and unique-ID service, on this machine."""
