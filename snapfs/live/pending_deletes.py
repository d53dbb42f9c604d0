"""Files without a name: when their rows and backing files are removed (the pending deletes).

Invariants:
1. An orphan (no links) keeps its row and its bytes while it is open, while the kernel caches the inode, and while the
   open cut may need its bytes.
2. The row goes first, then the WAL is synced, then the backing file goes. A crash between leaves a stray file, which
   recovery removes.
3. `_forgotten` is a subset of `_orphans`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.content.content import Content
from snapfs.live.content.open_counts import Opens
from snapfs.live.lazy.materializer import Materializer
from snapfs.live.namespace.namespace import Namespace

ORPHANS_AT_ONCE = 256


class PendingDeletes:
    """For the owner thread; `reclaim` from any."""

    def __init__(
        self, names: Namespace, content: Content, backing: Backing, materializer: Materializer, opens: Opens,
        orphans: Iterable[Ino],
    ) -> None:  # fmt: skip
        """`orphans`: those that the kernel may still know, under a mount that lives on."""
        self._names, self._content, self._backing = names, content, backing
        self._materializer, self._opens = materializer, opens
        self._orphans = set(orphans)
        self._forgotten: set[Ino] = set()
        for ino in self._orphans:
            content.set_orphan(ino, True)
        self._batches: deque[list[Ino]] = deque()
        self._reclaiming = threading.Lock()

    def add(self, ino: Ino) -> None:
        """The inode has no links any more."""
        self._content.set_orphan(ino, True)
        self._orphans.add(ino)

    def _learn(self) -> None:
        """Take over the orphans that the data path's own changes made."""
        self._orphans.update(self._content.take_orphans())

    def cancel(self, ino: Ino) -> None:
        """The inode has got a name."""
        self._learn()
        self._content.set_orphan(ino, False)
        self._orphans.discard(ino)
        self._forgotten.discard(ino)

    def forget(self, ino: Ino) -> None:
        """The kernel does not know this inode any more."""
        self._learn()
        if ino in self._orphans:
            self._forgotten.add(ino)

    def forget_all(self, orphans: Iterable[Ino]) -> None:
        """These are all orphans there are, and the kernel is sent notices to forget them; open ones stay."""
        self._learn()
        self._orphans = set(orphans)
        for ino in self._orphans:
            self._content.set_orphan(ino, True)
        self._forgotten = self._orphans.copy()

    @property
    def has_forgotten(self) -> bool:
        """Whether there are files that have no name and that the kernel does not know any more."""
        return bool(self._forgotten)

    def remove_rows(self) -> list[Ino]:
        """Remove the rows of up to `ORPHANS_AT_ONCE` unreachable files and return their numbers."""
        self._backing.descriptors.unpin()
        cut = self._content.cut
        ready = [
            ino for ino in self._forgotten
            if not self._opens.is_open(ino) and (cut is None or ino >= cut.end_ino)
        ][:ORPHANS_AT_ONCE]  # fmt: skip
        if not ready:
            return ready
        sizes = self._sizes_of(ready) if self._content.size_limit.is_on else 0
        self._names.remove_orphans(ready)
        self._content.size_limit.count(-sizes)
        for ino in ready:
            self._content.forget(ino)
            self._content.set_orphan(ino, False)
        self._forgotten.difference_update(ready)
        self._orphans.difference_update(ready)
        self._batches.append(ready)
        return ready

    def _sizes_of(self, inos: list[Ino]) -> int:
        """What these count for the limit of size: directories and files that are lost, nothing."""
        total = 0
        for ino in inos:
            with contextlib.suppress(OSError):
                total += self._content.state(ino).size
        return total

    def reclaim(self) -> None:
        """Remove the backing files whose rows were removed before the call. Waits. Any thread. OSError."""
        with self._reclaiming:
            batches = [self._batches.popleft() for _ in range(len(self._batches))]
            if batches:
                self._names.sync()
            for batch in batches:
                for ino in batch:
                    self._backing.remove(ino)
                    self._materializer.drop(ino)

    def check_invariants(self) -> None:
        assert self._forgotten <= self._orphans
