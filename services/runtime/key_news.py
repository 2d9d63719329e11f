"""What has become of API keys, heard from the user manager by a poll that waits.

Events are numbered without a gap, and come in their order. Each says what has to be looked up
again: one key, or all of an account. Whoever hears of it is called at once.

An answer about a key may be older than an event that has been heard already, and arrive after it.
So what was heard lately is remembered: `is_current` tells whether an answer, which says what event
it was given after, may still be believed. Of older ones it is only known which they are up to, and
an answer from before that is not believed. Numbers of another history (the database was restored
from a backup) mean nothing beside those of this one: `era` counts how often that may have happened.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

from services.core.errors import RetryLater
from services.core.key_checks import KeyEvent, KeyEventPage, KeyEventsQuery, ValidKey
from services.runtime import telemetry
from services.runtime.metrics import Metrics
from services.runtime.probes import Condition, degraded, ready

# A user manager that vanished without a word is noticed after this and a moment more.
poll_wait_s: Final = 10
# Soon enough to hear of a revocation within a second once it is back.
pause_s_min: Final = 0.1
pause_s_max: Final = 0.5
# More than are heard of during the longest answer about a key; some 100 bytes each.
remembered_max: Final = 10_000

# An account, and its key or None for all of them.
_Subject = tuple[int, int | None]


class NewsSource(Protocol):
    async def key_events(self, asked: KeyEventsQuery) -> KeyEventPage:
        """RetryLater if it cannot be told now."""
        ...


class Listener(Protocol):
    def changed(self, user_id: int, key_id: int | None) -> None:
        """This key, or all keys of this account, may not be used before they are looked up."""
        ...

    def all_changed(self) -> None:
        """It cannot be told any more which keys have changed."""
        ...


@dataclass(slots=True)
class NewsCounters:
    """Since the start, for `/metrics`."""

    polls: int = 0
    failed: int = 0
    told: int = 0
    resets: int = 0


class KeyNews:
    """The poll, as a loop to `run`, and what it has heard."""

    def __init__(
        self, source: NewsSource, listener: Listener, remembered_max: int = remembered_max
    ) -> None:
        self._source = source
        self._listener = listener
        self._remembered_max = remembered_max
        # Up to which event everything was heard; None until it is known where they stand.
        self._position: int | None = None
        # The last event of each subject, oldest first, and up to which they are forgotten.
        self._heard: OrderedDict[_Subject, int] = OrderedDict()
        self._forgotten = 0
        self.era = 0
        self.trouble: str | None = "it has not been asked yet"
        self._log = telemetry.logger("services.credentials")
        self.counters = NewsCounters()

    def add_to(self, metrics: Metrics) -> None:
        metrics.add_counters("key_news", "of the poll for changed API keys", self.counters)
        metrics.add(
            "key_news_in_touch",
            "gauge",
            "Whether the user manager tells of revoked API keys",
            lambda: int(self.trouble is None),
        )

    def condition(self) -> Condition:
        """For readiness: without a user manager known keys go on."""
        if self.trouble is None:
            return ready
        return degraded(
            f"known API keys go on for a while, new and revoked ones wait: {self.trouble}"
        )

    def is_current(self, answer: ValidKey, era: int) -> bool:
        """Whether an answer that was asked for in this era tells what events have told of."""
        if era != self.era or answer.event_id < self._forgotten:
            return False
        heard = self._heard
        own = heard.get((answer.user_id, answer.key_id), 0)
        return answer.event_id >= own and answer.event_id >= heard.get((answer.user_id, None), 0)

    async def run(self) -> None:
        """Poll until cancelled."""
        pause_s = pause_s_min
        while True:
            await self.poll(poll_wait_s)
            if self.trouble is None:
                pause_s = pause_s_min
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, pause_s_max)

    async def poll(self, wait_s: int = 0) -> None:
        """Hear what there is, or what comes within that time."""
        self.counters.polls += 1
        try:
            await self._hear_page(wait_s)
        except RetryLater as error:
            self.counters.failed += 1
            self._note(error.detail)
        else:
            self._note(None)

    async def _hear_page(self, wait_s: int) -> None:
        if self._position is None:
            page = await self._source.key_events(KeyEventsQuery())
            # Whatever was said of a key before now may miss an event that nobody here has heard.
            self._begin_at(page.last)
        else:
            # That somebody answers again shows at once in a poll that does not wait.
            if self.trouble is not None:
                wait_s = 0
            page = await self._source.key_events(KeyEventsQuery(self._position, wait_s))
            if page.reset:
                self.counters.resets += 1
                self._begin_at(page.last)
            for event in page.events:
                self._hear(event)
            self._position = page.last

    def _begin_at(self, last: int) -> None:
        self.era += 1
        self._position = last
        self._forgotten = last
        self._heard.clear()
        self._listener.all_changed()

    def _hear(self, event: KeyEvent) -> None:
        self.counters.told += 1
        subject = (event.user_id, event.key_id)
        self._heard.pop(subject, None)
        self._heard[subject] = event.id
        if len(self._heard) > self._remembered_max:
            _, self._forgotten = self._heard.popitem(last=False)
        self._listener.changed(event.user_id, event.key_id)

    def _note(self, trouble: str | None) -> None:
        if (trouble is None) != (self.trouble is None) or self.counters.polls == 1:
            # Said when it changes, not at every poll.
            if trouble is None:
                self._log.info("user manager tells of API keys")
            else:
                self._log.warning("user manager is away", trouble=trouble)
        self.trouble = trouble
