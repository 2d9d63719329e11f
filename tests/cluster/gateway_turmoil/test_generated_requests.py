"""Thousands of requests, generated from openapi.json, to every operation of a real gateway.

`HYPOTHESIS_PROFILE=proof` makes them 10,000 and more (`make proof`); the figures are printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import quote

import pytest
import schemathesis
from schemathesis.engine import events, from_schema

from tests.cluster.gateway.answers import put
from tests.cluster.gateway_platform import Platform, served
from tests.cluster.gateway_turmoil.generated_requests import GeneratedRequests, keys
from tests.cluster.gateway_turmoil.platform import bugs

pytestmark = pytest.mark.asyncio(loop_scope="package")

at_full_size = os.environ.get("HYPOTHESIS_PROFILE") == "proof"
# Of each operation and mode, beside those that cover its schema, which are some 500 in all.
examples: Final = 420 if at_full_size else 6
cases_min: Final = 10_000 if at_full_size else 500
tenants: Final = 8
# Who was asked who they are and could not say, or had asked too often.
turned_away: Final = frozenset({401, 403, 429})
# Among them, of a condition, and of a key that is too long.
refusals: Final = ["400", "401", "403", "404", "405", "409", "412", "413", "414", "415", "431"]
failure_chars_max: Final = 1_000
Mode = Literal["all", "positive"]
modes: Final[tuple[Mode, ...]] = ("all", "positive")
# All but that of examples, of which the document has none.
phases: Final = {"coverage", "fuzzing", "stateful"}


@dataclass(slots=True)
class Findings:
    """What became of the generated requests."""

    phases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        for case_id, interaction in recorder.interactions.items():
            label = recorder.cases[case_id].value.operation.label
            response = interaction.response
            self.phases[event.phase.value] += 1
            self.statuses[label, 0 if response is None else response.status_code] += 1
        for checks in recorder.checks.values():
            for check in checks:
                if check.failure_info is None:
                    continue
                failure = check.failure_info.failure
                self.failures.append(
                    f"{check.name}: {failure.title}: {failure.message}\n"
                    f"{check.failure_info.code_sample}"[:failure_chars_max]
                )

    @property
    def total(self) -> int:
        return self.statuses.total()

    def with_status(self, *wanted: int) -> int:
        return sum(count for (_, status), count in self.statuses.items() if status in wanted)

    def succeeded(self) -> set[str]:
        return {label for label, status in self.statuses if 200 <= status < 300}

    def report(self) -> str:
        share = 1 - self.with_status(*turned_away) / self.total
        lines = [f"{self.total} cases {dict(self.phases)}, {share:.1%} were let in"]
        for label in sorted({label for label, _ in self.statuses}):
            found = {status: n for (of, status), n in self.statuses.items() if of == label}
            lines.append(f"  {label:<32} {dict(sorted(found.items()))}")
        return "\n".join(lines)


def generate(
    url: str, document: dict[str, Any], made: GeneratedRequests, findings: Findings, mode: Mode
) -> None:
    """Run every phase. It is not asynchronous, and so belongs in a thread."""
    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "base-url": url,
            "workers": 1,
            "continue-on-failure": True,
            "generation": {
                "mode": mode,
                "max-examples": examples,
                "no-shrink": True,
                # Credentials are ours to give; what becomes of wrong ones has tests of its own.
                "with-security-parameters": False,
            },
            # It is the same each time, and has its negative half in the other mode.
            "phases": {"coverage": {"enabled": mode == "all"}},
            # Some rules are not in the schema: what a time to live is, an etag, or a namespace that
            # is a cache.
            "checks": {
                "positive_data_acceptance": {"enabled": False},
                "negative_data_rejection": {"expected-statuses": refusals},
            },
            # What ends in /incr is a key as well, for all other methods.
            "operations": [
                {
                    "include-path": "/v1/kv/{key}/incr",
                    "checks": {
                        "unsupported_method": {"enabled": False},
                        "allow_header_conformance": {"enabled": False},
                    },
                },
                # What is in a namespace its replicas count, and each deletes in its own time.
                {
                    "include-path": "/v1/namespaces/{name}",
                    "checks": {
                        "use_after_free": {"enabled": False},
                        "ensure_resource_availability": {"enabled": False},
                    },
                },
            ],
        }
    )
    schema = schemathesis.openapi.from_dict(document, config=config)
    with made.making(schema):
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                findings.add(event)
            elif isinstance(event, events.NonFatalError):
                findings.failures.append(f"{event.label}: {event.info}")
            elif isinstance(event, events.FatalError):
                raise event.exception


async def test_no_generated_request_makes_a_gateway_fail_and_each_operation_succeeds(
    platform: Platform,
) -> None:
    api_keys = [(await (await platform.tenant()).make_key()).key for _ in range(tenants)]
    for api_key in api_keys:
        for key in keys:
            await put(platform.caller(api_key), f"/v1/kv/{quote(key)}")
    async with (
        platform.keygen() as keygen,
        served(platform.gateway(KEYGEN_URL=keygen.url)) as gateway,
    ):
        await gateway.until_whole()
        await keygen.until_leased()
        document = json.loads((await gateway.get("/openapi.json")).content)
        made = GeneratedRequests(api_keys, seed=1)
        findings = Findings()
        # Left to itself it breaks the schema in most requests; those that keep it get further.
        for mode in modes:
            await asyncio.to_thread(generate, gateway.url, document, made, findings, mode)
        sys.stdout.write(f"\n{findings.report()}\n")
        assert bugs(gateway) == []

    assert findings.failures == [], "\n\n".join(findings.failures[:5])
    assert findings.with_status(0, *range(500, 600)) == 0
    assert set(findings.phases) == phases
    assert findings.total >= cases_min
    assert findings.with_status(*turned_away) <= 0.2 * findings.total
    operations = {
        f"{method.upper()} {path}" for path, of in document["paths"].items() for method in of
    }
    assert findings.succeeded() == operations
