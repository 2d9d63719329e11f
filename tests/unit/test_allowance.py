"""Allowances: a tenant's bucket and a key's, taken from together, and dropped when that is safe."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.plans import Limits, developer, free, pro
from services.runtime.allowance import (
    Allowance,
    Allowances,
    console_limits,
    idle_max,
    retry_after_s,
    tidied_at_once,
)
from services.runtime.metrics import Metrics

second_ns = 1_000_000_000
of_free, of_pro = free.limits(), pro.limits()
narrow = Limits(6, 1)


def of(registry: Allowances, key_id: int = 1, own: Limits = of_free, now_ns: int = 0) -> Allowance:
    return registry.of_key(7, of_free, key_id, own, now_ns)


def left(allowance: Allowance, now_ns: int = 0) -> int:
    """Whole tokens, as a client is told."""
    found = re.search(rb";r=(\d+);", allowance.lines(now_ns))
    assert found
    return int(found[1])


def test_the_lines_are_those_of_the_contract() -> None:
    allowance = of(Allowances())
    allowance.take(3, 0)
    expected = b'RateLimit-Policy: "default";q=100;w=60\r\nRateLimit: "default";r=7;t=2\r\n'
    assert allowance.lines(0) == expected
    assert allowance.lines(0) is allowance.lines(0)
    assert allowance.lines(2 * second_ns).endswith(b'RateLimit: "default";r=10;t=0\r\n')


def test_keys_of_one_tenant_share_its_bucket_and_those_of_another_do_not() -> None:
    registry = Allowances()
    one, two = of(registry, 1), of(registry, 2)
    other = registry.of_key(8, of_free, 3, of_free, 0)
    for _ in range(5):
        assert one.take(1, 0) == 0
        assert two.take(1, 0) == 0
    assert one.take(1, 0) == two.take(1, 0) == 600_000_000
    assert left(other) == 10


def test_a_key_held_to_less_shows_its_own_bucket_and_spares_the_tenants() -> None:
    registry = Allowances()
    wide, held = of(registry, 1), of(registry, 2, narrow)
    assert held.take(1, 0) == 0
    assert b";q=6;w=60" in held.lines(0)
    for _ in range(100):
        assert held.take(1, 0) == 10 * second_ns
    assert left(wide) == 9


def test_a_key_held_to_less_shows_the_tenants_bucket_when_that_is_emptier() -> None:
    registry = Allowances()
    wide, held = of(registry, 1), of(registry, 2, Limits(50, 5))
    wide.take(9, 0)
    assert b";q=100;w=60" in held.lines(0)
    assert left(held) == 1
    assert held.take(3, 0) == 1_200_000_000
    assert held.take(1, 0) == 0
    assert left(held) == 0


def test_what_one_bucket_refuses_the_other_keeps() -> None:
    registry = Allowances()
    wide, held = of(registry, 1), of(registry, 2, Limits(50, 5))
    wide.take(10, 0)
    assert held.take(1, 0) == 600_000_000
    # The key's own bucket is as full as before: with the tenant's it is all there again.
    now_ns = 60 * second_ns
    for _ in range(5):
        assert held.take(1, now_ns) == 0
    assert held.take(1, now_ns) == 1_200_000_000


@given(
    st.integers(1, 200),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 3 * second_ns), st.integers(1, 4)), max_size=50),
)
def test_a_key_that_is_held_to_no_less_than_its_tenant_needs_no_bucket(
    per_minute: int, burst: int, asks: list[tuple[int, int]]
) -> None:
    limits = Limits(per_minute, burst)
    bare = Allowances().of_key(7, limits, 1, limits, 0)
    # Held to less only in name, by a bucket that it has kept from before.
    kept = Allowances().of_key(7, Limits(per_minute + 1, burst), 1, limits, 0)
    kept.limit(limits, limits, 0)
    now_ns = 0
    for elapsed_ns, tokens in asks:
        now_ns += elapsed_ns
        assert bare.take(tokens, now_ns) == kept.take(tokens, now_ns)
        assert bare.lines(now_ns) == kept.lines(now_ns)


def test_a_plan_that_changes_gives_no_tokens_away() -> None:
    registry = Allowances()
    allowance = of(registry)
    allowance.take(10, 0)
    registry.of_key(7, of_pro, 1, of_pro, 0)
    assert left(allowance) == 0
    assert b";q=6000;" in allowance.lines(0)
    assert allowance.take(1, 10_000_000) == 0
    registry.of_key(7, of_free, 1, of_free, 10_000_000)
    assert allowance.take(1, 10_000_000) == 600_000_000


def test_a_key_that_comes_to_be_held_to_less_begins_with_no_more_than_its_tenant_has() -> None:
    registry = Allowances()
    allowance = registry.of_key(7, of_free, 1, of_free, 0)
    allowance.take(8, 0)
    for _ in range(10):
        registry.of_key(7, of_pro, 1, of_free, 0)
        registry.of_key(7, of_free, 1, of_free, 0)
    assert left(allowance) == 2
    registry.of_key(7, of_pro, 1, of_free, 0)
    # Of its own it has gained one, and its tenant a hundred.
    assert left(allowance, second_ns) == 3


def test_other_limits_show_at_once_also_where_the_figures_stay() -> None:
    registry = Allowances()
    allowance = of(registry)
    assert b";q=100;" in allowance.lines(0)
    registry.of_key(7, Limits(200, 10), 1, Limits(200, 10), 0)
    assert allowance.lines(0) == (
        b'RateLimit-Policy: "default";q=200;w=60\r\nRateLimit: "default";r=10;t=0\r\n'
    )


def test_a_bucket_that_is_not_full_outlives_its_last_user() -> None:
    registry = Allowances()
    of(registry).take(10, 0)
    registry.release(7, 1)
    registry.tidy(second_ns)
    assert of(registry, now_ns=second_ns).take(2, second_ns) > 0


def test_a_full_bucket_goes_with_its_last_user_and_never_before() -> None:
    registry = Allowances()
    allowance = of(registry)
    assert of(registry) is allowance
    registry.release(7, 1)
    registry.tidy(0)
    assert len(registry) == 1
    assert registry.idle == 0
    registry.release(7, 1)
    registry.tidy(0)
    assert len(registry) == 0
    assert registry.idle == 0


def test_a_tenants_bucket_stays_while_any_of_its_keys_is_there() -> None:
    registry = Allowances()
    one, two = of(registry, 1), of(registry, 2)
    one.take(10, 0)
    registry.release(7, 2)
    registry.tidy(0)
    del two
    assert of(registry, 3).take(1, 0) > 0


def test_past_the_bound_the_oldest_is_dropped_as_it_is() -> None:
    registry = Allowances(idle_max=2)
    for key_id in (1, 2, 3):
        registry.of_key(key_id, of_free, key_id, of_free, 0).take(10, 0)
        registry.release(key_id, key_id)
    assert (len(registry), registry.idle, registry.dropped_early) == (2, 2, 1)
    assert registry.of_key(1, of_free, 1, of_free, 0).take(1, 0) == 0
    assert registry.of_key(3, of_free, 3, of_free, 0).take(1, 0) > 0


def test_memory_is_bounded_however_many_tenants_come_and_go() -> None:
    registry = Allowances()
    rng = random.Random(3)
    for number in range(idle_max + 3_000):
        registry.of_key(number, of_free, number, narrow, 0).take(rng.randint(0, 1), 0)
        registry.release(number, number)
    assert registry.idle == len(registry) == idle_max
    for _ in range(-(-idle_max // tidied_at_once)):
        registry.tidy(60 * second_ns)
    assert len(registry) == 0


def test_the_console_has_a_bucket_of_its_own() -> None:
    registry = Allowances()
    of(registry).take(10, 0)
    console = registry.of_console(7, 0)
    assert left(console) == console_limits.burst
    console.take(console_limits.burst, 0)
    assert registry.of_console(7, 0).take(1, 0) > 0
    assert registry.of_console(8, 0).take(1, 0) == 0
    for _ in range(3):
        registry.tidy(60 * second_ns)
    assert len(registry) == 1


def test_the_figures_are_on_metrics() -> None:
    registry = Allowances()
    metrics = Metrics()
    registry.add_to(metrics)
    of(registry)
    registry.of_console(7, 0)
    assert metrics.as_json() == {
        "allowances": 2,
        "allowances_idle": 1,
        "allowances_dropped_early": 0,
    }


@pytest.mark.parametrize(
    ("wait_ns", "seconds"),
    [(1, 1), (600_000_000, 1), (second_ns, 1), (second_ns + 1, 2), (60 * second_ns, 60)],
)
def test_a_client_that_waits_as_long_as_it_is_told_has_waited_long_enough(
    wait_ns: int, seconds: int
) -> None:
    assert retry_after_s(wait_ns) == seconds


def test_a_developer_is_hardly_ever_told_to_wait() -> None:
    allowance = Allowances().of_key(7, developer.limits(), 1, developer.limits(), 0)
    assert [allowance.take(1, now_ns) for now_ns in range(0, 100_000, 1_000)] == [0] * 100
    assert allowance.lines(100_000).startswith(b'RateLimit-Policy: "default";q=60000000;w=60\r\n')
