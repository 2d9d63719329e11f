"""The keys of one namespace in order, made only as far as listings need it.

A write pays for an append and nothing else: each key that appears or vanishes is *touched*.
The first listing after that has the touched keys merged, in slices, while it waits:

    touched keys → sealed runs of 4096 → each sorted → taken together piece by piece in order
                 → merged into chunks of about 128 keys

Whether a touched key belongs into the index is decided when it is merged, by looking whether it
is there; so an index may still name keys that are gone, and its readers look each one up.

Measured in CPython 3.11 with random keys of 28 bytes: a touch 0.05 µs; 8.3 bytes a key, before
and after; see `python -m bench table` for the time a build takes and its longest slice.
Runs and chunks are tuples, because the cycle collector looks at a tuple of bytes once and never
again, while it would walk every key of a list at each full collection. Even that one look is to
be had in small portions: a collection that met a million keys in new tuples took 48 ms. So the
young generation is collected here whenever there are some thousands.
"""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from services.dhtnode.runs import in_order, run_keys

# What a key takes beside its bytes from its removal to its merging: the head of the object with its
# rounding, and two places in runs, its own and that of the key that came for it.
removed_key_bytes = 41 + 16
# A chunk is replaced whole when a key comes into it, in some 10 to 20 µs at this size.
chunk_keys = 128
_chunk_keys_max = 2 * chunk_keys
# Smaller ones, which removals leave behind, are joined with their neighbour.
_chunk_keys_min = chunk_keys // 4

# What changing a chunk costs, in the units of `in_order`.
_chunk_cost = 60
# About 2 ms.
slice_budget = 8_192

Position = tuple[int, int]


