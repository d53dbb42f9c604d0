"""What every place that snapshots are pushed to can do: the interface, and what its answers mean.

The words are those of the mirror's protocol (snapfs/store/protocol/wire.py), so that all targets behave alike and one
suite tests them all:

1. A target has a set of objects, known by number and content hash, and snapshots that are visible whole or not at all.
2. `send` makes a part durable; `commit` is the one commit point. What was sent and not committed stays for the next
   attempt, over restarts of either side, and `lacks` leaves it out.
3. Everything may be done again and gives the same result. Calls of `send` may be under way at the same time, no others.
4. Only a writer that has claimed a generation changes something; one that was overtaken gets Refusal.FENCED and has
   changed nothing.
5. A lock (snapfs/store/log/locks.py) is set on the target's side. What came less than `lock_s` ago, by the target's
   clock, leaves no history and loses no byte, for any request: drops, collection of space and removal of garbage all
   consult it first. `drop` returns of each snapshot that stays the reason; it never fails for that.
6. Failures: RefusedError for what the target refuses (its `refusal` decides whether to try again), OSError or
   TimeoutError for a link or disk that fails. Nothing else but a bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from replicator.source.selection import Part
from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.store.log.claims import Succession
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import messages, number_runs, wire, wire_fields

ContentHashOf = Callable[[Number], bytes]


@dataclass(frozen=True, slots=True)
class TargetState:
    """What is there. `snapshots`: all of the history, ascending. `held`: not to be dropped there. `lock_s`: the length
    of its lock, 0 without one. `successions`: who took over there, and from which snapshot. `target_id`: what it is
    recognised by, "" if it reports none. `revision` grows with all that happens there, and falls only if the target
    is put back from an older copy; 0 if it is not reported."""

    generation: Generation
    writer_id: str
    snapshots: tuple[SnapshotRecord, ...]
    held: frozenset[SnapshotNumber] = frozenset()
    stored_bytes: int | None = None
    lock_s: float = 0.0
    successions: tuple[Succession, ...] = ()
    target_id: str = ""
    revision: int = 0
    last_number: Number = Number(0)
    """The highest number of an object there, of a target that compares content hashes in `lacks` only; else 0."""
    peers: Peers | None = None
    """The other targets of the writer, as its claim listed them."""
    people: tuple[HoldRecord, ...] | None = ()
    """What people decided to hold, as it is known there; None: an earlier one, which takes no such records."""

    @property
    def newest(self) -> SnapshotRecord | None:
        return self.snapshots[-1] if self.snapshots else None

    def roots(self) -> dict[SnapshotNumber, bytes]:
        """Number to root content hash, as `plan` wants it."""
        return {record.number: record.root.content_hash for record in self.snapshots}


@dataclass(frozen=True, slots=True)
class TargetLimits:
    """What the target takes. `window_parts`: parts under way at a time; it may change with every answer."""

    part_bytes: int = 8 << 20
    part_objects: int = 1 << 16
    commit_snapshots: int = 1000
    window_parts: int = 8


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the writer of an encrypted volume sends with a commit (messages.Commit). `needs` None: it queried before."""

    needs: NumberSet | None = None
    ground: SnapshotNumber = SnapshotNumber(0)
    first: tuple[Number, ...] = ()
    whole: bool = False

    def commit(self, records: Sequence[SnapshotRecord], history: bool) -> messages.Commit:
        """As a message."""
        needs = number_runs.pack_needs(number_runs.runs_of(self.needs)) if self.needs is not None else ""
        first: list[int] = list(self.first[: wire.MAX_FIRST_NUMBERS])
        encoded = [wire_fields.encode_record(each) for each in records]
        return messages.Commit(encoded, history, needs, self.ground, first, self.whole)


def live_messages(live: NumberSet, snapshots: Sequence[SnapshotNumber]) -> Iterator[messages.Collect]:
    """All that lives, as the messages that list it."""
    batches = list(number_runs.in_requests(number_runs.runs_of(live))) or [[]]
    for at, runs in enumerate(batches):
        ends = at == len(batches) - 1
        yield messages.Collect(number_runs.pack_needs(runs), at == 0, ends, list(snapshots) if ends else [])


class Target(Protocol):
    """A place that snapshots are pushed to."""

    @property
    def limits(self) -> TargetLimits:
        """As last reported by the target."""

    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState:
        """Find the volume there, or make it; what is there. Also the way to go on after any failure.

        Without `make` Refusal.NOT_FOUND if it is not there, and nothing is made.
        """

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        """Become the one who may change it. Refusal.FENCED if a newer generation, or another writer of this one, is.

        `snapshot`: what a writer that took over went on from (snapfs/store/log/claims.py); 0 if it did not. `peers`: to
        which other targets it replicates (snapfs/store/log/peers.py); None leaves what the target knows of them.
        """

    async def lacks(self, numbers: NumberSet, content_hash_of: ContentHashOf | None = None) -> NumberSet:
        """Those of the numbers that are neither committed nor staged there.

        With `content_hash_of` a target that checks no content hashes when objects arrive compares them now:
        Refusal.DIVERGED for one of another content, which two hosts leave that took the same generation over at
        different targets.
        """

    async def send(self, part: Part) -> int:
        """Make these objects durable there; returns how many bytes travelled. May be called concurrently."""

    async def commit(self, records: Sequence[SnapshotRecord], *, history: bool = False) -> int:
        """Make snapshots visible, whole and ascending, durably. Refusal.INCOMPLETE names objects that are missing.

        Returns the target's revision after that (TargetState), 0 if it is not reported.
        """

    async def drop(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]:
        """Drop snapshots; those that stay, each with why: locked, held, the newest, no right to drop.

        `why`: the rule that drops them there, for the record; "" for what was dropped at the source.
        """

    async def put_holds(self, records: Sequence[HoldRecord]) -> frozenset[SnapshotNumber]:
        """Keep what people decided to hold, durably, or that it is not held any more; what is held there after that, by
        anybody. Of one snapshot the latest record counts. `drop` refuses what is held.
        """

    async def branch_off(self, after: SnapshotNumber, name: str) -> None:
        """Make a branch of all snapshots above `after` of an older generation than the claimed one."""

    async def close(self) -> None:
        """Let go of everything. Harmless a second time."""


class SealableTarget(Protocol):
    """A target that can be one of an encrypted volume (encrypted_target.py): `Target`, and this."""

    @property
    def limits(self) -> TargetLimits: ...
    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState: ...
    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None: ...
    async def lacks(self, numbers: NumberSet, content_hash_of: ContentHashOf | None = None) -> NumberSet: ...
    async def send(self, part: Part) -> int: ...
    async def commit(
        self, records: Sequence[SnapshotRecord], *, history: bool = False, manifest: Manifest | None = None
    ) -> int: ...
    async def drop(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]: ...
    async def put_holds(self, records: Sequence[HoldRecord]) -> frozenset[SnapshotNumber]: ...
    async def branch_off(self, after: SnapshotNumber, name: str) -> None: ...
    async def close(self) -> None: ...

    async def keys(self) -> bytes:
        """The wrapped keys; b"" if there are none. The target is open."""

    async def put_keys(self, data: bytes) -> None:
        """Keep the wrapped keys, durably. A generation is claimed."""

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber], below: Number = Number(0)) -> int:
        """Free what is neither in `live`, what these snapshots need that the writer knows, nor numbered up to `below`,
        what those may need that it does not; bytes freed."""
