"""What comparing the replicas of a frozen slot says: by example, against a version that is
obviously right, and by carrying it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core import collecting
from services.core.collecting import Lack, Over, Round, Settled, Verdict, judge, settled_end
from services.core.errors import PeerError
from services.core.hlc import Version, pack_version, version_zero
from services.core.record import tombstone_body, value_body
from services.core.sessions import Compared, ComparedPage, ended, lives, no_cell

key = b"key"


def at(number: int) -> Version:
    return pack_version(number << 16, 1) if number else version_zero


session = at(10)


def cell(
    kind: int, version: int, *, promised: int = 0, ballot: int = 0, of: bytes = key
) -> Compared:
    return Compared(of, kind, at(version), at(max(promised, ballot)), at(ballot))


def tombstone(version: int) -> bytes:
    return at(version) + tombstone_body


def judged(*shown: Compared | None, settled: Settled | None = None) -> Verdict:
    return judge(key, shown, session, settled)


def test_a_tombstone_that_all_replicas_hold_is_over() -> None:
    verdict = judged(*[cell(ended, 5)] * 3)
    assert verdict == Verdict(None, Over(key, version_zero), tombstone=True)


def test_a_tombstone_is_brought_to_who_has_nothing_or_something_older() -> None:
    verdict = judged(cell(lives, 3), cell(ended, 5), None)
    assert verdict == Verdict(Lack(key, at(5), holder=0b010, lacking=0b101))


def test_a_value_is_brought_to_who_lacks_it_and_is_not_over() -> None:
    assert judged(cell(lives, 5), None, cell(lives, 5)).lack == Lack(key, at(5), 0b001, 0b010)
    assert judged(*[cell(lives, 5)] * 3) == Verdict()


def test_what_is_above_the_session_lacks_nothing_and_is_brought_to_nobody() -> None:
    later = cell(lives, 11)
    assert judged(later, cell(ended, 5), cell(ended, 5)).over == Over(key, version_zero)
    assert judged(later, None, None) == Verdict()
    assert judged(later, cell(ended, 5), None).lack == Lack(key, at(5), 0b010, 0b100)


def test_what_stands_at_the_session_itself_is_below_it() -> None:
    assert judged(cell(ended, 10), None, None).lack is not None
    assert judged(*[cell(ended, 10, promised=10)] * 3).over is not None


def test_a_replica_that_has_promised_above_the_session_keeps_all_of_them_from_forgetting() -> None:
    """A change is on its way, which some replica may know nothing of but by what is accepted."""
    assert judged(cell(ended, 5, promised=11), cell(ended, 5), cell(ended, 5)) == Verdict()


def test_what_was_accepted_at_another_ballot_than_the_settled_one_is_kept() -> None:
    settled = Settled(at(6), tombstone(5))
    with_it = cell(ended, 5, ballot=6)
    assert judged(*[with_it] * 3, settled=settled).over == Over(key, at(6))
    assert judged(*[with_it] * 3).over is None
    assert judged(with_it, with_it, cell(ended, 5, ballot=7), settled=settled).over is None
    assert judged(with_it, with_it, cell(ended, 5), settled=settled).over == Over(key, at(6))


def test_a_settled_tombstone_that_no_cell_has_is_brought_to_all_before_it_is_forgotten() -> None:
    """Otherwise a value that only some cell still has would be back once the promises are gone."""
    settled = Settled(at(6), tombstone(6))
    old = cell(lives, 3, ballot=6)
    none = cell(no_cell, 0, ballot=6)
    assert judged(old, none, none, settled=settled).lack == Lack(key, at(6), 0, 0b111)
    assert judged(none, none, none, settled=settled).lack == Lack(key, at(6), 0, 0b111)


def test_promises_that_stand_for_nothing_are_over_without_any_cell() -> None:
    nothing = Settled(at(6), b"")
    accepted = cell(no_cell, 0, ballot=6)
    assert judged(*[accepted] * 3, settled=nothing) == Verdict(None, Over(key, at(6)), promise=True)
    assert judged(cell(no_cell, 0, promised=4), None, None) == Verdict(
        None, Over(key, version_zero), promise=True
    )


def test_replicas_that_disagree_whether_a_version_has_ended_keep_it() -> None:
    assert judged(cell(ended, 5), cell(lives, 5), cell(ended, 5)) == Verdict()
    assert judged(cell(lives, 5), cell(ended, 5), cell(ended, 5)) == Verdict()


def test_only_a_tombstone_or_nothing_is_the_end_of_a_key() -> None:
    assert settled_end(at(6), tombstone(5)) == Settled(at(6), tombstone(5))
    assert settled_end(at(6), b"") == Settled(at(6), b"")
    assert settled_end(at(6), at(5) + value_body(b"x", 1)) is None


# All keys of a slot, by pages.


@dataclass(frozen=True)
class Held:
    """What one replica holds of one key."""

    kind: int = no_cell
    version: int = 0
    promised: int = 0
    ballot: int = 0

    def shown(self, of: bytes) -> Compared | None:
        if self == Held():
            return None
        return cell(self.kind, self.version, promised=self.promised, ballot=self.ballot, of=of)


Slot = Mapping[bytes, Sequence[Held]]

numbers = st.integers(0, 12)
# The kind of a version is the same on all replicas: odd ones live.
held = st.builds(
    lambda version, promised, ballot: Held(
        (no_cell if not version else lives if version % 2 else ended),
        version,
        max(promised, ballot),
        ballot,
    ),
    numbers,
    numbers,
    st.sampled_from([0, 0, 4, 6]),
)
keys_of = st.binary(min_size=1, max_size=2)
slots = st.dictionaries(keys_of, st.lists(held, min_size=3, max_size=3), max_size=12)
settlings = st.dictionaries(
    keys_of,
    st.builds(
        lambda version: Settled(at(6), tombstone(version) if version else b""),
        st.sampled_from([0, 2, 4, 6]),
    ),
    max_size=6,
)


def dumb(
    slot: Slot, settled: Mapping[bytes, Settled]
) -> tuple[dict[bytes, tuple[Version, set[int]]], dict[bytes, Version]]:
    """Said straight, key by key: the target and who lacks it; and the keys to purge."""
    lacks: dict[bytes, tuple[Version, set[int]]] = {}
    over: dict[bytes, Version] = {}
    for of, replicas in slot.items():
        if all(one == Held() for one in replicas):
            continue
        known = [at(one.version) for one in replicas if 0 < one.version <= 10]
        settling = settled.get(of)
        if settling is not None and settling.record:
            known.append(settling.record[:12])
        target = max(known, default=version_zero)
        lacking = {place for place, one in enumerate(replicas) if at(one.version) < target}
        if lacking:
            lacks[of] = target, lacking
            continue
        ballots = {version_zero} | ({settling.ballot} if settling else set())
        free = all(at(one.promised) <= session and at(one.ballot) in ballots for one in replicas)
        kinds = {one.kind for one in replicas if one.version and at(one.version) == target}
        something = kinds == {ended} or (not kinds and any(one.promised for one in replicas))
        if free and something:
            over[of] = settling.ballot if settling else version_zero
    return lacks, over


def pages(slot: Slot, place: int, after: bytes, size: int) -> ComparedPage:
    shown = [
        entry
        for of in sorted(slot)
        if of > after and (entry := slot[of][place].shown(of)) is not None
    ]
    return ComparedPage(len(shown) > size, shown[:size])


def gone_through(
    slot: Slot, settled: Mapping[bytes, Settled], sizes: Sequence[int], keys_max: int
) -> tuple[Round, list[Lack]]:
    round_ = Round(3, session, settled)
    lacks: list[Lack] = []
    for _ in range(200):
        if round_.ended:
            return round_, lacks
        for place, after in round_.wanted():
            round_.page(place, pages(slot, place, after, sizes[place]))
        lacks += round_.advance(keys_max)
    raise AssertionError("it comes to no end")


sizes_of = st.lists(st.integers(1, 5), min_size=3, max_size=3)


@given(slots, settlings, sizes_of, st.integers(1, 5))
@settings(max_examples=300)
def test_a_round_by_pages_finds_what_a_dumb_comparison_finds(
    slot: Slot, settled: Mapping[bytes, Settled], sizes: Sequence[int], keys_max: int
) -> None:
    round_, lacks = gone_through(slot, settled, sizes, keys_max)
    expected, over = dumb(slot, settled)
    assert {
        lack.key: (lack.version, {place for place in range(3) if lack.lacking >> place & 1})
        for lack in lacks
    } == expected
    assert round_.clean is not bool(expected)
    for lack in lacks:
        if lack.holder:
            assert (
                slot[lack.key][lack.holder.bit_length() - 1].version
                == int.from_bytes(lack.version[:8], "big") >> 16
            )
        else:
            assert settled[lack.key].record[:12] == lack.version
    if round_.clean:
        assert dict(round_.over) == over
        assert [one.key for one in round_.over] == sorted(over)
    else:
        assert round_.over == [], "nothing is over in a round that shows a lack"


def brought(slot: Slot, lacks: Iterable[Lack]) -> dict[bytes, list[Held]]:
    """The slot once everybody has what it lacked."""
    mended = {of: list(replicas) for of, replicas in slot.items()}
    for lack in lacks:
        version = int.from_bytes(lack.version[:8], "big") >> 16
        kind = lives if version % 2 else ended
        for place in range(3):
            if lack.lacking >> place & 1:
                one = mended[lack.key][place]
                mended[lack.key][place] = replace(one, kind=kind, version=version)
    return mended


@given(slots, settlings, sizes_of)
@settings(max_examples=300)
def test_one_repair_makes_the_next_round_clean_and_purging_leaves_replicas_equal(
    slot: Slot, settled: Mapping[bytes, Settled], sizes: Sequence[int]
) -> None:
    _, lacks = gone_through(slot, settled, sizes, 3)
    mended = brought(slot, lacks)
    round_, more = gone_through(mended, settled, sizes, 3)
    assert round_.clean
    assert more == []
    for of, _ in round_.over:
        # What stays after the cells at or below the session have been dropped is later than it.
        assert all(one.kind == ended for one in mended[of] if 0 < one.version <= 10)
    for replicas in mended.values():
        # But where something later has come already.
        assert len({one.version for one in replicas if one.version <= 10}) <= 1


def test_more_than_one_attempt_takes_is_left_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "over_max", 3)
    slot = {b"%d" % number: [Held(ended, 2)] * 3 for number in range(5)}
    round_, _ = gone_through(slot, {}, [2, 2, 2], 2)
    assert [one.key for one in round_.over] == [b"0", b"1", b"2"]
    assert (round_.overflowed, round_.tombstones) == (True, 3)


def test_a_page_that_does_not_lead_on_is_refused() -> None:
    """A replica that answers with the same page for ever would hold the slot for ever."""
    round_ = Round(3, session, {})
    page = ComparedPage(more=True, entries=[cell(ended, 2)])
    round_.page(0, page)
    assert round_.wanted() == [(1, b""), (2, b"")]
    for place in (1, 2):
        round_.page(place, ComparedPage(more=False, entries=[]))
    round_.advance(5)
    assert round_.wanted() == [(0, key)]
    with pytest.raises(PeerError, match="before the one before it ended"):
        round_.page(0, page)


def test_nothing_is_judged_before_all_replicas_have_shown_a_page() -> None:
    round_ = Round(3, session, {})
    round_.page(0, ComparedPage(more=False, entries=[cell(ended, 2)]))
    round_.page(1, ComparedPage(more=False, entries=[]))
    assert round_.advance(5) == []
    assert not round_.ended
    assert round_.wanted() == [(2, b"")]
