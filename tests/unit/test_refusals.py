"""Strangers cannot fill a disk with the log lines of their refusals."""

from __future__ import annotations

from services.runtime.link_limits import LinkCounters
from services.runtime.refusals import Refusals, period_s, reasons_max
from tests.integration.link_ends import log_lines


class Clock:
    now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


def test_one_reason_is_told_once_in_a_period_and_then_how_often_more() -> None:
    counters, clock = LinkCounters(), Clock()
    refusals = Refusals(counters, clock.monotonic_s)
    with log_lines() as lines:
        for _ in range(1000):
            refusals.refused("a wrong secret")
        assert [(line["event"], line.get("reason")) for line in lines] == [
            ("link refused", "a wrong secret")
        ]
        clock.now_s += period_s
        refusals.refused("a wrong secret")
    assert [(line["event"], line.get("count")) for line in lines[1:]] == [
        ("more links were refused", 999),
        ("link refused", None),
    ]
    assert counters.connections_refused == 1001


def test_reasons_that_a_stranger_makes_up_are_told_up_to_a_bound() -> None:
    counters, clock = LinkCounters(), Clock()
    refusals = Refusals(counters, clock.monotonic_s)
    with log_lines() as lines:
        for number in range(10_000):
            refusals.refused(f"frame of {number} bytes")
    assert len(lines) == reasons_max
    assert counters.connections_refused == 10_000


def test_each_of_a_few_reasons_is_told_at_once() -> None:
    refusals = Refusals(LinkCounters(), Clock().monotonic_s)
    with log_lines() as lines:
        for reason in ("one", "two", "one", "three"):
            refusals.refused(reason)
    assert [line["reason"] for line in lines] == ["one", "two", "three"]


def test_who_is_refused_is_named_with_its_address_and_each_is_told() -> None:
    refusals = Refusals(LinkCounters(), Clock().monotonic_s)
    with log_lines() as lines:
        for port in (4001, 4002):
            refusals.refused("a wrong secret", ("10.0.0.1", port), "node node-1")
            refusals.refused("a wrong secret", ("10.0.0.2", port), "node node-2")
            refusals.refused("no hello", ("10.0.0.3", port))
    assert [(line.get("peer"), line["host"], line["port"]) for line in lines] == [
        ("node node-1", "10.0.0.1", 4001),
        ("node node-2", "10.0.0.2", 4001),
        (None, "10.0.0.3", 4001),
    ]


def test_names_that_a_stranger_makes_up_are_told_up_to_a_bound() -> None:
    refusals = Refusals(LinkCounters(), Clock().monotonic_s)
    with log_lines() as lines:
        for number in range(1000):
            refusals.refused("a wrong secret", ("10.0.0.1", number), f"node node-{number}")
    assert len(lines) == reasons_max
