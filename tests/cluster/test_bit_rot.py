"""What has rotted in the memory of a node and in its files as well comes back from its peers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from services.core import operations as o
from services.core.key import namespace_prefix
from services.core.wire import OK
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.cluster.strong_cluster import ServiceProcess, gateway_client, strong_cluster
from tests.integration.node_process import secret
from tests.integration.process_memory import rot
from tests.plain_http import plain_client
from tests.simulation.asked import request_of
from tests.simulation.history import Put
from tests.waiting import patience_s

here = namespace_prefix(9, b"rot")
keys = 200
# Anti-entropy leaves alone what is younger than a few seconds.
back_s_max = 60.0


def content(number: int) -> bytes:
    return b"only here, %04d times" % number


async def signed(service: ServiceProcess, method: str, target: str, **content: Any) -> Any:
    auth = SignedAuth(Signer(secret, SystemClock()))
    headers = {"X-Ydht-Tenant": "9", "X-Ydht-Namespace": "rot"}
    async with plain_client(auth=auth, timeout=10, headers=headers) as client:
        return await client.request(method, service.url + target, **content)


async def value_at(node: ServiceProcess, number: int) -> bytes | None:
    answer = await signed(node, "GET", f"/store/key-{number}")
    return answer.content if answer.status_code == 200 else None


async def scrubbed(node: ServiceProcess) -> dict[str, Any]:
    await signed(node, "POST", "/scrub")
    told: dict[str, Any] = {"state": "requested"}
    async with asyncio.timeout(30):
        while told["state"] != "idle":
            await asyncio.sleep(0.05)
            told = (await signed(node, "GET", "/scrub")).json()
    return told


def damage(directory: Path, what: bytes) -> int:
    """Flip a bit of this in every file that has it; in how many places."""
    places = 0
    for path in [*directory.glob("log-*"), *directory.glob("snapshot-*")]:
        whole = path.read_bytes()
        offset = whole.find(what)
        while offset >= 0:
            with path.open("r+b") as file:
                file.seek(offset + len(what) - 1)
                file.write(bytes((what[-1] ^ 2,)))
            places += 1
            offset = whole.find(what, offset + 1)
    return places


async def test_what_has_rotted_in_memory_and_on_disk_comes_back_from_the_other_replicas(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with (
        strong_cluster(tmp_path, database_address.url(), replicators=1) as cluster,
        gateway_client(cluster.replicators[0], "gateway-1") as client,
    ):
        for number in range(keys):
            kind, body = o.PUT, o.encode_put(here + b"key-%d" % number, content(number))
            if number % 2:
                kind, body = request_of(Put(content(number)), here + b"key-%d" % number)
            async with asyncio.timeout(patience_s):
                # Refused is not done: on a machine with much to do a node may not be there yet.
                while (answered := (await client.ask(kind, body))[0]) == o.REFUSED:
                    pass
            assert answered in (OK, o.CHANGED)
        node = cluster.nodes[1]
        # One that was written eventually, and one of which a promise has the record as well.
        for number in (20, 41):
            assert await value_at(node, number) == content(number)
            assert damage(tmp_path / "nodes" / node.name, content(number)) >= 1
            assert rot(node.pid, content(number), 0) >= 1
            assert await value_at(node, number) != content(number)
        told = await scrubbed(node)
        assert told["found_in_memory"] == 2
        assert told["found_on_disk"] >= 2
        assert told["unmendable"] == 0
        async with asyncio.timeout(back_s_max):
            while [await value_at(node, number) for number in (20, 41)] != [
                content(20),
                content(41),
            ]:
                assert (await value_at(node, 20)) in (None, content(20))
                assert (await value_at(node, 41)) in (None, content(41))
                await signed(cluster.replicators[0], "POST", "/repair", json={"slots": None})
                await asyncio.sleep(1.0)
        for number in range(keys):
            assert await value_at(node, number) == content(number)
        # Its files are whole again as well, and nobody waits any more.
        async with asyncio.timeout(back_s_max):
            told = await scrubbed(node)
            while told["waiting_for_others"] or told["damaged_files"]:
                await asyncio.sleep(0.5)
                told = await scrubbed(node)
        assert "taken out, for the other replicas" in node.output.read_text()
        await node.kill()
        await node.start()
        await cluster.until_ready(node)
        assert await value_at(node, 20) == content(20)
        assert await value_at(node, 41) == content(41)
