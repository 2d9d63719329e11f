"""Passwords: what may be one, and argon2id, off the event loop and never too many at once.

A hash takes a twentieth of a second and 46 MiB on purpose. So at most two are computed at a time,
which is all that two cores can use; some more wait, and who comes then is told to come later.
So that nobody fills the queue for everybody, who asks for a password to be hashed or verified
does so within a share of its network (`Passwords.networks`) and, once it is known which account
that is about and that its throttle lets it through, of the account (`Passwords.accounts`).

A password is normalised to NFC before it is hashed, as RFC 8265 says for passwords: keyboards
send one accented letter as one character or as two. It is not NFKC, which would make different
characters one and give up what a user has chosen; nothing is trimmed or folded.
"""

from __future__ import annotations

import asyncio
import base64
import math
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from passlib.context import CryptContext  # type: ignore[import-untyped]

from services.core.errors import RetryLater
from services.runtime.metrics import Metrics
from services.runtime.shares import ShareLimit, Shares

T = TypeVar("T")

# What NIST SP 800-63B asks of a password chosen by its user; of kinds of characters it asks none.
password_chars_min: Final = 8
# Longer than any passphrase, and short enough to normalise and hash in no time: normalising makes
# three characters of one at most, and passlib takes 4096.
password_chars_max: Final = 1024

# Both cores of a small machine; 92 MiB of memory with the parameters below.
at_once_max: Final = 2
# Two seconds' worth on an idle machine.
waiting_max: Final = 64
# On a busy one the same queue may take far longer, and who is in it would have given up.
wait_s_max: Final = 5.0
# What a hash is taken to last until one has been measured, on a machine that is not busy; and by
# how much of the difference a measured one moves that.
hash_s_default: Final = 0.05
hash_s_weight: Final = 0.1
# Of 66 places in the queue, so that a stranger waits for two or three turns more. An office whose
# people come all at once has them wait in front of it, for as long as anybody would.
network_share: Final = ShareLimit(
    at_once=4,
    waiting_max=28,
    wait_s_max=5.0,
    code="rate_limited",
    what="logins and sign-ups from this network",
)
# Of an account that several networks ask for. It is the throttle that keeps strangers from having
# all of it: whoever holds a place has got past that.
account_share: Final = ShareLimit(
    at_once=4,
    waiting_max=12,
    wait_s_max=5.0,
    code="rate_limited",
    what="passwords for this account",
)


@dataclass(slots=True, frozen=True)
class Argon2Parameters:
    """What a hash costs. The default is the first that OWASP's cheat sheet lists for argon2id.

    Of those that it calls equally strong it is the one with the most memory, which is what makes
    guessing on graphics cards dear, and so with the least passes. RFC 9106 would have 64 MiB and
    three passes: three times the work, for guesser and for us, who let strangers cause it. One
    lane is one thread: two logins at once already keep two cores busy.
    """

    memory_kib: int = 46 * 1024
    passes: int = 1
    lanes: int = 1
    # 128 bits against precomputation, 256 bits of hash, as the RFC has them.
    salt_bytes: int = 16
    hash_bytes: int = 32


default_parameters: Final = Argon2Parameters()


@dataclass(slots=True)
class PasswordCounters:
    """Since the start, for `/metrics`."""

    hashed: int = 0
    verified: int = 0  # Whatever came of it.
    refused: int = 0  # For want of room to wait, or of time.


def password_problem(password: str) -> str | None:
    """Why this cannot be a new password, to complete "password: ..."; None if it can."""
    if not password_chars_min <= len(password) <= password_chars_max:
        return f"is not {password_chars_min} to {password_chars_max} characters long"
    if any("\ud800" <= character <= "\udfff" for character in password):
        return "is not text: it has half of a character in it"
    return None


