"""The README says what the code does."""

from __future__ import annotations

import re

import click

from services.cli.commands import commands, main
from tests.tidy.readme import made_anew, readme


def test_the_table_of_settings_is_the_one_in_the_code() -> None:
    text = readme.read_text()
    assert made_anew(text) == text, "run: python -m tests.tidy.readme"


def test_every_command_and_option_in_the_readme_exists() -> None:
    text = readme.read_text()
    named = re.findall(
        r"ydht ((?:[a-z]+)(?: --[a-z-]+)*)", " ".join(re.findall(r"`([^`]+)`", text))
    )
    assert named
    for usage in named:
        name, *options = usage.split()
        assert name in commands, usage
        command = main.get_command(click.Context(main), name)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert set(options) <= known, usage
