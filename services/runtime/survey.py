"""One question to many services of ours at once, and how a cluster looks to all who are asked.

The client that asks signs its requests (signed_client.py). Who does not answer is part of what is
found: nothing here raises because somebody is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import httpx

from services.core.cluster_health import Document, Told, node_urls

# How much of an answer that is an error is worth a line.
reason_chars_max: Final = 200
# Nodes tell more of themselves where they are told apart from people.
_as_json: Final = {"Accept": "application/json"}


class Survey(NamedTuple):
    """What replicators tell, in the order of their URLs; and what nodes tell of themselves, by
    name: how ready they are, and their figures. Some nodes may be out of reach from here; whether
    they are from where it matters, replicators know."""

    told: Sequence[Told]
    of_nodes: Mapping[str, Document]
    figures: Mapping[str, Document]

    @property
    def is_silent(self) -> bool:
        """Whether no replicator has answered."""
        return all(one.document is None for one in self.told)


async def survey(client: httpx.AsyncClient, urls: Sequence[str]) -> Survey:
    """Ask these replicators, and the nodes that any of them is connected to."""
    told = [_of_cluster(one) for one in await ask_all(client, "GET", urls, "/cluster")]
    places = node_urls(told)
    listed = list(places.values())
    ready, figures = await asyncio.gather(
        ask_all(client, "GET", listed, "/ready"), ask_all(client, "GET", listed, "/metrics")
    )
    return Survey(told, _by_name(places, ready), _by_name(places, figures))


def _of_cluster(one: Told) -> Told:
    """What is told, if a replicator tells it: another service may have taken the address."""
    if one.document is None or "replicator_id" in one.document:
        return one
    return Told(one.url, None, "it answers what no replicator would")


async def ask_all(
    client: httpx.AsyncClient,
    method: str,
    urls: Sequence[str],
    path: str,
    content: Mapping[str, object] | None = None,
) -> list[Told]:
    """What each of them answers, in the order of their URLs."""
    return await asyncio.gather(*(_ask(client, method, url, path, content) for url in urls))


async def _ask(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    path: str,
    content: Mapping[str, object] | None,
) -> Told:
    try:
        answer = await client.request(method, url + path, json=content, headers=_as_json)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Told(url, None, f"it cannot be asked: {str(error) or type(error).__name__}")
    if answer.is_success:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if isinstance(found, dict):
            return Told(url, found)
        return Told(url, None, "it answers what no service of ours would")
    return Told(url, None, f"it answers {answer.status_code}: {_reason(answer)}")


def _reason(answer: httpx.Response) -> str:
    """What an error says of itself, in a line."""
    try:
        document = answer.json()
    except ValueError:
        document = None
    text = document.get("detail") or document.get("error") if isinstance(document, dict) else None
    return " ".join(str(text or answer.text).split())[:reason_chars_max]


def _by_name(places: Mapping[str, str], told: Sequence[Told]) -> dict[str, Document]:
    found = zip(places, told, strict=True)
    return {name: one.document for name, one in found if one.document is not None}
