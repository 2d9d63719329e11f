"""A node finds its state again, whatever ended the process before, or says why it can't."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from services.core.errors import FatalError, PeerError, RestartLater
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import RECORD, SnapshotEnd, encode_end, encode_start
from services.dhtnode.recovery import Recovery
from services.runtime.clock import FakeClock, Timeline
from services.runtime.disk import DirectoryInUse
from services.runtime.disk_failure import disk_failure
from services.runtime.fake_disk import FakeDisk, Operation
from services.runtime.fake_media import sector_bytes
from services.runtime.log.frame import (
    Corrupt,
    SegmentHead,
    encode,
    encode_segment,
    head_bytes,
    piece_bytes,
    seed_of,
    segment_head_bytes,
)
from tests.integration.durable_node import DurableNode, path, segment_bytes, store_id


def started() -> DurableNode:
    return DurableNode().start()


def filled(count: int = 300) -> DurableNode:
    node = started()
    node.fill(count)
    return node


def with_two_snapshots() -> DurableNode:
    node = filled(200)
    node.snapshot()
    node.fill(200)
    node.snapshot()
    node.fill(25)
    return node


def snapshots_of(node: DurableNode) -> list[str]:
    return [name for name in node.names() if name.startswith("snapshot-")]


def end(node: DurableNode) -> None:
    node.clock.stop()
    node.disk.kill()


def overwrite(node: DurableNode, name: str, offset: int, data: bytes) -> None:
    """Change a file behind everybody's back, durably."""
    with node.disk.open(path / name, "write") as file:
        file.write_at(offset, data)
        file.sync()


def refusal(node: DurableNode) -> Corrupt:
    end(node)
    with pytest.raises(Corrupt) as refused:
        DurableNode(node.disk, node.timeline)
    return refused.value


# What ended the process before.


def test_a_new_directory_begins_with_nothing() -> None:
    node = DurableNode()
    assert node.applied == []
    assert (node.found.next_sequence, node.found.next_index) == (1, 1)
    assert (node.found.snapshot, node.found.cut, node.found.warnings) == (None, None, [])


def test_a_torn_write_is_cut_and_reported_and_the_log_goes_on_in_a_new_segment() -> None:
    node = started()
    node.fill(10, filler=b"x" * 20)
    segment = node.log.segments[-1]
    overwrite(node, segment.path.name, segment.used_bytes - 5, bytes(5))
    torn = node.restart().start()
    frame_bytes = head_bytes + 26
    cut = torn.found.cut
    assert cut is not None
    assert (cut.path, cut.offset) == (segment.path, segment.used_bytes - frame_bytes)
    assert cut.bytes == frame_bytes - 5
    assert torn.found.next_sequence == 10
    assert [f"{cut.bytes} bytes" in warning for warning in torn.found.warnings] == [True]
    torn.fill(5)
    assert torn.log.segments[-1].first == 10
    again = torn.restart(torn.disk.crash)
    assert again.table == torn.table
    assert again.found.cut is None


def test_frames_of_the_torn_batch_behind_the_bad_one_are_cut_with_it() -> None:
    node = filled(10)
    segment = node.log.segments[-1]
    for number in range(11, 21):
        node.put(number)
    node.settle()
    third = segment.used_bytes - 8 * (head_bytes + 6)
    overwrite(node, segment.path.name, third, bytes(8))
    torn = node.restart()
    assert torn.found.next_sequence == 13
    assert torn.found.cut is not None
    assert torn.found.cut.bytes == 8 * (head_bytes + 6)
    tail = node.content(segment.path.name)[third:]
    assert tail == bytes(len(tail))


def test_a_bad_frame_with_a_later_batch_behind_it_is_refused() -> None:
    node = filled(10)
    segment = node.log.segments[-1]
    offset = segment.used_bytes - 3 * (head_bytes + 6)
    node.put(11)
    node.settle()
    overwrite(node, segment.path.name, offset + 4, b"\xff")
    refused = refusal(node)
    assert (refused.file, refused.offset) == (str(segment.path), offset)
    assert "frame 8 is bad" in str(refused)
    assert "stays out" in str(refused)


def test_a_segment_whose_first_write_was_torn_is_used_again() -> None:
    node = filled(10)
    node.log.rotate()
    node.put(11, filler=b"v" * 1_000)
    node.settle()
    overwrite(node, "log-0000000002", 0, bytes(sector_bytes))
    torn = node.restart().start()
    assert (torn.found.next_sequence, torn.found.next_index) == (11, 2)
    assert torn.found.cut is not None
    torn.fill(10)
    assert torn.log.segments[-1].path.name == "log-0000000002"
    assert torn.restart().table == torn.table


