from __future__ import annotations

import asyncio
import os
import pty
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.logs import (
    LineSplitter,
    OutputPipe,
    RotatingFile,
    ServiceLog,
    Terminal,
    line_bytes_max,
    quoted_chars_max,
    read_bytes_max,
)
from tests.waiting import wait_until

texts = st.lists(st.sampled_from([b"\n", b"a", b"bb", b"\x00", b"ccccccccc"])).map(b"".join)


def _obvious_lines(text: bytes, bytes_max: int) -> list[bytes]:
    *whole, rest = text.split(b"\n")
    lines = [*whole, rest] if rest else whole
    pieces = []
    for line in lines:
        while len(line) > bytes_max:
            pieces.append(line[:bytes_max])
            line = line[bytes_max:]
        pieces.append(line)
    return pieces


@given(chunks=st.lists(texts), bytes_max=st.integers(1, 8))
def test_lines_are_the_same_in_whatever_pieces_they_came(
    chunks: list[bytes], bytes_max: int
) -> None:
    splitter = LineSplitter(bytes_max)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.rest()
    assert lines == _obvious_lines(b"".join(chunks), bytes_max)


def test_a_line_without_end_is_passed_on_in_bounded_pieces() -> None:
    splitter = LineSplitter()
    for _ in range(100):
        for line in splitter.feed(b"x" * read_bytes_max):
            assert len(line) == line_bytes_max
    assert len(splitter.rest()[0]) <= line_bytes_max


def test_a_full_log_becomes_the_old_one_and_two_are_all_there_is(tmp_path: Path) -> None:
    log = RotatingFile(tmp_path / "node.log", bytes_max=100)
    for number in range(100):
        log.write(f"line {number:03}\n".encode())
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.log", "node.log.1"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    kept = (tmp_path / "node.log.1").read_text() + (tmp_path / "node.log").read_text()
    last = [int(line.split()[1]) for line in kept.splitlines()]
    assert last == list(range(last[0], 100)), "the newest lines, without a gap"


def test_a_log_goes_on_where_the_last_run_left_it(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    for run in range(3):
        log = RotatingFile(path, bytes_max=30)
        log.write(f"run {run} says\n".encode())
        log.close()
    assert (tmp_path / "node.log.1").read_text() == "run 0 says\nrun 1 says\n"
    assert path.read_text() == "run 2 says\n"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


def _read(descriptor: int) -> str:
    """What is there now."""
    pieces = []
    try:
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces).decode()


async def test_each_line_is_shown_behind_its_service_and_without_control_characters(
    pipe: tuple[int, int],
) -> None:
    terminal = Terminal(pipe[1])
    terminal.show("gateway", [b"one\ttwo\r", b"\x1b]0;mine\x07 \xff"])
    terminal.show("node-1", [b"three"])
    terminal.close()
    assert _read(pipe[0]) == (
        "gateway      | one\ttwo\n"
        "gateway      | \\x1b]0;mine\\x07 \\xff\n"
        "node-1       | three\n"
    )  # fmt: skip


