"""What one link may cost, and what the links of a process did so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.core.wire import frame_bytes_max

# Who has not been heard of for so long is asked last, by everybody alike, for an acknowledgement
# waits for the replica that reads ask first. It is a ping's half second and half of one more: at
# the half second itself an idle link would be silent just before each ping. A link is given up
# much later, after silence_s.
silent_s_max: Final = 0.75


@dataclass(slots=True, frozen=True)
class LinkLimits:
    """The bounds of one link. Every one is there so that a slow or hostile peer costs little."""

    # A coordinator serves some thousands of clients at a time and sends one frame per replica.
    pending_max: int = 16_384
    # Two of the largest frames; past it the peer is too slow for what is asked of it. It bounds
    # the requests without an answer and, apart from them, what waits to be sent.
    pending_bytes_max: int = 2 * frame_bytes_max
    # A peer of ours keeps to its pending_max and pending_bytes_max; the rest is for requests that
    # it gave up and a handler still has. Once there is so much, the next are answered OVERLOADED.
    unanswered_max: int = 20_000
    unanswered_bytes_max: int = 3 * frame_bytes_max
    # Past this much unsent the peer is answered OVERLOADED. It is still read from: two ends that
    # each stop reading until the other reads would wait for each other for good.
    unsent_bytes_high: int = frame_bytes_max
    # Answers to what was already accepted may still pile up to here; then the link is cut. What
    # this end asks takes pending_bytes_max of it at most, so that asking alone never gets there.
    unsent_bytes_max: int = 4 * frame_bytes_max
    # A peer that sends nothing, or takes nothing, for silence_s is lost. Pings keep an idle link
    # from being silent; they also set how often this is looked at.
    ping_s: float = 0.5
    silence_s: float = 2.0
    # One sweep finds all requests that are over their time: a request has its whole time, and two
    # of these more at the most.
    sweep_s: float = 0.05
    # Two round trips and two HMACs: a peer that needs longer is not one of ours.
    opening_s: float = 5.0
    # Peers that have not yet proved who they are, each holding a kilobyte at most.
    openings_max: int = 256
    # A server takes fewer where it has few descriptors.
    connections_max: int = 4_096


@dataclass(slots=True)
class LinkCounters:
    """What the links of a process did so far; plain integers that `/metrics` reads."""

    bytes_received: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    frames_sent: int = 0
    writes: int = 0
    requests: int = 0
    timeouts: int = 0
    lost: int = 0
    overloaded: int = 0
    late_answers: int = 0
    bugs: int = 0
    connections_opened: int = 0
    connections_refused: int = 0
    connections_lost: int = 0
