"""Materializes absent files: regular files whose bytes are still only in the store.

A file is *absent* as a whole: an `absent` row and no backing file. It is *partly present*: a row, a backing file, and a
residency file (residency.py). Else it is present, and a row that is left over counts for nothing.

A small file is fetched whole before its first change. A large one only gets a sparse backing file of its size and
times; reads come from the store, a chunk that is half overwritten is fetched first, and the background fetches the
rest.

Invariants:
1. A backing file without a residency file is complete and durable, with its name, before anything may write to it; so
   where there are both row and file, the file wins. A residency file is durable before its backing file exists, and
   goes only when all of the file is durable.
2. One thread fills a chunk or a small file; others that need it wait for that one.
3. `FileState.absent` is None only for a complete file. Where it is a `Residency` the steps of a change are those of any
   file; the chunks it touches are fetched before.

A crash leaves a staged file or a residency file without its backing file, which are removed when the tree is opened, or
a row.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable

from snapfs.base.blocks import CHUNK_SIZE, Ino, begin_writing, chunk_count
from snapfs.live.backing.backing import Backing
from snapfs.live.database.namespace_rows import AbsentFile, LoadedEntry
from snapfs.live.lazy.content_source import ContentSource, chunks_of
from snapfs.live.lazy.file_maker import FileMaker
from snapfs.live.lazy.fill_locks import FillLocks
from snapfs.live.lazy.residency_recovery import PIECE_CHUNKS, FoundResidency, ResidencyRecovery, residency_folder
from snapfs.live.residency.residency import Residency

SMALL_BYTES = 4 * CHUNK_SIZE
"""Up to here a file is fetched whole: a residency file costs two flushes more."""
WHOLE_BYTES = 64 * CHUNK_SIZE
"""Up to here the background makes an untouched file whole, with others: a residency file takes six flushes."""


class Materializer:
    """All methods from any thread. `arrived` collects the files whose rows are left over."""

    def __init__(self, backing: Backing, source: ContentSource | None, boot_id: str = "") -> None:
        self.backing = backing
        self.arrived: deque[Ino] = deque()
        self.partial: dict[Ino, Residency] = {}
        self._source = source
        self._supplied_bytes = 0
        self._boot_id = boot_id
        self._locks = FillLocks()
        self._maker = FileMaker(backing)

    @property
    def written_bytes(self) -> int:
        """Bytes of content that were put into backing files."""
        return self._supplied_bytes + self._maker.written_bytes

    @property
    def folder(self) -> str:
        return residency_folder(self.backing.live_dir)

    def path(self, ino: Ino) -> str:
        """The residency file of an inode."""
        return os.path.join(self.folder, f"{ino:x}")

    def open(
        self, find_absent: Callable[[Ino], AbsentFile | None], discard: Callable[[str], None] | None = None
    ) -> FoundResidency:
        """Load the residency files of the last life, and remove those without a file. Before the tree is used.

        `discard` takes residency files that no inode has; else they are removed. Raises as `ResidencyRecovery.run`.
        """
        found = ResidencyRecovery(self.backing, self._boot_id, self._must_source, find_absent, discard).run()
        self.partial.update(found.partial)
        return found

    def use(self, source: ContentSource) -> None:
        """From now on absent bytes are those of this source: a standby's tree has become the next snapshot."""
        self._source = source

    # -- reading

    def read(self, ino: Ino, absent: AbsentFile | Residency, offset: int, size: int, file_size: int) -> bytes:
        """Bytes of a file that is not complete, of `file_size` bytes now. EIO without a source."""
        size = min(size, file_size - offset)
        if size <= 0:
            return b""
        if isinstance(absent, AbsentFile):
            return self._must_source().read(ino, absent.origin, offset, size)
        return b"".join(self._pieces(ino, absent, offset, offset + size))

    def _pieces(self, ino: Ino, residency: Residency, start: int, end: int) -> list[bytes]:
        """The range, as runs of chunks that are here and of others that are not."""
        found = []
        while start < end:
            here = not residency.is_absent(start // CHUNK_SIZE)
            stop = (start // CHUNK_SIZE + 1) * CHUNK_SIZE
            while stop < end and residency.is_absent(stop // CHUNK_SIZE) is not here:
                stop += CHUNK_SIZE
            stop = min(stop, end)
            piece = self._present(ino, start, stop) if here else self._origin(ino, residency, start, stop)
            found.append(piece.ljust(stop - start, b"\0"))
            start = stop
        return found

    def _present(self, ino: Ino, start: int, stop: int) -> bytes:
        with self.backing.descriptors.borrow(ino) as fd:
            return os.pread(fd, stop - start, start)

    def _origin(self, ino: Ino, residency: Residency, start: int, stop: int) -> bytes:
        return self._must_source().read(ino, residency.origin, start, min(stop, residency.size) - start)

    # -- fetching

    def fetch(self, ino: Ino, absent: AbsentFile, empty: bool = False, whole: bool = False) -> Residency | None:
        """Let the file be changed. None: it is present now; or, of a large one, its residency.

        `empty`: just size and times, its bytes being dropped anyhow. `whole`: all of it, however large.
        """
        with self._locks.exclusive(ino):
            if not self._maker.is_made(ino):
                if not empty and not whole and absent.size > SMALL_BYTES:
                    self._must_source()
                    self.partial[ino] = self._begin(ino, absent)
                else:
                    self._maker.make(ino, absent, None if empty else self._must_source())
                    self.arrived.append(ino)
            return self.partial.get(ino)

    def _begin(self, ino: Ino, absent: AbsentFile) -> Residency:
        residency = Residency.create(self.path(ino), absent, self.backing.disk, self._boot_id)
        self._maker.make(ino, absent, None)
        return residency

    def make_many(self, files: Iterable[tuple[Ino, AbsentFile]]) -> None:
        """Make the backing files of absent files, with two flushes for all; not those of another thread."""
        with contextlib.ExitStack() as held:
            mine = [
                (ino, absent) for ino, absent in files
                if self._locks.try_exclusive(held, ino) and not self._maker.is_made(ino)
            ]  # fmt: skip
            if mine:
                self._maker.make_many(mine, self._must_source())

    def fill(self, ino: Ino, absent: AbsentFile, fd: int) -> None:
        """Write all of an absent file to `fd`, an empty file, with its size and times. Nothing is synced."""
        self._maker.write_all(ino, absent, self._must_source(), fd)

    def fetch_chunks(self, ino: Ino, residency: Residency, chunks: list[int], urgent: bool = True) -> None:
        """Put these chunks into the backing file, those that are absent. OSError, CorruptionError."""
        source = self._must_source()
        for low in range(0, len(chunks), PIECE_CHUNKS):
            wanted = [chunk for chunk in chunks[low : low + PIECE_CHUNKS] if residency.is_absent(chunk)]
            self.supply(ino, residency, chunks_of(source, ino, residency.origin, wanted, urgent))

    def supply(self, ino: Ino, residency: Residency, pieces: list[tuple[int, bytes]]) -> None:
        """Put chunks of the origin into the backing file, those that are absent. OSError."""
        with self.backing.descriptors.borrow(ino) as fd:
            self._supplied_bytes += residency.arrive(fd, pieces, os.fstat(fd).st_size)
            if pieces:
                begin_writing(fd, pieces[0][0] * CHUNK_SIZE, (pieces[-1][0] + 1 - pieces[0][0]) * CHUNK_SIZE)

    def finish(self, ino: Ino, residency: Residency) -> bool:
        """Whether all chunks are here; durably, then. The caller makes the state one of a whole file."""
        if residency.missing:
            return False
        begun, noted = self.backing.flush_marks.begin_sync(), residency.noted()
        with self.backing.descriptors.borrow(ino) as fd:
            self.backing.disk.fsync("hydrate:whole", fd)
        residency.make_durable(noted)
        self.backing.flush_marks.end_sync(ino, begun, False)
        return True

    def drop(self, ino: Ino) -> None:
        """The file is complete, or gone: remove its residency file."""
        residency = self.partial.pop(ino, None)
        if residency is not None:
            self.remove(residency)

    def remove(self, residency: Residency) -> None:
        """Remove the record on the disk. After a crash it may stay, with all bits set, or of no file."""
        with contextlib.suppress(FileNotFoundError):
            self.backing.disk.unlink("residency:drop", residency.path)

    def settle(self, inos: set[Ino], settle: Callable[[], None]) -> None:
        """Run `settle`, which makes the bytes of these files durable, then set their DURABLE bits."""
        noted = [(self.partial[ino], self.partial[ino].noted()) for ino in inos & self.partial.keys()]
        settle()
        for residency, bits in noted:
            residency.make_durable(bits)

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        """The names of an unloaded directory."""
        return self._must_source().names(listing, wanted)

    def _must_source(self) -> ContentSource:
        if self._source is None:
            raise OSError(5, "the bytes of this file are in a store that is not at hand")
        return self._source

    def check_invariants(self) -> None:
        for ino, residency in list(self.partial.items()):
            residency.check_invariants()
            assert os.path.exists(self.backing.path(ino)), ino
            size = os.stat(self.backing.path(ino)).st_size
            assert not residency.absent_chunks(chunk_count(size), limit=1), ino
