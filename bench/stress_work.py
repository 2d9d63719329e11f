"""What a client that loads the gateway asks: one thing after another, drawn by weight.

Each kind of work has keys of its own kind, so that what one is promised is not lost by another's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from bench.http_connection import request
from bench.stress_client import Client, Identity, document_of, reconnect_s
from bench.stress_memory import absent, hedge_s, number_in, older, value_of
from bench.stress_tally import Tally

keys_of_a_kind: Final = 40
batch_items: Final = 10
# Smaller than a listing of a client, so that it takes several pages.
page_keys: Final = 7
brief_s: Final = 2
# A clock of a service may differ from another one's by so much and still be taken for sane.
clocks_s: Final = 0.5
# What was told of a key last must be true everywhere by then.
converged_s_max: Final = 5.0
_wrong_etag: Final = "0123456789abcdef01234567"


class Worker(Client):
    """`deleting` is shared by those who delete by prefix, which a gateway does for few at once."""

    def __init__(self, identity: Identity, tally: Tally, deleting: asyncio.Lock) -> None:
        super().__init__(identity, tally)
        self._deleting = deleting
        # Each asks something else, and the same in each run.
        self._draw = random.Random(identity.owner)
        # By key: what a counter may stand at.
        self._counts: defaultdict[str, tuple[int, ...]] = defaultdict(lambda: (0,))
        # By key: when a brief value expires, at the soonest and at the latest.
        self._expiries: dict[str, tuple[float, float]] = {}
        weights: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._get, 30),
            (self._put, 24),
            (self._delete, 3),
            (self._head, 3),
            (self._strong_get, 10),
            (self._strong_put, 8),
            (self._strong_delete, 1),
            (self._conditional_put, 3),
            (self._expire, 1),
            (self._increment, 5),
            (self._brief, 5),
            (self._listed, 4),
            (self._list, 1),
            (self._batch, 2),
        )
        self._works = [work for work, _ in weights]
        self._weights = [weight for _, weight in weights]

    async def run(self, goes_on: Callable[[], bool]) -> None:
        """Load for as long as that says so, and then look whether everything is there."""
        while goes_on():
            [work] = self._draw.choices(self._works, self._weights)
            await work()
        await self._look_at_all()
        async with self._deleting:
            await self._delete_listed()
        self.close()

    def _key(self, kind: str) -> str:
        return f"{self._root}{kind}/{self._draw.randrange(keys_of_a_kind):03}"

    # -- one key, eventually

    async def _get(self) -> None:
        await self._read("GET", self._key("p"))

    async def _put(self) -> None:
        await self._write("PUT", "PUT", self._key("p"), self._headers)

    async def _delete(self) -> None:
        await self._write("DELETE", "DELETE", self._key("p"), self._headers)

    async def _head(self) -> None:
        key = self._key("p")
        kept = self._kept[key]
        answer = await self._ask("HEAD", self._request("HEAD", key, self._headers), (200, 404))
        if answer is None or not kept.certain:
            return
        [number] = kept.possible
        found = absent
        if answer.status == 200:
            length = str(len(value_of(self._owner, key, number)))
            same = answer.header("ETag") == f'"{kept.etag}"'
            found = number if same and answer.header("Content-Length") == length else older
        self._judge("HEAD", key, found)

    # -- one key, strongly

    async def _strong_get(self) -> None:
        await self._read("strong GET", self._key("s"), strong=True)

    async def _strong_put(self) -> None:
        await self._write("strong PUT", "PUT", self._key("s"), self._strong)

    async def _strong_delete(self) -> None:
        await self._write("strong DELETE", "DELETE", self._key("s"), self._strong)

    async def _conditional_put(self) -> None:
        """With the etag that the key has, with another one, or if there is no such key."""
        key = self._key("s")
        kept = self._kept[key]
        if kept.etag is None or not kept.certain:
            await self._read("strong GET", key, strong=True)
            return
        right = self._draw.random() < 0.7
        if right:
            headers = f'{self._headers}If-Match: "{kept.etag}"\r\n'
            await self._write("PUT If-Match", "PUT", key, headers)
            return
        condition = self._draw.choice((f'If-Match: "{_wrong_etag}"', "If-None-Match: *"))
        content = self._request("PUT", key, f"{self._headers}{condition}\r\n", b"never to be seen")
        answer = await self._ask("PUT that must not", content, (412,))
        if answer is not None:
            self._check("PUT that must not", key, "etag", document_of(answer)["etag"], kept.etag)

    async def _expire(self) -> None:
        """Far in the future: nothing is to be seen of it but another etag."""
        key = self._key("s")
        kept = self._kept[key]
        content = self._request("PATCH", key, self._headers, query="?ttl=7d")
        answer = await self._ask("PATCH", content, (200, 404))
        if answer is not None:
            found = kept.possible[0] if answer.status == 200 else absent
            if kept.certain:
                self._check("PATCH", key, "presence", found == absent, kept.possible == (absent,))
            kept.etag = document_of(answer)["etag"] if answer.status == 200 else None
        elif self._is_unknown:
            kept.etag = None

    async def _increment(self) -> None:
        key = self._key("c")
        by = self._draw.randrange(-3, 9)
        could = self._counts[key]
        content = self._request("POST", f"{key}/incr", self._headers, query=f"?by={by}")
        answer = await self._ask("incr", content, (200,))
        if answer is not None:
            value = int(document_of(answer)["value"])
            if value not in [count + by for count in could]:
                told = f"{self._owner} {key}: {could} and {by} make {value}"
                self._tally.is_wrong("incr: value", told)
            self._counts[key] = (value,)
        elif self._is_unknown:
            self._counts[key] = tuple({*could, *(count + by for count in could)})

    # -- values that expire

    async def _brief(self) -> None:
        key = self._key("t")
        if key not in self._expiries:
            began_s = time.monotonic()
            query = f"?ttl={brief_s}s"
            if await self._write("PUT ttl", "PUT", key, self._headers, query) is not None:
                self._expiries[key] = (began_s + brief_s, time.monotonic() + brief_s)
            return
        soonest_s, latest_s = self._expiries[key]
        began_s = time.monotonic()
        if began_s > latest_s + clocks_s:
            # Expired, which is as if it were deleted.
            del self._expiries[key]
            self._kept[key].written(absent, None, 0.0)
            await self._read("GET expired", key)
        elif began_s < soonest_s - clocks_s - hedge_s:
            await self._read_before(key, soonest_s - clocks_s)

    async def _read_before(self, key: str, end_s: float) -> None:
        """Read what is there until then; an answer that came later says nothing."""
        content = self._request("GET", key, self._headers)
        answer = await self._ask("GET ttl", content, (200, 404))
        if answer is not None and time.monotonic() < end_s:
            there = answer.status == 200
            found = number_in(self._owner, key, answer.body) if there else absent
            self._judge("GET ttl", key, found)

    # -- many keys

    async def _listed(self) -> None:
        method = self._draw.choice(("PUT", "PUT", "DELETE"))
        await self._write(method, method, self._key("l"), self._headers)

    async def _list(self) -> None:
        prefix = f"{self._root}l/"
        if self._draw.random() < 0.3:
            await self._list_prefixes(prefix)
            return
        found: list[str] = []
        cursor, longest_s = "", 0.0
        while True:
            page = await self._page(f"?prefix={prefix}&limit={page_keys}{cursor}")
            if page is None:
                return
            longest_s = max(longest_s, self._took_s)
            found += (key["key"] for key in page["keys"])
            self._check("list", prefix, "count", page["count"], len(page["keys"]))
            if page["cursor"] is None:
                break
            cursor = f"&cursor={page['cursor']}"
        self._check("list", prefix, "order", found, sorted(set(found)))
        self._compare(prefix, set(found), longest_s)

    async def _list_prefixes(self, prefix: str) -> None:
        page = await self._page(f"?prefix={self._root}&delimiter=/")
        if page is None:
            return
        there, _ = self._there(prefix)
        if there and not self._any_slow(prefix) and self._took_s < hedge_s:
            lacking = {prefix} - set(page["prefixes"])
            self._check("list prefixes", prefix, "lacking", lacking, set())
        every = {f"{self._root}{kind}/" for kind in "pscltb"}
        self._check("list prefixes", prefix, "foreign", set(page["prefixes"]) - every, set())
        self._check("list prefixes", prefix, "keys", page["keys"], [])

    async def _page(self, query: str) -> Mapping[str, Any] | None:
        content = request("GET", f"/v1/kv{query}", self._port, self._headers)
        answer = await self._ask("list", content, (200,))
        return None if answer is None else document_of(answer)

    def _there(self, prefix: str) -> tuple[set[str], set[str]]:
        """The keys that must be there, and those that may be."""
        mine = {key: kept for key, kept in self._kept.items() if key.startswith(prefix)}
        must = {key for key, kept in mine.items() if absent not in kept.possible}
        return must, {key for key, kept in mine.items() if kept.possible != (absent,)}

    def _any_slow(self, prefix: str) -> bool:
        return any(kept.slow for key, kept in self._kept.items() if key.startswith(prefix))

    def _compare(self, prefix: str, found: set[str], took_s: float) -> None:
        must, may = self._there(prefix)
        if must <= found <= may:
            return
        if took_s >= hedge_s or self._any_slow(prefix):
            self._tally.late += 1
            return
        told = f"{self._owner} {prefix}: lacks {must - found}, and has {found - may} too many"
        self._tally.is_wrong("list: keys", told)

    async def _batch(self) -> None:
        keys = self._draw.sample(range(keys_of_a_kind), batch_items)
        items = [self._item(f"{self._root}b/{number:03}") for number in keys]
        operations = [item for item, _ in items]
        body = msgspec.json.encode({"operations": operations})
        json_line = "Content-Type: application/json\r\n"
        content = request("POST", "/v1/batch", self._port, self._headers + json_line, body)
        answer = await self._ask("batch", content, (200,))
        if answer is None:
            if self._is_unknown:
                for item, number in items:
                    if item["op"] != "get":
                        self._kept[item["key"]].unknown(number)
            return
        results = document_of(answer)["results"]
        self._check("batch", self._root, "results", len(results), len(operations))
        for (item, number), result in zip(items, results, strict=False):
            self._check_item(item, number, result)

    def _item(self, key: str) -> tuple[dict[str, str], int]:
        """Something to do with this key, and the number of the value that it has then."""
        op = self._draw.choice(("put", "put", "get", "get", "delete"))
        if op != "put":
            return {"op": op, "key": key}, absent
        number = self._kept[key].next_number()
        value = value_of(self._owner, key, number).decode()
        return {"op": op, "key": key, "value": value}, number

    def _check_item(self, item: Mapping[str, str], number: int, result: Mapping[str, Any]) -> None:
        key, op = item["key"], item["op"]
        kept = self._kept[key]
        self._check("batch", key, "item", (result["op"], result["key"]), (op, key))
        status = result["status"]
        if op == "get" and status in (200, 404):
            there = status == 200
            value = result.get("value", "").encode()
            self._judge("batch get", key, number_in(self._owner, key, value) if there else absent)
        elif op != "get" and status == 200:
            kept.written(number, result.get("etag") if op == "put" else None, self._took_s)
        else:
            self._tally.error(f"batch item {status} {result.get('code')}", f"{result}")
            if op != "get" and status in (500, 504):
                kept.unknown(number)

    # -- at the end

    async def _look_at_all(self) -> None:
        """Everything that was written is there, at last in every replica."""
        for key in [key for key in self._kept if key.startswith(f"{self._root}s/")]:
            await self._read("strong GET", key, strong=True)
        deadline_s = time.monotonic() + converged_s_max
        for key in [key for key in self._kept if key.startswith(f"{self._root}p/")]:
            kept = self._kept[key]
            while await self._read("GET", key) not in kept.possible:
                if time.monotonic() > deadline_s:
                    self._tally.is_wrong("lost", f"{self._owner} {key} is not {kept}")
                    break
                await asyncio.sleep(reconnect_s)

    async def _delete_listed(self) -> None:
        """By their prefix, first only counted."""
        prefix = f"{self._root}l/"
        for dry in ("&dry_run=true", ""):
            must, may = self._there(prefix)
            path = f"/v1/kv?prefix={prefix}{dry}"
            content = request("DELETE", path, self._port, self._headers)
            answer = await self._ask("DELETE prefix", content, (200,))
            if answer is None:
                return
            document = document_of(answer)
            told = f"{self._owner} {prefix}: {document} of {len(must)} to {len(may)}"
            if not len(must) <= document["matched"] <= len(may):
                self._tally.is_wrong("DELETE prefix: matched", told)
            if document["deleted"] != (0 if dry else document["matched"]):
                self._tally.is_wrong("DELETE prefix: deleted", told)
        for key in may:
            self._kept[key].written(absent, None, self._took_s)
        await self._list()
