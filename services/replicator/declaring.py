"""Declaring namespaces and taking them away, as gateways ask for it, and following PostgreSQL.

    DECLARE_NAMESPACE   has it keys? ──no──► PostgreSQL ──► the nodes are told ──► answered
    DELETE_NAMESPACE    so many keys are deleted ──none is left──► PostgreSQL ──► … ──► answered

Both are seldom, and neither is any use to the data of others: a few at a time, each in a task of
its own. What another replicator has declared is learned by asking PostgreSQL for one number every
second. Without PostgreSQL nothing is declared, and what is known goes on to hold.

Whoever declares a cache is answered once the nodes that are connected know of it, so that what is
put from then on is put into a cache. One that does not say so within a second is named in the
answer; it is told again, and what it stored meanwhile becomes part of the cache. For a store nobody
has to know anything, and of another limit of a cache nodes hear within a second or two.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from services.core.declarations import (
    Declaration,
    DeclaredAnswer,
    NamespaceTold,
    decode_declaration,
)
from services.core.deletions import (
    NamespaceDeletion,
    PrefixDeleted,
    PrefixDeletion,
    decode_namespace_deletion,
)
from services.core.errors import FatalError, FixRequest, RetryLater, UnknownOutcome
from services.core.hlc import version_bytes
from services.core.operations import INVALID, REFUSED, UNKNOWN, refused_answer, unknown_answer
from services.core.packed_bodies import decode_body, encode_body
from services.core.paxos import Answer
from services.core.wire import OK
from services.replicator.answers import Done, refusal, refusal_of
from services.replicator.cache_news import CacheNews
from services.replicator.declarations import check, tenant_declarations_max
from services.replicator.declared import Declared
from services.replicator.namespace_store import NamespaceStore
from services.replicator.namespaces import NamespaceListings
from services.replicator.prefix_delete import PrefixDeletions
from services.runtime import telemetry
from services.runtime.clock import Clock

# How soon a replicator learns of what another has declared.
poll_s: Final = 1.0
# While PostgreSQL is away.
poll_s_longest: Final = 5.0
# Each holds a connection to PostgreSQL for some milliseconds, of the few that there are.
calls_max: Final = 8

Job = Callable[[], Awaitable[Answer]]


class Declaring:
    def __init__(
        self,
        store: NamespaceStore,
        declared: Declared,
        news: CacheNews,
        clock: Clock,
        draw: random.Random,
    ) -> None:
        self.under_way = 0
        # Why PostgreSQL cannot be asked just now.
        self.trouble: str | None = None
        self._store = store
        self._declared = declared
        self._news = news
        self._clock = clock
        self._draw = draw
        self._listings: NamespaceListings
        self._prefixes: PrefixDeletions
        self._waiting: asyncio.Queue[tuple[Job, Done]] = asyncio.Queue(calls_max)
        self._closed = False
        self._said = telemetry.logger("services.replicator")

    def serve(self, listings: NamespaceListings, prefixes: PrefixDeletions) -> None:
        """Look at data, and empty namespaces, by these from now on."""
        self._listings, self._prefixes = listings, prefixes

    # -- the loops

    async def follow(self) -> None:
        """The loop: learn of new declarations, and see that everybody has the newest."""
        pause_s = poll_s
        while True:
            reached = await self._ask()
            self._news.remind()
            pause_s = poll_s if reached else min(pause_s * 2, poll_s_longest)
            await asyncio.sleep(pause_s * self._draw.uniform(0.8, 1.0))

    async def _ask(self) -> bool:
        """Whether PostgreSQL has answered."""
        try:
            self._declared.adopt(await self._store.newest(self._declared.now))
        except (RetryLater, UnknownOutcome) as error:
            trouble = error.detail
        except FatalError as error:
            # There are data to serve, whatever became of the database.
            trouble = str(error)
        else:
            self.trouble = None
            return True
        if self.trouble != trouble:
            self._said.warning("PostgreSQL cannot be asked for namespaces", reason=trouble)
        self.trouble = trouble
        return False

    async def run(self) -> None:
        """The loop: do what is asked for, a few at a time."""
        async with asyncio.TaskGroup() as group:
            while True:
                job, done = await self._waiting.get()
                group.create_task(self._do(job, done))

    async def _do(self, job: Job, done: Done) -> None:
        answer: Answer | None = None
        try:
            answer = await job()
        except FixRequest as error:
            answer = INVALID, refused_answer(error.code, error.detail)
        except RetryLater as error:
            answer = refusal_of(error)
        except UnknownOutcome as error:
            answer = self._unknown(error.detail, error.members.get("operation_id"))
        except FatalError as error:
            answer = refusal("database_unavailable", str(error))
        finally:
            self.under_way -= 1
            done(*(answer or self._unknown("it was not finished")))

    def _unknown(self, why: str, transaction: str | None = None) -> Answer:
        """What nobody knows the end of: told by an id that the log has, beside PostgreSQL's."""
        operation = self._draw.randbytes(version_bytes)
        self._said.warning(
            "what became of a declaration is unknown",
            operation=operation.hex(),
            transaction=transaction,
            reason=why,
        )
        return UNKNOWN, unknown_answer(operation, why)

    def close(self) -> None:
        """Answer those that wait, and take no more."""
        self._closed = True
        while not self._waiting.empty():
            _, done = self._waiting.get_nowait()
            self.under_way -= 1
            done(*refusal("shutting_down", "this replicator is stopping"))

    # -- what is asked

    def declare(self, body: bytes, done: Done) -> None:
        request = decode_declaration(body)
        self._take(lambda: self._declare(request), done)

    def delete(self, body: bytes, done: Done) -> None:
        request = decode_namespace_deletion(body)
        self._take(lambda: self._delete(request), done)

    def _take(self, job: Job, done: Done) -> None:
        if self._closed:
            done(*refusal("shutting_down", "this replicator is stopping"))
        elif self.under_way >= calls_max:
            done(*refusal("overloaded", f"{calls_max} namespaces are being declared or deleted"))
        else:
            self.under_way += 1
            self._waiting.put_nowait((job, done))

    async def _declare(self, request: Declaration) -> Answer:
        prefix = request.namespace
        wanted = check(prefix, request.max_items)
        was_cache = prefix in self._declared.now.caches
        if wanted and not was_cache:
            kind, body = await _answer(partial(self._listings.describe, prefix))
            if kind == REFUSED:
                return kind, body
            if kind == OK and (told := decode_body(body, NamespaceTold)).keys:
                raise FixRequest(
                    "already_exists",
                    f"the namespace has {told.keys} keys, and only one without can become a cache",
                )
        of_plan = request.caches_max
        caches = tenant_declarations_max if of_plan is None else of_plan
        version = await self._twice(lambda: self._store.declare(prefix, wanted, caches))
        await self._learn(version, prefix, wanted)
        changed = version is not None
        nobody_waits = not wanted or (was_cache and changed)
        untold = [] if nobody_waits else await self._told()
        return OK, encode_body(DeclaredAnswer(changed, untold))

    async def _delete(self, request: NamespaceDeletion) -> Answer:
        prefix = request.namespace
        if prefix in self._declared.now.max_items and self.trouble is not None:
            # To empty it and then be refused would be to do the half of it.
            raise RetryLater("database_unavailable", self.trouble)
        deletion = PrefixDeletion(prefix, b"", request.start, request.limit, whole=True)
        kind, body = await _answer(partial(self._prefixes.run, deletion))
        if kind != OK or decode_body(body, PrefixDeleted).next is not None:
            return kind, body
        await self._forget(prefix)
        return kind, body

    async def _forget(self, prefix: bytes) -> None:
        """RetryLater would say that nothing was done, and the namespace is empty by now."""
        if self.trouble is not None and prefix not in self._declared.now.max_items:
            return
        try:
            version = await self._twice(lambda: self._store.forget(prefix))
        except RetryLater as error:
            if prefix not in self._declared.now.max_items:
                return
            raise UnknownOutcome(
                f"the namespace was emptied, and is still declared: {error.detail}"
            ) from error
        await self._learn(version, prefix, None)
        await self._told()

    async def _twice(self, write: Callable[[], Awaitable[int | None]]) -> int | None:
        """Once more if PostgreSQL was lost while it committed: to repeat either is no harm. What
        the first has done is news all the same."""
        try:
            return await write()
        except UnknownOutcome as unknown:
            try:
                version = await write()
                self._declared.adopt(await self._store.newest(self._declared.now))
            except RetryLater:
                # Which says of the second time alone that nothing was done.
                raise unknown from None
        return version

    async def _learn(self, version: int | None, prefix: bytes, max_items: int | None) -> None:
        """Know what PostgreSQL has, at the least with what was just written."""
        now = self._declared.now
        if version is not None and version == now.version + 1:
            self._declared.adopt(now.with_change(version, prefix, max_items))
        elif version is None and now.max_items.get(prefix) == max_items:
            return
        elif version is None:
            self._declared.adopt(await self._store.newest(now))
        elif version > now.version:
            try:
                self._declared.adopt(await self._store.newest(now))
            except RetryLater as error:
                # All learn of it as soon as PostgreSQL is back.
                raise UnknownOutcome(f"written, and not told yet: {error.detail}") from error

    async def _told(self) -> list[str]:
        """Once the nodes that are connected know what is declared now; who does not."""
        told: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

        def hear(untold: list[str]) -> None:
            if not told.done():
                told.set_result(untold)

        self._news.await_nodes(hear)
        return await told


async def _answer(ask: Callable[[Done], None]) -> Answer:
    """What somebody answers who calls back."""
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def done(kind: int, body: bytes) -> None:
        if not answer.done():
            answer.set_result((kind, body))

    ask(done)
    return await answer
