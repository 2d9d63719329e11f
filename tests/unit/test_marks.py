"""What a keygen remembers of how far IDs have come: when it is written, and what it is worth."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from services.core.errors import FatalError
from services.keygen.marks import Marks, SetBack, behind, claims_counter

material = b"m" * 32


class File:
    """A directory that can be full."""

    marks_path = "/data/keygen/8086/marks.json"

    def __init__(self, text: bytes = b"") -> None:
        self.text = text
        self.writes = 0
        self.trouble: str | None = None
        self.open = asyncio.Event()
        self.open.set()

    def read_marks(self) -> bytes:
        return self.text

    async def write_marks(self, text: bytes) -> str | None:
        self.writes += 1
        await self.open.wait()
        if self.trouble is None:
            self.text = text
        return self.trouble


def opened(file: File) -> Marks:
    marks = Marks(file)
    marks.open(material)
    return marks


async def test_what_was_reached_is_written_before_it_is_used_and_known_to_who_comes_next() -> None:
    file = File()
    await opened(file).reach({7: 1_000, claims_counter: 3})
    heir = opened(file)
    assert (heir.of(7), heir.of(claims_counter), heir.of(8)) == (1_000, 3, 0)
    assert behind({7: 999, 8: 0, claims_counter: 3}, heir.all()) == [SetBack(7, 999, 1_000)]


async def test_numbers_of_the_longest_keys_are_kept_whole() -> None:
    file = File()
    await opened(file).reach({16: 62**16})
    assert opened(file).of(16) == 62**16


async def test_marks_only_grow_and_what_is_known_is_not_written_again() -> None:
    file = File()
    marks = opened(file)
    await marks.reach({7: 1_000})
    await marks.reach({7: 500})
    await marks.reach({7: 1_000})
    await marks.reach({})
    assert (marks.of(7), file.writes) == (1_000, 1)


async def test_ranges_that_are_granted_together_share_a_write_and_wait_for_it() -> None:
    file = File()
    marks = opened(file)
    file.open.clear()
    waiting = [asyncio.create_task(marks.reach({7: 20 * number})) for number in range(1, 101)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting), "none is given out before it is durable"
    file.open.set()
    await asyncio.gather(*waiting)
    assert opened(file).of(7) == 2_000
    assert file.writes <= 2


async def test_a_file_that_cannot_be_written_is_told_of_and_tried_again() -> None:
    file = File()
    marks = opened(file)
    file.trouble = "no space"
    await marks.reach({7: 20})
    assert marks.trouble == "no space"
    assert behind({7: 0}, marks.all()) == [SetBack(7, 0, 20)], "it is known all the same"
    file.trouble = None
    await marks.reach({8: 20})
    assert marks.trouble is None
    assert opened(file).of(7) == 20


async def test_marks_of_another_installation_are_not_taken_for_ours() -> None:
    file = File()
    await opened(file).reach({7: 20})
    other = Marks(file)
    with pytest.raises(FatalError, match="of another installation"):
        other.open(b"o" * 32)


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"marks": {}}', b"\0" * 80])
def test_a_damaged_file_is_not_passed_over(text: bytes) -> None:
    with pytest.raises(FatalError, match="is damaged"):
        opened(File(text))


async def test_a_number_that_is_none_is_damage_too() -> None:
    file = File()
    await opened(file).reach({7: 20})
    document = msgspec.json.decode(file.text)
    document["marks"]["7"] = "many"
    with pytest.raises(FatalError, match="is damaged"):
        opened(File(msgspec.json.encode(document)))
