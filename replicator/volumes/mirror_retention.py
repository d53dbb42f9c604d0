"""Which snapshots a mirror's volume keeps: drops, holds, the lock, and a number of newest ones.

Invariant: a snapshot is dropped only if it is neither the newest, nor the newest good one, nor held, nor locked:
received, by this host's clock, less than the lock's length ago (folder_lock.py). Branches are kept.

Synchronous; the caller holds the receiver's locks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from replicator.volumes.folder_lock import FolderLock
from replicator.volumes.hot_lists import HotLists
from replicator.volumes.mirror_encrypted import EncryptedVolume
from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.log.drops import TARGET
from snapfs.store.log.holds import Holds, holder_of
from snapfs.store.log.locks import LockedSnapshot, Stays, kept_by
from snapfs.store.log.log_lines import Event
from snapfs.store.protocol import messages

log = logging.getLogger(__name__)

_HOLD_PREFIX: Final = "remote."
_UNKNOWN_HOLD_SECONDS: Final = 60.0
"""How long all snapshots are reported as held when the file of holds is damaged."""


class Retention:
    """Decides which snapshots of one volume stay, and drops the others."""

    def __init__(
        self, receiver: Receiver, holds: Holds, lock: FolderLock, hot_lists: HotLists, encrypted: EncryptedVolume | None
    ) -> None:
        self.holds = holds
        self.dropped = 0
        """Snapshots since space was freed last."""
        self._receiver, self._repository = receiver, receiver.repository
        self._lock, self._hot_lists, self._encrypted = lock, hot_lists, encrypted

    def apply(self, event: Event) -> None:
        """Follow an event of the log: when snapshots were received and dropped."""
        if event.kind in ("snapshot", "cloned"):
            self._receiver.received_ns[SnapshotNumber(event.fields["number"])] = event.time_ns
        elif event.kind == "dropped":
            self.dropped += 1
        elif event.kind == "collected":
            self.dropped = 0

    @property
    def lock_s(self) -> float:
        """How long the lock is, 0 without one. Raises OSError."""
        return self._lock.seconds()

    def drop(self, numbers: Sequence[int], by: str, why: str) -> list[LockedSnapshot]:
        """Drop snapshots; those that are there and stay, with the reason of each. Raises OSError."""
        held, ends = self.holds.held(), (self._repository.latest(), self._repository.latest_good())
        newest = {record.number for record in ends if record is not None}
        there = {record.number for record in self._repository.snapshots()}
        wanted = [SnapshotNumber(number) for number in numbers if number in there]
        kept = [LockedSnapshot(number, Stays.HELD) for number in wanted if number in held]
        kept += [LockedSnapshot(number, Stays.NEWEST) for number in wanted if number in newest and number not in held]
        free = [number for number in wanted if number not in {each.number for each in kept}]
        kept += kept_by(free, self._received, self.lock_s, self._repository.clock())
        staying = {each.number for each in kept}
        gone = [number for number in wanted if number not in staying]
        for number in gone:
            self._drop_one(number, by, why)
        self.dropped += len(gone)
        return kept

    def _drop_one(self, number: SnapshotNumber, by: str, why: str) -> None:
        self._repository.drop(number, by, why)
        self._receiver.received_ns.pop(number, None)
        if self._encrypted is not None:
            self._encrypted.dropped(number)
        self._hot_lists.remove(number)

    def expire(self, keep: int) -> list[int]:
        """Drop all but the newest `keep` snapshots, and those with a name; which were dropped. Raises OSError."""
        unnamed = [record.number for record in self._repository.snapshots() if record.name is None]
        wanted = list(unnamed[:-keep] if keep else [])
        kept = {each.number for each in self.drop(wanted, TARGET, f"keep = {keep}")}
        return [number for number in wanted if number not in kept]

    def without_right(self, numbers: list[int]) -> list[LockedSnapshot]:
        """The snapshots of these that are there; they stay because the token may not drop."""
        there = {record.number for record in self._repository.snapshots()}
        return [LockedSnapshot(SnapshotNumber(number), Stays.RIGHT) for number in numbers if number in there]

    def hold(self, name: str, number: SnapshotNumber, seconds: float) -> None:
        """Keep a snapshot for a while. Raises OSError."""
        self.holds.take(f"{_HOLD_PREFIX}{name}", [number], seconds, "requested over the network")

    def release(self, name: str) -> None:
        """End a hold. Raises OSError."""
        self.holds.release(f"{_HOLD_PREFIX}{name}")

    def forget(self, number: SnapshotNumber) -> None:
        """It is on a branch now, where nothing is dropped: what people hold is not another one of its number."""
        self._repository.catalog.hold_records.forget(number)
        self.holds.release(holder_of(number))

    def hold_list(self) -> messages.HoldList:
        """The holds. If their file is damaged, all snapshots count as held. Raises OSError."""
        found, people = [], self._repository.catalog.hold_records.all()
        try:
            holds = self.holds.all()
        except SnapfsError as error:
            log.error("%s", error)
            numbers = [record.number for record in self._repository.snapshots()]
            return messages.HoldList(
                [messages.HoldState("unknown", number, _UNKNOWN_HOLD_SECONDS) for number in numbers], people
            )
        for hold in holds:
            left_s = max((hold.expires_ns - self._repository.clock()) / 1e9, 0.0)
            name = hold.holder.removeprefix(_HOLD_PREFIX)
            found += [messages.HoldState(name, number, left_s) for number in sorted(hold.snapshots)]
        return messages.HoldList(found, people)

    def _received(self, number: SnapshotNumber) -> int:
        """When it was received, by our clock; now, for one without a line in the log."""
        return self._receiver.received_ns.get(number) or self._repository.clock()