def test_the_very_first_write_may_be_torn() -> None:
    node = started()
    node.put(1, filler=b"v" * 1_000)
    node.settle()
    overwrite(node, "log-0000000001", 0, bytes(sector_bytes))
    torn = node.restart().start()
    assert (torn.found.next_sequence, torn.found.next_index, torn.table) == (1, 1, {})
    torn.fill(10)
    assert torn.restart().table == torn.table


def test_a_tenants_value_that_looks_like_later_frames_does_not_stop_a_node() -> None:
    node = filled(10)
    forged = b"".join(
        encode(seed_of(other), number, number, RECORD, b"x")
        for number in range(11, 40)
        for other in (b"", bytes(16))
    )
    node.put(11, filler=forged[:2_000])
    node.settle()
    segment = node.log.segments[-1]
    overwrite(node, segment.path.name, segment.used_bytes - 1, b"?")
    assert node.restart().found.next_sequence == 11


@pytest.mark.parametrize("seed", range(20))
def test_what_a_killed_process_left_unsynced_is_not_lost_once_it_was_shown(seed: int) -> None:
    """The page cache outlives the process. Nothing of it may be read and then be lost."""
    timeline = Timeline()
    disk = FakeDisk(random.Random(seed), FakeClock(timeline))
    node = DurableNode(disk, timeline).start()
    node.fill(10)
    disk.fail("sync", errno.EIO)
    for number in range(11, 30):
        node.put(number, filler=bytes(20))
    node.settle()
    assert len(node.failures) == 1
    # After the failed sync, the pages read back well, are marked clean, and may not be on the disk.
    shown = node.restart()
    assert shown.found.next_sequence == 30
    again = shown.restart(disk.crash)
    assert again.table == shown.table
    assert again.found.next_sequence == 30


def test_frames_that_a_snapshot_contains_are_not_applied_again() -> None:
    node = filled(50)
    node.snapshot()
    again = node.restart()
    assert again.table == node.table
    assert again.found.next_sequence == 51
    assert not any(kind == RECORD for kind, _ in again.applied)


# Damage to snapshots.


def test_the_previous_snapshot_and_the_log_behind_it_replace_a_damaged_one() -> None:
    node = with_two_snapshots()
    newest = snapshots_of(node)[-1]
    overwrite(node, newest, 400, b"\xff\xff")
    again = node.restart().start()
    assert again.table == node.table
    assert again.found.snapshot == path / snapshots_of(node)[0]
    assert len(again.found.warnings) == 1
    assert newest in again.found.warnings[0]
    assert newest + ".damaged" in again.names()
    assert newest not in again.names()
    # The next snapshot is the second good one, and nothing older is needed.
    again.fill(10)
    again.snapshot()
    assert len(snapshots_of(again)) == 2
    assert not any(name.endswith(".damaged") for name in again.names())
    assert again.restart().table == again.table


def test_before_the_second_snapshot_the_whole_log_replaces_the_first() -> None:
    node = filled(200)
    node.snapshot()
    node.fill(30)
    overwrite(node, snapshots_of(node)[0], 0, b"\xff")
    again = node.restart()
    assert again.table == node.table
    assert again.found.snapshot is None
    assert len(again.found.warnings) == 1


def test_without_any_good_snapshot_the_newest_is_named() -> None:
    node = with_two_snapshots()
    older, newer = snapshots_of(node)
    overwrite(node, older, 400, b"\xff\xff")
    overwrite(node, newer, 300, b"\xff\xff")
    refused = refusal(node)
    assert refused.file == str(path / newer)
    assert 0 < refused.offset <= 300
    assert snapshots_of(node) == [older, newer]


def test_a_snapshot_that_the_device_cannot_read_is_damaged() -> None:
    node = with_two_snapshots()
    newest = snapshots_of(node)[-1]
    end(node)
    node.disk.fail("read", errno.EIO, f"*/{newest}")
    assert DurableNode(node.disk, node.timeline).table == node.table
    assert newest + ".damaged" in node.names()


def test_a_log_that_the_device_cannot_read_is_refused() -> None:
    node = filled(300)
    node.disk.fail("read", errno.EIO, "*/log-0000000002", after=1)
    refused = refusal(node)
    assert refused.file.endswith("log-0000000002")
    assert "the device cannot read it" in str(refused)


