"""Two tenants, and the wall between them: whatever one asks for, the other's things stay hers.

An answer is a hit if it has anything in it that only the other one could have told: a value, a key,
a version, a word of metadata, a count. And so is any change of hers.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.gateway.answers import problem, put, raw, told
from tests.cluster.gateway.intruder import Attempt, Intruder, Loot
from tests.cluster.gateway_platform import Caller, GatewayProcess, Platform, Tenant, lane_names
from tests.integration.lane_world import Answer, request
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")

attempts_wanted = 10_000
connections = 16
# The second one's bytes are what storage keys of the first, as some tenant's, begin with.
namespaces = ("default", "plans", "plan", "caf\xe9", "\x80" * 8 + "plans")
bait = ("user:1", "plans", "a/incr", "n", "s", "user:1\0", "caf\u00e9", "x" * 200)


@dataclass(slots=True, frozen=True)
class Victim:
    """Somebody with values in several namespaces, and all that nobody else may see of them."""

    caller: Caller
    loot: Loot
    secrets: Sequence[bytes]
    before: Any

    def at(self, namespace: str) -> Caller:
        return self.caller.saying(X_Namespace=namespace.encode().decode("latin-1"))

    async def now(self) -> Any:
        """All that she has, as she sees it herself."""
        found: dict[str, Any] = {"namespaces": told(await self.caller.get("/v1/namespaces"))}
        for namespace in self.loot.namespaces:
            caller = self.at(namespace)
            found[namespace] = told(await caller.get("/v1/kv?limit=1000"))
            operations = [{"op": "get", "key": key["key"]} for key in found[namespace]["keys"]]
            strong = caller.saying(X_Consistency="strong")
            found[f"{namespace} read"] = told(
                await strong.post("/v1/batch", {"operations": operations})
            )
        return found


async def victim_of(tenant: Tenant, gateway: GatewayProcess) -> Victim:
    draw = random.Random(tenant.id)
    caller = (await tenant.caller()).at(gateway)
    names = [name.encode("latin-1", "replace").decode("latin-1") for name in namespaces]
    secrets = [b"Ada's own colour", tenant.person.email.encode()]
    etags = []
    for name in names:
        for key in (*bait, *(f"hidden-{draw.getrandbits(64):016x}" for _ in range(3))):
            value = b"%d" % draw.randrange(10**17, 10**18)
            secrets.append(value)
            if key.startswith("hidden-"):
                secrets.append(key.encode())
            said = caller.saying(
                X_Namespace=name.encode().decode("latin-1"),
                X_Consistency="strong",
                X_Metadata_Colour="Ada's own colour",
                Content_Type="text/x-ada",
            )
            target = f"/v1/kv/{_quoted(key)}?ttl=10h"
            etags.append(await put(said, target, value))
    secrets += [etag.encode() for etag in etags]
    secrets.append(b"text/x-ada")
    here = caller.saying(X_Namespace=names[0])
    await until_told(lambda: _lists(caller, names, len(bait) + 3), "all is listed")
    cursors = [told(await here.get("/v1/kv?limit=1"))["cursor"]]
    cursors.append(told(await here.get("/v1/kv?limit=1&prefix=user"))["cursor"])
    cursors.append(told(await here.get("/v1/namespaces?limit=1"))["cursor"])
    loot = Loot(tenant.id, names, bait, etags, cursors)
    unseen = Victim(caller, loot, secrets, None)
    return Victim(caller, loot, secrets, await unseen.now())


def _quoted(key: str) -> str:
    return "".join(f"%{byte:02x}" for byte in key.encode())


async def _lists(caller: Caller, names: Iterable[str], count: int) -> bool | None:
    for name in names:
        said = caller.saying(X_Namespace=name.encode().decode("latin-1"))
        if told(await said.get("/v1/kv"))["count"] != count:
            return None
    return True


def hit(attempt: Attempt, answer: Answer, secrets: Sequence[bytes]) -> str | None:
    """What is wrong with the answer."""
    said = b"\r\n".join((*(value for _, value in answer.fields), answer.body))
    for secret in secrets:
        # A refusal may repeat what it finds fault with.
        if secret in said and (secret not in attempt.sent or b'etag":"' + secret in said):
            return f"{secret!r} is told"
    if answer.status == 304:
        return "a version is known"
    if answer.status >= 500 and answer.status != 503:
        return "a failure"
    return None


async def break_in(
    gateway: GatewayProcess, attempts: Iterable[Attempt], secrets: Sequence[bytes]
) -> tuple[Counter[int], list[str], list[tuple[Attempt, Answer]]]:
    """Statuses, hits, and what was found."""
    statuses: Counter[int] = Counter()
    hits: list[str] = []
    successes: list[tuple[Attempt, Answer]] = []
    waiting = iter(attempts)

    async def work() -> None:
        client = await gateway.connect()
        for attempt in waiting:
            answer = await client.ask(attempt.sent)
            statuses[answer.status] += 1
            what = hit(attempt, answer, secrets)
            if what is not None:
                hits.append(f"{what} by {attempt}: {answer}")
            if answer.status < 400:
                successes.append((attempt, answer))
            if answer.closes:
                await client.close()
                client = await gateway.connect()
        await client.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(work())
    return statuses, hits, successes


async def test_ten_thousand_attempts_to_get_at_anothers_keys_get_at_nothing(
    platform: Platform,
) -> None:
    ada, ben = await platform.tenant(), await platform.tenant()
    victim = await victim_of(ada, platform.fast)
    intruder = Intruder(victim.loot, (await ben.make_key()).key, seed=6)
    shares = {"fast": attempts_wanted * 4 // 5, "application": attempts_wanted // 5}
    statuses: Counter[int] = Counter()
    for lane in lane_names:
        attempts = intruder.attempts(shares[lane])
        found, hits, _ = await break_in(platform.gateways[lane], attempts, victim.secrets)
        assert not hits, hits[:3]
        statuses += found
    assert statuses.total() == attempts_wanted
    # They were no attempts if all had been turned away at the door.
    assert statuses[200] > attempts_wanted / 4, statuses
    assert statuses[404] > attempts_wanted / 20, statuses
    assert await victim.now() == victim.before


async def test_who_has_nothing_finds_nothing(platform: Platform) -> None:
    """A tenant without a key of its own: whatever is found is somebody else's."""
    ada, eve = await platform.tenant(), await platform.tenant()
    victim = await victim_of(ada, platform.fast)
    intruder = Intruder(victim.loot, (await eve.make_key()).key, seed=7)
    attempts = intruder.attempts(1_500, reading=True)
    statuses, hits, successes = await break_in(platform.fast, attempts, victim.secrets)
    assert not hits, hits[:3]
    assert statuses[304] == 0
    for attempt, answer in successes:
        assert attempt.method != "HEAD", attempt
        document = json.loads(answer.body)
        results = document.pop("results", None)
        if results is not None:
            assert {result["status"] for result in results} == {404}, attempt
        else:
            document.pop("cursor", None)
            assert not any(document.values()), (str(attempt), document)
    assert len(successes) > 100
    assert await victim.now() == victim.before


