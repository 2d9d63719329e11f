"""The log and its snapshots: what is acknowledged when, what failures do, what stays on disk."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import RECORD
from services.dhtnode.recovery import Recovery
from services.dhtnode.snapshot import SnapshotWriter
from services.runtime.clock import SystemClock
from services.runtime.disk import SystemDisk
from services.runtime.fake_disk import Operation
from services.runtime.log.frame import body_bytes_max, head_bytes, segment_head_bytes
from services.runtime.log.log import Batch, Log, undurable_bytes_max
from tests.integration.durable_node import DurableNode, path, segment_bytes
from tests.waiting import wait_until

no_space = errno.ENOSPC


def started() -> DurableNode:
    return DurableNode().start()


def test_nothing_is_acknowledged_before_its_sync_has_ended() -> None:
    node = started()
    node.disk.freeze()
    batch = node.put(1)
    node.settle(5.0)
    assert node.durable == []
    assert not node.log.idle
    node.disk.thaw()
    node.settle()
    assert node.durable == [batch]
    assert (batch.first, batch.last, node.log.durable_sequence) == (1, 1, 1)
    assert node.log.idle


def test_a_turn_of_the_loop_is_one_batch_and_what_comes_during_its_sync_is_the_next() -> None:
    node = started()
    first = [node.put(number) for number in range(1, 6)]
    assert set(first) == {node.log.open}
    node.settle(0.0)
    assert node.log.flying is first[0]
    second = [node.put(number) for number in range(6, 20)]
    assert set(second) == {node.log.open}
    node.settle()
    assert node.durable == [first[0], second[0]]
    assert [(batch.first, batch.last) for batch in node.durable] == [(1, 5), (6, 19)]
    assert (node.log.counters.batches, node.log.counters.frames) == (2, 19)
    assert node.log.counters.bytes == 19 * (head_bytes + 6)


def test_the_batch_of_the_latest_change_is_known_until_it_is_durable() -> None:
    node = started()
    assert node.log.newest is None
    first = node.put(1)
    assert node.log.newest is first
    node.settle(0.0)
    assert node.log.newest is node.log.flying is first
    second = node.put(2)
    assert node.log.newest is second
    node.log.rotate()
    assert node.log.newest is second
    node.settle()
    assert node.log.newest is None


def test_a_batch_is_bounded_and_the_rest_waits_for_the_next() -> None:
    node = started()
    for number in range(1, 101):
        node.put(number, filler=bytes(94))
    assert node.log.undurable_bytes == 100 * (head_bytes + 100)
    node.settle()
    assert len(node.durable) == 100 // 8 + 1
    assert [batch.last + 1 for batch in node.durable[:-1]] == [
        batch.first for batch in node.durable[1:]
    ]
    assert node.log.undurable_bytes == 0
    assert node.restart().table == node.table


def test_a_frame_larger_than_a_batch_is_alone_in_one_and_one_larger_than_a_segment_is_refused() -> (
    None
):
    node = started()
    room = segment_bytes - segment_head_bytes - head_bytes
    small, large, after = node.put(1), node.log.append(9, bytes(room)), node.put(3)
    assert len({small, large, after}) == 3
    with pytest.raises(ValueError, match="larger than a log takes"):
        node.log.append(9, bytes(room + 1))
    assert node.log.next_sequence == 4
    node.settle()
    assert [batch.first for batch in node.durable] == [1, 2, 3]
    assert len(node.log.segments) == 3
    assert node.restart().applied[1] == (9, bytes(room))


def test_no_frame_is_larger_than_recovery_would_believe() -> None:
    node = DurableNode(segment_size=8 << 20, commit_size=6 << 20).start()
    node.log.append(9, bytes(body_bytes_max))
    node.settle()
    assert node.log.idle


def test_segments_follow_each_other_and_each_begins_where_the_last_one_ended() -> None:
    node = started()
    node.fill(500)
    segments = node.log.segments
    assert [segment.index for segment in segments] == list(range(1, len(segments) + 1))
    assert len(segments) > 3
    assert all(segment.used_bytes <= segment_bytes for segment in segments)
    assert node.log.used_bytes == sum(
        len(node.content(s.path.name).rstrip(b"\0")) for s in segments
    )
    again = node.restart()
    assert len(again.applied) == 500
    assert again.table == node.table
    assert again.found.segments == segments
    assert again.found.next_sequence == 501


def test_a_rotation_begins_a_segment_with_the_sequence_it_tells() -> None:
    node = started()
    node.put(1)
    assert node.log.rotate() == 2
    assert node.log.rotate() == 2
    node.put(2)
    node.put(3)
    node.settle()
    assert [segment.first for segment in node.log.segments] == [1, 2]
    assert node.log.rotate() == 4
    node.settle()
    # Nothing has come since: there is no segment without a frame.
    assert len(node.log.segments) == 2
    assert node.restart().table == node.table


def test_segments_go_when_all_their_frames_are_below_and_the_current_one_stays() -> None:
    node = started()
    node.fill(500)
    second, third = node.log.segments[1:3]
    node.log.delete_segments_below(third.first - 1)
    node.settle()
    assert node.log.segments[0] is second
    assert "log-0000000001" not in node.names()
    assert second.path.name in node.names()
    node.log.delete_segments_below(10_000)
    node.settle()
    assert len(node.log.segments) == 1
    assert node.failures == []


def test_undurable_bytes_are_counted_so_that_the_owner_can_refuse_more() -> None:
    node = DurableNode(segment_size=8 << 20, commit_size=4 << 20).start()
    node.disk.freeze()
    while not node.log.overloaded:
        node.put(1, filler=bytes(1 << 20))
    # The spare segment would have room for all of it.
    assert 4 << 20 < node.log.undurable_bytes < 6 << 20
    assert undurable_bytes_max > 6 << 20
    node.disk.thaw()
    node.settle(2.0)
    assert not node.log.overloaded
    assert node.log.idle


def test_a_full_disk_shows_while_there_is_still_room_for_deletes() -> None:
    node = started()
    node.put(1)
    node.disk.fail("allocate", no_space, "*log-*", times=None)
    node.settle(30.0)
    assert node.log.shortage is not None
    assert node.log.shortage.errno == no_space
    assert not node.log.spare_ready
    node.fill(20)
    assert node.log.durable_sequence == 21
    assert [name for name in node.names() if name.endswith(".tmp")] == []
    # Past the end of the segment, what comes waits, and is not lost.
    node.fill(200)
    assert not node.log.idle
    node.disk.heal()
    node.settle(6.0)
    assert node.log.idle
    assert node.log.shortage is None
    assert node.log.spare_ready
    assert node.failures == []
    assert node.restart().table == node.table


def test_what_has_room_in_the_log_becomes_durable_on_a_full_disk_and_nothing_else_does() -> None:
    node = started()
    node.put(1)
    node.disk.fail("allocate", no_space, "*log-*", times=None)
    node.settle(30.0)
    taken: list[Batch] = []
    # Some while the disk is busy, some after that.
    node.disk.freeze()
    for turn in range(1_000):
        size = 100 + turn * 37 % 400
        if not node.log.has_room(size):
            assert len(taken) > 5
            break
        taken.append(node.put(turn, key=1, filler=bytes(size - 6)))
        if turn == 5:
            node.disk.thaw()
            node.settle()
    node.settle()
    assert node.log.idle
    assert node.durable[-1].last == node.log.next_sequence - 1
    assert len(node.log.segments) == 1
    node.put(7, filler=bytes(size))
    node.settle()
    assert not node.log.idle


def test_a_rotation_on_a_full_disk_goes_on_in_the_segment_at_hand() -> None:
    node = started()
    node.fill(10)
    node.disk.freeze()
    node.disk.fail("allocate", no_space, "*log-*", times=None)
    # The first rotation takes the spare, and the second one is there before the disk is known
    # to have no room for another.
    node.log.rotate()
    node.put(11)
    node.timeline.advance(0.0)
    node.log.rotate()
    node.put(12)
    node.disk.thaw()
    node.settle(1.0)
    assert node.log.shortage is not None
    assert node.log.idle
    assert [segment.first for segment in node.log.segments] == [1, 11]
    node.snapshot()
    assert node.log.idle
    again = node.restart().start()
    assert again.table == node.table


def test_a_process_that_finds_a_full_disk_without_a_spare_segment_has_no_room() -> None:
    node = started()
    node.disk.fail("allocate", no_space, "*log-*", times=None)
    node.put(1)
    node.settle(1.0)
    assert node.log.has_room(100)
    again = node.restart().start()
    again.settle(1.0)
    assert not again.log.has_room(0)
    again.disk.heal()
    again.settle(10.0)
    assert again.log.has_room(100)
    again.fill(10)
    assert again.log.idle


def test_a_spare_segment_is_used_by_the_next_process_on_a_full_disk() -> None:
    node = started()
    node.fill(10)
    assert node.log.spare_ready
    node.disk.fail("allocate", no_space, "*log-*", times=None)
    again = node.restart().start()
    again.fill(10)
    assert again.log.idle
    assert again.log.shortage is not None
    assert again.failures == []


def test_a_spare_segment_of_another_size_is_made_again() -> None:
    node = started()
    node.fill(10)
    node.clock.stop()
    node.disk.kill()
    again = DurableNode(node.disk, node.timeline, segment_size=8_192).start()
    again.fill(250)
    assert {len(again.content(s.path.name)) for s in again.log.segments[1:]} == {8_192}
    assert again.restart().table == again.table


def test_a_segment_that_cannot_hold_a_commit_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="cannot hold a whole commit"):
        DurableNode(segment_size=1_024, commit_size=1_024)


def commit(node: DurableNode) -> None:
    node.put(node.log.next_sequence)
    node.settle()


def next_segment(node: DurableNode) -> None:
    node.fill(200)


def take_snapshot(node: DurableNode) -> None:
    node.snapshot()


def second_snapshot(node: DurableNode) -> None:
    for _ in range(2):
        node.fill(100)
        node.snapshot()


Act = Callable[[DurableNode], None]
sites: list[tuple[str, Operation, str, Act]] = [
    ("write of a batch", "write", "*/log-*", commit),
    ("sync of a batch", "sync", "*/log-*[0-9]", commit),
    ("allocation of a segment", "allocate", "*/log-*.tmp", next_segment),
    ("sync of a segment", "sync", "*/log-*.tmp", next_segment),
    ("naming of a segment", "rename", "*/log-*", next_segment),
    ("directory sync of a segment", "sync_directory", "*", next_segment),
    ("making of a snapshot", "open", "*/snapshot-*.tmp", take_snapshot),
    ("write of a snapshot", "write", "*/snapshot-*", take_snapshot),
    ("sync of a snapshot", "sync", "*/snapshot-*", take_snapshot),
    ("naming of a snapshot", "rename", "*/snapshot-*", take_snapshot),
    ("directory sync of a snapshot", "sync_directory", "*", take_snapshot),
    ("removal of segments", "remove", "*/log-*[0-9]", second_snapshot),
    ("removal of a snapshot", "remove", "*/snapshot-*", second_snapshot),
]


@pytest.mark.parametrize(
    ("operation", "pattern", "act"), [s[1:] for s in sites], ids=[s[0] for s in sites]
)
def test_an_error_of_the_disk_is_told_once_and_nothing_is_acknowledged_after_it(
    operation: Operation, pattern: str, act: Act
) -> None:
    node = started()
    node.fill(20)
    if act is second_snapshot:
        node.snapshot()
    node.disk.fail(operation, errno.EIO, pattern, times=None)
    act(node)
    assert [failure.errno for failure in node.failures] == [errno.EIO]
    assert node.log.failure is node.failures[0]
    assert node.log.overloaded
    told, snapshots = len(node.durable), len(node.snapshots)
    node.disk.heal()
    node.put(1_000)
    node.settle(30.0)
    node.snapshot()
    assert (len(node.durable), len(node.snapshots), len(node.failures)) == (told, snapshots, 1)
    acknowledged = {number: node.table[number] for number in range(1, 21)}
    again = node.restart(node.disk.crash)
    assert acknowledged.items() <= again.table.items()


def test_after_a_failure_elsewhere_what_was_about_to_be_committed_is_not_written() -> None:
    node = started()
    node.fill(20)
    node.put(21)
    node.log.fail(OSError(errno.EIO, "Input/output error", "a snapshot"))
    writes = node.disk.counters.writes
    node.settle(1.0)
    assert node.disk.counters.writes == writes
    assert node.log.durable_sequence == 20


def test_after_closing_what_was_about_to_be_committed_is_not_written() -> None:
    node = started()
    node.fill(20)
    node.put(21)
    node.log.close()
    node.settle(1.0)
    assert node.log.durable_sequence == 20
    assert node.failures == []


@pytest.mark.parametrize("act", [next_segment, take_snapshot])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_directory_sync_without_space_is_not_taken_for_a_shortage(code: int, act: Act) -> None:
    """The name may or may not be there: that is not the state before."""
    node = started()
    node.fill(20)
    node.disk.fail("sync_directory", code, times=None)
    act(node)
    assert [failure.errno for failure in node.failures] == [code]


def test_what_a_draft_of_a_segment_meets_without_space_is_tried_again() -> None:
    operations: tuple[Operation, ...] = ("allocate", "sync", "rename")
    for operation in operations:
        node = started()
        node.put(1)
        node.disk.fail(operation, no_space, "*log-*2*", times=3)
        node.settle(5.0)
        assert node.log.spare_ready
        assert node.failures == []


def test_a_snapshot_makes_the_log_before_the_previous_one_unnecessary() -> None:
    node = started()
    for _ in range(5):
        node.fill(200)
        writer = node.snapshot()
        assert writer.records == len(node.table)
    assert node.snapshots == [None] * 5
    kept = [name for name in node.names() if name.startswith("snapshot-")]
    assert kept == [f"snapshot-{first:020}" for first in (801, 1_001)]
    assert node.log.segments[0].first == 801
    assert {f"{s.path.name}" for s in node.log.segments} <= set(node.names())
    assert len([name for name in node.names() if name.startswith("log-")]) == (
        len(node.log.segments) + 1
    )
    node.fill(30)
    again = node.restart()
    assert again.table == node.table
    assert again.found.snapshot == path / kept[-1]
    assert again.recovery.progress.log_frames == 30
    # It goes on with the segments of the previous snapshot too, to remove them with it.
    assert [s.first for s in again.found.segments] == [s.first for s in node.log.segments]
    assert again.found.segments[-1] == node.log.segments[-1]


def test_the_whole_log_stays_until_there_are_two_snapshots() -> None:
    node = started()
    node.fill(200)
    node.snapshot()
    assert node.log.segments[0].first == 1


def test_what_changes_during_a_snapshot_is_in_it_or_behind_it() -> None:
    node = started()
    node.fill(300)

    def change() -> None:
        for key in (0, 127, 128, 255):
            node.put(10_000 + key, key=key)
        node.settle(0.0)

    node.snapshot(during=change)
    assert node.snapshots == [None]
    again = node.restart(node.disk.crash)
    assert again.table == node.table
    assert again.recovery.progress.log_frames == 4


def test_a_snapshot_has_no_name_before_the_log_is_durable_as_far_as_it_may_have_seen() -> None:
    node = started()
    node.fill(10)
    node.disk.fail("allocate", no_space, "*log-*", times=None)
    # The log is used up, and nothing takes what the snapshot is about to see.
    node.fill(300)
    assert not node.log.has_room(1)
    node.snapshot(during=lambda: commit(node))
    assert node.snapshots == []
    assert not any(name.endswith("01") and "snapshot" in name for name in node.names())
    node.disk.heal()
    node.settle(10.0)
    assert node.snapshots == [None]


@pytest.mark.parametrize("operation", ["open", "write", "sync", "rename"])
def test_a_snapshot_without_space_leaves_nothing_and_can_be_tried_again(
    operation: Operation,
) -> None:
    node = started()
    node.fill(50)
    node.disk.fail(operation, no_space, "*/snapshot-*")
    node.snapshot()
    assert [error.errno for error in node.snapshots if error] == [no_space]
    assert node.failures == []
    assert not any(name.startswith("snapshot-") for name in node.names())
    node.fill(50)
    node.snapshot()
    assert node.snapshots[1:] == [None]
    assert node.restart().table == node.table


def test_a_cancelled_snapshot_is_never_named_and_its_draft_goes_at_the_next_start() -> None:
    node = started()
    node.fill(50)
    writer: list[SnapshotWriter] = []
    writer.append(
        SnapshotWriter(
            node.directory,
            node.log,
            node.clock,
            ((9, b"x" * 1_000) for _ in range(3_000)),
            lambda *_: node.snapshots.append(None),
        )
    )
    writer[0].start()
    node.settle(0.006)
    writer[0].cancel()
    node.settle(1.0)
    assert node.snapshots == []
    assert any(name.endswith(".tmp") for name in node.names())
    assert not any(name.endswith(".tmp") for name in node.restart().names())


def test_a_closed_log_has_everything_and_asks_nothing_more_of_the_disk() -> None:
    node = started()
    node.fill(25)
    node.log.close()
    node.disk.close()
    node.directory.close()
    node.settle(1.0)
    assert node.failures == []
    assert node.restart().table == node.table


async def test_on_the_machines_own_disk_it_is_all_there_after_a_restart(tmp_path: Path) -> None:
    table: dict[bytes, bytes] = {}
    failures: list[OSError] = []
    finished: list[OSError | None] = []
    loop = asyncio.get_running_loop()

    def apply(_: int, body: bytes) -> None:
        table[body[:4]] = body

    def open_log(disk: SystemDisk) -> tuple[NodeDirectory, Log]:
        directory = NodeDirectory.open(disk, tmp_path / "node", "node-1", os.urandom(16))
        recovery = Recovery(directory, apply)
        for _ in recovery.steps():
            pass
        found = recovery.result
        log = Log(
            directory,
            SystemClock(),
            loop.call_soon,
            next_sequence=found.next_sequence,
            next_index=found.next_index,
            segments=found.segments,
            on_durable=durable.append,
            on_failure=failures.append,
            segment_bytes=1 << 20,
            commit_bytes_max=1 << 18,
        )
        log.start()
        return directory, log

    written: dict[bytes, bytes] = {}
    durable: list[Batch] = []
    for life in range(3):
        table.clear()
        disk = SystemDisk()
        directory, log = open_log(disk)
        assert table == written
        for number in range(8_000):
            body = number.to_bytes(4, "big") + life.to_bytes(1, "big") * 250
            written[body[:4]] = body
            log.append(RECORD, body)
            if number % 50 == 0:
                await asyncio.sleep(0)
        entries = iter([(RECORD, body) for body in list(written.values())])
        SnapshotWriter(
            directory, log, SystemClock(), entries, lambda _, error: finished.append(error)
        ).start()
        await wait_until(lambda: len(finished) > life and log.idle, "the snapshot was written")  # noqa: B023 - awaited here.
        log.close()
        disk.close()
        directory.close()
    assert failures == []
    assert finished == [None] * 3
    assert sum(batch.last - batch.first + 1 for batch in durable) == 24_000