def test_nothing_of_a_damaged_snapshot_is_applied() -> None:
    node = with_two_snapshots()
    newest = snapshots_of(node)[-1]
    overwrite(node, newest, len(node.content(newest)) - 3, b"\xff")
    end(node)
    disk = node.disk
    with disk.open(path / snapshots_of(node)[0], "read") as file:
        chunks = file.size()
    again = DurableNode(disk, node.timeline)
    assert again.recovery.progress.snapshot_records == 200
    assert chunks > 0
    assert sum(kind != RECORD for kind, _ in again.applied) == 16


@pytest.mark.parametrize("kept", ["nothing", "start", "all but the end", "more than all"])
def test_a_snapshot_that_is_not_whole_is_damaged(kept: str) -> None:
    node = with_two_snapshots()
    newest = snapshots_of(node)[-1]
    content = node.content(newest)
    changed = {
        "nothing": b"",
        "start": content[: len(encode_start(store_id, 1))],
        "all but the end": content[: -(head_bytes + 24)],
        "more than all": content + b"x",
    }[kept]
    end(node)
    with node.disk.open(path / newest, "write") as file:
        file.truncate(0)
        file.write_at(0, changed)
    again = DurableNode(node.disk, node.timeline)
    assert again.table == node.table
    assert len(again.found.warnings) == 1


def test_a_snapshot_whose_end_counts_other_records_is_damaged() -> None:
    node = with_two_snapshots()
    newest = snapshots_of(node)[-1]
    wrong = encode_end(seed_of(store_id), 401, SnapshotEnd(18, 257, 400))
    overwrite(node, newest, len(node.content(newest)) - len(wrong), wrong)
    again = node.restart()
    assert "its end counts other frames than it has" in again.found.warnings[0]
    assert again.table == node.table


# Damage to the log.


def test_a_missing_segment_is_named() -> None:
    node = filled(400)
    node.disk.remove(path / "log-0000000002")
    refused = refusal(node)
    assert refused.file == str(path / "log-0000000002")
    assert "it is missing" in str(refused)


def test_a_log_without_its_beginning_is_refused() -> None:
    node = filled(400)
    node.disk.remove(path / "log-0000000001")
    assert refusal(node).file == str(path / "log-0000000001")


def test_a_snapshot_without_a_log_is_refused() -> None:
    node = filled(200)
    node.snapshot()
    for name in [name for name in node.names() if name.startswith("log-")]:
        node.disk.remove(path / name)
    refused = refusal(node)
    assert (refused.file, refused.offset) == (str(path), 0)
    assert "a snapshot and no log" in str(refused)


def test_a_snapshot_with_nothing_but_the_ruins_of_a_log_is_refused() -> None:
    node = filled(50)
    node.snapshot()
    overwrite(node, "log-0000000001", 0, bytes(30))
    assert "log-000000000" in refusal(node).file


def test_a_log_cut_short_behind_a_snapshot_is_refused() -> None:
    node = filled(200)
    node.snapshot()
    last = node.log.segments[-1]
    overwrite(node, last.path.name, last.used_bytes - 31, bytes(31))
    refused = refusal(node)
    assert (refused.file, refused.offset) == (str(last.path), last.used_bytes - 31)


def test_a_segment_of_another_store_is_refused() -> None:
    node = filled(10)
    foreign = encode_segment(SegmentHead(bytes(16), 1, segment_bytes))
    overwrite(node, "log-0000000001", 0, foreign)
    assert "belongs to the store 0000" in str(refusal(node))


def test_a_segment_in_anothers_place_is_refused() -> None:
    node = filled(400)
    first, second = (node.content(f"log-000000000{number}") for number in (1, 2))
    overwrite(node, "log-0000000001", 0, second)
    overwrite(node, "log-0000000002", 0, first)
    assert "log-000000000" in refusal(node).file


def test_frames_that_make_no_sense_are_damage_with_file_and_offset() -> None:
    node = filled(10)
    end(node)

    def apply(_: int, body: bytes) -> None:
        if body[2:6] == (7).to_bytes(4, "big"):
            raise PeerError("a record has unknown flags 0x7; is the peer a newer version?")

    directory = NodeDirectory.open(node.disk, path, "node-1", store_id)
    with pytest.raises(Corrupt, match="unknown flags") as refused:
        list(Recovery(directory, apply).steps())
    assert refused.value.offset == segment_head_bytes + 6 * (head_bytes + 6)


