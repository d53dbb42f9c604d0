"""The cadence that an rpo asks for: when the next cut has to be, from what was measured. Pure.

The age of the newest replicated cut is greatest just before the next one arrives: it is the time from the one cut to
the other, and the *lead* of the other (its flush, its seal, and the time in which the targets get it). So a cut is due
when the time since the last one and the lead of one made now add up to a share of the rpo:

    AIM    what is aimed at, so that a burst finds room: most bursts show in the lead before they hurt
    SAFE   what the budget of sealing may widen it to; the rest is for what was measured wrongly

While the last cut is on its way, another is made only when it would be sent at once: until then it would only be older
when it gets its turn, and a link that is too slow gets the more to carry the more cuts there are (what is overwritten
between two cuts is sent once). Where the targets are gone, cuts go on, one each rpo, so that the first
that arrives afterwards is a young one.

Invariants:
1. The wait is never longer than what SAFE leaves, but for a link that is behind, and then no longer than SAFE itself.
2. What is expected to break the rpo is said so (`holds`), with the part of the lead that is to blame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snapfs.base.settings.units import format_seconds

AIM: Final = 0.5
SAFE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one volume at one time. The predictions are for a cut that is made now.

    `age_s`: since the last cut (or since nothing had changed); `flush_s`, `seal_s`: what it will take to be sealed;
    `queue_s`: until the targets have what is sealed already; `send_s`: from then until they have this one, too;
    `seal_share`: the share of the last minute in which a seal ran.
    """

    age_s: float
    flush_s: float = 0.0
    seal_s: float = 0.0
    queue_s: float = 0.0
    send_s: float = 0.0
    seal_share: float = 0.0

    @property
    def lead_s(self) -> float:
        """From the request of a cut to its replication."""
        return self.flush_s + max(self.seal_s, self.queue_s - self.flush_s) + self.send_s


@dataclass(frozen=True, slots=True)
class ObjectivePace:
    """`left_s`: until a cut is due, 0 or less: now. `expected_age_s`: how old the newest replicated cut will be.

    `look_s`: how often what the kernel holds is asked for while nothing seems to change. `blame`: the part of the
    lead that takes longest, "" where the rpo holds.
    """

    left_s: float
    why: str
    expected_age_s: float
    look_s: float
    holds: bool
    blame: str = ""


def pace(rpo_s: float, budget: float, measured: Measured, held_s: float = 0.0) -> ObjectivePace:
    """When the next cut has to be for the newest replicated one to stay younger than `rpo_s`.

    `budget`: the share of the time that sealing may take; `held_s`: for so long `at_least` allows none.
    """
    age_s, lead_s = measured.age_s, measured.lead_s
    aim_s, bound_s = rpo_s * AIM - lead_s - age_s, rpo_s * SAFE - lead_s - age_s
    rest_s = measured.seal_s / budget - age_s
    left_s, why = aim_s, f"rpo = {format_seconds(rpo_s)}, with {lead_s:.1f} s from a cut to its replication"
    if rest_s > left_s and bound_s > 0:
        left_s, why = rest_s, f"seal.budget = {budget:.0%}: a seal takes {measured.seal_s:.2f} s"
    if aim_s < bound_s < left_s:
        left_s, why = bound_s, f"{why}, widened to what rpo = {format_seconds(rpo_s)} bears"
    free_s = min(measured.queue_s - measured.flush_s - measured.seal_s, rpo_s * SAFE - age_s)
    if free_s > max(left_s, 0.0):
        left_s, why = free_s, f"the snapshot before needs about {measured.queue_s:.1f} s more to be replicated"
    if held_s > max(left_s, 0.0):
        left_s, why = held_s, "at_least allows none before"
    # the lead of a later cut: the queue gets shorter meanwhile, and nothing else does
    later_s = max(left_s, 0.0)
    queue_s = max(measured.queue_s - later_s, 0.0)
    arrives_s = measured.flush_s + max(measured.seal_s, queue_s - measured.flush_s) + measured.send_s
    expected_s = age_s + later_s + arrives_s
    holds = expected_s <= rpo_s
    return ObjectivePace(left_s, why, expected_s, rpo_s * AIM, holds, "" if holds else _blame(measured, held_s))


def _blame(measured: Measured, held_s: float) -> str:
    parts = {
        "the seal": measured.seal_s,
        "the flush": measured.flush_s,
        "the way to the targets": measured.queue_s + measured.send_s,
        "waiting for at_least": held_s,
    }
    longest = max(parts, key=parts.__getitem__)
    return f"{longest} takes {parts[longest]:.1f} s"
