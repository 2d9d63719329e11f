"""kill -9 and SIGTERM under load, on the real process: what it acknowledged or showed is there.

ROUNDS=200 in the environment runs the full figure; without it there are a few rounds.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.core import messages as m
from services.core.wire import DOWN, LOST, OK, OVERLOADED, TIMEOUT
from tests.integration.node_process import (
    NodeClient,
    NodeProcess,
    Stamps,
    node_client,
    node_process,
    prefix,
)

rounds = int(os.environ.get("ROUNDS", "5"))
keys_per_worker = 40
workers = 32


@dataclass
class Promises:
    """By key, the greatest record that was acknowledged or shown, and all that were sent."""

    told: dict[bytes, bytes] = field(default_factory=dict)
    sent: dict[bytes, set[bytes]] = field(default_factory=dict)
    acknowledged: int = 0
    shown: int = 0
    unknown: int = 0

    def tell(self, key: bytes, record: bytes) -> None:
        self.told[key] = max(self.told.get(key, b""), record)


class Load:
    """Workers that write and read keys of their own and of others until the node is gone."""

    def __init__(self, promises: Promises, stamps: Stamps, draw: random.Random) -> None:
        self.promises = promises
        self.stamps = stamps
        self.draw = draw
        self.ended: list[int] = []

    async def run(self, client: NodeClient) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._work(client, number))

    async def _work(self, client: NodeClient, number: int) -> None:
        kind = OK
        while kind == OK:
            chance = self.draw.random()
            key = self._key(number)
            if chance < 0.6:
                kind = await self._write(client, key)
            elif chance < 0.75:
                kind = await self._write_many(client, number)
            else:
                kind = await self._read(client, self._key(self.draw.randrange(workers)))
        self.ended.append(kind)

    def _key(self, number: int) -> bytes:
        return prefix + b"%d/%d" % (number, self.draw.randrange(keys_per_worker))

    def _record(self, key: bytes) -> bytes:
        content = key * self.draw.choice((1, 5, 50))
        record = self.stamps.tombstone() if self.draw.random() < 0.1 else self.stamps.value(content)
        self.promises.sent.setdefault(key, set()).add(record)
        return record

    async def _write(self, client: NodeClient, key: bytes) -> int:
        record = self._record(key)
        kind, _ = await client.write(key, record)
        if kind == OK:
            self.promises.tell(key, record)
            self.promises.acknowledged += 1
        return self._over(kind, {key: record})

    async def _write_many(self, client: NodeClient, number: int) -> int:
        names = {self._key(number) for _ in range(8)}
        items = {key: self._record(key) for key in sorted(names)}
        kind, body = await client.write_many(list(items.items()))
        if kind == OK:
            for (key, record), (status, _) in zip(
                items.items(), m.decode_statuses(body), strict=True
            ):
                assert status == OK
                self.promises.tell(key, record)
                self.promises.acknowledged += 1
        return self._over(kind, items)

    async def _read(self, client: NodeClient, key: bytes) -> int:
        told = self.promises.told.get(key, b"")
        kind, record = await client.ask(m.GET, key)
        if kind == OK:
            assert record >= told, f"{key!r} went back"
            assert not record or record in self.promises.sent[key], f"{key!r} was invented"
            self.promises.tell(key, record)
            self.promises.shown += 1
        return self._over(kind, {})

    def _over(self, kind: int, items: dict[bytes, bytes]) -> int:
        assert kind in (OK, LOST, DOWN, OVERLOADED, TIMEOUT), f"answer kind {kind}"
        if kind in (DOWN, OVERLOADED):
            # Then nothing was done, for certain.
            for key, record in items.items():
                self.promises.sent[key].discard(record)
        self.promises.unknown += kind in (LOST, TIMEOUT)
        return kind


async def check(client: NodeClient, promises: Promises) -> None:
    """Read back every key that anything was promised of."""
    for names in _portions(sorted(promises.sent), 500):
        kind, body = await client.ask(m.GET_MANY, m.encode_get_many(names))
        assert kind == OK
        for key, record in zip(names, m.decode_records(body), strict=True):
            told = promises.told.get(key, b"")
            assert record is not None
            assert record >= told, f"{key!r}: {told[:12].hex()} was told, {record[:12].hex()} left"
            assert not record or record in promises.sent[key], f"{key!r}: {record!r} was never sent"
            promises.tell(key, record)
            # Whatever is older can never come back.
            promises.sent[key] = {sent for sent in promises.sent[key] if sent >= record}


def _portions(names: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


@pytest.mark.timeout(60 + 20 * rounds)
async def test_kill_9_under_load_takes_nothing_back_that_was_acknowledged_or_shown(
    tmp_path: Path,
) -> None:
    promises, stamps, draw = Promises(), Stamps(), random.Random(rounds)
    began_s = time.monotonic()
    slowest_s = 0.0
    async with node_process(tmp_path / "data") as node:
        for number in range(rounds):
            async with node_client(node) as client:
                await check(client, promises)
                await _load_and_kill(node, client, Load(promises, stamps, draw), draw, number)
            restarted_s = time.monotonic()
            await node.serve()
            slowest_s = max(slowest_s, time.monotonic() - restarted_s)
        async with node_client(node) as client:
            await check(client, promises)
    assert promises.acknowledged > 500 * rounds
    assert promises.shown > 100 * rounds
    sys.stdout.write(
        f"{rounds} kills in {time.monotonic() - began_s:.0f} s: {promises.acknowledged:,} "
        f"acknowledged, {promises.shown:,} shown, {promises.unknown:,} unknown, 0 lost; "
        f"slowest restart {slowest_s:.2f} s\n"
    )


async def _load_and_kill(
    node: NodeProcess, client: NodeClient, load: Load, draw: random.Random, number: int
) -> None:
    """Load the node, kill it at some moment, sometimes in the middle of a snapshot."""

    async def kill() -> None:
        await asyncio.sleep(draw.uniform(0.1, 0.6))
        if number % 3 == 2:
            answer = await node.signed("/snapshot", method="POST")
            assert answer.status_code == 202
            await asyncio.sleep(draw.uniform(0.0, 0.15))
        await node.kill()

    async with asyncio.TaskGroup() as group:
        group.create_task(load.run(client))
        group.create_task(kill())
    assert len(load.ended) == workers
    assert set(load.ended) <= {LOST, DOWN}


async def test_sigterm_under_load_answers_everything_in_flight_and_loses_nothing(
    tmp_path: Path,
) -> None:
    promises, stamps, draw = Promises(), Stamps(), random.Random(4)
    async with node_process(tmp_path / "data") as node:
        for _ in range(3):
            load = Load(promises, stamps, draw)
            async with node_client(node) as client, asyncio.TaskGroup() as group:
                await check(client, promises)
                group.create_task(load.run(client))
                await asyncio.sleep(0.4)
                assert await node.terminate() == 0
            # Nothing was left unknown: each worker was answered, and then found the link down.
            assert promises.unknown == 0
            assert set(load.ended) <= {DOWN, OVERLOADED}
            assert len(load.ended) == workers
            await node.serve()
            assert "torn write" not in node.said
        async with node_client(node) as client:
            await check(client, promises)
        # With nothing unknown, what is there is exactly what was acknowledged.
        assert all(sent <= {promises.told.get(key)} for key, sent in promises.sent.items())
