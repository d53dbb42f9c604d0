"""Frees the space of a mirror's volume: merges small segments, collects what no snapshot needs, removes old parts.

Invariant: collection walks while commits go on, then excludes them and walks what they brought: no commit comes to need
an object that collection considers dead. Branches are kept, as the snapshots are.

Synchronous; takes the receiver's locks itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from replicator.volumes.mirror_encrypted import EncryptedVolume
from replicator.volumes.mirror_retention import Retention
from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repository.compaction import CollectReport
from snapfs.store.tables.reachability import Walk

COLLECT_AFTER_DROPS: Final = 16

Pause = Callable[[], None]
"""Called between steps of long work; may sleep."""


def no_pause() -> None:
    """The work goes on at once."""


class SpaceKeeper:
    """Frees the space of one volume. `branches` are those of the volume, as they are at any time."""

    def __init__(
        self, receiver: Receiver, retention: Retention, encrypted: EncryptedVolume | None,
        branches: Mapping[tuple[str, SnapshotNumber], SnapshotRecord],
    ) -> None:  # fmt: skip
        self._receiver, self._repository = receiver, receiver.repository
        self._retention, self._encrypted, self._branches = retention, encrypted, branches

    def upkeep(self, pause: Pause, part_age_seconds: float) -> None:
        """Everything that is due. Raises OSError, CorruptionError."""
        self._receiver.forget_stale(part_age_seconds)
        if self._encrypted is not None:
            self._encrypted.forget_keys(self._retention.lock_s)
        while self._merge_once(pause):
            pass
        if self._retention.dropped >= COLLECT_AFTER_DROPS and self._encrypted is None:
            self.collect(pause)

    def collect(self, pause: Pause) -> CollectReport:
        """Free what no snapshot needs. Raises OSError, CorruptionError: then nothing was freed."""
        walk = Walk(self._repository, raise_damage)
        self._walk(walk, pause)
        with self._receiver.turn:
            self._walk(walk, pause)
            live, whole = NumberSet(), NumberSet()
            for number in walk.seen:
                live.add(number)
                whole.add(number)
            for record in self._branches.values():
                live.add(record.last_number)
            self._receiver.forget_whole()
            with self._repository.collection() as collection:
                report = collection.run(live, pause)
            self._receiver.note_whole(whole)
            self._retention.dropped = 0
            return report

    def _merge_once(self, pause: Pause) -> int:
        with self._receiver.turn:
            return self._repository.merge_once(pause)

    def _walk(self, walk: Walk, pause: Pause) -> None:
        for record in [*self._repository.snapshots(), *list(self._branches.values())]:
            for _ in walk.visits(record.root):
                pause()


def raise_damage(pointer: Pointer, error: Exception) -> None:
    """What `Walk` calls for an object that cannot be read."""
    if isinstance(error, SnapfsError | OSError):
        raise error
    raise CorruptionError(f"object {pointer.number:#x}", "the store", str(error))
