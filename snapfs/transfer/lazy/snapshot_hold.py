"""Holds the snapshot that absent files get their bytes from, as long as there are absent files.

A clone's files have their bytes only in the store, until they are hydrated. Dropping their snapshot would lose them, so
it is held (store/log/holds.py): the hold is a file of the store, which is found again after any restart, is shown by
`list` and `show`, and makes `drop` refuse with its reason.

Invariants:
1. The hold is durable before the first absent file of a volume can be seen, and is released after the last one has
   been hydrated.
2. A volume with absent files and without a hold (made by an older snapfs) gets one at its next mount: on the newest
   good snapshot, which has the bytes of all absent files that have a name, since none of them can have changed.
3. A hold that cannot be written stops the mount; a release that fails is tried again.

A crash before the release leaves a hold for too long: the next `look` releases it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from snapfs.base.blocks import SnapshotNumber
from snapfs.live.namespace.namespace import Namespace
from snapfs.store.log.holds import Holds
from snapfs.store.repository.repository import Repository, SnapshotRecord

log = logging.getLogger(__name__)

HOLDER = "absent-files"
_WHY = "files of the live tree have their bytes only there until they have all arrived"
_FOR_EVER_S = 100 * 365 * 86400.0
_READING_S = 86400.0


def hold(holds: Holds, number: SnapshotNumber) -> None:
    """Hold this snapshot for absent files that are about to be made. Raises OSError."""
    holds.take(HOLDER, [number], _FOR_EVER_S, _WHY)


def held(repository: Repository) -> SnapshotRecord | None:
    """The snapshot that is held for absent files; None if none is, or it is not here. OSError, CorruptionError."""
    holds = Holds(repository.store_dir, repository.disk).all()
    numbers = [number for each in holds if each.holder == HOLDER for number in each.snapshots]
    return repository.catalog.get(numbers[0]) if numbers else None


@contextlib.contextmanager
def held_while(repository: Repository, record: SnapshotRecord, act: str) -> Iterator[None]:
    """Hold a snapshot while this process reads it. Raises UserError if it was dropped before.

    Only the store's owner takes a hold: the file that another user's killed process leaves could not be read, or
    removed, by the daemon. A user who may not write there reads without a hold.
    """
    if record.branch:  # it is never dropped, and its number may be that of another snapshot
        yield
        return
    holds, holder = Holds(repository.store_dir, repository.disk), f"{act}-{os.getpid()}"
    try:
        is_held = os.stat(repository.store_dir).st_uid == os.geteuid()
        if is_held:
            holds.take(holder, [record.number], _READING_S, f"process {os.getpid()} reads it: {act}", durable=False)
    except OSError:
        is_held = False
    try:
        repository.refresh()
        repository.find(str(record.number))
        yield
    finally:
        if is_held:
            with contextlib.suppress(OSError):
                holds.release(holder)


class SnapshotHold:
    """The hold of one mounted volume. `look` is for the owner thread of the namespace."""

    def __init__(self, names: Namespace, repository: Repository) -> None:
        """Take the hold if one is missing. Raises OSError."""
        self._names = names
        self._holds = Holds(repository.store_dir, repository.disk)
        self.is_held = any(each.holder == HOLDER for each in self._holds.all())
        source = repository.latest_good()
        if not self.is_held and self._is_needed() and source is not None:
            hold(self._holds, source.number)
            self.is_held = True

    def look(self) -> bool:
        """Release the hold if nothing is absent any more; True if that was done. Every second or so."""
        if not self.is_held or self._is_needed():
            return False
        try:
            self._holds.release(HOLDER)
        except OSError as error:
            log.error("the hold of a snapshot for absent files could not be released: %s", error)
            return False
        log.info("all absent files have arrived: their snapshot is not held any more")
        self.is_held = False
        return True

    def _is_needed(self) -> bool:
        return self._names.has_absent()
