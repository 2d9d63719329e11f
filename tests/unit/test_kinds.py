"""Kinds of messages are numbers of one byte, given out in several files."""

from __future__ import annotations

import ast
from pathlib import Path

from services.core import ballots, messages, operations, sessions, wire


def kinds() -> list[tuple[str, int]]:
    """Every kind where it is defined, so that none counts twice by an import."""
    found: list[tuple[str, int]] = []
    for module in (wire, messages, ballots, sessions, operations):
        assert module.__file__ is not None
        for statement in ast.parse(Path(module.__file__).read_text()).body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                if name.isupper():
                    found.append((f"{module.__name__}.{name}", getattr(module, name)))
    return found


def test_no_two_kinds_of_requests_or_answers_have_one_number() -> None:
    by_number: dict[int, list[str]] = {}
    for name, number in kinds():
        by_number.setdefault(number, []).append(name)
    assert [names for names in by_number.values() if len(names) > 1] == []
    assert len(by_number) > 40
    assert all(0 < number < 256 for number in by_number)
