"""Whether another writer stands in the way: the rule that whoever is about to claim a generation asks first. Pure.

A mirror grants any claim of a newer generation (replicator/fencing.py): it must, or nobody could ever take over. A
generation also begins with a rollback, on a host that may be cut off. So a number alone is no right to write: who has
rolled back twice while another host took over would come back with the higher one.

Invariants:
1. A host that did not take over on purpose never claims over another holder, whatever its generation.
2. One that did take over, in generation t, claims over others' generations below t, on mirrors that it did not reach
   then: what it took over from is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from snapfs.blocks import Generation

TAKEOVERS: Final = ("remounted", "taken-over")
"""Events in snapshots.log by which a host became the writer on purpose; each with its `generation`."""


class Event(Protocol):
    """A line of snapshots.log."""

    @property
    def kind(self) -> str: ...
    @property
    def fields(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes a volume on a host. `taken_over`: the generation in which it became the writer on purpose; 0: never,
    it has been from the beginning."""

    generation: Generation
    holder: str
    taken_over: Generation = Generation(0)


def taken_over_in(events: Iterable[Event]) -> Generation:
    """The generation of the last takeover that a volume's log tells of, 0 without one."""
    found = [int(event.fields["generation"]) for event in events if event.kind in TAKEOVERS]
    return Generation(max(found, default=0))


def is_fenced(ours: Writer, generation: Generation, holder: str) -> bool:
    """Whether `holder`, who has claimed `generation` (0: nobody has), is the writer instead of us."""
    if not generation or holder == ours.holder:
        return generation > ours.generation
    return generation >= ours.taken_over
