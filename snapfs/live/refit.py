"""Refits: the backing files of a tree that nobody writes to follow its namespace from one snapshot to the next.

A standby's live tree is a snapshot of which some bytes may still be absent (hydration.py). To become the next one takes
one transaction, in which names and attributes are the new ones' and what has other bytes is absent, and then:

    BITS    the presence that was staged (what is unchanged counts as here) takes its place; the file gets its new size;
            what is absent becomes a hole
    WIPE    the file goes: all of it is absent now, or it is no file any more
    TIMES   the bytes stay, the times are others

Steps, and what a crash after each leaves:

1. *Stage* presences under another name; sync.  (Leftovers, which the next opening removes.)
2. *Turn*: the transaction, with the list of refits; sync.  THE COMMIT POINT.  (`redo` does the rest when it is opened.)
3. *Redo* each refit; sync; forget the list.

Invariants:
1. Before the turn the tree is the old snapshot, after it the new one. What of a file is believed to be here is in it.
2. Each refit can be done twice, even after absent bytes have begun to come in: what counts as here stays.
3. A chunk that is absent is a hole where the host can make one: of the old snapshot's bytes nothing is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from snapfs.blocks import CHUNK_SIZE, Ino, chunk_count
from snapfs.live.backing import data_ranges
from snapfs.live.hydration import Hydrator
from snapfs.live.namespace import Namespace
from snapfs.live.presence import Presence
from snapfs.live.ranges import punch
from snapfs.live.records import AbsentFile

BATCH: Final = 256


class Refit(IntEnum):
    BITS = 1
    WIPE = 2
    TIMES = 3


class Refitter:
    """Of one tree. One thread, which is the namespace's."""

    def __init__(self, names: Namespace, hydrator: Hydrator, boot_id: str) -> None:
        self._names, self._hydrator, self._boot_id = names, hydrator, boot_id
        self._backing, self._disk = hydrator.backing, hydrator.backing.disk

    def stage(self, ino: Ino, absent: AbsentFile, changed: Iterator[int]) -> None:
        """Step 1 for a file that is here in whole or in part, of which these chunks will be others. OSError."""
        count = chunk_count(absent.size)
        every = (1 << count) - 1
        presence = self._hydrator.partial.get(ino)
        seen, sure = (every, every) if presence is None else presence.bits
        if presence is not None:  # what is beyond its end is a hole, unless it is among the changed
            beyond = every >> presence.chunks << presence.chunks
            seen, sure = seen | beyond, sure | beyond
        others = bytearray(-(-count // 8))
        for chunk in changed:
            if chunk < count:
                others[chunk >> 3] |= 1 << (chunk & 7)
        stays = every & ~int.from_bytes(others, "little")
        Presence.stage(self._staged(ino), absent, self._disk, self._boot_id, seen & stays, sure & stays)

    def settle_staged(self) -> None:
        """The end of step 1."""
        self._backing.sync_all("refit:staged")

    def redo(self) -> None:
        """Step 3, as far as it is not done. Then the list is empty."""
        after, done = Ino(0), 0
        while batch := self._names.refits(after, BATCH):
            for ino, action in batch:
                self._refit(ino, Refit(action))
            after, done = batch[-1][0], done + len(batch)
        if done:
            self._backing.sync_all("refit:done")
            self._names.clear_refits()

    def _refit(self, ino: Ino, action: Refit) -> None:
        if action is Refit.WIPE:
            self._backing.remove(ino, "refit:wipe")
            self._hydrator.drop(ino)
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink("refit:presence", self._hydrator.path(ino))
        elif action is Refit.TIMES:
            self._set_times(ino)
        else:
            self._fit(ino)

    def _set_times(self, ino: Ino) -> None:
        inode = self._names.inode(ino)
        with contextlib.suppress(FileNotFoundError), self._backing.descriptors.borrow(ino) as fd:
            os.utime(fd, ns=(inode.ctime_ns, inode.mtime_ns))

    def _fit(self, ino: Ino) -> None:
        place, absent = self._hydrator.path(ino), self._names.absent(ino)
        with contextlib.suppress(FileNotFoundError):
            self._disk.rename("refit:bits", self._staged(ino), place)
        if absent is None or not os.path.exists(place):
            return  # all of it has come in since
        presence = Presence.load(place, absent, self._disk, self._boot_id)
        with self._backing.descriptors.borrow(ino) as fd:
            self._disk.truncate("refit:size", fd, absent.size)
            for start, end in _absent_ranges(presence):
                _clear(fd, start, min(end, absent.size))
            os.utime(fd, ns=(absent.ctime_ns, absent.mtime_ns))
        self._hydrator.partial[ino] = presence

    def _staged(self, ino: Ino) -> str:
        return f"{self._hydrator.path(ino)}.next"


def _clear(fd: int, start: int, end: int) -> None:
    for begin, stop in list(data_ranges(fd, start, end)):
        try:
            punch(fd, begin, stop - begin)
        except OSError as failure:
            if failure.errno != errno.EOPNOTSUPP:
                raise  # else what comes in is written over it, zeros too


def _absent_ranges(presence: Presence) -> Iterator[tuple[int, int]]:
    """(from, to) in bytes of the runs of chunks that are not here."""
    first = stop = 0
    while found := presence.absent_chunks(stop, limit=1):
        first = stop = found[0]
        while presence.is_absent(stop):
            stop += 1
        yield first * CHUNK_SIZE, stop * CHUNK_SIZE
