"""What services that are up lack all the same: asked for again and again, and told when it changes.

A service may serve and yet miss something: a node that no replicator has taken, a full disk, a
database that is away. Its /ready says so, as `degraded`; one that is stopped in its tracks says
nothing at all. Neither is a death, so process.py sees neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from services.cli.process import Child
from services.cli.rows import Probe, probe_s_max

# Soon enough to see why something does not work, seldom enough to cost nothing.
look_every_s = 2.0
# While everything has just started, nodes find their replicators and are seen to be live: the
# better part of a second, and several on a machine that is busy with other things. Who lacks
# something for longer than this is named as it is.
settle_s_max = 15.0
settle_every_s = 0.1


class Lookout:
    """`settle` once, then `keep` in a task; `lacking` has what is known, by name."""

    def __init__(
        self,
        children: Mapping[str, Child],
        say: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self.lacking: dict[str, str] = {}
        self._children = children
        self._say = say
        self._on_change = on_change

    async def settle(self) -> None:
        """Wait, for a while, until all are well; what some lack then is known."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + settle_s_max
        while True:
            self.lacking = await self._look()
            if not self.lacking or loop.time() > until_s:
                return
            await asyncio.sleep(settle_every_s)

    async def keep(self) -> None:
        """Look on for ever, and tell what changes."""
        while True:
            await asyncio.sleep(look_every_s)
            before, self.lacking = self.lacking, await self._look()
            for name, what in self.lacking.items():
                if before.get(name) != what:
                    self._say(f"{name} is not well: {what}")
            for name in before.keys() - self.lacking.keys():
                # Of one that is down since, others tell.
                if self._children[name].trouble is None:
                    self._say(f"{name} is well again")
            if before != self.lacking:
                self._on_change()

    async def _look(self) -> dict[str, str]:
        asked = {
            name: child.row.well
            for name, child in self._children.items()
            if child.row.well is not None and child.trouble is None and child.pid is not None
        }
        found = await asyncio.gather(*(_ask(well) for well in asked.values()))
        return {name: what for name, what in zip(asked, found, strict=True) if what is not None}


async def _ask(well: Probe) -> str | None:
    try:
        async with asyncio.timeout(probe_s_max):
            return await well()
    except TimeoutError:
        return f"no answer within {probe_s_max:g} s"
