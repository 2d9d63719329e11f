"""Nonces: each is known for as long as it has to be, and hardly longer, in little room."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.nonces import Nonces, together_s
from services.runtime.signing import nonces_max, skew_ms_max

kept_s = 60.0
lookups_per_s = 4_000
pauses_s = st.sampled_from((0.0, 0.001, 0.3, 0.999, 1.0, 7.0, 29.0, 59.9, 60.0, 61.0))


@settings(max_examples=300)
@given(st.lists(st.tuples(pauses_s, st.integers(0, 9)), max_size=60))
def test_they_are_what_a_list_of_all_with_their_times_would_say(
    steps: list[tuple[float, int]],
) -> None:
    nonces = Nonces(1_000, kept_s)
    came_s: dict[int, float] = {}
    now_s = 0.0
    for pause_s, nonce in steps:
        now_s += pause_s
        for _ in steps:
            nonces.forget(now_s)
        needed = {known for known, at_s in came_s.items() if now_s - at_s <= kept_s}
        allowed = {known for known, at_s in came_s.items() if now_s - at_s <= kept_s + together_s}
        known = {each for each in range(10) if each in nonces}
        assert needed <= known <= allowed
        assert len(nonces) == len(known)
        if nonce not in nonces:
            nonces.add(nonce, now_s)
            came_s[nonce] = now_s
            assert nonce in nonces


def test_when_there_is_no_room_it_is_known_when_there_will_be() -> None:
    nonces = Nonces(3, kept_s)
    for nonce in range(3):
        assert not nonces.is_full
        nonces.add(nonce, 10.0 * nonce)
    assert nonces.is_full
    assert nonces.room_in_s(30.0) == 30.0
    nonces.forget(60.0)
    assert nonces.is_full
    nonces.forget(60.1)
    assert (nonces.is_full, len(nonces), 0 in nonces) == (False, 2, False)


def test_after_a_pause_nobody_waits_for_all_to_be_forgotten_and_there_is_room_at_once() -> None:
    nonces = Nonces(1_000, kept_s)
    for number in range(1_000):
        nonces.add(number, number / 100)
    now_s = 1_000.0
    nonces.forget(now_s)
    assert len(nonces) > 900
    for number in range(1_000, 2_000):
        nonces.forget(now_s)
        assert not nonces.is_full
        nonces.add(number, now_s)
    assert len(nonces) == 1_000
    assert 999 not in nonces


def test_there_is_room_for_the_signed_requests_of_a_busy_gateway_within_forty_megabytes() -> None:
    assert nonces_max >= lookups_per_s * (2 * skew_ms_max / 1_000 + together_s)
    draw = random.Random(3)
    nonces = Nonces(nonces_max, 2 * skew_ms_max / 1_000)
    tracemalloc.start()
    try:
        for number in range(5 * lookups_per_s):
            nonces.add(draw.getrandbits(128), number / lookups_per_s)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes / len(nonces) * nonces_max < 40_000_000
