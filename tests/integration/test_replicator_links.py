"""Whom a service asks that has links to several replicators, over real sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from services.core.errors import PeerError, RetryLater, UnknownOutcome
from services.core.messages import MALFORMED
from services.core.operations import (
    ABSENT,
    FETCH,
    PUT,
    REFUSED,
    UNKNOWN,
    refused_answer,
    unknown_answer,
)
from services.core.wire import OK, OVERLOADED, UNKNOWN_KIND, Role
from services.runtime import telemetry
from services.runtime.clock import FakeClock, Timeline
from services.runtime.fake_link import FakeLink, FakeNetwork
from services.runtime.link import LinkServer, Station
from services.runtime.opening import Identity
from services.runtime.peer import Handler, Peer
from services.runtime.replicators import Replicators, links_to_replicators, only_replicators
from services.runtime.settings import link_port_offset
from tests.free_ports import free_port
from tests.integration.link_ends import log_lines
from tests.waiting import wait_until

secret = "kJ8w2nQz5vXr9tLp3mBc7yHdF4gS6aWe"
wait_s = 5.0


class Replicator:
    """Answers everything as it was told to, and counts what it was asked."""

    def __init__(self, name: str, role: Role = Role.REPLICATOR) -> None:
        self.name = name
        self.asked = 0
        self.port = free_port()
        self.answer: tuple[int, bytes] | None = (OK, name.encode())
        handlers: dict[int, Handler] = {PUT: self._handle, FETCH: self._handle}
        self._station = Station(Identity(role, name, secret), handlers)
        self._server: LinkServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = LinkServer(self._station, "127.0.0.1", self.port + link_port_offset)
        await self._server.start()

    async def die(self) -> None:
        """As by kill -9: without a word, and nobody listens any more."""
        if self._server is None:
            return
        server, self._server = self._server, None
        for connection in list(server.connections):
            connection.abort("killed")
        await server.close()

    def _handle(self, peer: Peer, request_id: int, body: bytes) -> None:
        self.asked += 1
        if self.answer is not None:
            peer.reply(request_id, *self.answer)


class Cluster:
    """Two replicators, of which `first` is asked first, and a user manager with links to both."""

    def __init__(self) -> None:
        self.both = [Replicator("replicator-1"), Replicator("replicator-2")]
        station = Station(Identity(Role.USERMANAGER, "usermanager-1", secret))
        self.links = links_to_replicators(
            [replicator.url for replicator in self.both], station, admit=only_replicators
        )
        draw = random.Random(1)
        self.replicators = Replicators(self.links, draw)

    async def find_first(self) -> None:
        _, body = await self.replicators.ask(PUT, b"", wait_s)
        self.first, self.second = sorted(self.both, key=lambda one: one.name.encode() != body)
        for replicator in self.both:
            replicator.asked = 0


@asynccontextmanager
async def running() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        cluster = Cluster()
        for replicator in cluster.both:
            await replicator.start()
            stack.push_async_callback(replicator.die)
        cluster.replicators.start()
        stack.push_async_callback(cluster.replicators.close)
        await wait_until(lambda: cluster.replicators.live == 2, "both replicators answer")
        await cluster.find_first()
        yield cluster


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with running() as cluster:
        yield cluster


def refused(code: str) -> tuple[int, bytes]:
    return REFUSED, refused_answer(code, f"because of {code}")


async def test_one_is_asked_for_everything_as_long_as_it_is_there(cluster: Cluster) -> None:
    for _ in range(20):
        assert await cluster.replicators.ask(PUT, b"x", wait_s) == (OK, cluster.first.name.encode())
    assert (cluster.first.asked, cluster.second.asked) == (20, 0)


async def test_processes_differ_in_whom_they_ask_first() -> None:
    timeline, network = Timeline(), FakeNetwork(random.Random(1))
    names = {"replicator-1", "replicator-2", "replicator-3"}
    for name in ("usermanager-1", *names):
        identity = Identity(Role.REPLICATOR, name, secret)
        handler = partial(_say, name.encode())
        network.attach(Station(identity, {PUT: handler}), FakeClock(timeline))
    firsts = set()
    for seed in range(30):
        links = [FakeLink(network, "usermanager-1", name) for name in sorted(names)]
        replicators = Replicators(links, random.Random(seed))
        replicators.start()
        timeline.advance(0.1)
        asking = asyncio.create_task(replicators.ask(PUT, b"", wait_s))
        await asyncio.sleep(0)
        timeline.advance(0.1)
        firsts.add((await asking)[1].decode())
    assert firsts == names


async def test_processes_agree_on_whom_they_ask_about_a_slot() -> None:
    urls = [f"http://127.0.0.1:{port}" for port in (7001, 7002, 7003)]
    station = Station(Identity(Role.USERMANAGER, "usermanager-1", secret))
    orders = set()
    for seed in range(6):
        shuffled = random.Random(seed).sample(urls, len(urls))
        links = links_to_replicators(shuffled, station)
        orders.add(tuple(link.port for link in links))
    assert len(orders) == 1


def _say(what: bytes, peer: Peer, request_id: int, body: bytes) -> None:
    peer.reply(request_id, OK, what)


async def test_when_it_dies_the_next_is_asked_and_the_first_again_when_it_is_back(
    cluster: Cluster,
) -> None:
    await cluster.first.die()
    await wait_until(lambda: cluster.replicators.live == 1, "its death is seen")
    assert await cluster.replicators.ask(PUT, b"x", wait_s) == (OK, cluster.second.name.encode())
    await cluster.first.start()
    await wait_until(lambda: cluster.replicators.live == 2, "it is back")
    assert await cluster.replicators.ask(PUT, b"x", wait_s) == (OK, cluster.first.name.encode())


@pytest.mark.parametrize(
    "answer",
    [
        (OVERLOADED, b""),
        (UNKNOWN_KIND, b""),
        refused("shutting_down"),
        refused("cluster_forming"),
        refused("no_quorum"),
    ],
    ids=["overloaded", "older", "shutting down", "forming", "no quorum"],
)
async def test_the_next_is_asked_when_the_first_has_done_nothing(
    cluster: Cluster, answer: tuple[int, bytes]
) -> None:
    cluster.first.answer = answer
    assert await cluster.replicators.ask(PUT, b"x", wait_s) == (OK, cluster.second.name.encode())
    cluster.second.answer = answer
    with pytest.raises(RetryLater) as told:
        await cluster.replicators.ask(PUT, b"x", wait_s)
    expected = answer[1][1:].split(b"because")[0].decode() if answer[1] else "overloaded"
    assert told.value.code == expected
    assert (cluster.first.asked, cluster.second.asked) == (2, 2)


async def test_one_that_cannot_stamp_for_a_moment_has_too_much_to_do(cluster: Cluster) -> None:
    cluster.first.answer = cluster.second.answer = refused("no_replicator")
    with pytest.raises(RetryLater, match="because") as told:
        await cluster.replicators.ask(PUT, b"x", wait_s)
    assert told.value.code == "overloaded"
    assert (cluster.first.asked, cluster.second.asked) == (1, 1)


async def test_answers_that_tell_of_something_are_handed_on(cluster: Cluster) -> None:
    cluster.first.answer = (ABSENT, b"")
    assert await cluster.replicators.ask(FETCH, b"x", wait_s) == (ABSENT, b"")
    assert cluster.second.asked == 0


async def test_with_nobody_there_it_is_said(cluster: Cluster) -> None:
    for replicator in cluster.both:
        await replicator.die()
    await wait_until(lambda: cluster.replicators.live == 0, "their death is seen")
    await wait_until(
        lambda: all("refused" in (link.last_error or "") for link in cluster.links),
        "they were looked for in vain",
    )
    with pytest.raises(RetryLater, match=r"No replicator can be asked") as told:
        await cluster.replicators.ask(PUT, b"x", wait_s)
    assert told.value.code == "no_replicator"
    assert cluster.replicators.choose(7) is None


async def broken_under(cluster: Cluster, *, repeatable: bool) -> tuple[int, bytes]:
    """Ask, and have the first replicator die while it has the request."""
    cluster.first.answer = None
    asking = asyncio.create_task(cluster.replicators.ask(PUT, b"x", wait_s, repeatable=repeatable))
    await wait_until(lambda: cluster.first.asked == 1, "it was asked")
    await cluster.first.die()
    return await asking


async def test_a_request_that_may_have_been_done_is_not_sent_to_another(cluster: Cluster) -> None:
    with pytest.raises(UnknownOutcome, match="did not tell what became of it"):
        await broken_under(cluster, repeatable=False)
    assert cluster.second.asked == 0


async def test_one_that_does_no_harm_when_it_is_done_twice_is(cluster: Cluster) -> None:
    answer = await broken_under(cluster, repeatable=True)
    assert answer == (OK, cluster.second.name.encode())


async def test_what_may_have_been_done_is_never_called_undone_by_the_next(
    cluster: Cluster,
) -> None:
    cluster.second.answer = refused("no_quorum")
    with pytest.raises(UnknownOutcome):
        await broken_under(cluster, repeatable=True)
    assert cluster.second.asked == 1


async def test_an_answer_that_does_not_come_in_time_is_an_unknown_outcome(
    cluster: Cluster,
) -> None:
    cluster.first.answer = None
    with pytest.raises(UnknownOutcome) as told:
        await cluster.replicators.ask(PUT, b"x", 0.1)
    assert cluster.second.asked == 0
    assert len(told.value.members["operation_id"]) == 32


async def test_an_outcome_that_nobody_tells_is_found_in_the_log_by_the_request(
    cluster: Cluster,
) -> None:
    cluster.first.answer = None
    asking = telemetry.request_id.set("the-request")
    try:
        with log_lines() as lines, pytest.raises(UnknownOutcome) as told:
            await cluster.replicators.ask(PUT, b"x", 0.1)
    finally:
        telemetry.request_id.reset(asking)
    assert told.value.members == {"operation_id": "the-request"}
    assert "the-request" in [line.get("operation") for line in lines]


async def test_an_outcome_that_the_replicator_does_not_know_has_its_operation(
    cluster: Cluster,
) -> None:
    cluster.first.answer = (UNKNOWN, unknown_answer(bytes(range(12)), "two of three were gone"))
    with pytest.raises(UnknownOutcome, match="two of three were gone") as told:
        await cluster.replicators.ask(PUT, b"x", wait_s)
    assert told.value.members == {"operation_id": bytes(range(12)).hex()}


async def test_one_that_does_not_answer_leaves_the_next_its_share_of_the_time(
    cluster: Cluster,
) -> None:
    cluster.first.answer = None
    answer = await cluster.replicators.ask(PUT, b"x", wait_s / 10, repeatable=True)
    assert answer == (OK, cluster.second.name.encode())
    cluster.second.answer = None
    with pytest.raises(UnknownOutcome, match="did not tell what became of it"):
        await cluster.replicators.ask(PUT, b"x", wait_s / 10, repeatable=True)
    assert (cluster.first.asked, cluster.second.asked) == (2, 2)


async def test_what_only_reads_has_no_unknown_outcome(cluster: Cluster) -> None:
    cluster.first.answer = cluster.second.answer = None
    with log_lines() as lines, pytest.raises(RetryLater, match="gave no answer") as told:
        await cluster.replicators.ask(FETCH, b"x", wait_s / 10, reads=True)
    assert told.value.code == "no_replicator"
    assert (cluster.first.asked, cluster.second.asked) == (1, 1)
    assert not [line for line in lines if "outcome" in line["event"]]
    cluster.second.answer = (UNKNOWN, unknown_answer(bytes(12), "two of three were gone"))
    with pytest.raises(RetryLater, match="two of three were gone") as told:
        await cluster.replicators.ask(FETCH, b"x", wait_s / 10, reads=True)
    assert told.value.code == "no_quorum"


async def test_what_may_be_repeated_is_when_the_replicator_does_not_know_its_outcome(
    cluster: Cluster,
) -> None:
    cluster.first.answer = (UNKNOWN, unknown_answer(bytes(range(12)), "two of three were gone"))
    answer = await cluster.replicators.ask(PUT, b"x", wait_s, repeatable=True)
    assert answer == (OK, cluster.second.name.encode())
    cluster.second.answer = refused("no_quorum")
    with pytest.raises(UnknownOutcome, match="two of three were gone") as told:
        await cluster.replicators.ask(PUT, b"x", wait_s, repeatable=True)
    assert told.value.members == {"operation_id": bytes(range(12)).hex()}
    assert (cluster.first.asked, cluster.second.asked) == (2, 2)


@pytest.mark.parametrize(
    "answer", [refused("unauthorized"), refused("made_up"), (MALFORMED, b"why \xff")]
)
async def test_what_no_client_can_mend_is_a_peer_error(
    cluster: Cluster, answer: tuple[int, bytes]
) -> None:
    cluster.first.answer = answer
    with pytest.raises(PeerError):
        await cluster.replicators.ask(PUT, b"x", wait_s)


async def test_who_gives_up_waiting_disturbs_nobody(cluster: Cluster) -> None:
    cluster.first.answer = None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await cluster.replicators.ask(PUT, b"x", 0.3)
    cluster.first.answer = (OK, b"after")
    assert await cluster.replicators.ask(PUT, b"x", wait_s) == (OK, b"after")


async def test_slots_are_shared_out_among_those_who_are_there(cluster: Cluster) -> None:
    first, second = cluster.links
    choose = cluster.replicators.choose
    assert [choose(slot) for slot in range(4)] == [first, second, first, second]
    assert choose(0, (first,)) is second
    assert choose(0, (first, second)) is None
    ports = {one.port + link_port_offset: one for one in cluster.both}
    gone = ports[first.port]
    await gone.die()
    await wait_until(lambda: cluster.replicators.live == 1, "its death is seen")
    assert [choose(slot) for slot in range(4)] == [second] * 4


async def test_another_service_at_the_address_of_a_replicator_is_not_asked() -> None:
    impostor = Replicator("node-1", Role.NODE)
    station = Station(Identity(Role.USERMANAGER, "usermanager-1", secret))
    links = links_to_replicators([impostor.url], station, admit=only_replicators)
    replicators = Replicators(links, random.Random(1))
    await impostor.start()
    try:
        with log_lines() as lines:
            replicators.start()
            await wait_until(lambda: links[0].last_error, "it is found out")
        reasons = [str(line.get("reason")) for line in lines]
        assert "expected a replicator here, found node node-1" in reasons
        with pytest.raises(RetryLater, match=r"No replicator can be asked now$"):
            await replicators.ask(PUT, b"x", wait_s)
    finally:
        await replicators.close()
        await impostor.die()


async def test_clients_are_not_told_where_replicators_are() -> None:
    port = free_port()
    station = Station(Identity(Role.GATEWAY, "gateway-1", secret))
    links = links_to_replicators([f"http://127.0.0.1:{port}"], station)
    replicators = Replicators(links, random.Random(1))
    replicators.start()
    try:
        await wait_until(lambda: links[0].last_error, "nobody is there")
        assert not set("0123456789") & set(replicators.absence.detail.replace("None of 1 ", ""))
        assert "127.0.0.1" not in replicators.absence.detail
    finally:
        await replicators.close()
