"""Plans, and keys that are held to less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.namespaces import caches_max
from services.core.plans import account_plans, free, plan_named, plans
from services.replicator.declarations import tenant_declarations_max


@pytest.mark.parametrize(
    ("name", "per_minute", "burst", "ids_per_day", "caches"),
    [
        ("free", 100, 10, 1_000, 2),
        ("pro", 6_000, 600, 1_000_000, 16),
        ("developer", 60_000_000, 1_000_000, None, 64),
    ],
)
def test_a_plan_is_what_was_promised(
    name: str, per_minute: int, burst: int, ids_per_day: int | None, caches: int
) -> None:
    plan = plan_named(name)
    assert (plan.name, plan.ids_per_day, plan.caches_max) == (name, ids_per_day, caches)
    assert plan.limits() == (per_minute, burst)


def test_the_public_draws_ids_without_end_and_is_nobodys_plan() -> None:
    assert plans["public"].ids_per_day is None
    assert set(account_plans) == set(plans) - {"public"}


def test_a_plan_of_a_newer_version_gives_the_least() -> None:
    assert plan_named("platinum") is free
    assert all(free.requests_per_minute <= plan.requests_per_minute for plan in plans.values())


@pytest.mark.parametrize(
    ("plan", "key_per_minute", "limits"),
    [
        ("free", 100, (100, 10)),
        ("free", 101, (100, 10)),
        ("free", 99, (99, 10)),
        ("free", 5, (5, 1)),
        ("developer", 100, (100, 10)),
        ("developer", 6_000, (6_000, 600)),
        ("developer", 50_000_000, (50_000_000, 1_000_000)),
    ],
)
def test_a_key_that_is_held_to_less_has_the_limits_of_a_smaller_plan(
    plan: str, key_per_minute: int, limits: tuple[int, int]
) -> None:
    assert plan_named(plan).limits(key_per_minute) == limits


@given(st.sampled_from(sorted(plans)), st.integers(1, 1 << 31))
def test_no_key_may_more_than_its_plan_and_each_may_something(
    name: str, key_per_minute: int
) -> None:
    plan = plan_named(name)
    limits = plan.limits(key_per_minute)
    assert 1 <= limits.requests_per_minute <= min(plan.requests_per_minute, key_per_minute)
    assert 1 <= limits.burst <= plan.burst


@given(st.sampled_from(sorted(plans)), st.integers(1, 1 << 31))
def test_who_may_more_a_minute_may_no_less_at_once(name: str, key_per_minute: int) -> None:
    plan = plan_named(name)
    assert plan.limits(key_per_minute).burst <= plan.limits(key_per_minute + 1).burst


@pytest.mark.parametrize("key_per_minute", [0, -1])
def test_a_key_that_may_nothing_is_a_bug(key_per_minute: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        free.limits(key_per_minute)


def test_a_thousand_accounts_that_cost_nothing_do_not_take_all_caches() -> None:
    assert 1_000 * free.caches_max < caches_max
    # And no plan gives what the platform would refuse everybody.
    assert all(plan.caches_max <= tenant_declarations_max for plan in plans.values())
