"""Somebody with data, for tests of the data pages."""

from __future__ import annotations

import base64
from typing import Final
from urllib.parse import quote

from playwright.sync_api import Page, expect

from tests.browser.running_platform import Person, RunningPlatform

data: Final = "/console/data"


class Owner:
    """Somebody with data: what a program of theirs puts, and where their browser finds it."""

    def __init__(self, platform: RunningPlatform, person: Person) -> None:
        self._key = platform.api_key(person)["key"]
        self._platform = platform

    def put(self, key: str, value: bytes, query: str = "", **headers: str) -> None:
        with self._platform.gateway(self._key) as client:
            target = f"/v1/kv/{quote(key, safe='').replace('.', '%2E')}{query}"
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            answer = client.put(target, content=value, headers=named)
        assert answer.status_code == 200, answer.text

    def put_all(self, values: dict[str, bytes]) -> None:
        """At the cost of one request."""
        operations = [
            {"op": "put", "key": key, "value_base64": base64.b64encode(value).decode()}
            for key, value in values.items()
        ]
        with self._platform.gateway(self._key) as client:
            answer = client.post("/v1/batch", json={"operations": operations})
        assert {result["status"] for result in answer.json()["results"]} == {200}, answer.text

    def get_all(self, keys: list[str]) -> list[bytes]:
        operations = [{"op": "get", "key": key, "encoding": "base64"} for key in keys]
        with self._platform.gateway(self._key, **{"X-Consistency": "strong"}) as client:
            results = client.post("/v1/batch", json={"operations": operations}).json()["results"]
        return [base64.b64decode(result["value_base64"]) for result in results]

    def get(self, key: str) -> bytes | None:
        with self._platform.gateway(self._key, **{"X-Consistency": "strong"}) as client:
            answer = client.get(f"/v1/kv/{quote(key, safe='').replace('.', '%2E')}")
        assert answer.status_code in (200, 404), answer.text
        return answer.content if answer.status_code == 200 else None


def key_page(key: str, **more: str) -> str:
    members = {"namespace": "default", "key": key, **more}
    query = "&".join(f"{name}={quote(text, safe='')}" for name, text in members.items())
    return f"{data}/key?{query}"


def value_of(page: Page) -> str:
    area = page.get_by_label("Value", exact=True)
    expect(area).to_be_visible()
    return area.input_value()
