"""SQLite's write-ahead log as it lies on the disk: its frames, and how many the wal-index counts.

Owns a descriptor of the -wal file, and a mapping of the head of the wal-index in the -shm file
(https://sqlite.org/walformat.html). Both are opened before the first transaction and closed after the last connection
of the process (schema.py, invariant 4): closing a descriptor drops the locks that SQLite holds on the file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct

from snapfs.live.database.high_water_mark import Position
from snapfs.live.database.schema import PAGE_SIZE

FRAME_SIZE = PAGE_SIZE + 24
HEADER_BYTES = 32
INDEX_FILE_BYTES = 256 << 10
"""SQLite's wal-index for twice the WAL that is ever let grow."""
INDEX_BYTES = 136
"""The head of SQLite's wal-index, in the -shm file."""
FRAMES_READ = 256
_PAGE, _SALTS, _WORD = struct.Struct(">I"), struct.Struct(">2I"), struct.Struct("=I")


class WalFiles:
    """Any thread; `open` and `close` once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptors: list[int] = []
        self._index: mmap.mmap | None = None
        self._frame_bytes = FRAME_SIZE

    @property
    def is_open(self) -> bool:
        return self._index is not None

    def open(self) -> None:
        """No effect where they are open. OSError."""
        if self._index is not None:
            return
        for suffix in ("-wal", "-shm"):
            self._descriptors.append(os.open(self._path + suffix, os.O_RDWR | os.O_CLOEXEC))
        with contextlib.suppress(OSError):  # on a full disk a hole in what is mapped would be the end of the process
            os.posix_fallocate(self._descriptors[1], 0, INDEX_FILE_BYTES)
        self._index = mmap.mmap(self._descriptors[1], INDEX_BYTES, prot=mmap.PROT_READ)

    def use_page_size(self, page_size: int) -> None:
        """The database has pages of another size: it was created by another program, and only filled here."""
        self._frame_bytes = page_size + FRAME_SIZE - PAGE_SIZE

    @property
    def log_fd(self) -> int:
        return self._descriptors[0]

    @property
    def index(self) -> mmap.mmap:
        """The head of the wal-index, to be read."""
        assert self._index is not None
        return self._index

    def frames(self) -> int:
        """Frames in use (field mxFrame of the wal-index)."""
        assert self._index is not None
        return int(_WORD.unpack_from(self._index, 16)[0])

    def backfilled(self) -> int:
        """Frames already written back to the database (field nBackfill)."""
        assert self._index is not None
        return int(_WORD.unpack_from(self._index, 96)[0])

    def rest(self) -> int:
        """Frames that are not written back yet; 0 or less if there are none (this order: wal.py, invariant 4)."""
        backfilled = self.backfilled()
        return self.frames() - backfilled

    def bytes(self) -> int:
        """Bytes of the WAL that hold transactions."""
        return self.frames() * FRAME_SIZE

    def position(self) -> Position:
        """The end of the log (fields mxFrame and aSalt); between two transactions."""
        assert self._index is not None
        salt1, salt2 = _SALTS.unpack_from(self._index, 32)
        return Position(salt1, salt2, self.frames())

    def pages(self, first: int, stop: int) -> set[int]:
        """The numbers of the pages in frames [first, stop) of the log."""
        pages: set[int] = set()
        frame = self._frame_bytes
        for low in range(first, stop, FRAMES_READ):
            count = min(stop - low, FRAMES_READ)
            data = os.pread(self.log_fd, count * frame, HEADER_BYTES + low * frame)
            pages.update(_PAGE.unpack_from(data, at)[0] for at in range(0, len(data) - frame + 1, frame))
        return pages

    def close(self) -> None:
        """Only after every connection of this process is closed."""
        if self._index is not None:
            self._index.close()
        while self._descriptors:
            os.close(self._descriptors.pop())
