"""Applies a snapshot to the backing files of a tree without writers: a standby's tree follows its namespace.

A standby's live tree is a snapshot of which some bytes may still be absent (materializer.py). To become the next one
takes one transaction, in which names and attributes are the new ones' and what has other bytes is absent, and then:

    BITS    the staged residency file (what is unchanged counts as present) takes its place; the file gets its new size;
            what is absent becomes a hole
    WIPE    the file goes: all of it is absent now, or it is no file any more
    TIMES   the bytes stay, the times are others

Steps, and what a crash after each leaves:

1. *Stage* residency files under another name; sync.  (Leftovers, which the next opening removes.)
2. *Commit*: the transaction, with the redo list; sync.  THE COMMIT POINT.  (`redo` does the rest when it is opened.)
3. *Redo* each entry; sync; forget the list.

Invariants:
1. Before the commit the tree is the old snapshot, after it the new one. What counts as present of a file is in it.
2. Each redo can be done twice, even after absent bytes have begun to come in: what counts as here stays.
3. A chunk that is absent is a hole where the host can make one: of the old snapshot's bytes nothing is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from snapfs.base.blocks import CHUNK_SIZE, Ino, chunk_count
from snapfs.live.backing.backing_files import data_ranges
from snapfs.live.content.ranges import punch
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.lazy.materializer import Materializer
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.residency.residency import Residency

BATCH: Final = 256


class Redo(IntEnum):
    BITS = 1
    WIPE = 2
    TIMES = 3


class ChangeApplier:
    """Of one tree. One thread, which is the namespace's."""

    def __init__(self, names: Namespace, materializer: Materializer, boot_id: str) -> None:
        self._names, self._materializer, self._boot_id = names, materializer, boot_id
        self._backing, self._disk = materializer.backing, materializer.backing.disk

    def stage(self, ino: Ino, absent: AbsentFile, changed: Iterator[int]) -> None:
        """Step 1 for a file that is here in whole or in part, of which these chunks will be others. OSError."""
        count = chunk_count(absent.size)
        every = (1 << count) - 1
        residency = self._materializer.partial.get(ino)
        present, durable = (every, every) if residency is None else residency.bits
        if residency is not None:  # what is beyond its end is a hole, unless it is among the changed
            beyond = every >> residency.chunks << residency.chunks
            present, durable = present | beyond, durable | beyond
        others = bytearray(-(-count // 8))
        for chunk in changed:
            if chunk < count:
                others[chunk >> 3] |= 1 << (chunk & 7)
        stays = every & ~int.from_bytes(others, "little")
        Residency.stage(self._staged(ino), absent, self._disk, self._boot_id, present & stays, durable & stays)

    def settle_staged(self) -> None:
        """The end of step 1."""
        self._backing.sync_all("apply:staged")

    def redo(self) -> None:
        """Step 3, as far as it is not done. Then the list is empty."""
        after, done = Ino(0), 0
        while batch := self._names.redo_list(after, BATCH):
            for ino, action in batch:
                self._redo(ino, Redo(action))
            after, done = batch[-1][0], done + len(batch)
        if done:
            self._backing.sync_all("apply:done")
            self._names.clear_redo()

    def _redo(self, ino: Ino, action: Redo) -> None:
        if action is Redo.WIPE:
            self._backing.remove(ino, "apply:wipe")
            self._materializer.drop(ino)
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink("apply:residency", self._materializer.path(ino))
        elif action is Redo.TIMES:
            self._set_times(ino)
        else:
            self._fit(ino)

    def _set_times(self, ino: Ino) -> None:
        inode = self._names.inode(ino)
        with contextlib.suppress(FileNotFoundError), self._backing.descriptors.borrow(ino) as fd:
            os.utime(fd, ns=(inode.ctime_ns, inode.mtime_ns))

    def _fit(self, ino: Ino) -> None:
        place, absent = self._materializer.path(ino), self._names.absent(ino)
        with contextlib.suppress(FileNotFoundError):
            self._disk.rename("apply:bits", self._staged(ino), place)
        if absent is None or not os.path.exists(place):
            return  # all of it has come in since
        residency = Residency.load(place, absent, self._disk, self._boot_id)
        if residency.damage:
            residency.forget_unknown()
        with self._backing.descriptors.borrow(ino) as fd:
            self._disk.truncate("apply:size", fd, absent.size)
            for start, end in _absent_ranges(residency):
                _clear(fd, start, min(end, absent.size))
            os.utime(fd, ns=(absent.ctime_ns, absent.mtime_ns))
        self._materializer.partial[ino] = residency

    def _staged(self, ino: Ino) -> str:
        return f"{self._materializer.path(ino)}.next"


def _clear(fd: int, start: int, end: int) -> None:
    for begin, stop in list(data_ranges(fd, start, end)):
        try:
            punch(fd, begin, stop - begin)
        except OSError as failure:
            if failure.errno != errno.EOPNOTSUPP:
                raise  # else what comes in is written over it, zeros too


def _absent_ranges(residency: Residency) -> Iterator[tuple[int, int]]:
    """(from, to) in bytes of the runs of chunks that are not here."""
    first = stop = 0
    while found := residency.absent_chunks(stop, limit=1):
        first = stop = found[0]
        while residency.is_absent(stop):
            stop += 1
        yield first * CHUNK_SIZE, stop * CHUNK_SIZE
