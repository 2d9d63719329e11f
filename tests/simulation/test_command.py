from __future__ import annotations

import sys

import pytest

from tests.simulation.__main__ import main


@pytest.mark.parametrize(
    ("words", "start"),
    [(["--seed", "7"], "links: seed 7 in "), (["--seeds", "2"], "links: 2 seeds in ")],
)
def test_the_line_says_what_was_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    start: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulation", "--scenario", "links", *words])
    assert main() == 0
    assert capsys.readouterr().out.startswith(start)
