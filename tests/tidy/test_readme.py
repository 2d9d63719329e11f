"""The README says what the code does."""

from __future__ import annotations

import ast
import re

import click

from services.cli.commands import commands, main
from tests.tidy.readme import made_anew, readme
from tests.tidy.tree import modules_under


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


def test_every_message_in_the_readme_is_one_that_the_code_writes() -> None:
    """What is left of it without all that stands in the code as text is names and numbers."""
    texts = {
        node.value
        for path in modules_under("services")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # Longest first, so that none is torn by a part of it.
    known = sorted((each.strip() for each in texts if " " in each.strip()), key=len, reverse=True)
    part = re.search("<!-- messages -->(.*)<!-- /messages -->", readme.read_text(), re.DOTALL)
    assert part is not None
    cells = re.findall(r"^\| (.*?`.*?) \| ", part[1], re.MULTILINE)
    messages = [told for cell in cells for _, told in re.findall(r"(`+)(.+?)\1(?!`)", cell)]
    assert len(messages) > 20
    for message in messages:
        left = message
        for text in known:
            left = left.replace(text, "|")
        # Where it is not told to its end, a text may be there by its beginning.
        *rest, last = re.split(r"[|\d]", left)
        if any(text.startswith(last.strip()) for text in known):
            left = "|".join(rest)
        assert not re.search(r"[A-Za-z]{2,}(?: [A-Za-z]{2,}){2}", left), (message, left)