class Passwords:
    """Hashes and verifies. Usable from one event loop until `close`."""

    def __init__(
        self,
        parameters: Argon2Parameters = default_parameters,
        *,
        at_once: int = at_once_max,
        waiting: int = waiting_max,
        wait_s: float = wait_s_max,
    ) -> None:
        self.counters = PasswordCounters()
        self.networks = Shares(network_share)
        self.accounts = Shares(account_share)
        self._context = _context(parameters)
        self._nobodys_hash = _hash_of_nothing(parameters)
        self._executor = ThreadPoolExecutor(at_once, thread_name_prefix="argon2")
        self._turns = asyncio.Semaphore(at_once)
        self._at_once = at_once
        self._waiting_max = waiting
        self._wait_s_max = wait_s
        self._waiting = 0
        self._hash_s = hash_s_default

    @property
    def waiting(self) -> int:
        return self._waiting

    def add_to(self, metrics: Metrics) -> None:
        metrics.add_counters("passwords", "passwords", self.counters)
        metrics.add("passwords_waiting", "gauge", "Waiting for their turn", lambda: self.waiting)
        metrics.add(
            "passwords_crowded",
            "counter",
            "Refused since their network or account had too many under way",
            lambda: self.networks.refused + self.accounts.refused,
        )

    def close(self) -> None:
        """Take no more work. What runs in a thread ends by itself, soon."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The text to keep, with its parameters and a salt of its own. RetryLater (`overloaded`)
        when too many wait, or for too long."""
        prepared = _prepared(password)
        made = await self._in_turn(partial(self._context.hash, prepared))
        self.counters.hashed += 1
        return str(made)

    async def verify(self, password: str, kept: str | None) -> bool:
        """Whether the password is the one that was hashed. RetryLater (`overloaded`).

        None stands for a user that does not exist: it costs exactly what one that does would,
        one verification with the same parameters, and is always wrong.
        """
        prepared = _prepared(password)
        against = self._nobodys_hash if kept is None else kept
        right = await self._in_turn(partial(self._context.verify, prepared, against))
        self.counters.verified += 1
        return bool(right) and kept is not None

    def needs_rehash(self, kept: str) -> bool:
        """Whether a hash was made with other parameters than new ones are.

        Until its owner logs in, such an account is verified in another time than accounts that
        do not exist. So a change of the default parameters tells for that long, to who measures
        it, which addresses have an account that was opened before.
        """
        return bool(self._context.needs_update(kept))

    async def _in_turn(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._waiting_max:
            raise self._overloaded(
                f"{self._waiting} requests wait for a password to be checked already"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s_max):
                await self._turns.acquire()
        except TimeoutError:
            detail = f"Within {self._wait_s_max:g} s it was not this password's turn to be checked"
            raise self._overloaded(detail) from None
        finally:
            self._waiting -= 1
        try:
            running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        except RuntimeError as error:
            self._turns.release()
            raise RetryLater("shutting_down", "Passwords are not checked any more") from error
        began_s = running.get_loop().time()

        def over(_: asyncio.Future[T]) -> None:
            self._hash_s += hash_s_weight * (running.get_loop().time() - began_s - self._hash_s)
            self._turns.release()

        # The turn lasts as long as the thread works, even for a client that has left.
        running.add_done_callback(over)
        return await asyncio.shield(running)

    def _overloaded(self, detail: str) -> RetryLater:
        self.counters.refused += 1
        return RetryLater("overloaded", detail, retry_after_s=self._queue_s())

    def _queue_s(self) -> int:
        """In about how many seconds all who wait now will have had their turn."""
        return max(1, math.ceil(self._waiting * self._hash_s / self._at_once))


def _prepared(password: str) -> str:
    return unicodedata.normalize("NFC", password)


def _context(parameters: Argon2Parameters) -> CryptContext:
    return CryptContext(
        ["argon2"],
        argon2__type="ID",
        argon2__memory_cost=parameters.memory_kib,
        argon2__time_cost=parameters.passes,
        argon2__parallelism=parameters.lanes,
        argon2__salt_len=parameters.salt_bytes,
        argon2__hash_len=parameters.hash_bytes,
    )


def _hash_of_nothing(parameters: Argon2Parameters) -> str:
    """A well-formed hash of no password that anybody knows, made without computing one."""
    salt, checksum = (
        base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")
        for size in (parameters.salt_bytes, parameters.hash_bytes)
    )
    costs = f"m={parameters.memory_kib},t={parameters.passes},p={parameters.lanes}"
    return f"$argon2id$v=19${costs}${salt}${checksum}"