def test_old_segments_that_come_back_are_no_hindrance() -> None:
    """A removal is not synced: a power cut may take some of them back, damaged or not."""
    node = filled(300)
    first = node.content("log-0000000001")
    for _ in range(2):
        node.fill(200)
        node.snapshot()
    assert "log-0000000001" not in node.names()
    assert "log-0000000002" not in node.names()
    end(node)
    with node.disk.open(path / "log-0000000001", "create") as file:
        file.write_at(0, b"\xff" * 100 + first[100:])
    again = DurableNode(node.disk, node.timeline).start()
    assert again.table == node.table
    # They go with the next removal.
    for _ in range(2):
        again.fill(50)
        again.snapshot()
    assert "log-0000000001" not in again.names()
    assert again.failures == []


# Errors of the disk during recovery, and how long it may take.


@pytest.mark.parametrize(
    ("operation", "pattern"),
    [
        ("sync_directory", "*/node-1"),
        ("sync_directory", "*/nodes"),
        ("write", "*/log-*"),
        ("sync", "*/log-*"),
        ("rename", "*/snapshot-*"),
        ("open", "*/log-*"),
    ],
)
def test_an_error_of_the_disk_during_recovery_ends_it(operation: Operation, pattern: str) -> None:
    node = with_two_snapshots()
    overwrite(node, snapshots_of(node)[-1], 400, b"\xff\xff")
    last = node.log.segments[-1]
    overwrite(node, last.path.name, last.used_bytes - 5, bytes(5))
    end(node)
    node.disk.fail(operation, errno.EIO, pattern)
    with pytest.raises(OSError, match="Input/output error"):
        DurableNode(node.disk, node.timeline)
    node.disk.kill()
    again = DurableNode(node.disk, node.timeline)
    assert again.found.next_sequence == 425


def test_the_directory_sync_behind_a_damaged_snapshot_may_fail_too() -> None:
    node = with_two_snapshots()
    overwrite(node, snapshots_of(node)[-1], 400, b"\xff\xff")
    end(node)
    directory = NodeDirectory.open(node.disk, path, "node-1", store_id)
    node.disk.fail("sync_directory", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        list(Recovery(directory, lambda *_: None).steps())


def test_recovery_goes_in_small_steps_and_tells_how_far_it_is() -> None:
    node = DurableNode(segment_size=4 << 20, commit_size=1 << 20).start()
    node.fill(4_000, batch=500, filler=bytes(1_000))
    node.snapshot()
    node.fill(1_000, batch=500, filler=bytes(1_000))
    end(node)
    directory = NodeDirectory.open(node.disk, path, "node-1", store_id)
    applied = 0

    def apply(_: int, body: bytes) -> None:
        nonlocal applied
        applied += len(body)

    recovery = Recovery(directory, apply)
    done, frames, before = [0], [0], 0
    for _ in recovery.steps():
        assert applied - before <= 2 * piece_bytes
        before = applied
        done.append(recovery.progress.bytes_done)
        frames.append(recovery.progress.log_frames)
        assert done[-1] <= recovery.progress.bytes_total or not recovery.progress.bytes_total
    assert done == sorted(done)
    assert frames == sorted(frames)
    assert len(set(frames)) > 3
    progress = recovery.progress
    assert progress.bytes_done == progress.bytes_total > 4 << 20
    assert (progress.log_frames, progress.snapshot_records) == (1_000, 256)


# Whose directory it is.


def fresh_disk(seed: int = 1) -> FakeDisk:
    return FakeDisk(random.Random(seed), FakeClock(Timeline()))


def open_directory(disk: FakeDisk, node_id: str = "node-1", new: bytes = store_id) -> NodeDirectory:
    return NodeDirectory.open(disk, path, node_id, new)


def test_a_store_id_is_made_once() -> None:
    disk = fresh_disk()
    made = open_directory(disk)
    assert made.store_id == store_id
    made.close()
    again = open_directory(disk, new=bytes(16))
    assert (again.store_id, again.node_id) == (store_id, "node-1")


def test_a_directory_is_used_by_one_process() -> None:
    disk = fresh_disk()
    open_directory(disk)
    with pytest.raises(DirectoryInUse):
        open_directory(disk)


def test_another_nodes_directory_is_refused_and_not_kept_locked() -> None:
    disk = fresh_disk()
    open_directory(disk).close()
    with pytest.raises(FatalError, match="belongs to node 'node-1', and this is 'node-2'"):
        open_directory(disk, "node-2")
    open_directory(disk)


def test_files_that_nobody_claims_are_refused() -> None:
    disk = fresh_disk()
    disk.make_directory(path)
    disk.open(path / "log-0000000001", "create").close()
    with pytest.raises(FatalError, match="holds 'log-0000000001' but no file 'store'"):
        open_directory(disk)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"),
        (b"{}", "missing required field `format`"),
        (b"[1]", "Expected `object`"),
        (b"\xff", "JSON is malformed"),
        (b'{"format": 1, "store_id": "' + bytes(5_000), "larger than"),
        (b'{"format": 1, "node_id": "\xff", "store_id": ""}', "utf-8"),
        (b'{"format": 1, "node_id": "node-1"}', "missing required field `store_id`"),
        (b'{"format": 1, "node_id": 7, "store_id": "00"}', "got `int` - at `$.node_id`"),
        (b'{"format": 1, "node_id": "node-1", "store_id": "xyz"}', "`$.store_id`"),
        (b'{"format": 1, "node_id": "node-1", "store_id": "00"}', "`$.store_id`"),
        (
            b'{"format": 2, "node_id": "node-1", "store_id": "000102030405060708090a0b0c0d0e0f"}',
            "format that this version does not know",
        ),
    ],
)
def test_a_store_file_that_says_nothing_is_refused(content: bytes, why: str) -> None:
    disk = fresh_disk()
    disk.make_directory(path)
    with disk.open(path / "store", "create") as file:
        file.write_at(0, content)
    with pytest.raises(FatalError, match=r"/data/nodes/node-1/store") as caught:
        open_directory(disk)
    said = str(caught.value)
    assert why in said
    assert "Error" not in said
    assert "put back an intact copy of that file" in said or b": 2" in content


