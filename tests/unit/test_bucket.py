"""Token buckets: exactly what arithmetic says, whenever they are asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.bucket import Bucket, token_units
from services.core.plans import Limits, developer, free

second_ns = 1_000_000_000
minute_ns = 60 * second_ns
hour_ns = 3_600 * second_ns


class DumbBucket:
    """The same in fractions of tokens, looked at step by step."""

    def __init__(self, limits: Limits, now_ns: int) -> None:
        self.limits = limits
        self.tokens = Fraction(limits.burst)
        self.at_ns = now_ns

    def move_to(self, now_ns: int) -> None:
        if now_ns > self.at_ns:
            gained = Fraction(self.limits.requests_per_minute * (now_ns - self.at_ns), minute_ns)
            self.tokens = min(Fraction(self.limits.burst), self.tokens + gained)
            self.at_ns = now_ns

    def take(self, tokens: int, now_ns: int) -> bool:
        self.move_to(now_ns)
        if self.tokens < min(tokens, self.limits.burst):
            return False
        self.tokens -= tokens
        return True

    def limit(self, limits: Limits, now_ns: int) -> None:
        self.move_to(now_ns)
        self.limits = limits
        self.tokens = min(self.tokens, Fraction(limits.burst))


limits = st.builds(Limits, st.integers(1, 60_000_000), st.integers(1, 1_000_000))
small_limits = st.builds(Limits, st.integers(1, 300), st.integers(1, 12))
steps = st.lists(
    st.tuples(
        # How far time goes; sometimes nowhere, or back.
        st.one_of(st.integers(0, 2 * second_ns), st.integers(-minute_ns, minute_ns), st.just(0)),
        st.integers(0, 15),
        st.one_of(st.none(), small_limits),
    ),
    max_size=60,
)


@given(small_limits, st.integers(0, 1 << 62), steps)
def test_it_does_what_the_dumb_version_does(
    start: Limits, now_ns: int, steps: list[tuple[int, int, Limits | None]]
) -> None:
    bucket, dumb = Bucket(start, now_ns), DumbBucket(start, now_ns)
    for elapsed_ns, tokens, changed in steps:
        now_ns = max(0, now_ns + elapsed_ns)
        if changed is not None:
            bucket.limit(changed, now_ns)
            dumb.limit(changed, now_ns)
        assert (bucket.take(tokens, now_ns) == 0) == dumb.take(tokens, now_ns)
        assert Fraction(bucket.level(now_ns), token_units) == dumb.tokens


@given(limits, st.integers(1, 50), st.integers(0, 1 << 62), st.integers(0, 2_000_000))
def test_the_wait_ends_exactly_when_it_says(
    limits: Limits, tokens: int, now_ns: int, taken: int
) -> None:
    bucket = Bucket(limits, now_ns)
    bucket.take(taken, now_ns)
    wait_ns = bucket.take(tokens, now_ns)
    assert wait_ns == 0 or bucket.wait_ns(tokens, now_ns) == wait_ns
    if wait_ns:
        assert bucket.take(tokens, now_ns + wait_ns - 1) == 1
        assert bucket.take(tokens, now_ns + wait_ns) == 0


def evenly(every_ns: int) -> Callable[[random.Random], Iterator[int]]:
    return lambda _: iter(range(0, hour_ns + 1, every_ns))


def at_random(rate_per_s: float) -> Callable[[random.Random], Iterator[int]]:
    def times(rng: random.Random) -> Iterator[int]:
        now_ns = 0
        while now_ns <= hour_ns:
            yield now_ns
            now_ns += round(rng.expovariate(rate_per_s) * second_ns)

    return times


def in_bursts(rng: random.Random) -> Iterator[int]:
    now_ns = 0
    while now_ns <= hour_ns:
        for _ in range(rng.randint(1, 40)):
            yield now_ns
            now_ns += rng.randint(0, 1_000)
        now_ns += rng.randint(0, 20 * second_ns)


def just_in_time(_: random.Random) -> Iterator[int]:
    """The tenth of a minute's tokens, each at the nanosecond at which it is there, and before."""
    for number in range(6_001):
        due_ns = -(-number * minute_ns // 100)
        yield max(0, due_ns - 1)
        yield due_ns


@pytest.mark.parametrize(
    "pattern",
    [
        evenly(250_000_000),
        evenly(599_999_999),
        evenly(600_000_000),
        evenly(600_000_001),
        evenly(6 * second_ns),
        evenly(7 * second_ns + 1),
        at_random(0.5),
        at_random(1.6),
        at_random(5.0),
        in_bursts,
        just_in_time,
    ],
)
def test_of_a_hundred_a_minute_an_hour_admits_what_arithmetic_says(
    pattern: Callable[[random.Random], Iterator[int]],
) -> None:
    bucket, dumb = Bucket(free.limits(), 0), DumbBucket(free.limits(), 0)
    admitted = 0
    for now_ns in pattern(random.Random(7)):
        taken = bucket.take(1, now_ns) == 0
        assert taken == dumb.take(1, now_ns)
        admitted += taken
    assert admitted <= 10 + 6_000


def test_who_never_lets_up_gets_the_burst_and_every_token_of_the_hour() -> None:
    bucket = Bucket(free.limits(), 0)
    admitted, now_ns = 0, 0
    while now_ns <= hour_ns:
        wait_ns = bucket.take(1, now_ns)
        admitted += wait_ns == 0
        now_ns += wait_ns
    assert admitted == 10 + 6_000


def test_who_waits_gets_no_more_than_the_burst() -> None:
    bucket = Bucket(free.limits(), 0)
    assert [bucket.take(1, hour_ns) for _ in range(11)] == [0] * 10 + [600_000_000]


def test_time_that_stands_still_or_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = Bucket(free.limits(), minute_ns)
    for _ in range(10):
        assert bucket.take(1, minute_ns) == 0
    assert bucket.take(1, minute_ns) == 600_000_000
    # The wait is as long as it takes this clock to come back and one token further.
    assert bucket.take(1, 0) == minute_ns + 600_000_000
    for now_ns in (minute_ns - 1, minute_ns, 5, minute_ns) * 1_000:
        assert bucket.take(1, now_ns) > 0
    assert bucket.take(1, minute_ns + 599_999_999) == 1
    assert bucket.take(1, minute_ns + 600_000_000) == 0


def test_more_than_it_holds_is_let_in_when_it_is_full_and_paid_off_afterwards() -> None:
    bucket = Bucket(Limits(60, 2), 0)
    assert bucket.take(10, 0) == 0
    assert bucket.shown(0) == (0, 10)
    assert bucket.take(1, 8 * second_ns) == second_ns
    assert bucket.take(1, 9 * second_ns) == 0
    assert bucket.take(10, 9 * second_ns) == 2 * second_ns


def test_what_is_given_back_is_there_again_and_never_more_than_it_holds() -> None:
    bucket = Bucket(Limits(60, 2), 0)
    bucket.take(1, 0)
    bucket.give_back(1)
    assert bucket.is_full(0)
    bucket.give_back(5)
    assert bucket.level(0) == 2 * token_units


def test_other_limits_give_no_tokens_and_leave_those_that_fit() -> None:
    bucket = Bucket(free.limits(), 0)
    bucket.take(8, 0)
    bucket.limit(developer.limits(), 0)
    assert bucket.shown(0) == (2, 1)
    # A million a second from now on.
    assert bucket.level(500_000) == 502 * token_units
    bucket.limit(Limits(1, 1), 500_000)
    assert bucket.shown(500_000) == (1, 0)
    for _ in range(100):
        bucket.limit(developer.limits(), 500_000)
        bucket.limit(free.limits(), 500_000)
    assert bucket.level(500_000) == token_units


def test_people_are_shown_whole_tokens_and_whole_seconds() -> None:
    bucket = Bucket(free.limits(), 0)
    assert bucket.shown(0) == (10, 0)
    bucket.take(3, 0)
    assert bucket.shown(0) == (7, 2)
    assert bucket.shown(599_999_999) == (7, 2)
    assert bucket.shown(600_000_000) == (8, 2)
    assert bucket.shown(800_000_000) == (8, 1)
    assert bucket.shown(1_800_000_000) == (10, 0)


@pytest.mark.parametrize("limits", [Limits(0, 1), Limits(1, 0), Limits(-1, 10)])
def test_a_bucket_that_never_holds_anything_is_a_bug(limits: Limits) -> None:
    with pytest.raises(ValueError, match="gains and holds something"):
        Bucket(limits, 0)