async def test_what_is_anothers_is_as_what_is_nobodys(
    platform: Platform, gateway: GatewayProcess
) -> None:
    """Not even by how it is refused can be told what is there."""
    ada, ben = await platform.tenant(), await platform.tenant()
    victim = await victim_of(ada, gateway)
    caller = (await ben.caller()).at(gateway).saying(X_Namespace="plans", X_Request_ID="one")
    etag = victim.loot.etags[0]
    for headers in (
        {},
        {"X_Consistency": "strong"},
        {"If_Match": f'"{etag}"'},
        {"If_None_Match": f'"{etag}"'},
        {"X_Ydht_Tenant": str(ada.id)},
    ):
        said = caller.saying(**headers)
        for method, suffix in (
            ("GET", ""), ("HEAD", ""), ("PATCH", "?ttl=1h"),
        ):  # fmt: skip
            theirs = await said.ask(method, f"/v1/kv/user:1{suffix}")
            nobodys = await said.ask(method, f"/v1/kv/user:0{suffix}")
            assert theirs.status_code == nobodys.status_code >= 400
            assert theirs.content.replace(b"user:1", b"user:0") == nobodys.content
            assert len(theirs.headers) == len(nobodys.headers)
    for target in ("/v1/namespaces/{}", "/v1/kv?prefix={}", "/v1/kv?cursor={}"):
        known = victim.loot.cursors[0] if "cursor" in target else "plans"
        other = "A" * len(known)
        theirs, nobodys = [await caller.get(target.format(name)) for name in (known, other)]
        assert theirs.status_code == nobodys.status_code
        assert theirs.content == nobodys.content
    assert await victim.now() == victim.before


