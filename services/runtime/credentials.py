"""API keys as services check them: whose they are and what they may do, known for a while.

    hot      credentials.cached(key, now_s)            None: then ask `find`
    rare     await credentials.find(key, address)      FixRequest, RetryLater

A key is looked up at the user manager when it first comes. What is known of it is then
 - used for `fresh_s`; the next use after that has it looked up again in the background,
 - used for `stale_s` in all if the user manager cannot be asked, or says that it cannot tell,
 - never used past the key's own end, and not once the user manager has refused it.

The user manager tells of changed keys within a second (key_news.py). A key that it has told of is
not used again before it was looked up, whatever becomes of the user manager: fail closed. When it
may have told of something that was not heard, all keys are looked up before their next use, and
those for which that fails are used on: fail open, for as long as the user manager is away.

A key that is unknown while the user manager is away is `auth_unavailable`, never refused: nobody
shall throw away a good key. A refused one is remembered for seconds, for a key is drawn at random
when it is made and cannot have been tried before.

Keys are kept in memory as they came, because a hash takes longer than all the rest of the hot path:
120 ns for a key that is known (CPython 3.11, 2.1 GHz).
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Final, Protocol, Self

from services.core.api_key import lookup_hash, well_formed
from services.core.errors import ClientError, FixRequest, InternalError, RetryLater
from services.core.key_checks import (
    KeyEventPage,
    KeyEventsQuery,
    Scope,
    ValidateKey,
    ValidKey,
    scopes_all,
)
from services.core.plans import Limits, free, plan_named
from services.core.usage_report import no_key_id
from services.runtime import telemetry
from services.runtime.allowance import Allowances
from services.runtime.clock import Clock
from services.runtime.credential import Credential, limits_of, never_s
from services.runtime.guessing import Guesses
from services.runtime.key_news import KeyNews
from services.runtime.metrics import Metrics
from services.runtime.probes import Readiness

fresh_s: Final = 60.0
stale_s: Final = 900.0
# While the user manager is away it is tried this often for each key in use.
again_s: Final = 5.0
refused_s: Final = 5.0
# 1.2 KB each, all in. Who serves more keys at once looks some of them up more often.
credentials_max: Final = 50_000
refused_max: Final = 10_000
# At the same time: what a user manager answers within the seconds that a client waits.
lookups_max: Final = 4_000
# A key that changes while it is looked up is looked up again; nobody changes one that often.
tries_max: Final = 3
# Of the five seconds that a gateway gives a request. A read that nobody answers takes two more.
find_s_max: Final = 2.9
upkeep_s: Final = 2.0
of_free_default: Final = free.limits()
tidied_at_once: Final = 1_000

# There is one answer to all that is wrong with a key, as the user manager has one.
refusal: Final = "The API key is unknown, was revoked, or has expired"


class KeySource(Protocol):
    """A user manager, or what stands for one."""

    async def validate_key(self, asked: ValidateKey) -> ValidKey:
        """FixRequest `invalid_api_key`, or RetryLater if it cannot be told now."""
        ...

    async def key_events(self, asked: KeyEventsQuery) -> KeyEventPage:
        """RetryLater if it cannot be told now."""
        ...


@dataclass(slots=True)
class CredentialCounters:
    """Since the start, for `/metrics`."""

    hits: int = 0
    misses: int = 0
    lookups: int = 0
    refreshes: int = 0
    # Times that a known key was let in although it could not be looked up.
    stale: int = 0
    refused: int = 0
    unavailable: int = 0
    evicted: int = 0


class Credentials:
    """All that a process knows of API keys. An async context manager, with a loop to `run`.

    `of_free` are the limits of the plan free, in place of those of the table.
    """

    def __init__(
        self,
        source: KeySource,
        pepper_subkey: bytes,
        allowances: Allowances,
        clock: Clock,
        *,
        of_free: Limits = of_free_default,
        credentials_max: int = credentials_max,
    ) -> None:
        self._source = source
        self._pepper_subkey = pepper_subkey
        self._allowances = allowances
        self._clock = clock
        self._of_free = of_free
        self._credentials_max = credentials_max
        # By key. Whoever is looked up moves to the end, which all in use are every minute: so the
        # first is the one that was not used for longest, give or take that minute.
        self._known: OrderedDict[bytes, Credential] = OrderedDict()
        self._of_tenant: dict[int, dict[int, Credential]] = {}
        # Until when a key is refused without asking, oldest first.
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[_Outcome]] = {}
        self._tasks = asyncio.TaskGroup()
        self._log = telemetry.logger("services.credentials")
        self.guesses = Guesses(clock)
        self.news = KeyNews(source, self)
        self.counters = CredentialCounters()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for lookup in self._lookups.values():
            lookup.cancel()
        await self._tasks.__aexit__(kind, error, traceback)

    def __len__(self) -> int:
        return len(self._known)

    def add_to(self, metrics: Metrics) -> None:
        metrics.add_counters("credentials", "of API keys", self.counters)
        metrics.add("credentials", "gauge", "API keys known", lambda: len(self))
        metrics.add(
            "credential_lookups_pending",
            "gauge",
            "API keys being looked up",
            lambda: len(self._lookups),
        )
        for part in (self.news, self.guesses, self._allowances):
            part.add_to(metrics)

    def watch(self, readiness: Readiness) -> None:
        readiness.add("usermanager", self.news.condition)

    def cached(self, key: bytes, now_s: float) -> Credential | None:
        """What is known of a key, if it may be used now without asking anybody."""
        credential = self._known.get(key)
        if credential is None:
            return None
        if now_s < credential.usable_until_s:
            self.counters.hits += 1
            return credential
        if credential.due or now_s >= credential.stale_until_s:
            return None
        if key not in self._lookups and len(self._lookups) < lookups_max:
            self.counters.refreshes += 1
            self._begin(key, key.decode("ascii"), None)
        self._use_on(credential, now_s)
        return credential

    def refusal(self, key: bytes) -> FixRequest | None:
        """Why nobody has to be asked about this key: it cannot be one, or was none a moment ago."""
        is_one = well_formed(key.decode("latin-1"))
        if is_one and self._clock.monotonic_s() >= self._refused.get(key, never_s):
            return None
        self.counters.refused += 1
        return FixRequest("invalid_api_key", refusal)

    async def find(self, key: bytes, address: str) -> Credential:
        """The credential of this key, which came from this address.

        FixRequest `invalid_api_key`; RetryLater `auth_unavailable`, or `rate_limited` if the
        address has tried too many keys that are none.
        """
        credential = self.cached(key, self._clock.monotonic_s())
        if credential is not None:
            return credential
        self.counters.misses += 1
        lookup = self._lookups.get(key)
        if lookup is None:
            if len(self._lookups) >= lookups_max:
                return self._stale_or(
                    key, "overloaded", f"{lookups_max} API keys are being looked up already"
                )
            lookup = self._begin_unless_refused(key, address)
        # Many may wait for it, and one that leaves does not take it along.
        await asyncio.wait((lookup,), timeout=find_s_max)
        if not lookup.done():
            return self._stale_or(
                key, "auth_unavailable", f"The API key was not looked up within {find_s_max:g} s"
            )
        if lookup.cancelled():
            raise RetryLater("shutting_down", "This process ends; another one may check the key")
        outcome = lookup.result()
        if isinstance(outcome, Credential):
            return outcome
        # One for each: an exception that several raise grows a traceback of all.
        raise _again(outcome)

    def of_console(self, tenant: int, scopes: Collection[Scope] = scopes_all) -> Credential:
        """For one signed request of the console, in the name of a tenant: it has no key, a bucket
        of its own, and is not counted unless its taker gives it a tally."""
        allowance = self._allowances.of_console(tenant, self._now_ns())
        credential = Credential(b"", tenant, no_key_id, allowance)
        credential.allow(scopes)
        credential.tally = None
        credential.usable_until_s = math.inf
        return credential

    async def run(self) -> None:
        """Hear of changed keys, and forget what is of no use; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.news.run())
            while True:
                await asyncio.sleep(upkeep_s)
                self.tidy()

    def tidy(self) -> None:
        """Forget some of what is of no use any more."""
        now_s = self._clock.monotonic_s()
        for credential in list(islice(self._known.values(), tidied_at_once)):
            if now_s >= credential.stale_until_s and credential.key not in self._lookups:
                self._drop(credential)
        self._allowances.tidy(self._now_ns())

    # What KeyNews tells.

    def changed(self, user_id: int, key_id: int | None) -> None:
        of_tenant = self._of_tenant.get(user_id, {})
        changed = list(of_tenant.values()) if key_id is None else [of_tenant.get(key_id)]
        for credential in changed:
            if credential is not None:
                credential.end()
        self._refused.clear()

    def all_changed(self) -> None:
        for credential in self._known.values():
            credential.due = True
            credential.usable_until_s = never_s
        self._refused.clear()

    # Looking up.

    def _begin_unless_refused(self, key: bytes, address: str) -> asyncio.Task[_Outcome]:
        now_s = self._clock.monotonic_s()
        text = key.decode("latin-1")
        known = self._known.get(key)
        if known is not None and now_s >= known.expires_s:
            self._refuse(key)
            known = None
        refused = self.refusal(key)
        if refused is not None:
            raise refused
        if known is not None:
            return self._begin(key, text, None)
        self.guesses.check(address)
        return self._begin(key, text, address)

    def _begin(self, key: bytes, text: str, address: str | None) -> asyncio.Task[_Outcome]:
        lookup = self._tasks.create_task(self._look_up(key, text, address))
        self._lookups[key] = lookup
        return lookup

    async def _look_up(self, key: bytes, text: str, address: str | None) -> _Outcome:
        """What became of it; from an address if it may be a guess."""
        turn = nullcontext() if address is None else self.guesses.turn(address)
        try:
            async with turn:
                return self._store(key, await self._ask(text))
        except FixRequest as error:
            self._refuse(key)
            if address is not None:
                self.guesses.count(address)
            return error
        except RetryLater as error:
            return self._go_on_stale(key) or error
        except Exception:
            # A bug. Those who wait are told, and everybody else goes on.
            self._log.exception("looking up an API key failed")
            return InternalError()
        finally:
            del self._lookups[key]

    async def _ask(self, text: str) -> ValidKey:
        self.counters.lookups += 1
        asked = ValidateKey(key_hash=lookup_hash(self._pepper_subkey, text).hex())
        for _ in range(tries_max):
            era = self.news.era
            answer = await self._source.validate_key(asked)
            if self.news.is_current(answer, era):
                return answer
        raise RetryLater(
            "auth_unavailable", f"The API key has changed {tries_max} times while it was looked up"
        )

    def _store(self, key: bytes, answer: ValidKey) -> Credential:
        """Let it be used as the answer says; FixRequest if by our own clock it is over."""
        now_s, now_ns = self._clock.monotonic_s(), self._now_ns()
        expires_s = math.inf
        if answer.expires_at is not None:
            expires_s = now_s + answer.expires_at.timestamp() - self._clock.wall_ms() / 1000
            if expires_s <= now_s:
                raise FixRequest("invalid_api_key", refusal)
        of_tenant, of_key = limits_of(answer, self._of_free)
        credential = self._known.pop(key, None)
        if credential is None:
            tenant, key_id = answer.user_id, answer.key_id
            # Two that are said to be one key: events can name one of them only.
            twin = self._of_tenant.get(tenant, {}).get(key_id)
            if twin is not None:
                self._drop(twin)
            allowance = self._allowances.of_key(tenant, of_tenant, key_id, of_key, now_ns)
            credential = Credential(key, tenant, key_id, allowance)
            self._of_tenant.setdefault(tenant, {})[key_id] = credential
        else:
            credential.allowance.limit(of_tenant, of_key, now_ns)
        self._known[key] = credential
        credential.allow(answer.scopes)
        credential.key_prefix = (answer.prefix or "").encode()
        plan = plan_named(answer.plan)
        credential.caches_max = plan.caches_max
        credential.ids_per_day = plan.ids_per_day
        credential.expires_s = expires_s
        credential.stale_until_s = min(now_s + stale_s, expires_s)
        credential.usable_until_s = min(now_s + fresh_s, expires_s)
        credential.due = False
        if len(self._known) > self._credentials_max:
            self.counters.evicted += 1
            self._drop(next(iter(self._known.values())))
        return credential

    def _go_on_stale(self, key: bytes) -> Credential | None:
        """Nobody can be asked about this key: go on with what is known of it, if that may be."""
        now_s = self._clock.monotonic_s()
        credential = self._known.get(key)
        if credential is None or now_s >= credential.stale_until_s:
            self.counters.unavailable += 1
            return None
        self.counters.stale += 1
        credential.due = False
        self._use_on(credential, now_s)
        return credential

    def _stale_or(self, key: bytes, code: str, detail: str) -> Credential:
        credential = self._go_on_stale(key)
        if credential is None:
            raise RetryLater(code, detail)
        return credential

    def _use_on(self, credential: Credential, now_s: float) -> None:
        credential.usable_until_s = min(now_s + again_s, credential.stale_until_s)

    def _refuse(self, key: bytes) -> None:
        """It was found to be none, or none any more."""
        self.counters.refused += 1
        known = self._known.get(key)
        if known is not None:
            self._drop(known)
        self._refused.pop(key, None)
        self._refused[key] = self._clock.monotonic_s() + refused_s
        if len(self._refused) > refused_max:
            self._refused.popitem(last=False)

    def _drop(self, credential: Credential) -> None:
        credential.end()
        del self._known[credential.key]
        of_tenant = self._of_tenant[credential.tenant]
        del of_tenant[credential.key_id]
        if not of_tenant:
            del self._of_tenant[credential.tenant]
        self._allowances.release(credential.tenant, credential.key_id)

    def _now_ns(self) -> int:
        return int(self._clock.monotonic_s() * 1e9)


# What a lookup ends with: an error is an answer to those who wait, not a failure of the task.
_Outcome = Credential | ClientError


def _again(error: ClientError) -> ClientError:
    if isinstance(error, RetryLater):
        return RetryLater(error.code, error.detail, retry_after_s=error.retry_after_s)
    if isinstance(error, FixRequest):
        return FixRequest(error.code, error.detail)
    return InternalError()
