"""TLS on links: both ends must hold a certificate signed by the cluster's CA.

Host names are not checked: nodes are reached under whatever address they advertise, and the
opening proves who they are. Certificates are read when a process starts; a new one needs a restart.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.core.errors import FatalError
from services.runtime import telemetry
from services.runtime.link_limits import LinkCounters
from services.runtime.opening import ServerOpening, bug_while_opening
from services.runtime.refusals import Address
from services.runtime.settings import ServiceSettings

log = telemetry.logger(__name__)

# Without descriptors a connection cannot be accepted; asking again at once would only spin.
accept_retry_s: Final = 0.1


@dataclass(slots=True, frozen=True)
class TlsFiles:
    certificate: Path
    key: Path
    authority: Path


def tls_files(settings: ServiceSettings) -> TlsFiles | None:
    """What the settings name, which are all there or none."""
    certificate, key, authority = (
        settings.link_tls_cert,
        settings.link_tls_key,
        settings.link_tls_ca,
    )
    if certificate is None or key is None or authority is None:
        return None
    return TlsFiles(certificate, key, authority)


def tls_context(files: TlsFiles, *, server: bool) -> ssl.SSLContext:
    """A context in which both ends must show a certificate of the cluster's CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.authority)
    except (OSError, ssl.SSLError) as error:
        raise FatalError(
            f"LINK_TLS_CERT, LINK_TLS_KEY and LINK_TLS_CA cannot be used: {error}"
        ) from error
    return context


def why_not(error: Exception) -> str:
    """Why a connection could not be made, for people."""
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return (
            "this end speaks TLS and the other does not: "
            "set LINK_TLS_CERT, LINK_TLS_KEY and LINK_TLS_CA on both ends or on neither"
        )
    return str(error)


def nothing_open() -> None:
    """There is no door to shut: it has not been opened yet, or is shut."""


class SecuredStrangers:
    """Accepts connections and takes them through the TLS handshake, so many at a time.

    The event loop's own server would begin any number of handshakes, and keep to itself how they
    failed.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        opening: Callable[[], ServerOpening],
        on_refused: Callable[[str, Address], None],
        counters: LinkCounters,
    ) -> None:
        self._context = context
        self._opening = opening
        self._on_refused = on_refused
        self._counters = counters
        self._handshakes: set[asyncio.Task[None]] = set()
        # Accepted, while the task of their handshake has not had its first turn.
        self._waiting: set[socket.socket] = set()
        self._shut: Callable[[], None] = nothing_open

    def start(self, listening: socket.socket, handshakes_max: int, handshake_s: float) -> None:
        """Take over a socket that listens."""
        loop = asyncio.get_running_loop()
        listening.settimeout(0)
        pause: asyncio.TimerHandle | None = None

        # Called by the loop, and no task that awaits: one that is cancelled before its first turn,
        # or when it has accepted just now, would leave a socket behind.
        def accept() -> None:
            nonlocal pause
            if not self._accept_one(listening, handshakes_max, handshake_s):
                loop.remove_reader(listening)
                pause = loop.call_later(accept_retry_s, loop.add_reader, listening, accept)

        def shut() -> None:
            if pause is not None:
                pause.cancel()
            loop.remove_reader(listening)
            listening.close()

        loop.add_reader(listening, accept)
        self._shut = shut

    async def close(self) -> None:
        self._shut()
        self._shut = nothing_open
        tasks = list(self._handshakes)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for stranger in self._waiting:
            stranger.close()

    def _accept_one(
        self, listening: socket.socket, handshakes_max: int, handshake_s: float
    ) -> bool:
        """Whether to go on at once."""
        try:
            stranger, address = listening.accept()
        except BlockingIOError:
            # It has left again.
            return True
        except OSError as error:
            self._refuse(f"a connection could not be accepted: {error.strerror}")
            return False
        if len(self._handshakes) >= handshakes_max:
            stranger.close()
            return self._refuse(f"{handshakes_max} other connections are just opening", address)
        self._waiting.add(stranger)
        task = asyncio.create_task(self._shake_hands(stranger, address, handshake_s))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        return True

    def _refuse(self, reason: str, address: Address = None) -> bool:
        try:
            self._on_refused(reason, address)
        except Exception:
            # A bug over one stranger must not shut the door on all others unseen.
            self._failed()
            return False
        return True

    async def _shake_hands(
        self, stranger: socket.socket, address: Address, handshake_s: float
    ) -> None:
        self._waiting.discard(stranger)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._opening,
                stranger,
                ssl=self._context,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=handshake_s,
            )
        except OSError as error:
            self._on_refused(why_not(error), address)
        except Exception:
            stranger.close()
            self._failed()
            self._on_refused(bug_while_opening, address)

    def _failed(self) -> None:
        self._counters.bugs += 1
        log.exception("accepting a link failed")
