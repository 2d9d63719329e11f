"""A demo account that looks lived in: API keys, values of several kinds, and a week of traffic.

Nothing is drawn at random, so that pictures of it change only when pages do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx

from services.runtime.clock import SystemClock
from services.runtime.env_file import env_file_name, read_env
from services.runtime.signing import SignedAuth, Signer
from tests.browser.running_platform import RunningPlatform

days: Final = 7
# Of requests on a usual minute at noon, by operation.
shares: Final = {"get": 210, "put": 64, "incr": 22, "list": 9, "delete": 5, "batch": 3}
usual_us: Final = {
    "get": 420, "put": 1_900, "incr": 2_600, "list": 3_100, "delete": 1_700, "batch": 8_200,
}  # fmt: skip
rows_per_report: Final = 900
looked_up: Final = "user:1003"
# A day in which more and more was stored.
_stored_before: Final = """
    INSERT INTO stored_history
    SELECT {user_id}, date_trunc('hour', now(), 'UTC') - make_interval(hours => ago),
        66 - ago - ago % 4, 8000 - 210 * ago - 150 * (ago % 3)
    FROM generate_series(1, 24) AS ago
"""


def fill(platform: RunningPlatform) -> None:
    """Let the demo account have been used for a week."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        demo = platform.demo
        known = {"email": demo["email"], "password": demo["password"]}
        token = client.post(f"{platform.url}/login", json=known).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        user = client.get(f"{platform.url}/me").json()["id"]
        keys = [_api_key(client, platform, **more) for more in _api_keys()]
        secret = read_env(platform.data_dir / env_file_name)["CLUSTER_SECRET"]
        _report(client, platform, secret, list(_traffic(user, keys)))
    platform.sql(_stored_before.format(user_id=user))
    with platform.gateway(demo["api_key"]) as gateway:
        for key, value, headers, ttl in _values():
            params = {} if ttl is None else {"ttl": ttl}
            answer = gateway.put(f"/v1/kv/{key}", content=value, headers=headers, params=params)
            answer.raise_for_status()
        strong = {"X-Consistency": "strong"}
        gateway.get(f"/v1/kv/{looked_up}", headers=strong).raise_for_status()
        gateway.post("/v1/ids?count=12").raise_for_status()


def _api_keys() -> Iterator[dict[str, object]]:
    yield {"name": "web shop", "scopes": ["read", "write"]}
    yield {"name": "nightly report", "scopes": ["read"], "prefix": "order/"}
    yield {"name": "clean-up job", "scopes": ["read", "write", "admin"], "expires_in_days": 30}


def _api_key(client: httpx.Client, platform: RunningPlatform, **more: object) -> int:
    answer = client.post(f"{platform.url}/apikeys", json=more).raise_for_status()
    found: int = answer.json()["id"]
    return found


def _values() -> Iterator[tuple[str, bytes, dict[str, str], str | None]]:
    as_json = {"Content-Type": "application/json"}
    for number in range(1_000, 1_018):
        person = {"id": number, "name": f"Customer {number}", "plan": ("free", "pro")[number % 2]}
        yield f"user:{number}", _json(person), {**as_json, "X-Metadata-Source": "import"}, None
        cart = {"items": [{"sku": f"A-{number % 7}", "count": number % 4 + 1}], "currency": "EUR"}
        yield f"cart/{number}", _json(cart), as_json, "12h"
    for number in range(24):
        order = {"id": number, "total": f"{19 + 7 * number}.90", "state": "paid"}
        yield f"order/2026/11/{number:05d}", _json(order), as_json, None
    for name, value in (("checkout", "on"), ("dark-mode", "on"), ("new-search", "10 %")):
        yield f"flags/{name}", value.encode(), {"Content-Type": "text/plain"}, None
    yield "counter/visits", b"48213", {}, None
    yield "image/logo.bin", bytes(range(256)) * 12, {}, None
    yield (
        "readme.md",
        b"# Keys\n\n`user:` customers, `cart/` carts, `order/` orders.\n",
        {"Content-Type": "text/markdown"},
        None,
    )


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


def _traffic(user: int, keys: list[int]) -> Iterator[dict[str, Any]]:
    """A row each quarter of an hour, and in the last hour each minute: more by day than by night,
    with a slow hour and a few refusals."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    for step in range(days * 96, 4, -1):
        minute = now - timedelta(minutes=15 * step)
        yield from _moment(user, keys, minute, step, 15.0)
    for step in range(60, 0, -1):
        yield from _moment(user, keys, now - timedelta(minutes=step), step, 1.0)


def _moment(
    user: int, keys: list[int], minute: datetime, step: int, length: float
) -> Iterator[dict[str, Any]]:
    """What was asked in so many minutes; `step` tells one such time from the next."""
    by_day = 0.55 - 0.45 * math.cos(2 * math.pi * (minute.hour + minute.minute / 60 - 3) / 24)
    wave = by_day * (1 + 0.12 * math.sin(step * 1.7) + 0.07 * math.sin(step * 0.61))
    slow = 3.5 if 40 <= step <= 44 and length > 1 else 1.0
    for place, (operation, share) in enumerate(shares.items()):
        requests = round(share * wave * length)
        yield _row(minute, user, keys[place % 2], operation, 200, requests, slow)
    yield _row(minute, user, keys[0], "get", 404, round(0.7 * wave * length), 1.0)
    if step % 19 == 0 and length > 1:
        yield _row(minute, user, keys[2], "put", 429, 14, 0.2)
    if 40 <= step <= 43 and length > 1:
        yield _row(minute, user, keys[0], "put", 503, 6, 2.0)


def _row(
    minute: datetime, user: int, key: int, operation: str, status: int, requests: int, slow: float
) -> dict[str, Any]:
    return {
        "minute": minute.isoformat(),
        "user_id": user,
        "key_id": key,
        "operation": operation,
        "status": status,
        "requests": requests,
        "bytes_in": requests * (310 if operation == "put" else 0),
        "bytes_out": requests * (420 if status == 200 else 160),
        "latency_us": round(requests * usual_us[operation] * slow),
    }


def _report(
    client: httpx.Client, platform: RunningPlatform, secret: str, rows: list[dict[str, Any]]
) -> None:
    """As a gateway reports what it has counted."""
    auth = SignedAuth(Signer(secret, SystemClock()))
    wanted = [row for row in rows if row["requests"]]
    for sequence, begin in enumerate(range(0, len(wanted), rows_per_report)):
        report = {
            "sender": "demo-gateway",
            "sequence": sequence,
            "rollups": wanted[begin : begin + rows_per_report],
        }
        answer = client.post(f"{platform.url}/usage", json=report, auth=auth)
        answer.raise_for_status()
        assert answer.json()["counted"], answer.text