async def test_names_that_are_no_text_are_shown_escaped(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    terminal = Terminal(pipe[1])
    name = os.fsdecode(b"D\xff")
    terminal.print(name)
    log = ServiceLog("up", RotatingFile(tmp_path / "up.log"), terminal)
    log.say(name)
    log.close()
    terminal.close()
    assert _read(pipe[0]) == "D\\udcff\nup           | D\\udcff\n"


async def test_a_stalled_terminal_neither_blocks_nor_collects_and_is_told_what_it_missed(
    pipe: tuple[int, int],
) -> None:
    terminal = Terminal(pipe[1], bytes_max=10_000)
    for number in range(50_000):
        terminal.show("flood", [b"%06d" % number])
    shown = ""

    def caught_up() -> bool:
        nonlocal shown
        shown += _read(pipe[0])
        return "lines not shown" in shown

    await wait_until(caught_up, "the terminal says what it has missed")
    missed = int(shown[shown.rindex("(") + 1 :].split()[0])
    assert missed + shown.count("flood") == 50_000
    terminal.show("flood", [b"later"])
    await terminal.drain(1)
    terminal.close()
    assert _read(pipe[0]) == "flood        | later\n"


async def test_our_terminal_stays_blocking_for_the_shell_that_shares_it() -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    terminal = Terminal(theirs)
    assert os.get_blocking(theirs)
    terminal.show("gateway", [b"coloured"])
    terminal.close()
    assert os.read(ours, 1000) == b"\x1b[36mgateway      | \x1b[0mcoloured\n"
    os.close(ours)
    os.close(theirs)


async def test_a_terminal_that_goes_away_is_no_reason_to_stop() -> None:
    reading_end, writing_end = os.pipe()
    terminal = Terminal(writing_end)
    os.close(reading_end)
    for _ in range(10):
        terminal.show("gateway", [b"to nobody"])
    await terminal.drain(1)
    terminal.close()
    os.close(writing_end)


async def test_output_into_a_file_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before\n")
    with path.open("a") as file:
        terminal = Terminal(file.fileno())
        terminal.show("gateway", [b"line"] * 10_000)
        await terminal.drain(1)
        terminal.close()
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert len(lines) == 10_001, "a file is never too slow"


async def test_the_last_line_counts_without_its_end_and_an_orphan_does_not_hold_it_back(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    terminal = Terminal(pipe[1])
    log = ServiceLog("node-1", RotatingFile(tmp_path / "node-1.log"), terminal)
    output = OutputPipe(log)
    orphan = os.dup(output.writing_end)
    os.write(orphan, b"first\nsecond")
    output.read()
    await output.finish(0.01)
    os.close(orphan)
    log.close()
    terminal.close()
    assert (tmp_path / "node-1.log").read_text() == "first\nsecond\n"
    assert log.last_word == "second"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ([b"info serving", b"ydht dhtnode: the disk failed"], "the disk failed"),
        ([b"ydht: no port", b"draining", b"stopped"], "no port"),
        ([b"ValueError: no number", b"  +-------", b""], "ValueError: no number"),
        ([b"ydht dhtnode: a\x1b[2J trick"], "a\\x1b[2J trick"),
        ([b"x" * 9000], "x" * quoted_chars_max),
        ([b"--", b""], None),
        ([], None),
    ],
)
async def test_the_last_word_is_the_line_that_says_why(
    tmp_path: Path, pipe: tuple[int, int], said: list[bytes], word: str | None
) -> None:
    terminal = Terminal(pipe[1])
    log = ServiceLog("node-1", RotatingFile(tmp_path / "node-1.log"), terminal)
    log.take(b"".join(line + b"\n" for line in said))
    assert log.last_word == word
    log.forget()
    assert log.last_word is None, "another process has said nothing yet"
    log.close()
    terminal.close()


async def test_a_full_disk_costs_lines_and_is_said_once(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    terminal = Terminal(pipe[1])
    # Opening it succeeds, every write fails for lack of space.
    (tmp_path / "node-1.log").symlink_to("/dev/full")
    log = ServiceLog("node-1", RotatingFile(tmp_path / "node-1.log"), terminal)
    for _ in range(3):
        log.take(b"hello\n")
    log.close()
    terminal.close()
    shown = _read(pipe[0])
    assert shown.count("hello") == 3
    assert shown.count("No space left on device") == 1


def _size_of_all(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


async def test_a_flood_leaves_the_loop_its_turns(tmp_path: Path, pipe: tuple[int, int]) -> None:
    terminal = Terminal(pipe[1], bytes_max=10_000)
    file = RotatingFile(tmp_path / "flood.log", bytes_max=1_000_000)
    log = ServiceLog("flood", file, terminal)
    output = OutputPipe(log)
    flood = await asyncio.create_subprocess_exec(
        "yes", "a line of a flood", stdout=output.writing_end
    )
    output.read()
    turns = 0

    def flooded() -> bool:
        nonlocal turns
        turns += 1
        return (tmp_path / "flood.log.1").exists() and turns > 20

    await wait_until(flooded, "the log has been rotated, and the loop has had its turns")
    flood.kill()
    await flood.wait()
    await output.finish(5)
    log.close()
    terminal.close()
    assert _size_of_all(tmp_path) <= 2_000_000
