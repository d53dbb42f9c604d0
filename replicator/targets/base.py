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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from replicator.source import Part
from snapfs.blocks import Generation, Number, SnapshotNumber
from snapfs.store import wire
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


@dataclass(frozen=True, slots=True)
class Told:
    """What the writer of an encrypted volume says with a commit (wire.Commit). `needs` None: it has asked before."""

    needs: NumberSet | None = None
    ground: SnapshotNumber = SnapshotNumber(0)
    first: tuple[Number, ...] = ()
    whole: bool = False

    def commit(self, records: Sequence[SnapshotRecord], history: bool) -> wire.Commit:
        """As a message."""
        needs = wire.pack_needs(wire.runs_of(self.needs)) if self.needs is not None else ""
        first: list[int] = list(self.first[: wire.MAX_FIRST_NUMBERS])
        encoded = [wire.encode_record(each) for each in records]
        return wire.Commit(encoded, history, needs, self.ground, first, self.whole)


def live_messages(live: NumberSet, snapshots: Sequence[SnapshotNumber]) -> Iterator[wire.Collect]:
    """All that lives, as the messages that say so."""
    batches = list(wire.in_requests(wire.runs_of(live))) or [[]]
    for at, runs in enumerate(batches):
        ends = at == len(batches) - 1
        yield wire.Collect(wire.pack_needs(runs), at == 0, ends, list(snapshots) if ends else [])


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


class SealableTarget(Protocol):
    """A target that can be one of an encrypted volume (sealed.py): `Target`, and this."""

    @property
    def limits(self) -> Limits: ...
    async def open(self, identity: StoreIdentity) -> TargetState: ...
    async def claim(self, generation: Generation, holder: str) -> None: ...
    async def lacks(self, numbers: NumberSet) -> NumberSet: ...
    async def send(self, part: Part) -> int: ...
    async def commit(
        self, records: Sequence[SnapshotRecord], *, history: bool = False, told: Told | None = None
    ) -> None: ...
    async def drop(self, numbers: Sequence[SnapshotNumber]) -> None: ...
    async def aside(self, after: SnapshotNumber, name: str) -> None: ...
    async def close(self) -> None: ...

    async def keys(self) -> bytes:
        """The wrapped keys; b"" if there are none. The target is open."""

    async def put_keys(self, data: bytes) -> None:
        """Keep the wrapped keys, durably. A generation is claimed."""

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber]) -> int:
        """Free what is not in `live`, all that these snapshots need; bytes freed."""
