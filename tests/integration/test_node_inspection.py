"""`ydht node inspect` and `verify` see what recovery would see, and change nothing."""

from __future__ import annotations

import errno
import itertools
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.cli.commands import main
from services.core.cluster import ClusterMap, Member
from services.core.errors import FatalError
from services.core.hlc import pack_version
from services.core.key import storage_key
from services.core.messages import encode_write
from services.core.record import tombstone_body, value_body
from services.core.ring import slot_of
from services.core.wire import OK
from services.dhtnode.directory import NodeDirectory
from services.dhtnode.frame import PURGED
from services.dhtnode.inspection import Inspection, inspect
from services.dhtnode.purging import Purged
from services.dhtnode.recovery import Recovery
from services.dhtnode.replica import Replica
from services.dhtnode.snapshot import SnapshotWriter
from services.dhtnode.table import Table
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk
from services.runtime.kept_map import KeptMap
from services.runtime.log.frame import Corrupt
from services.runtime.log.log import Log

place = Path("/data/nodes/node-1")
segment_bytes = 16_384


class Node:
    """A replica with a log of small segments, on a disk in memory."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.clock = FakeClock(self.timeline)
        self.disk = FakeDisk(random.Random(1), FakeClock(self.timeline))
        self.directory = NodeDirectory.open(self.disk, place, "node-1", bytes(range(16)))
        self.replica = Replica(Table(bytes(32)), self.clock)
        recovery = Recovery(self.directory, self.replica.replay)
        list(recovery.steps())
        found = recovery.result
        self.log = Log(
            self.directory,
            self.clock,
            lambda callback: self.clock.call_later(0.0, callback),
            next_sequence=found.next_sequence,
            next_index=found.next_index,
            segments=found.segments,
            on_durable=self.replica.durable,
            on_failure=lambda error: pytest.fail(str(error)),
            segment_bytes=segment_bytes,
            commit_bytes_max=4_096,
        )
        self.replica.serve(self.log)
        self.log.start()
        self.answers: list[int] = []
        self._stamps = 0

    def reply(self, request_id: int, kind: int, body: bytes) -> None:
        self.answers.append(kind)

    def write(self, number: int, value: bytes | None) -> None:
        self._stamps += 1
        version = pack_version((self.clock.wall_ms() << 16) + self._stamps, 1)
        body = tombstone_body if value is None else value_body(value)
        key = storage_key(7, b"default", b"key-%d" % number)
        self.replica.write(self, self._stamps, encode_write(0, key, version + body))  # type: ignore[arg-type]
        self.timeline.advance(0.01)

    def snapshot(self) -> None:
        ended: list[OSError | None] = []
        writer = SnapshotWriter(
            self.directory,
            self.log,
            self.clock,
            self.replica.frames(),
            lambda _, error: ended.append(error),
        )
        writer.start()
        self.timeline.advance(60.0)
        assert ended == [None]

    def inspected(self) -> Inspection:
        inspector = inspect(self.disk, place)
        shares = list(inspector.steps())
        assert shares == sorted(shares)
        assert not shares or shares[-1] == pytest.approx(1.0, abs=0.5)
        return inspector.found


@pytest.fixture
def node() -> Node:
    one = Node()
    for number in range(200):
        one.write(number, b"v" * 100)
    assert one.answers == [OK] * 200
    return one


def test_every_key_is_found_and_all_of_it_is_live(node: Node) -> None:
    found = node.inspected()
    assert (found.node_id, found.keys, found.damage) == ("node-1", 200, [])
    used = [survey for survey in found.files if survey.kind == "segment"]
    assert len(used) > 1
    assert sum(survey.records for survey in used) == 200
    for one, other in itertools.pairwise(used):
        assert other.first == one.last + 1
    # What is dead is the head of each segment and nothing else.
    assert all(survey.dead_bytes < 100 for survey in used)


def test_what_was_overwritten_or_deleted_is_dead(node: Node) -> None:
    before = sum(survey.dead_bytes for survey in node.inspected().files)
    for number in range(100):
        node.write(number, b"w" * 100 if number % 2 else None)
    found = node.inspected()
    assert found.keys == 200
    dead = sum(survey.dead_bytes for survey in found.files) - before
    assert 100 * 150 < dead < 100 * 250


def test_a_snapshot_holds_what_is_live_and_the_log_before_it_is_dead(node: Node) -> None:
    node.snapshot()
    node.write(0, b"x" * 100)
    found = node.inspected()
    (snapshot,) = [survey for survey in found.files if survey.kind == "snapshot"]
    assert snapshot.records == 200
    before = [s for s in found.files if s.kind == "segment" and s.last < snapshot.first]
    assert before
    # The epoch and the clock lie in the snapshot only; of the log before it nothing is needed.
    assert all(survey.live_bytes == 0 for survey in before)
    assert found.keys == 200
    assert found.damage == []


def test_a_changed_bit_is_damage_with_file_and_offset(node: Node) -> None:
    node.write(1, b"later")
    name = "log-0000000001"
    node.disk.flip_bit(place / name, 5_000, 3)
    (damage,) = node.inspected().damage
    assert name in damage
    proof = re.search(
        r"damaged at byte (\d+): frame \d+ is bad, and a frame that was committed after it is "
        r"intact at byte (\d+)",
        damage,
    )
    assert proof is not None
    bad, intact = (int(offset) for offset in proof.groups())
    assert bad <= 5_000 < intact


def test_damage_before_a_later_segment_is_told_as_that(node: Node) -> None:
    last = node.disk.open(place / "log-0000000001", "read").size() - 1
    node.write(1, b"later")
    used = next(s for s in node.inspected().files if s.path.name == "log-0000000001").used_bytes
    assert used < last
    with node.disk.open(place / "log-0000000001", "write") as file:
        file.write_at(used, b"\x01")
    (damage,) = node.inspected().damage
    assert f"damaged at byte {used}" in damage
    assert "is bad, and a later segment follows" in damage


def test_a_store_file_of_another_store_is_not_blamed_on_the_log(node: Node) -> None:
    content = node.disk.read(place / "store", 4_096).replace(b"0001", b"0011", 1)
    node.disk.replace(place / "store", content)
    inspector = inspect(node.disk, place)
    assert list(inspector.steps())
    damage = inspector.found.damage
    assert len(damage) == len([s for s in inspector.found.files if s.kind == "segment"]) > 1
    for each in damage:
        assert "these two do not belong together" in each
        assert "damaged" not in each


def test_a_directory_that_may_not_be_read_is_told_in_one_line(node: Node) -> None:
    node.disk.fail("open", errno.EACCES, "*/store")
    with pytest.raises(FatalError, match="store may not be read or written by this account"):
        inspect(node.disk, place)


def test_a_changed_bit_in_the_head_of_a_segment_is_damage_too(node: Node) -> None:
    used = [survey for survey in node.inspected().files if survey.kind == "segment"]
    for survey in used:
        node.disk.flip_bit(survey.path, 10, 3)
        (damage,) = node.inspected().damage
        assert survey.path.name in damage
        node.disk.flip_bit(survey.path, 10, 3)


def test_a_torn_write_at_the_end_is_told_and_is_no_damage(node: Node) -> None:
    last = [survey for survey in node.inspected().files if survey.kind == "segment"][-1]
    with node.disk.open(last.path, "write") as file:
        file.write_at(last.used_bytes, b"\x01half a frame")
    found = node.inspected()
    assert found.damage == []
    assert [s.torn_bytes for s in found.files if s.path == last.path] == [13]


def test_looking_changes_nothing(node: Node) -> None:
    before = (node.disk.names(place), node.disk.counters.writes, node.disk.counters.syncs)
    node.inspected()
    assert (node.disk.names(place), node.disk.counters.writes, node.disk.counters.syncs) == before


def test_a_directory_of_something_else_is_refused(node: Node) -> None:
    with pytest.raises(FatalError, match="is not the directory of a node"):
        inspect(node.disk, place.parent)


def copied(node: Node, to: Path) -> Path:
    """The directory as real files, for the command."""
    for name in node.disk.names(place):
        size = node.disk.open(place / name, "read").size()
        (to / name).write_bytes(node.disk.read(place / name, size))
    return to


def test_the_commands_show_a_sound_node(node: Node, tmp_path: Path) -> None:
    directory = copied(node, tmp_path)
    shown = CliRunner().invoke(main, ["node", "inspect", str(directory)])
    assert shown.exit_code == 0
    assert shown.stderr == "", "nothing but complaints, when it is no terminal"
    assert "node-1, store 000102030405060708090a0b0c0d0e0f, 200 keys" in shown.output
    assert "log-0000000001" in shown.output
    verified = CliRunner().invoke(main, ["node", "verify", str(directory)])
    assert verified.exit_code == 0
    assert "Everything is sound." in verified.output


def test_verify_counts_in_good_english(tmp_path: Path) -> None:
    lone = Node()
    lone.write(1, b"x")
    directory = copied(lone, tmp_path)
    (directory / "log-0000000002").unlink()
    verified = CliRunner().invoke(main, ["node", "verify", str(directory)])
    assert "node-1: 1 file, 1 frame checked" in verified.output
    (directory / "log-0000000001").unlink()
    verified = CliRunner().invoke(main, ["node", "verify", str(directory)])
    assert "node-1: 0 files, 0 frames checked" in verified.output


def test_verify_names_damage_and_fails(node: Node, tmp_path: Path) -> None:
    directory = copied(node, tmp_path)
    damaged = directory / "log-0000000001"
    content = bytearray(damaged.read_bytes())
    content[3_000] ^= 1
    damaged.write_bytes(content)
    verified = CliRunner().invoke(main, ["node", "verify", str(directory)])
    assert verified.exit_code == 1
    assert f"{damaged} is damaged at byte" in verified.output
    assert "Everything is sound." not in verified.output


def test_verify_fails_over_what_the_next_start_would_cut(node: Node, tmp_path: Path) -> None:
    directory = copied(node, tmp_path)
    last = [survey for survey in node.inspected().files if survey.kind == "segment"][-1]
    damaged = directory / last.path.name
    content = bytearray(damaged.read_bytes())
    content[last.used_bytes - 1] ^= 1
    damaged.write_bytes(content)
    verified = CliRunner().invoke(main, ["node", "verify", str(directory)])
    assert verified.exit_code == 1
    assert "a write that a crash has torn, or damage to the last one" in verified.output
    assert "All else is sound." in verified.output


@pytest.mark.parametrize("byte", [0, 3, 11, 30, 40, 56])
def test_a_segments_own_frame_that_is_damaged_is_refused_alike(byte: int) -> None:
    """Also where it is the only one and holds a single batch."""
    lone = Node()
    lone.write(1, b"x")
    lone.disk.flip_bit(place / "log-0000000001", byte, 1)
    [damage] = lone.inspected().damage
    assert damage.startswith("/data/nodes/node-1/log-0000000001 is damaged at byte 0")
    lone.disk.kill()
    directory = NodeDirectory.open(lone.disk, place, "node-1", bytes(16))
    with pytest.raises(Corrupt, match="log-0000000001 is damaged at byte 0"):
        list(Recovery(directory, lone.replica.replay).steps())


def test_verify_of_what_is_no_node_is_one_line(tmp_path: Path) -> None:
    verified = CliRunner().invoke(main, ["node", "verify", str(tmp_path)])
    assert verified.exit_code == 78, "which is not that of damage"
    assert verified.output.count("\n") == 1
    assert "is not the directory of a node" in verified.output


def test_a_damaged_map_is_told_of(node: Node) -> None:
    kept = KeptMap(node.disk, place)
    kept.keep_soon(ClusterMap(1, 1, (Member("node-1", "0" * 32, "h", 1, 2),)).encode(), none_fails)
    node.timeline.advance(1.0)
    assert node.inspected().damage == []
    node.disk.flip_bit(kept.path, 60, 0)
    [damage] = node.inspected().damage
    assert damage.startswith("/data/nodes/node-1/map is damaged; the next start puts it aside")


def none_fails(error: OSError | None) -> None:
    assert error is None


def test_what_was_collected_is_live_no_more_and_what_came_later_is(node: Node) -> None:
    keys = [storage_key(7, b"default", b"key-%d" % number) for number in range(3)]
    slot = slot_of(keys[0])
    known = node.replica.table.peek(slot, keys[0])
    assert known is not None
    before = node.inspected()
    node.log.append(PURGED, Purged(slot, known[:12], [(keys[0], True, False)]).encode())
    node.timeline.advance(0.01)
    after = node.inspected()
    assert (after.keys, after.damage) == (199, [])
    gone = sum(survey.dead_bytes for survey in after.files)
    assert gone > sum(survey.dead_bytes for survey in before.files) + len(known)
    node.write(0, b"again")
    assert node.inspected().keys == 200
    # A purge takes nothing that is newer than its session.
    node.log.append(PURGED, Purged(slot, known[:12], [(keys[0], True, False)]).encode())
    node.timeline.advance(0.01)
    assert node.inspected().keys == 200