async def test_a_cursor_is_good_for_whom_it_was_given_to(
    platform: Platform, gateway: GatewayProcess
) -> None:
    ada, ben = await platform.tenant(), await platform.tenant()
    victim = await victim_of(ada, gateway)
    keys, with_prefix, of_namespaces = victim.loot.cursors
    hers = victim.at("default")
    assert told(await hers.get(f"/v1/kv?limit=1&cursor={keys}"))["count"] == 1
    his = (await ben.caller()).at(gateway).saying(X_Namespace="default")
    for cursor in (keys, with_prefix, of_namespaces):
        for target in ("/v1/kv?", "/v1/kv?prefix=user&", "/v1/namespaces?"):
            answer = await his.get(f"{target}limit=1&cursor={cursor}")
            assert problem(answer) == (400, "invalid_cursor")
            if cursor != keys or target != "/v1/kv?":
                continue
            # Nor is it good for another namespace, or with a bit of it changed.
            other = await victim.at("plans").get(f"/v1/kv?limit=1&cursor={cursor}")
            assert problem(other) == (400, "invalid_cursor")
            changed = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
            other = await hers.get(f"/v1/kv?limit=1&cursor={changed}")
            assert problem(other) == (400, "invalid_cursor")
        for target in ("/v1/kv?prefix=user&", "/v1/namespaces/default?"):
            answer = await his.delete(f"{target}cursor={cursor}")
            assert problem(answer) == (400, "invalid_cursor")
    assert await victim.now() == victim.before


async def test_names_that_run_into_each_other_are_different_keys(
    platform: Platform, gateway: GatewayProcess
) -> None:
    """A namespace ends where it ends, whatever key follows."""
    caller = (await (await platform.tenant()).caller()).at(gateway)
    pairs = [("ab", "c"), ("a", "bc"), ("abc", "abc"), ("a", "b/c"), ("a/b", "c"), ("a", "c")]
    for name, key in pairs:
        said = caller.saying(X_Namespace=name, X_Consistency="strong")
        await put(said, f"/v1/kv/{key}", f"{name}|{key}".encode())
    for name, key in pairs:
        said = caller.saying(X_Namespace=name, X_Consistency="strong")
        assert raw(await said.get(f"/v1/kv/{key}")) == f"{name}|{key}".encode()
    await until_told(lambda: _counts(caller), "all namespaces are listed")
    assert told(await caller.delete("/v1/namespaces/a"))["deleted"] == 3
    for name, key in pairs:
        said = caller.saying(X_Namespace=name, X_Consistency="strong")
        answer = await said.get(f"/v1/kv/{key}")
        assert answer.status_code == (404 if name == "a" else 200)


async def _counts(caller: Caller) -> bool | None:
    listed = told(await caller.get("/v1/namespaces"))["namespaces"]
    found = {one["name"]: one["keys"] for one in listed}
    return found == {"ab": 1, "a": 3, "abc": 1, "a/b": 1} or None


async def test_who_shares_a_connection_shares_nothing_else(
    platform: Platform, gateway: GatewayProcess
) -> None:
    """As behind a proxy: many tenants' requests in one another's wake, in one write."""
    draw = random.Random(11)
    callers = [(await (await platform.tenant()).caller()).at(gateway) for _ in range(3)]
    strong = [caller.saying(X_Consistency="strong") for caller in callers]
    for number, caller in enumerate(strong):
        await put(caller, "/v1/kv/who", b"tenant %d" % number)
        await put(caller, "/v1/kv/counter", b"%d" % (number * 1_000_000))
    client = await gateway.connect()
    added = [0, 0, 0]
    for _ in range(25):
        chosen = [draw.randrange(3) for _ in range(12)]
        # No line tells them apart but the API key's.
        asked = [(number, draw.choice(("GET", "POST", "LIST"))) for number in chosen]
        client.send(b"".join(_asked(callers[number], what) for number, what in asked))
        for number, what in asked:
            answer = await client.answer()
            assert answer.status == 200
            if what == "GET":
                assert answer.body == b"tenant %d" % number
            elif what == "POST":
                added[number] += 1
                match = re.search(rb'"value":(\d+)', answer.body)
                assert match is not None
                assert int(match[1]) == number * 1_000_000 + added[number]
            else:
                assert {key["key"] for key in json.loads(answer.body)["keys"]} <= {"who", "counter"}
    await client.close()
    for number, caller in enumerate(strong):
        assert raw(await caller.get("/v1/kv/counter")) == b"%d" % (
            number * 1_000_000 + added[number]
        )


def _asked(caller: Caller, what: str) -> bytes:
    if what == "GET":
        return request("GET", "/v1/kv/who", *caller.lines, "X-Consistency: strong")
    if what == "POST":
        return request("POST", "/v1/kv/counter/incr", *caller.lines)
    return request("GET", "/v1/kv", *caller.lines)
