"""Thousands of requests, generated from openapi.json, to every operation of the user manager.

`HYPOTHESIS_PROFILE=proof` makes them 5,000 and more (`make proof`); the figures are printed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import schemathesis
from schemathesis.engine import events, from_schema

from services.runtime.database_url import DatabaseAddress
from tests.integration.crowd import crowd
from tests.integration.generated_calls import GeneratedCalls
from tests.integration.usermanager_process import usermanager_process

at_full_size = os.environ.get("HYPOTHESIS_PROFILE") == "proof"
# Of each operation and mode, beside those that cover its schema, which are some 750 in all.
examples: Final = 180 if at_full_size else 6
cases_min: Final = 5_000 if at_full_size else 900
members_count: Final = 20_000 if at_full_size else 2_000
# Who was asked who they are and could not say, or had asked too often.
turned_away: Final = frozenset({401, 403, 429, 503})
Mode = Literal["all", "positive"]
modes: Final[tuple[Mode, ...]] = ("all", "positive")
phases: Final = {"examples", "coverage", "fuzzing", "stateful"}


@dataclass(slots=True)
class Findings:
    """What became of the generated requests."""

    phases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        for case_id, interaction in recorder.interactions.items():
            status = 0 if interaction.response is None else interaction.response.status_code
            self.statuses[recorder.cases[case_id].value.operation.label, status] += 1
            self.phases[event.phase.value] += 1
        for checks in recorder.checks.values():
            for check in checks:
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    self.failures.append(
                        f"{check.name}: {failure.title}: {failure.message}\n"
                        f"{check.failure_info.code_sample}"
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
    url: str, document: dict[str, Any], calls: GeneratedCalls, findings: Findings, mode: Mode
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
            # Some rules are not in the schema: what an email address is, or how long usage is kept.
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }
    )
    schema = schemathesis.openapi.from_dict(document, config=config)
    with calls.making(schema):
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                findings.add(event)
            elif isinstance(event, events.NonFatalError):
                findings.failures.append(f"{event.label}: {event.info}")
            elif isinstance(event, events.FatalError):
                raise event.exception


async def test_no_generated_request_makes_it_fail_and_each_operation_succeeds(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    members = await crowd(database_address, members_count)
    async with usermanager_process(tmp_path / "data", database_address) as usermanager:
        document = json.loads((await usermanager.get("/openapi.json")).content)
        calls = GeneratedCalls(members, seed=1)
        findings = Findings()
        # Left to itself it breaks the schema in most requests; those that keep it get further.
        for mode in modes:
            await asyncio.to_thread(generate, usermanager.url, document, calls, findings, mode)
        print(findings.report())  # noqa: T201  The figures.
        bugs = [line for line in usermanager.said.splitlines() if "bug" in line]

    assert bugs == []
    assert findings.failures == [], "\n\n".join(findings.failures[:5])
    assert findings.with_status(0, *range(500, 600)) == 0
    assert set(findings.phases) == phases
    assert findings.total >= cases_min
    assert findings.with_status(*turned_away) <= 0.2 * findings.total
    operations = {
        f"{method.upper()} {path}" for path, of in document["paths"].items() for method in of
    }
    assert findings.succeeded() == operations
