"""Usage over HTTP: gateways report it, signed; tenants read their own; nobody breaks it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import pytest

from services.core.usage_report import count_max, report_bytes_max, rows_per_report_max
from services.runtime.clock import SystemClock
from services.runtime.database_url import DatabaseAddress
from services.runtime.signing import SignedAuth, Signer
from tests.integration.node_process import secret
from tests.integration.usage_desk import fetch, rollup, this_minute
from tests.integration.usermanager_process import UserManagerProcess, usermanager_process

Body = dict[str, Any]


@pytest.fixture
async def usermanager(
    tmp_path: Path, database_address: DatabaseAddress
) -> AsyncIterator[UserManagerProcess]:
    async with usermanager_process(tmp_path, database_address) as usermanager:
        yield usermanager


def row(**members: object) -> Body:
    plain: Body = msgspec.to_builtins(rollup())
    return {**plain, **members}


def body(*rows: Body, **members: object) -> Body:
    return {"sender": "gateway-1", "sequence": 1, "rollups": rows, **members}


async def send(usermanager: UserManagerProcess, sent: bytes) -> httpx.Response:
    """A report as these very bytes."""
    headers = {"Content-Type": "application/json"}
    auth = SignedAuth(Signer(secret, SystemClock()))
    return await usermanager.call("POST", "/usage", sent, headers=headers, auth=auth)


async def test_what_a_gateway_reports_its_tenant_reads_and_nobody_else(
    usermanager: UserManagerProcess,
) -> None:
    ada, bob = await usermanager.person(), await usermanager.person()
    minute = msgspec.to_builtins(this_minute())
    sent = body(
        row(minute=minute, user_id=ada.id, key_id=7, requests=4, latency_us=10_000),
        row(minute=minute, user_id=ada.id, key_id=7, requests=2, operation="put", status=503),
        row(minute=minute, user_id=bob.id, key_id=8, requests=1_000),
    )
    for expected in (True, False):
        answer = await usermanager.ask("POST", "/usage", sent)
        assert (answer.status_code, answer.json()) == (200, {"counted": expected, "dropped": 0})

    hour = this_minute().replace(minute=0)
    listed = await ada.get("/usage")
    assert (listed.status_code, listed.json()) == (
        200,
        [
            {
                "start": msgspec.to_builtins(hour),
                "key_id": 7,
                "operation": "get",
                "status": 200,
                "requests": 4,
                "bytes_in": 10,
                "bytes_out": 100,
                "average_latency_ms": 2.5,
            },
            {
                "start": msgspec.to_builtins(hour),
                "key_id": 7,
                "operation": "put",
                "status": 503,
                "requests": 2,
                "bytes_in": 10,
                "bytes_out": 100,
                "average_latency_ms": 0.5,
            },
        ],
    )
    stats = (await ada.get("/usage/stats")).json()
    assert {name: stats[name] for name in stats if name not in ("from", "to")} == {
        "total_requests": 6,
        "successful_requests": 4,
        "failed_requests": 2,
        "total_bytes_transferred": 220,
        "average_latency_ms": 1.833,
        "requests_by_operation": {"get": 4, "put": 2},
    }
    assert stats["from"] < minute < stats["to"]
    assert [each["requests"] for each in (await bob.get("/usage")).json()] == [1_000]
    assert (await bob.get("/usage/stats")).json()["total_requests"] == 1_000


async def test_only_services_report_and_only_people_read(usermanager: UserManagerProcess) -> None:
    ada = await usermanager.person()
    for answer in (
        await usermanager.call("POST", "/usage", body(row())),
        await ada.post("/usage", body(row())),
        await usermanager.call("GET", "/usage"),
        await usermanager.ask("GET", "/usage/stats"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


wrong_rows: list[tuple[Body, str]] = [
    ({"requests": -1}, "requests"),
    ({"requests": count_max + 1}, "requests"),
    ({"bytes_in": 10**30}, "bytes_in"),
    ({"bytes_out": 1.5}, "bytes_out"),
    ({"latency_us": "7"}, "latency_us"),
    ({"latency_us": True}, "latency_us"),
    ({"latency_us": None}, "latency_us"),
    ({"status": 99}, "status"),
    ({"status": 600}, "status"),
    ({"user_id": -1}, "user_id"),
    ({"key_id": 2**63}, "key_id"),
    ({"operation": ""}, "operation"),
    ({"operation": "GET"}, "operation"),
    ({"operation": "get\n"}, "operation"),
    ({"operation": "g\x00"}, "operation"),
    ({"operation": "'; DROP TABLE users; --"}, "operation"),
    ({"operation": "x" * 33}, "operation"),
    ({"operation": "\u0131"}, "operation"),
    ({"minute": "now"}, "minute"),
    ({"minute": "2026-05-05T12:00:00"}, "minute"),
    ({"minute": "2026-05-05T12:00:01Z"}, "minute"),
    ({"minute": "2026-05-05T12:00:00.000001Z"}, "minute"),
    ({"minute": "0001-01-01T00:00:00+14:00"}, "minute"),
    ({"minute": "9999-12-31T23:59:00-14:00"}, "minute"),
    ({"minute": 1_700_000_000}, "minute"),
]
wrong_bodies: list[tuple[object, str]] = [
    (body(sender=""), "sender"),
    (body(sender="x" * 101), "sender"),
    (body(sender="a b"), "sender"),
    (body(sender="a\n"), "sender"),
    (body(sender="a\x00"), "sender"),
    (body(sequence=-1), "sequence"),
    (body(sequence=2**53), "sequence"),
    (body(sequence=1.0), "sequence"),
    (body(rollups={}), "rollups"),
    (body(rollups=[7]), "rollups"),
    (body(*[row()] * (rows_per_report_max + 1)), "rollups"),
    ({"sender": "gateway-1", "sequence": 1}, "rollups"),
    ([], ""),
    (None, ""),
    (b"", ""),
    (b"{", ""),
    (json.dumps(body(row(requests=float("nan")))).encode(), ""),
    (json.dumps(body(row(requests=float("inf")))).encode(), ""),
    (json.dumps(body(row())).encode().replace(b'"requests": 1', b'"requests": 1e999'), ""),
    (b"[" * 100_000, ""),
    (b'{"sender": "\xff"}', ""),
]


async def test_a_report_that_is_wrong_anywhere_counts_nowhere(
    usermanager: UserManagerProcess, database_address: DatabaseAddress
) -> None:
    wrong = [(body(row(), row(**members)), member) for members, member in wrong_rows]
    for sent, member in [*wrong, *wrong_bodies]:
        raw = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        answer = await send(usermanager, raw)
        assert answer.status_code == 400, (sent, answer.text)
        assert member in answer.json()["detail"]
    for table in ("usage_rollups", "usage_senders"):
        assert (await fetch(database_address, f"SELECT count(*) FROM {table}"))[0][0] == 0  # noqa: S608  Ours.


async def test_a_report_of_too_many_bytes_is_refused_and_the_largest_is_not(
    usermanager: UserManagerProcess,
) -> None:
    numbers = ("user_id", "requests", "bytes_in", "bytes_out", "latency_us")
    longest = row(operation="a" * 32, **dict.fromkeys(numbers, count_max))
    full = body(*({**longest, "key_id": count_max - n} for n in range(rows_per_report_max)))
    sent = json.dumps(full, separators=(",", ":"))
    answer = await send(usermanager, sent.encode())
    assert (answer.status_code, answer.json()) == (200, {"counted": True, "dropped": 0})
    padded = sent + " " * (report_bytes_max + 1 - len(sent))
    answer = await send(usermanager, padded.encode())
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


wrong_queries = [
    ({"step": "week"}, "step"),
    ({"step": ""}, "step"),
    ({"from": "yesterday"}, "from"),
    ({"from": ""}, "from"),
    ({"from": "2026-05-05T12:00:00"}, "from"),
    ({"from": "nan"}, "from"),
    ({"from": "1e400"}, "from"),
    ({"to": "-1" + "0" * 30}, "to"),
    ({"to": "253402300800"}, "to"),
    ({"to": "0001-01-01T00:00:00+14:00"}, "to"),
    ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
    ({"from": "2026-05-05T12:00:00Z'; --", "to": "2026-05-05T13:00:00Z"}, "from"),
    ({"from": "2026-05-05T12:00:00Z", "to": "2026-05-05T12:00:00Z"}, "from"),
    ({"from": "2025-01-01T00:00:00Z", "to": "2026-05-05T12:00:00Z"}, "from"),
    ({"user_id": "1"}, "user_id"),
    ({"key_id": "-1"}, "key_id"),
    ({"step": "day", "limit": "0"}, "limit"),
    ({"step": "day", "limit": "10001"}, "limit"),
]


async def test_a_wrong_question_is_told_which_member_is_wrong(
    usermanager: UserManagerProcess,
) -> None:
    ada = await usermanager.person()
    for members, member in wrong_queries:
        paths = ["/usage"] if "step" in members else ["/usage", "/usage/stats"]
        for path in paths:
            answer = await ada.get(f"{path}?{urlencode(members)}")
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query"), members
            assert member in answer.json()["detail"]
    assert (await ada.get("/usage?step=day&step=day")).status_code == 400
    for cursor in ("x", "29000000.1.get.2000", "1" * 200):
        answer = await ada.get(f"/usage?cursor={cursor}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


async def test_a_long_list_leads_from_page_to_page_by_its_links(
    usermanager: UserManagerProcess,
) -> None:
    ada = await usermanager.person()
    minute = msgspec.to_builtins(this_minute())
    rows = [row(user_id=ada.id, key_id=key, minute=minute, requests=key) for key in range(1, 8)]
    assert (await usermanager.ask("POST", "/usage", body(*rows))).status_code == 200
    answer = await ada.get("/usage?step=minute&limit=3")
    found = []
    while True:
        assert answer.status_code == 200, answer.text
        found.append([each["key_id"] for each in answer.json()])
        if "Link" not in answer.headers:
            break
        assert set(answer.links) == {"next"}
        answer = await ada.get(answer.links["next"]["url"])
    assert found == [[1, 2, 3], [4, 5, 6], [7]]
    whole = await ada.get("/usage?step=minute&key_id=5")
    assert [each["requests"] for each in whole.json()] == [5]
    assert "Link" not in whole.headers
    assert (await ada.get("/usage/stats?key_id=5")).json()["total_requests"] == 5


async def test_the_document_tells_how_long_periods_are_and_may_be(
    usermanager: UserManagerProcess,
) -> None:
    document = (await usermanager.call("GET", "/openapi.json")).json()
    listing = document["paths"]["/usage"]["get"]
    told = {each["name"]: each.get("description", "") for each in listing["parameters"]}
    assert "step=minute 1 h, at most 25 h; step=hour 24 h, at most 768 h" in told["from"]
    assert "step=day 720 h, at most 2400 h" in told["from"]
    assert "%2B" in told["from"]
    assert "Link" in listing["responses"]["200"]["headers"]


@pytest.mark.parametrize("step", ["minute", "hour", "day"])
async def test_a_period_is_asked_for_in_any_time_zone(
    usermanager: UserManagerProcess, step: str
) -> None:
    ada = await usermanager.person()
    minute = this_minute()
    await usermanager.ask(
        "POST", "/usage", body(row(user_id=ada.id, minute=minute.isoformat(), requests=3))
    )
    start, end = minute, minute + timedelta(minutes=1)
    for offset, expected in ((0, [3]), (1, []), (-1, [])):
        times = {
            "from": (start + timedelta(minutes=offset)).isoformat(),
            "to": (end + timedelta(minutes=offset)).isoformat(),
            "step": step,
        }
        answer = await ada.get(f"/usage?{urlencode(times)}")
        assert [each["requests"] for each in answer.json()] == expected
