"""What can be done with one key, by both lanes of a real gateway over a real cluster."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest

from tests.cluster.gateway.answers import found, gone, problem, put, raw, seconds_until, told
from tests.cluster.gateway_platform import Caller, Platform
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")

etag_form = re.compile(r"[0-9a-f]{24}")
octets = "application/octet-stream"


# -- PUT


@pytest.mark.parametrize("consistency", [None, "eventual", "strong"])
async def test_a_put_tells_where_its_value_is_and_which_version_it_is(
    robot: Caller, consistency: str | None
) -> None:
    said = robot if consistency is None else robot.saying(X_Consistency=consistency)
    document = told(await said.put("/v1/kv/user:123", b"value"))
    assert etag_form.fullmatch(document["etag"])
    assert document["primary_node"] in ("node-1", "node-2", "node-3")
    assert document == {
        "success": True,
        "key": "user:123",
        "primary_node": document["primary_node"],
        "replicas": 2,
        "etag": document["etag"],
        "consistency": consistency or "eventual",
        "expires_at": None,
    }
    for reader in (robot, robot.saying(X_Consistency="strong")):
        assert raw(await found(reader, "/v1/kv/user:123", document["etag"])) == b"value"


@pytest.mark.parametrize("consistency", ["eventual", "strong"])
@pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), b"\r\n\r\nHTTP/1.1 200 OK\r\n"])
async def test_a_value_is_whatever_bytes_were_put(
    robot: Caller, consistency: str, value: bytes
) -> None:
    said = robot.saying(X_Consistency=consistency)
    etag = await put(said, "/v1/kv/bytes", value)
    assert raw(await found(said, "/v1/kv/bytes", etag)) == value


async def test_each_put_makes_a_later_version(robot: Caller) -> None:
    strong = robot.saying(X_Consistency="strong")
    etags = [
        await put(caller, "/v1/kv/a", b"%d" % number)
        for number, caller in enumerate((robot, strong) * 5)
    ]
    assert etags == sorted(set(etags))
    answer = await strong.get("/v1/kv/a")
    assert (answer.content, answer.headers["ETag"]) == (b"9", f'"{etags[-1]}"')


# -- GET and HEAD


@pytest.mark.parametrize("consistency", ["eventual", "strong"])
async def test_a_get_tells_all_that_is_known_of_the_value(robot: Caller, consistency: str) -> None:
    said = robot.saying(X_Consistency=consistency)
    writer = said.saying(Content_Type="text/plain; charset=utf-8", X_Metadata_Colour="green")
    document = told(await writer.put("/v1/kv/a?ttl=1h", "café".encode()))
    answer = await found(said, "/v1/kv/a", document["etag"])
    assert raw(answer) == "café".encode()
    headers = answer.headers
    assert headers["ETag"] == f'"{document["etag"]}"'
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Metadata-Colour"] == "green"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Expires-At"] == document["expires_at"]
    assert headers["X-Node-ID"] in ("node-1", "node-2", "node-3")
    assert headers["Content-Length"] == str(len(answer.content))
    assert headers["Last-Modified"].endswith(" GMT")
    modified = parsedate_to_datetime(headers["Last-Modified"])
    assert abs(datetime.now(UTC) - modified) < timedelta(minutes=1)


async def test_a_plain_value_has_no_expiry_and_no_metadata(robot: Caller) -> None:
    headers = (await found(robot, "/v1/kv/a", await put(robot, "/v1/kv/a"))).headers
    assert "X-Expires-At" not in headers
    assert not [name for name in headers if name.startswith("x-metadata-")]
    assert headers["Content-Type"] == octets


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("application/json", "application/json"),
        ("IMAGE/PNG", "IMAGE/PNG"),
        # What curl says of any body that it was not told the type of.
        ("application/x-www-form-urlencoded", octets),
        ("Application/X-WWW-Form-Urlencoded", octets),
        ("", octets),
        ("nonsense", "nonsense"),
        ("x" * 255, "x" * 255),
    ],
)
async def test_a_value_has_the_type_that_it_was_put_with(
    robot: Caller, sent: str, kept: str
) -> None:
    # The next value has its own type, or none.
    for writer, expected in ((robot.saying(Content_Type=sent), kept), (robot, octets)):
        answer = await found(robot, "/v1/kv/a", await put(writer, "/v1/kv/a"))
        assert answer.headers["Content-Type"] == expected


@pytest.mark.parametrize("consistency", ["eventual", "strong"])
@pytest.mark.parametrize("key", ["there", "expiring", "absent"])
async def test_head_is_get_without_the_body(robot: Caller, consistency: str, key: str) -> None:
    said = robot.saying(X_Consistency=consistency, X_Request_ID="one-id")
    etags = {
        "there": await put(said, "/v1/kv/there", b"v" * 2000),
        "expiring": await put(said.saying(X_Metadata_A="b"), "/v1/kv/expiring?ttl=1h", b""),
    }
    got = await found(said, f"/v1/kv/{key}", etags.get(key))
    headed = await found(said, f"/v1/kv/{key}", etags.get(key), method="HEAD")
    assert headed.status_code == got.status_code == (404 if key == "absent" else 200)
    assert headed.content == b""
    # A read may be answered by another replica than the one before.
    varies = ("date", "x-node-id", "ratelimit")
    one, other = (
        [pair for pair in answer.headers.multi_items() if pair[0] not in varies]
        for answer in (got, headed)
    )
    assert one == other
    assert ("content-length", str(len(got.content))) in one


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("consistency", ["eventual", "strong"])
async def test_who_has_the_value_is_told_so_and_nothing_else(
    robot: Caller, consistency: str, method: str
) -> None:
    said = robot.saying(X_Consistency=consistency)
    etag = await put(said.saying(X_Metadata_A="b"), "/v1/kv/a", b"value")
    earlier = "0" * 24
    for tags, status in (
        (f'"{etag}"', 304),
        (f'W/"{etag}"', 304),
        (f'"{earlier}", "{etag}"', 304),
        (f'"other-server\'s", W/"{etag}"', 304),
        ("*", 304),
        (f'"{earlier}"', 200),
        ('""', 200),
        (f'"{etag[:-1]}"', 200),
    ):
        answer = await found(said.saying(If_None_Match=tags), "/v1/kv/a", etag, method=method)
        assert answer.status_code == status, tags
        assert answer.headers["X-Metadata-A"] == "b"
        assert answer.content == (b"value" if (status, method) == (200, "GET") else b"")
    absent = await said.saying(If_None_Match="*").ask(method, "/v1/kv/absent")
    assert absent.status_code == 404


# -- DELETE


@pytest.mark.parametrize("consistency", ["eventual", "strong"])
async def test_deleting_answers_as_putting_does_and_also_of_what_is_not_there(
    robot: Caller, consistency: str
) -> None:
    said = robot.saying(X_Consistency=consistency)
    etag = await put(said, "/v1/kv/a")
    for _ in range(2):
        document = told(await said.delete("/v1/kv/a"))
        assert document["etag"] > etag
        assert document == {
            "success": True,
            "key": "a",
            "primary_node": document["primary_node"],
            "replicas": 2,
            "etag": document["etag"],
            "consistency": consistency,
            "expires_at": None,
        }
        await gone(said, "/v1/kv/a")
        etag = document["etag"]


# -- conditions


async def test_a_put_under_if_match_replaces_that_version_and_no_other(robot: Caller) -> None:
    first = await put(robot, "/v1/kv/a", b"1")
    said = robot.saying(If_Match=f'"{first}"')
    document = told(await said.put("/v1/kv/a", b"2"))
    assert document["consistency"] == "strong", "a condition makes a write strong"
    answer = await said.put("/v1/kv/a", b"3")
    assert problem(answer) == (412, "precondition_failed")
    assert answer.json()["etag"] == document["etag"]
    strong = robot.saying(X_Consistency="strong")
    assert raw(await strong.get("/v1/kv/a")) == b"2"
    both = robot.saying(If_Match=f'"{first}", "{document["etag"]}"')
    await put(both, "/v1/kv/a", b"4")
    await put(robot.saying(If_Match="*"), "/v1/kv/a", b"5")
    assert raw(await strong.get("/v1/kv/a")) == b"5"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "/v1/kv/absent"),
        ("DELETE", "/v1/kv/absent"),
        ("PATCH", "/v1/kv/absent?ttl=1h"),
        ("POST", "/v1/kv/absent/incr"),
    ],
)
@pytest.mark.parametrize("tags", ["*", '"000000000000000000000001"', '"another-server\'s"'])
async def test_an_absent_key_fails_every_if_match(
    robot: Caller, method: str, target: str, tags: str
) -> None:
    answer = await robot.saying(If_Match=tags).ask(method, target)
    assert problem(answer) == (412, "precondition_failed")
    assert answer.json()["etag"] is None
    absent = await robot.saying(X_Consistency="strong").get("/v1/kv/absent")
    assert problem(absent) == (404, "key_not_found")


@pytest.mark.parametrize(
    ("method", "suffix"), [("DELETE", ""), ("PATCH", "?ttl=1h"), ("POST", "/incr?by=2")]
)
async def test_every_change_can_be_made_to_depend_on_the_version(
    robot: Caller, method: str, suffix: str
) -> None:
    etag = await put(robot, "/v1/kv/n", b"40")
    wrong = robot.saying(If_Match=f'"{etag[:-1]}{"1" if etag[-1] == "0" else "0"}"')
    answer = await wrong.ask(method, f"/v1/kv/n{suffix}")
    assert problem(answer) == (412, "precondition_failed")
    assert answer.json()["etag"] == etag
    weak = robot.saying(If_Match=f'W/"{etag}"')
    assert problem(await weak.ask(method, f"/v1/kv/n{suffix}")) == (412, "precondition_failed")
    right = robot.saying(If_Match=f'"{etag}"')
    assert told(await right.ask(method, f"/v1/kv/n{suffix}"))["etag"] > etag
    assert problem(await right.ask(method, f"/v1/kv/n{suffix}")) == (412, "precondition_failed")


async def test_if_none_match_creates_a_key_and_never_overwrites_one(robot: Caller) -> None:
    said = robot.saying(If_None_Match="*")
    document = told(await said.put("/v1/kv/a", b"mine"))
    assert document["consistency"] == "strong"
    answer = await said.put("/v1/kv/a", b"theirs")
    assert problem(answer) == (412, "precondition_failed")
    assert answer.json()["etag"] == document["etag"]
    strong = robot.saying(X_Consistency="strong")
    assert raw(await strong.get("/v1/kv/a")) == b"mine"
    told(await strong.delete("/v1/kv/a"))
    assert told(await said.put("/v1/kv/a", b"again"))["etag"] > document["etag"]


async def test_a_condition_may_name_many_versions(robot: Caller) -> None:
    etag = await put(robot, "/v1/kv/a")
    strangers = [f'"{number:024x}"' for number in range(1, 64)]
    for tags in (strangers, ["W/" + f'"{etag}"'], ['"another-server\'s"']):
        said = robot.saying(If_Match=", ".join(tags))
        answer = await said.put("/v1/kv/a", b"w")
        assert problem(answer) == (412, "precondition_failed")
        assert answer.json()["etag"] == etag
    said = robot.saying(If_Match=", ".join([*strangers, f'"{etag}"']))
    later = await put(said, "/v1/kv/a", b"w")
    # What no value can meet is met by none.
    both = robot.saying(If_Match=f'"{later}"', If_None_Match="*")
    for target in ("/v1/kv/a", "/v1/kv/absent"):
        answer = await both.put(target, b"x")
        assert answer.status_code in (400, 412), answer.text
        problem(answer)
    assert raw(await robot.saying(X_Consistency="strong").get("/v1/kv/a")) == b"w"


async def test_of_many_who_create_a_key_one_does(platform: Platform, robot: Caller) -> None:
    callers = [robot.at(one).saying(If_None_Match="*") for one in platform.gateways.values()] * 16
    answers = await asyncio.gather(
        *(caller.put("/v1/kv/a", b"%d" % number) for number, caller in enumerate(callers))
    )
    made = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert len(made) == 1
    assert {problem(answer) for answer in answers if answer.status_code != 200} == {
        (412, "precondition_failed")
    }
    strong = robot.saying(X_Consistency="strong")
    assert raw(await strong.get("/v1/kv/a")) == b"%d" % made[0]


# -- expiry


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        ("90s", 90),
        ("1h30m", 5_400),
        ("24h", 86_400),
        ("7d", 7 * 86_400),
        ("45", 45),
        ("1.5h", 5_400),
        ("1m500ms", 60.5),
        ("3650d", 3_650 * 86_400),
    ],
)
@pytest.mark.parametrize("consistency", ["eventual", "strong"])
async def test_a_ttl_is_a_duration_or_seconds(
    robot: Caller, consistency: str, ttl: str, seconds: float
) -> None:
    said = robot.saying(X_Consistency=consistency)
    document = told(await said.put(f"/v1/kv/a?ttl={ttl}", b"v"))
    assert seconds - 30 < seconds_until(document["expires_at"]) <= seconds + 1
    answer = await found(said, "/v1/kv/a", document["etag"])
    assert answer.headers["X-Expires-At"] == document["expires_at"]
    # A put without one never expires, whatever was there.
    document = told(await said.put("/v1/kv/a", b"v"))
    assert document["expires_at"] is None
    assert "X-Expires-At" not in (await found(said, "/v1/kv/a", document["etag"])).headers


@pytest.mark.parametrize("consistency", ["eventual", "strong"])
async def test_what_has_expired_is_gone_for_everybody(robot: Caller, consistency: str) -> None:
    said = robot.saying(X_Consistency=consistency)
    document = told(await said.put("/v1/kv/a?ttl=300ms", b"v"))
    assert etag_form.fullmatch(document["etag"])
    await gone(said, "/v1/kv/a")
    assert seconds_until(document["expires_at"]) < 0.5, "not before its time"
    for caller in (robot, robot.saying(X_Consistency="strong")):
        await gone(caller, "/v1/kv/a")
        assert (await caller.ask("HEAD", "/v1/kv/a")).status_code == 404
    assert problem(await robot.ask("PATCH", "/v1/kv/a?ttl=1h")) == (404, "key_not_found")
    # An increment begins anew, and so does who wants to be the first.
    assert told(await robot.post("/v1/kv/a/incr"))["value"] == 1
    told(await said.put("/v1/kv/b?ttl=1ms", b"v"))
    await until_told(lambda: _put_if_absent(robot, "/v1/kv/b"), "the key can be had again")


async def _put_if_absent(robot: Caller, target: str) -> bool | None:
    answer = await robot.saying(If_None_Match="*").put(target, b"mine")
    assert answer.status_code in (200, 412), answer.text
    return answer.status_code == 200 or None


async def test_patch_changes_the_expiry_and_nothing_else(robot: Caller) -> None:
    strong = robot.saying(X_Consistency="strong")
    writer = strong.saying(Content_Type="text/html", X_Metadata_Colour="green")
    etag = await put(writer, "/v1/kv/a", b"value")
    document = told(await robot.ask("PATCH", "/v1/kv/a?ttl=30m"))
    assert document["etag"] > etag
    assert 1_700 < seconds_until(document["expires_at"]) <= 1_801
    assert document == {
        "success": True,
        "key": "a",
        "primary_node": document["primary_node"],
        "replicas": 2,
        "etag": document["etag"],
        "consistency": "strong",
        "expires_at": document["expires_at"],
    }
    answer = await strong.get("/v1/kv/a")
    assert raw(answer) == b"value"
    assert answer.headers["ETag"] == f'"{document["etag"]}"'
    assert answer.headers["X-Expires-At"] == document["expires_at"]
    assert answer.headers["Content-Type"] == "text/html"
    assert answer.headers["X-Metadata-Colour"] == "green"
    for zero in ("0", "0s"):
        removed = told(await robot.ask("PATCH", f"/v1/kv/a?ttl={zero}"))
        assert removed["expires_at"] is None
        assert "X-Expires-At" not in (await strong.get("/v1/kv/a")).headers
    assert problem(await robot.ask("PATCH", "/v1/kv/b?ttl=1h")) == (404, "key_not_found")


# -- increments


async def test_an_increment_counts_from_nothing_and_keeps_the_expiry(robot: Caller) -> None:
    strong = robot.saying(X_Consistency="strong")
    document = told(await robot.post("/v1/kv/n/incr"))
    assert etag_form.fullmatch(document["etag"])
    assert (document["key"], document["value"]) == ("n", 1)
    assert told(await robot.post("/v1/kv/n/incr?by=41"))["value"] == 42
    assert told(await robot.post("/v1/kv/n/incr?by=-50"))["value"] == -8
    assert told(await robot.post("/v1/kv/n/incr?by=0"))["value"] == -8
    assert raw(await strong.get("/v1/kv/n")) == b"-8"
    expires_at = told(await robot.ask("PATCH", "/v1/kv/n?ttl=1h"))["expires_at"]
    last = told(await robot.post("/v1/kv/n/incr?by=8"))
    assert last["value"] == 0
    answer = await strong.get("/v1/kv/n")
    assert answer.headers["X-Expires-At"] == expires_at
    assert answer.headers["ETag"] == f'"{last["etag"]}"'


async def test_increments_that_come_together_are_all_counted(
    platform: Platform, robot: Caller
) -> None:
    callers = [robot.at(one) for one in platform.gateways.values()] * 20
    answers = await asyncio.gather(*(caller.post("/v1/kv/n/incr") for caller in callers))
    assert sorted(told(answer)["value"] for answer in answers) == [*range(1, len(callers) + 1)]
    etags = {answer.json()["etag"]: answer.json()["value"] for answer in answers}
    assert [etags[etag] for etag in sorted(etags)] == [*range(1, len(callers) + 1)]
    strong = robot.saying(X_Consistency="strong")
    assert raw(await strong.get("/v1/kv/n")) == b"%d" % len(callers)


@pytest.mark.parametrize(
    "value", [b"", b" 1", b"1 ", b"1.0", b"0x1", b"one", b"+", "\uff11".encode(), b"1_0", b"9" * 20]
)
async def test_what_is_no_integer_cannot_be_incremented(robot: Caller, value: bytes) -> None:
    etag = await put(robot, "/v1/kv/n", value)
    assert problem(await robot.post("/v1/kv/n/incr")) == (409, "not_an_integer")
    answer = await robot.saying(X_Consistency="strong").get("/v1/kv/n")
    assert (answer.content, answer.headers["ETag"]) == (value, f'"{etag}"')


@pytest.mark.parametrize(
    ("value", "by", "sum_"),
    [
        (2**63 - 2, 1, 2**63 - 1),
        (2**63 - 1, 1, None),
        (-(2**63) + 1, -1, -(2**63)),
        (-(2**63), -1, None),
        (0, 2**63 - 1, 2**63 - 1),
        (0, -(2**63), -(2**63)),
        (2**53 - 2, 1, 2**53 - 1),
        (2**53 - 1, 1, 2**53),
        (-(2**53) + 1, -1, -(2**53)),
    ],
)
async def test_counting_ends_with_64_bits(
    robot: Caller, value: int, by: int, sum_: int | None
) -> None:
    strong = robot.saying(X_Consistency="strong")
    await put(strong, "/v1/kv/n", b"%d" % value)
    answer = await robot.post(f"/v1/kv/n/incr?by={by}")
    if sum_ is None:
        assert problem(answer) == (409, "not_an_integer")
    else:
        # Integers above 2^53 travel as text.
        shown: int | str = sum_ if abs(sum_) < 2**53 else str(sum_)
        assert told(answer)["value"] == shown
    kept = value if sum_ is None else sum_
    assert raw(await strong.get("/v1/kv/n")) == b"%d" % kept


# -- namespaces


async def test_namespaces_are_apart(robot: Caller) -> None:
    others = [robot.saying(X_Namespace=name) for name in ("one", "two", "default", "x" * 255)]
    etags = [
        await put(caller, "/v1/kv/apart", b"%d" % number) for number, caller in enumerate(others)
    ]
    for number, (caller, etag) in enumerate(zip(others, etags, strict=True)):
        assert raw(await found(caller, "/v1/kv/apart", etag)) == b"%d" % number
    nameless = robot.without("X-Namespace")
    assert raw(await found(nameless, "/v1/kv/apart", etags[2])) == b"2"
    told(await others[0].delete("/v1/kv/apart"))
    await gone(others[0], "/v1/kv/apart")
    assert raw(await found(others[1], "/v1/kv/apart", etags[1])) == b"1"


async def test_a_namespace_may_be_named_in_any_script(robot: Caller) -> None:
    names = ("café".encode(), "名前空間".encode(), b"a b", b"a/b?c=d", b"'\"`;--")
    callers = [robot.saying(X_Namespace=name.decode("latin-1")) for name in names]
    etags = [
        await put(caller, "/v1/kv/a", name) for name, caller in zip(names, callers, strict=True)
    ]
    for name, caller, etag in zip(names, callers, etags, strict=True):
        assert raw(await found(caller, "/v1/kv/a", etag)) == name


# -- metadata


async def test_metadata_is_kept_with_the_value(robot: Caller) -> None:
    text = "caf\xe9 \x80\xff"
    writer = replace(
        robot,
        headers={
            **robot.headers,
            "X-Metadata-Owner": "Ada",
            "x-metadata-empty": "",
            "X-METADATA-with.dots_and~more!": 'a, b;  c="d"',
            "X-Metadata-Bytes": text,
        },
    )
    for consistency in ("eventual", "strong"):
        said, reader = (one.saying(X_Consistency=consistency) for one in (writer, robot))
        answer = await found(reader, "/v1/kv/a", await put(said, "/v1/kv/a"))
        kept = {name.lower(): value for name, value in answer.headers.raw}
        assert {name: kept[name] for name in kept if name.startswith(b"x-metadata-")} == {
            b"x-metadata-owner": b"Ada",
            b"x-metadata-empty": b"",
            b"x-metadata-with.dots_and~more!": b'a, b;  c="d"',
            b"x-metadata-bytes": text.encode("latin-1"),
        }
        answer = await found(reader, "/v1/kv/a", await put(reader, "/v1/kv/a"))
        assert not [name for name in answer.headers if "metadata" in name]
