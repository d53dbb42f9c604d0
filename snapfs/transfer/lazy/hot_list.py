"""The hot list: what this life uses most, for the next one to fetch first, on whatever host that is.

Every minute (every few seconds until there is a first list) the files that are open gain, and all files lose half of
their score. Of the highest, the chunks that the host has in its page cache are listed (mincore(2) on the backing
files): the kernel counts accesses anyway. VOLUME/hot is replaced by a rename; the replicator sends it along
(store/protocol/hot_codec.py).

Invariants:
1. It is a hint: nothing depends on it, its errors are only logged, and a list that is lost is made again.
2. Its cost is bounded: so many files are looked at, so many chunks listed, in a worker thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Disk, Ino
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.base.volumes.volume_files import HOT_FILE
from snapfs.live.tree import LiveTree
from snapfs.store.protocol.hint_files import HOT
from snapfs.store.protocol.hot_codec import Hot, pack_hot

log = logging.getLogger(__name__)

EVERY_S = 60.0
FIRST_S = 5.0
FILES = 512
REMEMBERED = 4096
CHUNKS = 16384
LOOKED_AT_BYTES = 4 << 30
"""The part of one file that is looked at: a mincore of more would take a worker thread too long."""
Pause = Callable[[float], Awaitable[object]]
_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


class HotKeeper:
    """Keeps the list of one mounted volume. Lives in the trio thread."""

    def __init__(self, tree: LiveTree, volume_path: str, disk: Disk, pause: Pause = trio.sleep) -> None:
        """`pause` is called between two lists with the seconds to wait; it may wait longer while nothing is used."""
        self._pause = pause
        self._tree, self._disk, self._path = tree, disk, os.path.join(volume_path, HOT_FILE)
        self._scores: Counter[Ino] = Counter()
        self._written = b""
        self._is_later = False
        """Whether a later snapfs wrote the list that is there: it is not replaced."""

    async def run(self) -> None:
        """Keep the list for ever. Never raises OSError."""
        while True:
            await self._pause(EVERY_S if self._written else FIRST_S)
            self.note()
            await trio.to_thread.run_sync(self.write)

    def note(self) -> None:
        """Halve all scores, and count the files that are open now. In the owner thread of the tree."""
        for ino in list(self._scores):
            self._scores[ino] //= 2
        for ino in self._tree.open_files():
            self._scores[ino] += 1 << 16
        if len(self._scores) > REMEMBERED:
            self._scores = Counter(dict(self._scores.most_common(REMEMBERED // 2)))

    def write(self) -> None:
        """Write the list, if it has changed. Any thread. Errors are logged."""
        try:
            packed = pack_hot(self.list())
            if packed == self._written or not packed or self._is_later:
                return
            if not self._written:
                with contextlib.suppress(CorruptionError):
                    HOT.read(self._path)
            self._disk.replace_unsynced("hot:list", self._path, HOT.encode(packed))
            self._written = packed
        except VersionError as error:
            self._is_later = True
            log.warning("what is used most is not written: %s", error)
        except OSError as error:
            log.warning("no list of what is used most could be written: %s", error)

    def list(self) -> list[Hot]:
        """The list, hottest first."""
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
