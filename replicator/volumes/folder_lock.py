"""The lock of a folder that keeps a volume's history: a mirror's volume, or a folder that is a target.

Two may be set, and the longer one counts: that of the process which serves it (`serve --lock`), and the file lock.json
in the volume's folder (`snapfs-replicator lock`). The file is read at each use: a change counts at once.

Invariant: a file that is damaged, or of a later format, locks for LONGEST_SECONDS; no error lets anything leave.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.log.locks import LOCK, LOCK_FILE, LONGEST_SECONDS, Lock, changed

log = logging.getLogger(__name__)


class FolderLock:
    """The lock of the volume in `folder`. `serve_s`: the lock that the serving process was started with."""

    def __init__(self, folder: str, disk: Disk, serve_s: float = 0.0) -> None:
        self._path, self._disk, self._serve_s = os.path.join(folder, LOCK_FILE), disk, serve_s

    def seconds(self) -> float:
        """How long the lock is, 0 without one. Raises OSError."""
        try:
            known = self.read()
        except (CorruptionError, VersionError) as error:
            log.error("%s: nothing is dropped here until it is set anew", error)
            return LONGEST_SECONDS
        return max(self._serve_s, known.seconds if known is not None else 0.0)

    def read(self) -> Lock | None:
        """The file; None if there is none. Raises CorruptionError, VersionError, OSError."""
        return LOCK.read(self._path)

    def set(self, seconds: float, *, shorten: bool, clock: Callable[[], int] = time.time_ns) -> Lock:
        """Set it, durably. Raises UserError if it gets shorter without `shorten`, OSError; VersionError.

        A damaged file counts as the longest lock.
        """
        try:
            known = self.read()
        except CorruptionError:
            known = Lock(LONGEST_SECONDS, 0)
        made = changed(known, seconds, clock(), shorten=shorten)
        LOCK.write("lock:set", self._path, made, self._disk)
        return made
