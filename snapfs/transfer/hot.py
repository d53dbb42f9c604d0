"""The hot list: what this life uses most, for the next one to fetch first, on whatever host that is.

Every minute (every few seconds until there is a first list) the files that are open gain, and all others lose half of
what they had. Of the highest, the chunks that the host has in its page cache are listed (mincore(2) on the backing
files): the kernel has been counting all the time, for nothing. VOLUME/hot is replaced by a rename; the replicator sends
it along (wire.py: HOT).

Invariants:
1. It is a hint: nothing depends on it, no error of it reaches anybody, and a list that is lost is made again.
2. Its cost is bounded: so many files are looked at, so many chunks listed, in a worker thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
from collections import Counter

import trio

from snapfs.blocks import CHUNK_SIZE, ChunkIndex, Ino
from snapfs.live.tree import LiveTree
from snapfs.store.wire import Hot, pack_hot
from snapfs.transfer.sources import HOT_FILE

log = logging.getLogger(__name__)

EVERY_S = 60.0
FIRST_S = 5.0
FILES = 512
REMEMBERED = 4096
CHUNKS = 16384
LOOKED_AT_BYTES = 4 << 30
"""Of one file: a mincore of more would take a worker thread too long."""
_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


class HotKeeper:
    """Of one mounted volume; lives in the trio thread."""

    def __init__(self, tree: LiveTree, volume_path: str) -> None:
        self._tree, self._path = tree, os.path.join(volume_path, HOT_FILE)
        self._scores: Counter[Ino] = Counter()
        self._written = b""

    async def run(self) -> None:
        """For ever."""
        while True:
            await trio.sleep(EVERY_S if self._written else FIRST_S)
            self.note()
            await trio.to_thread.run_sync(self.write)

    def note(self) -> None:
        """Those open now count one; what counted before counts half. In the owner thread."""
        for ino in list(self._scores):
            self._scores[ino] //= 2
        for ino in self._tree.open_files():
            self._scores[ino] += 1 << 16
        if len(self._scores) > REMEMBERED:
            self._scores = Counter(dict(self._scores.most_common(REMEMBERED // 2)))

    def write(self) -> None:
        """Put the list in its place, if it is another one. Any thread."""
        try:
            packed = pack_hot(self.list())
            if packed == self._written or not packed:
                return
            with open(f"{self._path}.new", "wb") as file:
                file.write(packed)
            os.replace(f"{self._path}.new", self._path)
            self._written = packed
        except OSError as error:
            log.warning("no list of what is used most could be written: %s", error)

    def list(self) -> list[Hot]:
        """Hottest first."""
        found: list[Hot] = []
        room = CHUNKS
        for ino, _ in self._scores.most_common(FILES):
            with contextlib.suppress(OSError), self._tree.borrow_backing(ino) as fd:
                for first, count in resident(fd):
                    found.append((ino, ChunkIndex(first), min(count, room)))
                    room -= count
                    if room <= 0:
                        return found
        return found


def resident(fd: int) -> list[tuple[int, int]]:
    """(first, count) of the runs of chunks of a file of which the host has something in memory. OSError."""
    size = min(os.fstat(fd).st_size, LOOKED_AT_BYTES)
    if not size:
        return []
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        pages = bytearray(-(-size // _PAGE))
        view = (ctypes.c_char * len(pages)).from_buffer(pages)
        start = ctypes.c_char.from_buffer(mapped)
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), view)
        number = ctypes.get_errno()
        del start, view
    if failed:
        raise OSError(number, os.strerror(number))
    return _runs_of(bytes(page & 1 for page in pages))


def _runs_of(pages: bytes) -> list[tuple[int, int]]:
    per_chunk = CHUNK_SIZE // _PAGE
    runs: list[tuple[int, int]] = []
    at = pages.find(1)
    while at >= 0:
        first = at // per_chunk
        stop = first + 1
        while pages.find(1, stop * per_chunk, (stop + 1) * per_chunk) >= 0:
            stop += 1
        runs.append((first, stop - first))
        at = pages.find(1, stop * per_chunk)
    return runs
