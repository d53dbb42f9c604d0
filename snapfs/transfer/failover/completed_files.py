"""Files of a replica tree that one step completed: durable first, then in place, then recorded as complete."""

from __future__ import annotations

import os
from typing import Final

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.lazy.materializer import Materializer
from snapfs.live.namespace.namespace import Namespace

FEW_SYNCS: Final = 16
"""Up to so many files are made durable one by one; for more, the whole host filesystem is synced."""


class CompletedFiles:
    """The files that one step completed.

    `staged`: small files, written in the staging folder. `finished`: large ones, in place, with a presence bitmap that
    goes. `complete`: those that a crash left complete, with only their row to remove.
    """

    def __init__(self, names: Namespace, backing: Backing) -> None:
        self._names, self._backing, self._disk = names, backing, backing.disk
        self.staged: list[Ino] = []
        self.finished: list[Ino] = []
        self.complete: list[Ino] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.staged) + len(self.finished) + len(self.complete)

    def settle(self, materializer: Materializer) -> None:
        """Make the files durable and record them. A crash leaves rows of files that are here, which do no harm."""
        here = [*map(self._backing.staged, self.staged), *map(self._backing.path, self.finished)]
        if len(here) > FEW_SYNCS:
            self._backing.sync_all("replica:bytes")
        else:
            self._sync_each(here)
        for ino in self.staged:
            self._backing.replace(ino, self._backing.staged(ino), "replica:rename")
        if len(self.staged) > FEW_SYNCS:
            self._backing.sync_all("replica:names")
        for ino in self.staged:
            self._backing.sync_name(ino)
        for ino in self.finished:
            materializer.drop(ino)
        self._names.clear_absent_files([*self.staged, *self.finished, *self.complete])

    def _sync_each(self, paths: list[str]) -> None:
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._disk.fsync("replica:bytes", fd)
            finally:
                os.close(fd)
