"""Who may write to a mirror: pure decisions. `mirror_volume.py` makes them durable; a model of them is checked in full.

The rules, for one volume on one mirror:
1. A claim succeeds if its generation is above the claimed one, or is that very one, by the same writer, once more.
2. A write takes effect if its generation and writer id are the claimed ones, at the instant of effect.

What follows (tests/replicator/volumes/test_generation_rules.py walks through every state of a small world):
a. On each mirror the generation never falls, and no write of an older generation takes effect after a newer claim.
b. A writer that waits for its claim on more than half of the mirrors is the only one ever to have that generation
   there. The answers to these claims show it every write of an older generation that more than half have, or ever will
   have: so it goes on from the newest snapshot among these answers, and not from what it had read before.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from snapfs.base.blocks import Generation


class Claimed(NamedTuple):
    """Who writes, as a mirror knows it. Generation 0: no writer has claimed yet."""

    generation: Generation = Generation(0)
    writer_id: str = ""


class ClaimVerdict(Enum):
    """On a claim or a write."""

    GRANTED = auto()
    FENCED = auto()  # a newer generation, or another writer of the same
    UNCLAIMED = auto()  # a write of a generation that was not claimed here


def judge_claim(claimed: Claimed, wanted: Claimed) -> ClaimVerdict:
    """Whether `wanted` may take over."""
    if wanted == claimed or wanted.generation > claimed.generation:
        return ClaimVerdict.GRANTED
    return ClaimVerdict.FENCED


def judge_write(claimed: Claimed, writer: Claimed) -> ClaimVerdict:
    """Whether a write takes effect."""
    if writer == claimed and claimed.generation:
        return ClaimVerdict.GRANTED
    return ClaimVerdict.UNCLAIMED if writer.generation > claimed.generation else ClaimVerdict.FENCED
