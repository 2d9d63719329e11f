"""How storage nodes are told of to everybody."""

from __future__ import annotations

import pytest

from services.usermanager.pages.platform_status import Part, of_nodes


@pytest.mark.parametrize(
    ("states", "part"),
    [
        (["live"] * 3, Part("Storage nodes", "3 of 3 up", "good")),
        (["live", "catching_up", "silent"], Part("Storage nodes", "2 of 3 up", "warn")),
        (["live", "silent", "unreachable"], Part("Storage nodes", "1 of 3 up", "bad")),
        # Before any node is known, nothing can be stored.
        ([], Part("Storage nodes", "0 of 0 up", "bad")),
    ],
)
def test_nodes_are_well_only_if_there_are_some(states: list[str], part: Part) -> None:
    assert of_nodes(states) == part
