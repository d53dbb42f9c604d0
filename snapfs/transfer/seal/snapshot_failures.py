"""Since when snapshots fail: the first request that failed and was not made up for by a later snapshot.

A volume without `snapshots.every` has no interval that could be overdue, and the command that failed may have had no
reader. So the first failure since the newest snapshot is noted beside the live tree, a seal that ended with its process
counts as one, and the next snapshot takes the note away: it has all changes.

Invariants:
1. `since` is the first failure after the newest snapshot, with the words of the last one; None while all is well.
2. The note outlives the daemon and the mount. It is not synced; one that is damaged is none. One of a later format is
   refused (seal_notes.py), before the volume is opened.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.json_file import JsonFile
from snapfs.transfer.seal.seal_notes import read_note

NAME = "snapshot-failed.json"


class Failed(msgspec.Struct, frozen=True):
    """Snapshots fail since `since_ns` (since 1970); `what` failed last, and why."""

    since_ns: int
    what: str
    message: str
    format: int = 1


FAILED: JsonFile[Failed] = JsonFile("snapshot failure", Failed)


class Failing:
    """The note of one volume. Any thread, one at a time."""

    def __init__(self, folder: str, disk: Disk) -> None:
        """Raises VersionError for a note of a later format."""
        self._disk, self._path = disk, os.path.join(folder, NAME)
        self.since = read_note(FAILED, self._path)

    def failed(self, what: str, message: str, time_ns: int) -> None:
        """Record that a snapshot failed: `what` it was, and the error's message."""
        self.since = Failed(self.since.since_ns if self.since is not None else time_ns, what, message)
        with contextlib.suppress(OSError):  # else the disk is full: known while this process lives
            self._disk.replace_unsynced("snapshot:failed", self._path, FAILED.encode(self.since))

    def died(self, time_ns: int | None) -> None:
        """Record that a process ended during a seal that it began at `time_ns`; None: there was no such seal."""
        if time_ns is not None and self.since is None:
            self.failed("a snapshot", "the daemon was killed or died while it made it", time_ns)

    def made(self) -> None:
        """Remove the record: a snapshot was made."""
        if self.since is not None:
            self.since = None
            with contextlib.suppress(OSError):
                self._disk.unlink("snapshot:made", self._path)

    def seconds(self, now_ns: int) -> float:
        """How long snapshots fail; 0 while all is well."""
        return max((now_ns - self.since.since_ns) / 1e9, 0.001) if self.since is not None else 0.0

    def facts(self) -> dict[str, Any] | None:
        """For status."""
        since = self.since
        return None if since is None else {"since_ns": since.since_ns, "what": since.what, "message": since.message}
