"""A whole replica behind bad weather, on a disk that lies: what it told anybody stays true.

Clients write and read over links on which messages are lost, doubled and overtaken, while the
node takes snapshots, its disk freezes, fills up and fails, and its process ends by power cuts,
kill -9 and failed syncs, also in the middle of a recovery. What must hold, of every key:

- what was acknowledged, and what any read has shown, is there after every end of the process, or
  something newer (nothing lost, nothing unread), and so every later read says;
- whatever is there was sent by some client (nothing invented);
- an epoch in which anything was answered is known for good;
- digests are those of the records, whatever a snapshot caught them in the middle of.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

from services.core import messages as m
from services.core.errors import FatalError
from services.core.key import namespace_prefix
from services.core.listings import ListPage, ListQuery, ScanPage
from services.core.namespaces import Cache
from services.core.packed_bodies import decode_body, encode_body
from services.core.record import tombstone_body, value_body
from services.core.ring import slot_of
from services.core.wire import LOST, OK, OVERLOADED, TIMEOUT, Role
from services.dhtnode.replica import Replica
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_disk import FakeDisk, Operation
from services.runtime.fake_link import FakeLink, FakeNetwork, Weather
from services.runtime.link import Station
from services.runtime.opening import Identity
from services.runtime.peer import SENT
from tests.simulation.node_life import NodeLife, secret
from tests.simulation.scenario import Outcome

lives = 4
steps = 30
clients = 3
path = Path("/data/nodes/node-1")
timeout_s = 1.0
store = namespace_prefix(7, b"store")
cache = namespace_prefix(7, b"cache")
keys = [store + b"key-%02d" % number for number in range(16)]
cached_keys = [cache + b"key-%02d" % number for number in range(6)]
slots = sorted({slot_of(key) for key in keys + cached_keys})


class World:
    """The disk, the network, the clients, and what was ever promised to them."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.timeline = Timeline()
        self.disk = FakeDisk(self.draw, FakeClock(self.timeline))
        self.weather = Weather()
        self.network = FakeNetwork(self.draw, self.weather)
        self.outcome = Outcome()
        self.counter = 0
        self.epoch = 1
        self.sent: dict[bytes, set[bytes]] = {key: set() for key in keys + cached_keys}
        # The greatest record that must be there, and version, because somebody was told.
        self.told: dict[bytes, bytes] = dict.fromkeys(keys, b"")
        self.told_epoch = 0
        self.wrong: list[str] = []
        self.clients = [Client(self, f"client-{number}") for number in range(clients)]

    def run(self) -> Outcome:
        for _ in range(lives):
            life = Life(self)
            if life.recover(interrupted=self.draw.random() < 0.25):
                life.work()
            life.end()
            self.check_callbacks()
        life = Life(self)
        assert life.recover(interrupted=False), "an undisturbed recovery did not end"
        self.check_callbacks()
        return self.outcome

    def check_callbacks(self) -> None:
        """What is raised in a callback of a link, the link counts and logs."""
        assert not self.wrong, self.wrong[0]
        bugs = sum(client.station.counters.bugs for client in self.clients)
        assert not bugs, f"{bugs} callbacks of clients failed; the log has them"

    def check_recovered(self, replica: Replica) -> None:
        for key in keys:
            there = replica.table.peek(slot_of(key), key) or b""
            told = self.told[key]
            assert there >= told, f"{key!r}: {told[:12].hex()} was told, {there[:12].hex()} is left"
            assert not there or there in self.sent[key], f"{key!r}: {there!r} was never sent"
        assert replica.epoch >= self.told_epoch, f"epoch {self.told_epoch} is forgotten"
        while not replica.table.tend_slice(10_000):
            pass
        for slot in slots:
            wrong = replica.table.rebuild_digest(slot)
            assert not wrong, f"leaves {wrong} of slot {slot} are not those of its records"
        held = [replica.table.peek(slot_of(key), key) for key in keys]
        self.outcome.trace = hash((self.outcome.trace, tuple(held), self.timeline.now_s))

    def record(self, key: bytes) -> bytes:
        """A record for the key, mostly newer than all before; sometimes a retry of one."""
        if self.sent[key] and self.draw.random() < 0.1:
            return self.draw.choice(sorted(self.sent[key]))
        self.counter += self.draw.choice((1, 1, 1, 3))
        counter = max(self.counter - self.draw.choice((0, 0, 0, 2, 5)), 1)
        stamp = FakeClock.epoch_ms.to_bytes(6, "big") + counter.to_bytes(2, "big")
        version = stamp + self.draw.randrange(3).to_bytes(4, "big")
        if self.draw.random() < 0.15:
            body = tombstone_body
        else:
            body = value_body(counter.to_bytes(4, "big") * self.draw.choice((1, 8, 40, 300)))
        self.sent[key].add(version + body)
        return version + body


