"""The table of services: one row says all that the supervisor knows about one of them.

A service joins `ydht up` by adding its row in `table.py`; the supervisor has no other knowledge
of it. This module holds what a row is made of.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import asyncpg
import httpx
import msgspec

from services.cli.ports import link_port
from services.core.errors import FatalError
from services.runtime.database_url import DatabaseAddress

# None: ready. Otherwise one line that says why not yet.
Probe = Callable[[], Awaitable[str | None]]

# A readiness answer comes from memory; one that takes longer counts as none.
probe_s_max = 2.0
# From exec to ready a service takes a second or two; recovery of a large log takes longer and
# its row says so.
ready_s_default = 60.0
# How much of an answer that says "not ready" is worth a line.
reason_chars_max = 200


class Stage(enum.IntEnum):
    """When a row starts: stage by stage, each waiting until the one before is ready.

    The stop runs backwards, so that whoever asks goes before whoever answers.
    """

    DATABASE = 0
    MIGRATION = 1
    NODES = 2
    REPLICATORS = 3
    ACCOUNTS = 4
    KEYGEN = 5
    GATEWAY = 6


@dataclass(slots=True, frozen=True)
class Restarts:
    """How soon a process that died is started again.

    The wait doubles from `first_s` to `longest_s` and starts over once the process has been
    ready for `healthy_s`. The start of everything waits for `tries` starts of a process that does
    not get ready. After `failing_deaths` in a row a process is named as failing; a redundant one
    stays out after `deaths_max`, which take five minutes or more, or at once when it refuses for
    good. A needed one is tried for ever, and ends everything when it refuses for good.
    """

    first_s: float = 0.25
    longest_s: float = 60.0
    healthy_s: float = 30.0
    tries: int = 3
    failing_deaths: int = 5
    deaths_max: int = 15

    def wait_s(self, deaths: int, luck: float) -> float:
        """The wait after the given number of deaths in a row, from 1 up.

        `luck`, from 0 to 1, takes up to half of it off: services that died of one cause do
        not come back at one moment.
        """
        # Past 2**32 doubling only overflows.
        full_s = min(self.longest_s, self.first_s * 2.0 ** min(deaths - 1, 32))
        return full_s * (1 - luck / 2)


@dataclass(slots=True, frozen=True)
class Row:
    """One service, or with `one_shot` one command that must end well before the rest starts."""

    name: str
    stage: Stage
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    # Its HTTP port, if it has one; its link port follows from it.
    http_port: int | None = None
    # What the service is reached at: goes into up.json and into the table shown when ready.
    url: str | None = None
    # Not for one_shot, which is ready when it has ended with exit code 0.
    probe: Probe | None = None
    # Asked of one that is ready: what it lacks all the same, or nothing.
    well: Probe | None = None
    ready_s_max: float = ready_s_default
    one_shot: bool = False
    # The others of its stage do its work while it is down: one of them may be missing.
    redundant: bool = False
    restarts: Restarts = Restarts()
    # Called before anything is started: FatalError if this row would be in somebody's way.
    refuse: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.one_shot == (self.probe is not None):
            raise ValueError(f"{self.name}: either one_shot or a probe")

    def ports(self) -> dict[int, str]:
        """Every port it listens on, with the words for what it is for."""
        if self.http_port is None:
            return {}
        return {self.http_port: self.name, link_port(self.http_port): f"links of {self.name}"}


def http_ready(url: str) -> Probe:
    """Ready when `GET url` answers 200, which `/ready` of every service also does degraded."""

    async def probe() -> str | None:
        answer = await _get(url)
        if isinstance(answer, str):
            return answer
        if answer.status_code == httpx.codes.OK:
            return None
        said = " ".join(answer.text[:reason_chars_max].split())
        return f"{url} answered {answer.status_code}: {said}"

    return probe


def http_well(url: str) -> Probe:
    """Well when `GET url`, a `/ready` of ours, gives no reasons for being less than that."""

    async def probe() -> str | None:
        answer = await _get(url)
        if isinstance(answer, str):
            return answer
        try:
            reasons = msgspec.json.decode(answer.content, type=_Readiness).reasons
        except msgspec.DecodeError:
            return f"{url} answered something else than its readiness"
        return "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items())) or None

    return probe


class _Readiness(msgspec.Struct):
    reasons: dict[str, str]


async def _get(url: str) -> httpx.Response | str:
    """The answer, or why there is none."""
    # No proxies from the environment, and no certificates loaded ten times a second: this is
    # plain HTTP to a service of ours on this machine.
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:  # noqa: S501
        try:
            return await client.get(url)
        except httpx.TransportError as error:
            return f"{url} gives no answer ({type(error).__name__})"


def accepts_connections(is_up: Callable[[], bool], address: Callable[[], DatabaseAddress]) -> Probe:
    """Ready when the database says that it is up, and lets us in.

    It is not tried before: the log of a database that recovers should tell of the recovery, and
    not ten times a second of us. The address is asked for each time: a socket's directory is
    checked whenever it is used.
    """

    async def probe() -> str | None:
        if not is_up():
            return "it is still starting"
        try:
            connection = await asyncpg.connect(**address().asyncpg())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return f"no connection: {str(error) or type(error).__name__}"
        except FatalError as error:
            return str(error)
        await connection.close()
        return None

    return probe