class Index:
    """Whoever adds or removes a key calls `touch`; whoever reads calls `merge_slice` first, until
    it says that everything touched before some `mark` is in.

    `present` tells whether a key is there; it is asked only where keys have been removed.
    """

    __slots__ = (
        "_chunks",
        "_firsts",
        "_fresh",
        "_merged",
        "_merging",
        "_merging_gone_bytes",
        "_present",
        "_removed",
        "_removed_bytes",
        "_runs",
        "_sealed",
        "_was_dirty",
        "_young",
    )

    def __init__(self, present: Callable[[bytes], bool]) -> None:
        self._present = present
        self._chunks: list[tuple[bytes, ...]] = []
        self._firsts: list[bytes] = []
        self._fresh: list[bytes] = []
        self._runs: list[tuple[bytes, ...]] = []
        # How many keys stand in runs that were ever sealed; how many keys are merged.
        self._sealed = 0
        self._merged = 0
        self._merging: Iterator[int] | None = None
        # How many keys were removed since the last batch was taken, and if any were in that one.
        self._removed = 0
        self._was_dirty = False
        # What removed keys take that are held by runs alone; and by those that are being merged.
        self._removed_bytes = 0
        self._merging_gone_bytes = 0
        # Keys in tuples that the cycle collector has not seen yet.
        self._young = 0

    # Writing.

    @property
    def mark(self) -> int:
        """How many keys were ever touched."""
        return self._sealed + len(self._fresh)

    def touch(self, key: bytes) -> None:
        """Note that a key has appeared."""
        self._fresh.append(key)
        if len(self._fresh) >= run_keys:
            self._seal()

    def touch_all(self, keys: list[bytes]) -> None:
        self._fresh += keys
        while len(self._fresh) >= run_keys:
            self._seal()

    def touch_removed(self, key: bytes) -> int:
        """Note that a key has vanished; by how much `lag_bytes` grows."""
        held_bytes = removed_key_bytes + len(key)
        self._removed += 1
        self._removed_bytes += held_bytes
        self.touch(key)
        return held_bytes

    @property
    def behind(self) -> int:
        """How many touched keys are not merged yet."""
        return self.mark - self._merged

    @property
    def lag_bytes(self) -> int:
        """What is held by keys that were removed and are not merged yet. Those that are there
        have their place in the index anyway."""
        return self._removed_bytes + self._merging_gone_bytes

    @property
    def removed(self) -> int:
        """How many keys were removed since merging began the last time."""
        return self._removed

    @property
    def is_large(self) -> bool:
        """Whether to free it would take more than about a millisecond."""
        return len(self._chunks) * chunk_keys + self.behind > 2 * run_keys

    def _seal(self) -> None:
        run = tuple(self._fresh[:run_keys])
        self._fresh = self._fresh[run_keys:]
        self._runs.append(run)
        self._sealed += len(run)
        self._age(len(run))

    def _age(self, keys: int) -> None:
        """Some keys have been put into new tuples."""
        self._young += keys
        if self._young >= run_keys:
            self._young = 0
            gc.collect(0)

    # Merging.

    def merge_slice(self, mark: int, budget: int = slice_budget) -> bool:
        """Do some of the work, at least one step; whether everything touched before the index
        stood at `mark` is in. A step is never longer than about 2 ms."""
        while self._merged < min(mark, self.mark):
            if self._merging is None:
                self._merging = self._merge()
            for cost in self._merging:
                budget -= cost
                if budget <= 0:
                    return False
            self._merging = None
        return True

    def _merge(self) -> Iterator[int]:
        """Merge all that has been touched up to now, yielding what each step has cost."""
        if self._fresh:
            self._seal()
        runs, self._runs = self._runs, []
        mark = self.mark
        # A key that is removed and comes back is touched once more. If it came back only after
        # this batch was taken, but before it was merged, it will be met again in the next one.
        removed, self._removed = self._removed > 0, 0
        self._merging_gone_bytes, self._removed_bytes = self._removed_bytes, 0
        careful = removed or self._was_dirty
        self._was_dirty = removed
        for number, run in enumerate(runs):
            runs[number] = tuple(sorted(set(run) if careful else run))
            self._age(len(run))
            yield len(run)
        for piece in in_order(runs):
            if isinstance(piece, int):
                yield piece
            elif careful:
                yield from self._merge_carefully(list(dict.fromkeys(piece)))
            else:
                yield from self._merge_new(piece)
        self._merged = mark
        self._merging_gone_bytes = 0

    def _merge_new(self, piece: list[bytes]) -> Iterator[int]:
        """Merge sorted keys none of which is in the index."""
        for number, fresh in self._by_chunk(piece):
            keys = [*self._chunks[number], *fresh] if self._chunks else fresh
            # Two sorted runs, which sorting finds and merges.
            keys.sort()
            self._replace(number, keys)
            yield _chunk_cost + len(fresh)

    def _merge_carefully(self, piece: list[bytes]) -> Iterator[int]:
        """Merge sorted keys that may be in the index already, or gone."""
        for number, touched in self._by_chunk(piece):
            doubtful = set(touched)
            chunk = self._chunks[number] if self._chunks else ()
            keys = [key for key in chunk if key not in doubtful]
            keys += filter(self._present, touched)
            keys.sort()
            self._replace(number, keys)
            yield 3 * (_chunk_cost + len(touched))

    def _by_chunk(self, piece: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
        """Parts of the sorted keys, each with the number of the chunk that it belongs into."""
        start = 0
        while start < len(piece):
            following = bisect_right(self._firsts, piece[start])
            if following == 0 and self._firsts:
                following = 1
            end = len(piece)
            if following < len(self._firsts):
                end = bisect_left(piece, self._firsts[following], start)
            yield max(following - 1, 0), piece[start:end]
            start = end

    def _replace(self, number: int, keys: list[bytes]) -> None:
        """Put these keys in place of a chunk."""
        end = number + 1
        if len(keys) < _chunk_keys_min and number > 0:
            number -= 1
            keys = [*self._chunks[number], *keys]
        if len(keys) <= _chunk_keys_max:
            chunks = [tuple(keys)] if keys else []
        else:
            chunks = [
                tuple(keys[start : start + chunk_keys]) for start in range(0, len(keys), chunk_keys)
            ]
        self._chunks[number:end] = chunks
        self._firsts[number:end] = [chunk[0] for chunk in chunks]
        self._age(len(keys))

    # Reading.

    def find(self, key: bytes) -> Position:
        """Where the first key is that is not less than this one."""
        number = max(bisect_right(self._firsts, key) - 1, 0)
        if number == len(self._chunks):
            return number, 0
        return number, bisect_left(self._chunks[number], key)

    def keys_from(self, position: Position) -> Iterator[bytes]:
        """The keys from there on. The iterator ends with the turn: merging invalidates it."""
        number, start = position
        while number < len(self._chunks):
            chunk = self._chunks[number]
            yield from chunk[start:] if start else chunk
            number, start = number + 1, 0
