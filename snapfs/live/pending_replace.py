"""Files that replace the content of others without an fsync, made durable in time (what ext4 calls auto_da_alloc).

An application that writes a new file and renames it over the old one, or that empties a file and writes it anew, must
find the old or the new content after a power cut, not an empty file.

Invariants:
1. A file that takes another one's name is made durable before the names are: `settle` runs before each sync of the
   log (wal.py).
2. A file that was emptied counts as pending once it is closed and has bytes again.
"""

from __future__ import annotations

import threading

from snapfs.base.blocks import Ino
from snapfs.live.attributes import AttributeReader
from snapfs.live.backing.backing import Backing
from snapfs.live.content.open_counts import Opens
from snapfs.live.lazy.materializer import Materializer
from snapfs.live.namespace.namespace import Namespace

MAX_EMPTIED = 512


class PendingReplace:
    """For the owner thread; `settle` from any."""

    def __init__(
        self, names: Namespace, backing: Backing, materializer: Materializer, opens: Opens, attributes: AttributeReader
    ) -> None:
        self._names, self._backing, self._materializer = names, backing, materializer
        self._opens, self._attributes = opens, attributes
        self._emptied: set[Ino] = set()
        self._settling = threading.Lock()

    def note_emptied(self, ino: Ino) -> None:
        """The file was truncated to nothing: what is written to it counts from its close on."""
        if len(self._emptied) >= MAX_EMPTIED:
            self._names.depend_on(self._emptied)
            self._emptied.clear()
        self._emptied.add(ino)

    def note_refilled(self) -> None:
        """Add the files that were emptied, have bytes again and are closed. About every second."""
        for ino in [
            ino for ino in self._emptied if not self._opens.is_written(ino) and self._attributes.of_file(ino)[0]
        ]:
            self._emptied.discard(ino)
            self._names.depend_on([ino])

    def forget(self, inos: list[Ino]) -> None:
        """These inodes are gone."""
        self._emptied.difference_update(inos)

    def settle(self) -> None:
        """Make the pending files durable. Raises nothing: a failure is reported by the next fsync of that file."""
        with self._settling:  # a caller that finds nothing pending must wait for the one that took the files over
            pending = self._names.take_pending_replace()
            if pending:
                self._materializer.settle(pending, lambda: self._backing.settle_each(pending))
