"""Versions and the hybrid logical clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.core.errors import FixRequest, PeerError, RetryLater
from services.core.hlc import (
    HighWater,
    HybridClock,
    ceiling_ahead_ms,
    ceiling_reserve_ms,
    check_version,
    counter_bits,
    etag,
    hlc_max,
    lead_ms_max,
    pack_version,
    parse_etag,
    rfc3339,
    stamper_max,
    time_ms_max,
    version_hlc,
    version_ms,
    version_stamper,
)

now_ms = 1_767_225_600_000
hlcs = st.integers(0, hlc_max)
stampers = st.integers(0, stamper_max)


def running_clock(stamper: int = 7, wall_ms: int = now_ms) -> HybridClock:
    clock = HybridClock(stamper, 0)
    clock.raise_ceiling(wall_ms + 3_600_000)
    return clock


def version_at(time_ms: int, counter: int = 0, stamper: int = 9) -> bytes:
    return pack_version(time_ms << counter_bits | counter, stamper)


@given(hlcs, stampers, hlcs, stampers)
def test_versions_sort_as_bytes_just_as_their_numbers_do(
    hlc: int, stamper: int, other_hlc: int, other_stamper: int
) -> None:
    one, other = pack_version(hlc, stamper), pack_version(other_hlc, other_stamper)
    assert len(one) == 12
    assert (one < other) == ((hlc, stamper) < (other_hlc, other_stamper))
    assert (version_hlc(one), version_stamper(one)) == (hlc, stamper)
    assert version_ms(one) == hlc >> 16


def test_the_layout_of_a_version_is_fixed() -> None:
    version = pack_version(0x0102_0304_0506_0708, 0x090A_0B0C)
    assert version == bytes(range(1, 13))
    assert version_ms(version) == 0x0102_0304_0506


@pytest.mark.parametrize(("hlc", "stamper"), [(-1, 0), (1 << 64, 0), (0, -1), (0, 1 << 32)])
def test_numbers_that_do_not_fit_a_version_are_refused(hlc: int, stamper: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack_version(hlc, stamper)


@pytest.mark.parametrize("size", [0, 1, 11, 13, 24])
def test_a_version_of_another_length_is_the_peers_fault(size: int) -> None:
    with pytest.raises(PeerError, match="12 bytes"):
        check_version(bytes(size))


@given(hlcs, stampers)
def test_an_etag_leads_back_to_its_version_quoted_or_bare(hlc: int, stamper: int) -> None:
    version = pack_version(hlc, stamper)
    assert parse_etag(etag(version)) == version
    assert parse_etag(f'"{etag(version)}"') == version
    assert check_version(version) is version


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "0" * 23,
        "0" * 25,
        '"' + "0" * 24,
        "0" * 24 + '"',
        "W/",
        '"a"b"',
        "A" * 24,
        "00 " * 8,
        " " + "0" * 24,
        "0" * 24 + "\n",
        "\u0660" * 24,
        "g" * 24,
        "0" * 10_000,
    ],
)
def test_what_is_no_entity_tag_is_the_clients_fault(text: str) -> None:
    with pytest.raises(FixRequest) as caught:
        parse_etag(text)
    assert caught.value.code == "invalid_header"
    assert len(caught.value.detail) < 300


@given(st.text(max_size=40))
def test_any_text_as_an_etag_is_a_version_or_a_clean_refusal(text: str) -> None:
    try:
        version = parse_etag(text)
    except FixRequest:
        return
    assert version is None or etag(version) == text.strip('"')


@pytest.mark.parametrize(
    "text", ['""', '"an-etag-of-another-server"', 'W/"x"', '"' + "A" * 24 + '"']
)
def test_an_entity_tag_of_another_server_matches_no_version(text: str) -> None:
    assert parse_etag(text) is None
    assert parse_etag(text, weakly=True) is None


def test_a_tag_that_a_proxy_has_made_weak_matches_in_weak_comparisons_alone() -> None:
    version = pack_version(7, 1)
    weak = f'W/"{etag(version)}"'
    assert parse_etag(weak) is None
    assert parse_etag(weak, weakly=True) == version


def test_times_are_written_as_rfc_3339_even_beyond_its_range() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(now_ms + 250) == "2026-01-01T00:00:00.250Z"
    assert rfc3339(time_ms_max) == "9999-12-31T23:59:59.999Z"
    assert rfc3339(-5) == "1970-01-01T00:00:00.000Z"


def test_a_tick_follows_the_wall_clock_and_counts_within_a_millisecond() -> None:
    clock = running_clock()
    assert clock.tick(now_ms) == version_at(now_ms, 0, 7)
    assert clock.tick(now_ms) == version_at(now_ms, 1, 7)
    assert clock.tick(now_ms + 1) == version_at(now_ms + 1, 0, 7)
    assert clock.tick(now_ms - 400) == version_at(now_ms + 1, 1, 7)


def test_a_full_counter_carries_into_the_milliseconds() -> None:
    clock = running_clock()
    stamps = [clock.tick(now_ms) for _ in range((1 << counter_bits) + 2)]
    assert stamps == sorted(set(stamps))
    assert stamps[-3:] == [
        version_at(now_ms, 0xFFFF, 7),
        version_at(now_ms + 1, 0, 7),
        version_at(now_ms + 1, 1, 7),
    ]


def test_a_merged_version_is_exceeded_by_the_next_tick() -> None:
    clock = running_clock(stamper=1)
    seen = version_at(now_ms + lead_ms_max, 5, stamper_max)
    clock.merge(seen, now_ms)
    assert clock.tick(now_ms) == version_at(now_ms + lead_ms_max, 6, 1)


def test_a_version_behind_the_clock_changes_nothing() -> None:
    clock = running_clock()
    first = clock.tick(now_ms)
    clock.merge(version_at(now_ms - 1), now_ms)
    clock.merge(first, now_ms - 3_600_000)
    assert clock.tick(now_ms) == version_at(now_ms, 1, 7)


def test_a_version_half_a_second_ahead_is_merged_and_one_beyond_is_refused() -> None:
    clock = running_clock()
    clock.merge(version_at(now_ms + 500, 0xFFFF), now_ms)
    with pytest.raises(RetryLater) as caught:
        clock.merge(version_at(now_ms + 501), now_ms)
    assert caught.value.code == "clock_skew"
    assert "2026-01-01T00:00:00.501Z" in caught.value.detail
    assert "2026-01-01T00:00:00.000Z" in caught.value.detail
    assert clock.time_ms == now_ms + 500


def test_a_clock_that_leads_the_wall_stops_stamping_until_the_wall_comes_near() -> None:
    clock = running_clock()
    last = clock.tick(now_ms)
    assert clock.tick(now_ms - 500) > last
    with pytest.raises(RetryLater) as caught:
        clock.tick(now_ms - 501)
    assert caught.value.code == "clock_skew"
    assert "2026-01-01T00:00:00.000Z" in caught.value.detail
    assert "2025-12-31T23:59:59.499Z" in caught.value.detail
    assert clock.tick(now_ms - 500) == version_at(now_ms, 2, 7)


@pytest.mark.parametrize("wall_ms", [-1, -(10**18), time_ms_max, 1 << 60, 10**30])
def test_an_insane_wall_clock_never_breaks_a_tick(wall_ms: int) -> None:
    clock = running_clock()
    clock.tick(now_ms)
    with pytest.raises(RetryLater):
        clock.tick(wall_ms)
    due_ms = clock.ceiling_due(wall_ms)
    if due_ms is not None:
        clock.raise_ceiling(due_ms)
    assert clock.ceiling_ms <= time_ms_max
    clock.tick(now_ms)


def test_a_clock_that_refuses_no_leads_follows_what_it_merges_and_still_needs_its_ceiling() -> None:
    clock = HybridClock(1, 0, refuse_leads=False)
    clock.raise_ceiling(now_ms + ceiling_ahead_ms)
    far = version_at(now_ms + 30_000, 5)
    clock.merge(far, now_ms)
    with pytest.raises(RetryLater) as caught:
        clock.tick(now_ms)
    assert caught.value.code == "no_replicator"
    due_ms = clock.ceiling_due(now_ms)
    assert due_ms == now_ms + 30_000 + ceiling_ahead_ms
    clock.raise_ceiling(due_ms)
    assert clock.tick(now_ms) == version_at(now_ms + 30_000, 6, 1)
    assert clock.tick(now_ms - 30_000) == version_at(now_ms + 30_000, 7, 1)
    # Its successor is as far ahead, and stamps at once.
    successor = HybridClock(1, clock.seal(), refuse_leads=False)
    assert successor.ceiling_due(now_ms) == now_ms + 30_000 + ceiling_ahead_ms
    successor.raise_ceiling(now_ms + 30_000 + ceiling_ahead_ms)
    assert successor.tick(now_ms) > version_at(now_ms + 30_000, 7, 1)


def test_the_end_of_time_is_a_refusal_and_not_an_overflow() -> None:
    clock = HybridClock(0, time_ms_max - 1)
    clock.raise_ceiling(time_ms_max)
    for _ in range(1 << counter_bits):
        clock.tick(time_ms_max - 1)
    with pytest.raises(RetryLater):
        clock.tick(time_ms_max - 1)
    clock.merge(b"\xff" * 12, time_ms_max)
    with pytest.raises(RetryLater):
        clock.tick(time_ms_max)
    assert clock.ceiling_due(time_ms_max) is None


def test_a_new_clock_stamps_nothing_before_its_first_ceiling_is_stored() -> None:
    clock = HybridClock(1, 0)
    with pytest.raises(RetryLater) as caught:
        clock.tick(now_ms)
    assert caught.value.code == "no_replicator"
    due_ms = clock.ceiling_due(now_ms)
    assert due_ms == now_ms + ceiling_ahead_ms
    clock.raise_ceiling(due_ms)
    assert clock.tick(now_ms) == version_at(now_ms, 0, 1)


def test_a_ceiling_is_due_about_once_a_second() -> None:
    clock = HybridClock(1, 0)
    stored = []
    for elapsed_ms in range(0, 10_000, 50):
        due_ms = clock.ceiling_due(now_ms + elapsed_ms)
        if due_ms is not None:
            clock.raise_ceiling(due_ms)
            stored.append(elapsed_ms)
        clock.tick(now_ms + elapsed_ms)
    assert 9 <= len(stored) <= 11


def test_without_a_new_ceiling_stamping_stops_at_the_old_one() -> None:
    clock = HybridClock(1, 0)
    clock.raise_ceiling(now_ms + 2)
    assert clock.tick(now_ms + 1) < version_at(now_ms + 2)
    with pytest.raises(RetryLater):
        clock.tick(now_ms + 2)


def test_merging_within_the_lead_never_lifts_a_healthy_clock_over_its_ceiling() -> None:
    clock = HybridClock(1, 0)
    clock.raise_ceiling(now_ms + ceiling_reserve_ms)
    assert clock.ceiling_due(now_ms) is None
    clock.merge(version_at(now_ms + lead_ms_max, 0xFFFE), now_ms)
    clock.tick(now_ms)


def test_a_ceiling_cannot_be_lowered() -> None:
    clock = HybridClock(1, now_ms)
    clock.raise_ceiling(now_ms)
    with pytest.raises(ValueError, match="is not it"):
        clock.raise_ceiling(now_ms - 1)


@pytest.mark.parametrize(
    ("stamper", "ceiling_ms"), [(-1, 0), (1 << 32, 0), (0, -1), (0, time_ms_max + 1)]
)
def test_a_stamper_or_ceiling_out_of_range_is_refused(stamper: int, ceiling_ms: int) -> None:
    with pytest.raises(ValueError, match="0 to"):
        HybridClock(stamper, ceiling_ms)


def test_a_sealed_clock_stamps_no_more_and_its_successor_starts_at_once() -> None:
    clock = HybridClock(1, 0)
    clock.raise_ceiling(now_ms + ceiling_ahead_ms)
    last = clock.tick(now_ms)
    sealed_ms = clock.seal()
    assert sealed_ms == now_ms + 1
    with pytest.raises(RetryLater) as caught:
        clock.tick(now_ms + 1)
    assert caught.value.code == "shutting_down"
    assert clock.ceiling_due(now_ms + 60_000) is None
    clock.raise_ceiling(now_ms + 60_000)
    with pytest.raises(RetryLater):
        clock.tick(now_ms + 1)
    with pytest.raises(ValueError, match="sealed already"):
        clock.seal()

    successor = HybridClock(1, sealed_ms)
    successor.raise_ceiling(now_ms + ceiling_ahead_ms)
    assert successor.tick(now_ms) > last


def test_after_a_crash_stamping_resumes_within_the_reserved_lead() -> None:
    successor = HybridClock(1, now_ms + ceiling_ahead_ms)
    with pytest.raises(RetryLater) as caught:
        successor.tick(now_ms)
    assert caught.value.code == "clock_skew"
    near_ms = now_ms + ceiling_ahead_ms - lead_ms_max
    due_ms = successor.ceiling_due(near_ms)
    assert due_ms == near_ms + ceiling_ahead_ms
    successor.raise_ceiling(due_ms)
    assert successor.tick(near_ms) == version_at(now_ms + ceiling_ahead_ms, 0, 1)


def test_a_process_that_dies_again_and_again_does_not_push_its_clock_ahead() -> None:
    stored_ms = 0
    for restart in range(200):
        wall_ms = now_ms + 10 * restart
        clock = HybridClock(1, stored_ms)
        due_ms = clock.ceiling_due(wall_ms)
        stored_ms = stored_ms if due_ms is None else due_ms
        assert stored_ms <= wall_ms + ceiling_ahead_ms


def test_a_node_refuses_what_leads_both_its_wall_clock_and_what_it_has_taken() -> None:
    water = HighWater()
    assert not water.too_far_ahead(version_at(now_ms + 500, 0xFFFF), now_ms)
    assert water.too_far_ahead(version_at(now_ms + 501), now_ms)
    water.take(version_at(now_ms + 400))
    assert not water.too_far_ahead(version_at(now_ms + 900), now_ms)
    assert water.too_far_ahead(version_at(now_ms + 901), now_ms)


def test_a_node_whose_wall_clock_jumped_back_goes_on_by_what_it_has_taken() -> None:
    water = HighWater(version_at(now_ms))
    hour_ago_ms = now_ms - 3_600_000
    assert not water.too_far_ahead(version_at(now_ms - 1), hour_ago_ms)
    assert not water.too_far_ahead(version_at(now_ms + 500), hour_ago_ms)
    assert water.too_far_ahead(version_at(now_ms + 501), hour_ago_ms)


def test_a_high_water_mark_never_falls() -> None:
    water = HighWater()
    rng = random.Random(5)
    versions = [version_at(now_ms + rng.randrange(1_000)) for _ in range(100)]
    for index, version in enumerate(versions):
        water.take(version)
        assert water.latest == max(versions[: index + 1])


class ClockLives(RuleBasedStateMachine):
    """One stamper through wall clocks that jump, disks that lag, crashes and orderly stops."""

    def __init__(self) -> None:
        super().__init__()
        self.wall_ms = now_ms
        self.stored_ms = 0
        self.underway_ms: int | None = None
        self.clock = HybridClock(3, 0)
        self.stamps: list[bytes] = []
        self.merged: list[bytes] = []

    @rule(by_ms=st.sampled_from([0, 1, 7, 100, 499, 500, 501, 999, 1_000, 2_001, 86_400_000]))
    def time_passes_or_jumps_forward(self, by_ms: int) -> None:
        self.wall_ms += by_ms

    @rule(by_ms=st.sampled_from([1, 250, 500, 501, 3_000, 86_400_000]))
    def the_wall_jumps_back(self, by_ms: int) -> None:
        self.wall_ms -= by_ms

    @rule(times=st.integers(1, 5))
    def ticks(self, times: int) -> None:
        for _ in range(times):
            try:
                stamp = self.clock.tick(self.wall_ms)
            except RetryLater:
                return
            assert version_ms(stamp) - self.wall_ms <= lead_ms_max
            assert version_ms(stamp) < self.stored_ms
            assert all(stamp > merged for merged in self.merged)
            self.stamps.append(stamp)

    @rule(ahead_ms=st.integers(-2_000, 1_000), counter=st.integers(0, 0xFFFF))
    def merges(self, ahead_ms: int, counter: int) -> None:
        version = version_at(self.wall_ms + ahead_ms, counter)
        try:
            self.clock.merge(version, self.wall_ms)
        except RetryLater:
            assert ahead_ms > lead_ms_max
            return
        self.merged.append(version)

    @precondition(lambda self: self.underway_ms is None)
    @rule()
    def a_store_begins(self) -> None:
        self.underway_ms = self.clock.ceiling_due(self.wall_ms)

    @precondition(lambda self: self.underway_ms is not None)
    @rule()
    def a_store_ends(self) -> None:
        assert self.underway_ms is not None
        self.stored_ms = self.underway_ms
        self.clock.raise_ceiling(self.underway_ms)
        self.underway_ms = None

    @rule(reached_the_disk=st.booleans())
    def crashes(self, *, reached_the_disk: bool) -> None:
        if reached_the_disk and self.underway_ms is not None:
            self.stored_ms = self.underway_ms
        self.start_again()

    @precondition(lambda self: self.underway_ms is None)
    @rule()
    def stops_in_order(self) -> None:
        self.stored_ms = self.clock.seal()
        self.start_again()

    def start_again(self) -> None:
        self.underway_ms = None
        # What was merged is promised for one life only; the replicas hold it.
        self.merged.clear()
        self.clock = HybridClock(3, self.stored_ms)

    @invariant()
    def stamps_only_grow(self) -> None:
        tail = self.stamps[-6:]
        assert tail == sorted(set(tail))


TestClockLives = ClockLives.TestCase
TestClockLives.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("seed", range(20))
def test_a_clock_never_goes_back_through_a_hundred_restarts(seed: int) -> None:
    rng = random.Random(seed)
    wall_ms, stored_ms, stamps = now_ms, 0, []
    for _ in range(100):
        clock = HybridClock(1, stored_ms)
        for _ in range(rng.randrange(30)):
            wall_ms += rng.choice((0, 1, 20, 400, 1_500, -300, -1_200))
            due_ms = clock.ceiling_due(wall_ms)
            if due_ms is not None and rng.random() < 0.8:
                stored_ms = due_ms
                clock.raise_ceiling(due_ms)
            try:
                stamps.append(clock.tick(wall_ms))
            except RetryLater:
                continue
    assert len(stamps) > 100
    assert stamps == sorted(set(stamps))