class Client:
    """Asks the node for this and that, and holds it to every answer."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.draw = world.draw
        self.clock = FakeClock(world.timeline)
        self.station = Station(Identity(Role.REPLICATOR, name, secret))
        world.network.attach(self.station, self.clock)
        self.link = FakeLink(world.network, name, "node-1")
        self.link.start()

    def ask(self) -> None:
        self.draw.choice(
            (self.write, self.write, self.write, self.write_many, self.get, self.get, self.get_many,
             self.list, self.scan, self.versions, self.declare)
        )()  # fmt: skip

    def request(self, kind: int, body: bytes, on_ok: Callable[[bytes], None]) -> None:
        epoch = self.world.epoch

        def answered(answer: int, content: bytes) -> None:
            count = self.world.outcome.count
            if answer in (LOST, TIMEOUT):
                count("unknown")
            elif answer == OK:
                count("answered")
                on_ok(content)
            else:
                count("refused")
            named = kind in (m.WRITE, m.WRITE_MANY)
            # Who has no room for an epoch says so without it.
            if named and answer not in (LOST, TIMEOUT, OVERLOADED, m.STORAGE_FULL):
                self.world.told_epoch = max(self.world.told_epoch, epoch)

        if self.link.request(kind, body, answered, timeout_s) == SENT:
            self.world.outcome.count("requests")

    # Writes.

    def write(self) -> None:
        world = self.world
        if self.draw.random() < 0.05:
            world.epoch += 1
        key = self.draw.choice(keys if self.draw.random() < 0.85 else cached_keys)
        record = world.record(key)
        body = m.encode_write(world.epoch, key, record)
        self.request(m.WRITE, body, lambda _: self.acknowledged(key, record))

    def write_many(self) -> None:
        chosen = self.draw.sample(keys, self.draw.randint(1, 6))
        items = [(key, self.world.record(key)) for key in chosen]

        def on_ok(answer: bytes) -> None:
            for (key, record), (kind, _) in zip(items, m.decode_statuses(answer), strict=True):
                if kind == OK:
                    self.acknowledged(key, record)

        self.request(m.WRITE_MANY, m.encode_write_many(self.world.epoch, items), on_ok)

    def acknowledged(self, key: bytes, record: bytes) -> None:
        if key in self.world.told:
            self.world.outcome.count("acknowledged")
            self.world.told[key] = max(self.world.told[key], record)

    def declare(self) -> None:
        caches = [Cache(cache, self.draw.randint(1, 6))] if self.draw.random() < 0.6 else []
        self.request(m.CACHES, encode_body(caches), lambda _: None)

    # Reads. What was told before one was sent, it must show.

    def get(self) -> None:
        key = self.draw.choice(keys)
        told = self.world.told[key]
        self.request(m.GET, key, lambda record: self.shown(key, record, told))

    def get_many(self) -> None:
        chosen = self.draw.sample(keys + cached_keys, 8)
        told = {key: self.world.told.get(key, b"") for key in chosen}

        def on_ok(answer: bytes) -> None:
            for key, record in zip(chosen, m.decode_records(answer), strict=True):
                self.shown(key, record or b"", told[key])

        self.request(m.GET_MANY, m.encode_get_many(chosen), on_ok)

    def list(self) -> None:
        query = encode_body(ListQuery(store))

        def on_ok(answer: bytes) -> None:
            for entry in decode_body(answer, ListPage).entries:
                self.shown(store + entry.key, entry.version, b"")

        self.request(m.LIST, query, on_ok)

    def scan(self) -> None:
        query = encode_body(ListQuery(store, tombstones=True))
        told = dict(self.world.told)

        def on_ok(answer: bytes) -> None:
            found = dict(decode_body(answer, ScanPage).found)
            for key in keys:
                self.shown(key, found.get(key[len(store) :], b""), told[key][:12])

        self.request(m.SCAN, query, on_ok)

    def versions(self) -> None:
        key = self.draw.choice(keys)
        told = self.world.told[key][:12]
        body = m.u16.pack(slot_of(key)) + m.u64.pack((1 << 64) - 1)

        def on_ok(answer: bytes) -> None:
            found, position = {}, 1
            while position < len(answer):
                start = position + m.u16.size
                position = start + m.u16.unpack_from(answer, position)[0] + 12
                found[answer[start : position - 12]] = answer[position - 12 : position]
            self.shown(key, found.get(key, b""), told)

        self.request(m.VERSIONS, body, on_ok)

    def shown(self, key: bytes, record: bytes, told: bytes) -> None:
        """A read has shown this record, or its version alone."""
        world = self.world
        world.outcome.count("shown")
        if record and not any(sent.startswith(record) for sent in world.sent[key]):
            world.wrong.append(f"{key!r}: {record!r} was shown and never sent")
        if key in world.told:
            if record < told:
                world.wrong.append(f"{key!r}: {told!r} was told, and then {record!r} shown")
            world.told[key] = max(world.told[key], record)


class Life:
    """One process of the node, from start to end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.draw = world.draw
        self.disk = world.disk
        self.process = NodeLife(
            "node-1", bytes(range(16)), world.timeline, world.network, world.disk
        )
        self.process.on_failed = self._disk_failed
        self.process.on_snapshot = self._written

    def recover(self, *, interrupted: bool) -> bool:
        """Whether the node serves; it does unless its recovery is interrupted."""
        count = self.world.outcome.count
        if interrupted:
            operation: Operation = self.draw.choice(("write", "sync", "sync_directory", "open"))
            self.disk.fail(operation, errno.EIO, "/data/*", after=self.draw.randrange(5))
        try:
            for _ in self.process.recover():
                if interrupted and self.draw.random() < 0.1:
                    count("interrupted recoveries")
                    return False
        except OSError:
            if not interrupted:
                raise
            count("interrupted recoveries")
            return False
        except FatalError as error:
            raise AssertionError(f"an honest crash was refused: {error}") from error
        self.disk.heal()
        count("recoveries")
        self.world.check_recovered(self.process.replica)
        self.process.serve()
        return True

    def work(self) -> None:
        world, draw, process = self.world, self.draw, self.process
        for _ in range(draw.randrange(steps)):
            for _ in range(draw.choice((0, 1, 3, 10))):
                draw.choice(world.clients).ask()
            if draw.random() < 0.2:
                process.take_snapshot()
            if draw.random() < 0.15:
                draw.choice((self._freeze, self._fill, self._break, self._storm))()
            if draw.random() < 0.1:
                process.replica.table.tend_slice(50)
            world.timeline.advance(draw.choice((0.000_3, 0.001, 0.01, 0.1, 0.3)))
            full = process.log.shortage is not None
            process.replica.full = "no segment" if full else None
            if process.failed:
                return
        for _ in range(draw.randrange(12)):
            draw.choice(world.clients).ask()
        world.timeline.advance(draw.choice((0.0, 0.000_5, 0.001, 0.002, 0.005)))

    def end(self) -> None:
        count = self.world.outcome.count
        process = self.process
        if process.station is not None:
            assert not process.station.counters.bugs, "a handler of the node failed; the log has it"
        process.end()
        self.world.wrong += process.wrong
        self.disk.heal()
        self.disk.capacity_bytes = 1 << 40
        if self.draw.random() < 0.6:
            self.disk.crash()
            count("power cuts")
        else:
            self.disk.kill()
            count("kills")
        self.world.weather.loss = self.world.weather.duplicate = self.world.weather.reorder = 0.0
        # Clients find the next life soon, and have heard of the end of this one.
        self.world.timeline.advance(self.draw.choice((0.01, 0.2)))

    def _disk_failed(self, error: OSError) -> None:
        if error.errno != errno.EIO:
            self.world.wrong.append(f"not a failure of the disk: {error}")
        self.world.outcome.count("failed disks")

    def _written(self, error: OSError | None) -> None:
        self.world.outcome.count("snapshots" if error is None else "snapshots without space")

    def _freeze(self) -> None:
        self.disk.freeze()
        self.world.outcome.count("frozen disks")
        self.world.timeline.schedule(self.draw.uniform(0.0, 0.5), self.disk.thaw)

    def _fill(self) -> None:
        used = self.disk.capacity_bytes - self.disk.space(path).free_bytes
        self.disk.capacity_bytes = used + self.draw.choice((0, 100, 3_000, 8_000))
        self.world.outcome.count("full disks")

        def free() -> None:
            self.disk.capacity_bytes = 1 << 40

        self.world.timeline.schedule(self.draw.uniform(0.0, 0.5), free)

    def _break(self) -> None:
        operation: Operation = self.draw.choice(("sync", "sync_directory", "write", "rename"))
        self.disk.fail(operation, errno.EIO, after=self.draw.randrange(4), times=None)

    def _storm(self) -> None:
        weather = self.world.weather
        weather.loss = self.draw.choice((0.0, 0.02, 0.2))
        weather.duplicate = self.draw.choice((0.0, 0.1, 0.3))
        weather.reorder = self.draw.choice((0.0, 0.1, 0.3))
        self.world.outcome.count("storms")


def node(seed: int) -> Outcome:
    return World(seed).run()
