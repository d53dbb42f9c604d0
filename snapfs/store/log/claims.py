"""Whether another writer stands in the way: the rule that a writer checks before it claims a generation. Pure.

A mirror grants any claim of a newer generation (replicator/volumes/generation_rules.py): it must, or no host could ever
take over. A generation also begins with a rollback, on a host that may be cut off. So a number alone is no right to
write: who has rolled back twice while another host took over would come back with the higher one.

Invariants:
1. A host that did not take over on purpose never claims over another writer, whatever its generation.
2. A claim on purpose states from which snapshot its writer goes on (`Succession`), and targets remember that. What the
   former writer made since is its tail: the winner does not have it, whatever other target has.
3. One that did take over, in generation t, claims over others' generations below t, on mirrors that it did not reach
   then: what it took over from is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from snapfs.base.blocks import Generation, SnapshotNumber

TAKEOVERS: Final = ("remounted", "taken-over")
"""Events in snapshots.log by which a host became the writer on purpose; each with its `generation`."""


class ClaimEvent(Protocol):
    """A line of snapshots.log."""

    @property
    def kind(self) -> str: ...
    @property
    def fields(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class ClaimWriter:
    """Who writes a volume on a host. `taken_over`: the generation in which it became the writer on purpose; 0: never,
    it has been from the beginning."""

    generation: Generation
    writer_id: str
    taken_over: Generation = Generation(0)


@dataclass(frozen=True, slots=True)
class Takeover:
    """A host became the writer on purpose, in `generation`, and went on from `snapshot` (0: it was not written down).

    What older generations made after that snapshot is not in this volume's past.
    """

    generation: Generation
    snapshot: SnapshotNumber

    def left_behind(self, generation: Generation, number: SnapshotNumber) -> bool:
        """Whether a snapshot belongs to the past that this takeover did not go on from."""
        return bool(self.snapshot) and number > self.snapshot and generation < self.generation


def takeovers_in(events: Iterable[ClaimEvent]) -> tuple[Takeover, ...]:
    """All that a volume's log has, in their order."""
    found = (event.fields for event in events if event.kind in TAKEOVERS)
    return tuple(Takeover(Generation(each["generation"]), SnapshotNumber(each.get("snapshot", 0))) for each in found)


def taken_over_in(events: Iterable[ClaimEvent]) -> Generation:
    """The generation of the last takeover in a volume's log, 0 without one."""
    return last_of(takeovers_in(events))


def last_of(takeovers: Iterable[Takeover]) -> Generation:
    """The generation of the last of them, 0 without one."""
    return max((each.generation for each in takeovers), default=Generation(0))


class Succession(msgspec.Struct, frozen=True):
    """`writer_id` claimed `generation` on purpose, to go on from `snapshot`: what it sent to a target."""

    generation: int
    writer_id: str = msgspec.field(name="holder")
    snapshot: int


def with_succession(known: Iterable[Succession], new: Succession) -> list[Succession]:
    """`known` and what a claim states; one that is sent again (another snapshot was chosen) counts as sent last."""
    if not new.snapshot:
        return list(known)
    kept = [each for each in known if (each.generation, each.writer_id) != (new.generation, new.writer_id)]
    return [*kept, new]


def went_on_from(ours: ClaimWriter, new: Iterable[Succession]) -> SnapshotNumber:
    """The newest snapshot of ours that the writers in our place have in their past; 0 if none of them stated it."""
    later = (each for each in new if each.writer_id != ours.writer_id and each.generation >= ours.taken_over)
    return SnapshotNumber(min((each.snapshot for each in later), default=0))


def is_fenced(ours: ClaimWriter, generation: Generation, writer_id: str) -> bool:
    """Whether `writer_id`, who has claimed `generation` (0: no writer has), is the writer instead of us."""
    if not generation or writer_id == ours.writer_id:
        return generation > ours.generation
    return generation >= ours.taken_over
