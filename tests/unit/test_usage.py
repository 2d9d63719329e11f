"""A service that is called with arguments says what it takes instead, and does not start."""

from __future__ import annotations

import pytest

from services.dhtnode.settings import NodeSettings
from services.replicator.settings import ReplicatorSettings
from services.runtime.settings import ServiceSettings, describe
from services.runtime.usage import answer_arguments


def test_without_arguments_there_is_something_to_run() -> None:
    assert answer_arguments(NodeSettings, []) is None


@pytest.mark.parametrize("settings", [NodeSettings, ReplicatorSettings])
@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_lists_every_variable(
    settings: type[ServiceSettings], asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer_arguments(settings, [asked]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m services.{settings.service}\n")
    for row in describe(settings):
        assert f"  {row.name} " in shown
        assert row.help in shown


@pytest.mark.parametrize("arguments", [["--port", "80"], ["node-1"], [""]])
def test_anything_else_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer_arguments(NodeSettings, arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ydht dhtnode: {arguments[0]!r} means nothing here: ")
    assert said.count("\n") == 1
