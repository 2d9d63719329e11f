"""One look at all services: their figures, how ready they are, and who cannot be reached and why.

Replicators are found as by `ydht cluster status`, and they name the nodes; the others are those of
GATEWAY_URL, USERMANAGER_URL and KEYGEN_URL, or those of the `ydht up` that runs on the directory.
Nobody is waited for longer than the bound of a look.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from services.cli.endings import UnreachableError
from services.cli.replicator_desk import ReplicatorDesk, is_replicator, told_by_up
from services.core.cluster_health import Document, Told, health_of, node_urls
from services.runtime import setting_values as values
from services.runtime.clock import SystemClock
from services.runtime.settings import data_dir_setting, load, setting
from services.runtime.survey import ask_all

# What they tell comes from memory.
answer_s_max: Final = 1.5
reason_chars_max: Final = 200
_as_text: Final = {"Accept": "text/plain"}
edge_kinds: Final = ("gateway", "usermanager", "keygen")
_prefix: Final = "ydht_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopSettings:
    data_dir: Path = data_dir_setting()
    gateway: tuple[str, ...] | None = setting(
        "GATEWAY_URL", values.url_list, help="Gateways; unset: that of a running `ydht up`"
    )
    usermanager: tuple[str, ...] | None = setting(
        "USERMANAGER_URL", values.url_list, help="User managers; unset: as above"
    )
    keygen: tuple[str, ...] | None = setting(
        "KEYGEN_URL", values.url_list, help="Keygens; unset: as above"
    )


@dataclass(slots=True)
class Seen:
    """A service at one moment. With a `trouble` it has told nothing."""

    kind: str
    name: str
    url: str
    at_s: float = 0.0
    state: str = "away"
    reasons: Sequence[str] = ()
    trouble: str | None = None
    # By the name of the metric, without what all have in front; labels are summed up.
    numbers: Mapping[str, float] = field(default_factory=dict)
    # Of a histogram: upper ends, and how many are below each.
    buckets: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    # Of a node: what replicators see of it.
    view: Mapping[str, Any] = field(default_factory=dict)


class Watch:
    """Where the services are, and looks at all of them; `client` is kept between them."""

    def __init__(
        self, desk: ReplicatorDesk, edges: Sequence[Seen], nodes: Mapping[str, str]
    ) -> None:
        self._desk = desk
        self._edges = edges
        # By name, where nodes are that replicators may not reach now.
        self._nodes = dict(nodes)
        # What replicators are called, by where they are.
        self._names: dict[str, str] = {}

    @classmethod
    def open(cls, data_dir: Path) -> Watch:
        """FatalError if nobody says where replicators are."""
        desk = ReplicatorDesk.open(data_dir)
        settings = load(TopSettings, {**os.environ, "DATA_DIR": str(data_dir)})
        try:
            by_up = told_by_up(data_dir, "")
        except UnreachableError:
            by_up = {}
        edges = []
        for kind in edge_kinds:
            urls = getattr(settings, kind) or ([by_up[kind]] if kind in by_up else [])
            edges += [
                Seen(kind, kind if len(urls) == 1 else f"{kind}-{number}", url)
                for number, url in enumerate(urls, start=1)
            ]
        # Those that replicators tell of stand above them.
        same = set(_urls_of_replicators(by_up)) >= set(desk.urls)
        nodes = {name: one["url"] for name, one in by_up.get("nodes", {}).items()} if same else {}
        return cls(desk, edges, nodes)

    def client(self) -> httpx.AsyncClient:
        client = self._desk.client()
        client.timeout = httpx.Timeout(answer_s_max)
        return client

    async def look(self, client: httpx.AsyncClient) -> list[Seen]:
        """All services, in no particular order. It takes two bounds of a question at most."""
        told = await asyncio.gather(*(_cluster_by(client, url) for url in self._desk.urls))
        self._nodes |= node_urls(told)
        views = health_of(told, SystemClock().wall_ms()).document["nodes"]
        listed = [Seen(one.kind, one.name, one.url) for one in self._edges]
        for one in told:
            # Until it says what it is called, its place has to do.
            known = one.document or {}
            name = str(known.get("replicator_id", one.url.partition("//")[2]))
            self._names[one.url] = name if known else self._names.get(one.url, name)
            listed.append(Seen("replicator", self._names[one.url], one.url))
        for name in sorted(self._nodes.keys() | views.keys()):
            view = views.get(name, {})
            listed.append(Seen("node", name, self._nodes.get(name, _place(view)), view=view))
        await asyncio.gather(*(_ask(client, one) for one in listed))
        return listed


def _place(view: Mapping[str, Any]) -> str:
    host = str(view["host"])
    return (
        f"http://[{host}]:{view['http_port']}"
        if ":" in host
        else f"http://{host}:{view['http_port']}"
    )


async def _cluster_by(client: httpx.AsyncClient, url: str) -> Told:
    try:
        async with asyncio.timeout(answer_s_max):
            [told] = await ask_all(client, "GET", [url], "/cluster")
    except TimeoutError:
        return Told(url, None, f"no answer within {answer_s_max:g} s")
    if told.document is not None and "replicator_id" not in told.document:
        return Told(url, None, "it answers what no replicator would")
    return told


async def _ask(client: httpx.AsyncClient, one: Seen) -> None:
    """Fill in what it tells, or why it tells nothing."""
    try:
        async with asyncio.timeout(answer_s_max):
            metrics, ready = await asyncio.gather(
                client.get(one.url + "/metrics", headers=_as_text), client.get(one.url + "/ready")
            )
        one.at_s = asyncio.get_running_loop().time()
        if metrics.status_code != 200:
            one.trouble = f"it answers {metrics.status_code}"
            return
        one.numbers, one.buckets = read_metrics(metrics.text)
        document = ready.json()
        one.state, one.reasons = str(document["status"]), list(document["reasons"].values())
    except TimeoutError:
        one.trouble = f"no answer within {answer_s_max:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        one.trouble = (str(error) or type(error).__name__)[:reason_chars_max]
    except (ValueError, KeyError, TypeError, AttributeError):
        one.trouble = "it answers what no service of ours would"
    if one.trouble is not None:
        one.state = "away"


def read_metrics(text: str) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
    """Numbers and histograms of Prometheus text, by name. ValueError if it is none."""
    numbers: dict[str, float] = defaultdict(float)
    buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(_prefix)
            if family.type == "histogram":
                if name.endswith("_bucket"):
                    end = float(sample.labels["le"])
                    buckets[name.removesuffix("_bucket")].append((end, sample.value))
                continue
            numbers[name] += sample.value
            if sample.labels.get("status", "").startswith("5"):
                numbers[f"{name}_5xx"] += sample.value
    return dict(numbers), {name: sorted(of) for name, of in buckets.items()}


def _urls_of_replicators(by_up: Document) -> list[str]:
    return [str(url) for name, url in by_up.items() if is_replicator(name)]
