"""Links over TLS: both ends show a certificate of the cluster's authority, or there is no link."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import socket
import ssl
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trustme

from services.core.errors import FatalError
from services.core.wire import OK
from services.runtime.link import Link, LinkServer
from services.runtime.link_limits import LinkCounters
from services.runtime.link_tls import SecuredStrangers, TlsFiles, tls_context
from services.runtime.opening import ServerOpening
from services.runtime.refusals import Address
from tests.free_ports import free_port
from tests.integration.link_ends import (
    ECHO,
    HOLD,
    Answers,
    Service,
    linked,
    log_lines,
    refusal,
    served,
    up,
)
from tests.waiting import wait_until

mib = 1024 * 1024


def files_of(authority: trustme.CA, folder: Path, name: str) -> TlsFiles:
    """A certificate of this authority for a name that is no host's, and the authority's own."""
    files = TlsFiles(folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-ca.pem")
    certificate = authority.issue_cert(f"{name}.cluster")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(str(files.certificate), append=number > 0)
    certificate.private_key_pem.write_to_path(str(files.key))
    authority.cert_pem.write_to_path(str(files.authority))
    return files


@dataclasses.dataclass(frozen=True)
class Certificates:
    server: TlsFiles
    client: TlsFiles
    stranger: TlsFiles  # of another authority, which it also trusts
    infiltrator: TlsFiles  # of another authority, though it trusts ours


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ours, theirs = trustme.CA(), trustme.CA()
    stranger = files_of(theirs, folder, "stranger")
    server = files_of(ours, folder, "server")
    return Certificates(
        server,
        files_of(ours, folder, "client"),
        stranger,
        dataclasses.replace(stranger, authority=server.authority),
    )


async def answered(link: Link, body: bytes) -> tuple[int, bytes]:
    got: list[tuple[int, bytes]] = []
    link.request(ECHO, body, lambda kind, body: got.append((kind, body)), 10.0)
    await wait_until(lambda: bool(got), "the request is answered")
    return got[0]


async def test_with_certificates_of_one_authority_a_link_works(certificates: Certificates) -> None:
    async with (
        served(Service("server", tls=certificates.server).station()) as server,
        linked(Service("client", tls=certificates.client).station(), server.port) as link,
    ):
        await up(link)
        assert await answered(link, b"x") == (OK, b"x")
        large = bytes(range(256)) * (5 * mib // 256)
        assert await answered(link, large) == (OK, large)
        await link.close(drain_s=5.0)
        assert link.last_error == "parted"


@pytest.mark.parametrize("whose", ["stranger", "infiltrator"])
async def test_a_client_with_a_certificate_of_another_authority_is_refused(
    certificates: Certificates, whose: str
) -> None:
    tls = getattr(certificates, whose)
    async with (
        served(Service("server", tls=certificates.server).station()) as server,
        linked(Service("client", tls=tls).station(), server.port) as link,
    ):
        # The stranger itself refuses the server, the infiltrator is refused by it.
        await refusal(link, "certificate verify failed" if whose == "stranger" else "LINK_TLS_CA")
        assert not link.connected
        assert not server.connections


async def test_a_client_does_not_trust_a_server_of_another_authority(
    certificates: Certificates,
) -> None:
    async with (
        served(Service("server", tls=certificates.stranger).station()) as server,
        linked(Service("client", tls=certificates.client).station(), server.port) as link,
    ):
        await refusal(link, "certificate verify failed")
        assert not server.connections


async def test_who_waits_for_a_server_says_why_when_one_comes_that_it_does_not_trust(
    certificates: Certificates,
) -> None:
    port = free_port()
    station = Service("client", tls=certificates.client).station()
    link = Link(station, "127.0.0.1", port, absence="nobody yet; waiting")
    server = LinkServer(Service("server", tls=certificates.stranger).station(), "127.0.0.1", port)
    with log_lines() as lines:
        link.start()
        await refusal(link, "Errno 111")
        await server.start()
        await refusal(link, "certificate verify failed")
        await link.close()
        await server.close()
    said = [(line["event"], line["reason"]) for line in lines if line.get("reason")]
    assert said[0][0] == "nobody yet; waiting"
    assert any(
        event == "link is down" and "certificate verify failed" in reason for event, reason in said
    )


async def test_a_client_without_a_certificate_gets_no_further_than_the_handshake(
    certificates: Certificates,
) -> None:
    service = Service("server", tls=certificates.server)
    async with served(service.station()) as server:
        context = ssl.create_default_context(cafile=str(certificates.server.authority))
        context.check_hostname = False
        # In TLS 1.3 the client learns of its refusal at the first read.
        assert await refused_by(server.port, context)
        assert service.up == []


async def refused_by(port: int, context: ssl.SSLContext) -> bool:
    """Whether the server hangs up without having sent anything over TLS."""
    writer = None
    try:
        async with asyncio.timeout(5.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            return await reader.read(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True
    finally:
        if writer is not None:
            writer.transport.abort()


async def test_tls_older_than_1_3_is_not_spoken(certificates: Certificates) -> None:
    async with served(Service("server", tls=certificates.server).station()) as server:
        context = tls_context(certificates.client, server=False)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await refused_by(server.port, context)


async def test_a_plain_client_is_pointed_to_tls_when_the_server_hangs_up(
    certificates: Certificates,
) -> None:
    async with (
        served(Service("server", tls=certificates.server).station()) as server,
        linked(Service("client").station(), server.port) as link,
    ):
        await refusal(link, "set on one end alone")
        assert not server.connections


async def test_a_tls_client_and_a_plain_server_both_say_so(
    certificates: Certificates,
) -> None:
    station = Service("server").station()
    async with (
        served(station) as server,
        linked(Service("client", tls=certificates.client).station(), server.port) as link,
    ):
        await refusal(link, "this end speaks TLS and the other does not")
        await wait_until(lambda: station.counters.connections_refused > 0, "the server refused")


async def test_the_secret_is_wanted_over_tls_too(certificates: Certificates) -> None:
    service = Service("server", key="the secret of quite another cluster", tls=certificates.server)
    async with (
        served(service.station()) as server,
        linked(Service("client", tls=certificates.client).station(), server.port) as link,
    ):
        await refusal(link, "CLUSTER_SECRET differs")


async def test_a_tls_link_comes_back_and_loses_what_was_pending_once(
    certificates: Certificates,
) -> None:
    theirs = Service("server", tls=certificates.server)
    async with (
        served(theirs.station()) as server,
        linked(Service("client", tls=certificates.client).station(), server.port) as link,
    ):
        await up(link)
        answers = Answers()
        for _ in range(50):
            link.request(HOLD, b"x", answers, 60.0)
        await wait_until(lambda: len(theirs.held) == 50, "all have arrived")
        for connection in list(server.connections):
            connection.abort("killed")
        await wait_until(answers.are(50), "all are told")
        await up(link)
        assert await answered(link, b"again") == (OK, b"again")
        assert answers.count == 50


def broken(files: TlsFiles, folder: Path, fault: str) -> TlsFiles:
    garbage = folder / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
    return {
        "certificate missing": dataclasses.replace(files, certificate=folder / "none.pem"),
        "key missing": dataclasses.replace(files, key=folder / "none.key"),
        "authority missing": dataclasses.replace(files, authority=folder / "none-ca.pem"),
        "certificate is garbage": dataclasses.replace(files, certificate=garbage),
        "key is garbage": dataclasses.replace(files, key=garbage),
        "authority is garbage": dataclasses.replace(files, authority=garbage),
        "authority is empty": dataclasses.replace(files, authority=Path("/dev/null")),
        "authority is a key": dataclasses.replace(files, authority=files.key),
    }[fault]


@pytest.mark.parametrize(
    "fault",
    [
        "certificate missing",
        "key missing",
        "authority missing",
        "certificate is garbage",
        "key is garbage",
        "authority is garbage",
        "authority is empty",
        "authority is a key",
    ],
)
async def test_files_that_cannot_be_used_stop_the_start_and_name_the_settings(
    certificates: Certificates, tmp_path: Path, fault: str
) -> None:
    tls = broken(certificates.server, tmp_path, fault)
    with pytest.raises(FatalError, match="LINK_TLS_CERT, LINK_TLS_KEY and LINK_TLS_CA"):
        Link(Service("client", tls=tls).station(), "127.0.0.1", 1)
    with pytest.raises(FatalError, match="LINK_TLS_CERT, LINK_TLS_KEY and LINK_TLS_CA"):
        await LinkServer(Service("server", tls=tls).station(), "127.0.0.1", 0).start()


async def test_a_key_of_another_certificate_stops_the_start(certificates: Certificates) -> None:
    tls = dataclasses.replace(certificates.server, key=certificates.client.key)
    with pytest.raises(FatalError, match="LINK_TLS_KEY"):
        Link(Service("client", tls=tls).station(), "127.0.0.1", 1)


async def test_strangers_who_never_shake_hands_are_bounded_and_counted(
    certificates: Certificates,
) -> None:
    station = Service("server", tls=certificates.server).station(openings_max=3, opening_s=2.0)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(station))
        for _ in range(3):
            _, silent = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(silent.close)
        client = Service("client", tls=certificates.client).station()
        link = await stack.enter_async_context(linked(client, server.port))
        refused = station.counters
        await wait_until(lambda: refused.connections_refused > 0, "the door was too crowded")
        assert not link.connected
        # Their time is up, each is counted as refused, and whoever keeps to the rules gets in.
        await up(link)
        await wait_until(lambda: refused.connections_refused >= 4, "each stranger is counted")


async def hung_up_on(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    writer.close()


async def test_bugs_over_strangers_are_counted_and_shut_the_door_on_nobody(
    certificates: Certificates,
) -> None:
    counters, refused = LinkCounters(), list[str]()
    broken = ["over the second stranger", "over the first"]

    def opening() -> ServerOpening:
        raise AssertionError("nobody gets so far")

    def on_refused(reason: str, address: Address) -> None:
        if broken:
            raise RuntimeError(f"a bug {broken.pop()}")
        refused.append(reason)

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    strangers = SecuredStrangers(
        tls_context(certificates.server, server=True), opening, on_refused, counters
    )
    # No room for any handshake: the door itself turns everyone away.
    strangers.start(listening, 0, 1.0)
    await hung_up_on(port)
    await wait_until(lambda: counters.bugs == 1, "the bug is counted")
    await hung_up_on(port)
    await wait_until(lambda: counters.bugs == 2, "so is the next")
    await hung_up_on(port)
    await wait_until(lambda: refused == ["0 other connections are just opening"], "refused")
    await strangers.close()


async def test_a_door_closed_before_anybody_came_to_it_lets_go_of_its_port(
    certificates: Certificates,
) -> None:
    async with served(Service("server", tls=certificates.server).station()) as server:
        # In the same turn of the loop: nothing has been waited for yet.
        pass
    with socket.create_server(("127.0.0.1", server.port)):
        pass


async def test_a_stranger_is_hung_up_on_whenever_the_door_closes(
    certificates: Certificates,
) -> None:
    station = Service("server", tls=certificates.server).station(opening_s=60.0)
    for turns in range(12):
        async with served(station) as server:
            stranger = socket.create_connection(("127.0.0.1", server.port))
            # From before it is accepted until its handshake is under way, turn by turn.
            for _ in range(turns):
                await asyncio.sleep(0)
        gc.collect()
        reader, writer = await asyncio.open_connection(sock=stranger)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_a_bug_in_a_handshake_is_a_refusal_and_hangs_up(certificates: Certificates) -> None:
    counters, refused = LinkCounters(), list[str]()

    def opening() -> ServerOpening:
        raise RuntimeError("a bug over one stranger")

    def on_refused(reason: str, address: Address) -> None:
        refused.append(reason)

    listening = socket.create_server(("127.0.0.1", 0))
    strangers = SecuredStrangers(
        tls_context(certificates.server, server=True), opening, on_refused, counters
    )
    port = listening.getsockname()[1]
    strangers.start(listening, 10, 1.0)
    await hung_up_on(port)
    await wait_until(lambda: counters.bugs == len(refused) == 1, "the bug is counted")
    await hung_up_on(port)
    await wait_until(lambda: counters.bugs == len(refused) == 2, "so is the next")
    await strangers.close()


async def test_a_server_closes_while_strangers_shake_hands(certificates: Certificates) -> None:
    station = Service("server", tls=certificates.server).station(opening_s=60.0)
    async with served(station) as server:
        reader, silent = await asyncio.open_connection("127.0.0.1", server.port)
        await wait_until(lambda: len(asyncio.all_tasks()) > 1, "the handshake has begun")
    assert await reader.read() == b""
    silent.close()