@pytest.mark.parametrize(
    ("code", "advice", "later"),
    [
        (errno.EACCES, f"not be read or written by this account, uid {os.geteuid()}", False),
        (errno.EPERM, "run this as the owner of its data", False),
        (errno.EROFS, "mount that file system for writing", False),
        (errno.ENOSPC, "free space there", True),
        (errno.EDQUOT, "free space there", True),
        (errno.EMFILE, "raise the limit on open files", True),
        (errno.EIO, "the disk failed at", True),
    ],
)
def test_what_a_disk_refuses_is_told_with_the_path_and_what_to_do(
    code: int, advice: str, later: bool
) -> None:
    disk = fresh_disk()
    open_directory(disk).close()
    disk.fail("open", code, "*/store")
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        open_directory(disk)
    told = disk_failure(caught.value)
    for part in (advice, "/data/nodes/node-1/store", os.strerror(code)):
        assert part in str(told)
    assert isinstance(told, RestartLater) == later
    assert ("the disk failed" in str(told)) == (code == errno.EIO)


@pytest.mark.parametrize("place", [path, path.parent])
def test_a_file_where_the_directory_should_be_is_named(place: Path) -> None:
    disk = fresh_disk()
    disk.make_directory(place.parent)
    disk.open(place, "create").close()
    with pytest.raises(NotADirectoryError) as caught:
        open_directory(disk)
    told = disk_failure(caught.value)
    assert "/data/nodes" in str(told)
    assert "move the file away" in str(told)
    assert not isinstance(told, RestartLater)


def test_what_was_left_unfinished_is_removed() -> None:
    node = filled(10)
    for name in ("store.tmp", "log-0000000009.tmp", "snapshot-00000000000000000007.tmp"):
        node.disk.open(path / name, "create").close()
    again = node.restart()
    assert not [name for name in again.names() if name.endswith(".tmp")]


def test_a_store_id_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        open_directory(fresh_disk(), new=b"abc")


def ended_by(disk: FakeDisk) -> list[Callable[[], None]]:
    return [disk.crash, disk.kill]


@pytest.mark.parametrize("seed", range(40))
def test_a_directory_may_be_cut_short_anywhere_in_its_making(seed: int) -> None:
    disk, draw = fresh_disk(seed), random.Random(seed)
    ids = [bytes([number]) * 16 for number in range(9)]
    operations: tuple[Operation, ...] = ("write", "sync", "rename", "sync_directory", "open")
    for attempt in range(8):
        disk.fail(draw.choice(operations), errno.EIO, "/data/*", after=draw.randrange(4))
        try:
            opened = open_directory(disk, new=ids[attempt])
        except OSError:
            pass
        else:
            # From here on this is its identity, whatever happens.
            ids = [opened.store_id] * 9
        disk.heal()
        draw.choice(ended_by(disk))()
    assert open_directory(disk, new=ids[8]).store_id in ids


def test_the_path_of_a_directory_is_made_as_deep_as_it_is() -> None:
    disk = fresh_disk()
    deep = Path("/a/b/c/d")
    NodeDirectory.open(disk, deep, "node-1", store_id).close()
    disk.crash()
    assert NodeDirectory.open(disk, deep, "node-1", bytes(16)).store_id == store_id
