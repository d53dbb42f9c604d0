"""What every place that snapshots are pushed to can do: the interface, and what its answers mean.

The words are those of the mirror's protocol (snapfs/store/wire.py), so that all targets behave alike and one suite
tests them all:

1. A target has a set of objects, known by number and proof, and snapshots that are visible whole or not at all.
2. `send` makes a part durable; `commit` is the one commit point. What was sent and not committed stays for the next
   attempt, over restarts of either side, and `lacks` tells it apart.
3. Everything may be done again and gives the same result. Calls of `send` may be under way at the same time, no others.
4. Whoever changes something has claimed a generation; who has been overtaken is told so (Refusal.FENCED) and has
   changed nothing.
5. Failures: wire.RefusedError for what the target says (its `refusal` tells whether to try again), OSError or
   TimeoutError for a link or disk that fails. Nothing else but a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from replicator.source import Part
from snapfs.blocks import Generation, SnapshotNumber
from snapfs.store.numbers import NumberSet
from snapfs.store.records import SnapshotRecord, StoreIdentity


@dataclass(frozen=True, slots=True)
class TargetState:
    """What is there. `snapshots`: all of the history, ascending. `held`: not to be dropped there."""

    generation: Generation
    holder: str
    snapshots: tuple[SnapshotRecord, ...]
    held: frozenset[SnapshotNumber] = frozenset()
    stored_bytes: int | None = None

    @property
    def newest(self) -> SnapshotRecord | None:
        return self.snapshots[-1] if self.snapshots else None

    def roots(self) -> dict[SnapshotNumber, bytes]:
        """Number to root proof, as `plan` wants it."""
        return {record.number: record.root.proof for record in self.snapshots}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the target takes. `window_parts`: parts under way at a time; it may change with every answer."""

    part_bytes: int = 8 << 20
    part_objects: int = 1 << 16
    commit_snapshots: int = 1000
    window_parts: int = 8


class Target(Protocol):
    """A place that snapshots are pushed to."""

    @property
    def limits(self) -> Limits:
        """As last told by the target."""

    async def open(self, identity: StoreIdentity) -> TargetState:
        """Find the volume there, or make it; what is there. Also the way to ask again, after any failure."""

    async def claim(self, generation: Generation, holder: str) -> None:
        """Become the one who may change it. Refusal.FENCED if a newer generation, or another holder of this one, is."""

    async def lacks(self, numbers: NumberSet) -> NumberSet:
        """Those of the numbers that are neither committed nor staged there."""

    async def send(self, part: Part) -> int:
        """Make these objects durable there; returns how many bytes travelled. May be called concurrently."""

    async def commit(self, records: Sequence[SnapshotRecord], *, history: bool = False) -> None:
        """Make snapshots visible, whole and ascending, durably. Refusal.INCOMPLETE names objects that are missing."""

    async def drop(self, numbers: Sequence[SnapshotNumber]) -> None:
        """Drop snapshots; the newest and held ones are passed over."""

    async def aside(self, after: SnapshotNumber, name: str) -> None:
        """Put all snapshots above `after` of an older generation than the claimed one aside, as a branch."""

    async def close(self) -> None:
        """Let go of everything. Harmless a second time."""
