"""Blocks and files kept back for the cut that is being sealed, and what the cut sees of one file.

Owns live/preserve/: ``<epoch>`` is scratch space, one slot of a chunk's size for each chunk that had a block preserved,
sparse; ``<epoch>-<inode>`` is a whole backing file that a truncate to nothing would have destroyed.

Invariants, for a chunk that the cut has dirty, called pending until the sealer has read it:
1. Before a block of a pending chunk changes in the live file, its bytes as of the cut are in the chunk's slot, and its
   bit in `Frozen.kept`; or the chunk is in `lost`. All three are changed under `Frozen.latch`.
2. A kept block never changes: the sealer may read the slot without the latch.
3. The sealer reads the live bytes first and looks for kept blocks after, so what it read is as of the cut wherever
   the bit is still missing then. In the same critical section the chunk becomes consumed, and needs no more keeping.
4. A block that cannot be kept (the disk is full) is noted as lost and the application goes on: the seal
   fails when it meets the block, and the next snapshot has it all.
5. `path` is the backing file of the live tree, or the detached one once `detached`, which is never written again.
   While the file is being detached it may name the wrong file: what was opened there counts once `path` is found
   unchanged under the latch.

Nothing in here is read after a crash: the folder is emptied when the tree is opened.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from snapfs.base.blocks import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkIndex, Disk, Epoch, Ino, masks_of_range
from snapfs.live.backing.backing_files import data_ranges
from snapfs.live.intents.dirty_map import DirtyMap, mask_runs

FEW_CHUNKS = 4
"""Up to so many chunks are cheaper to copy than a file is to detach."""


class SlotFile:
    """The slots of one cut, in a file made when the first is claimed. Any thread; the native twin is preserve.c."""

    def __init__(self, path: str, disk: Disk) -> None:
        self.path, self.disk = path, disk
        self.count = 0
        self._fd = -1
        self._closed = False
        self._lock = threading.Lock()

    def claim(self) -> int:
        """The byte offset of a new slot."""
        with self._lock:
            if self._fd < 0 and not self._closed:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            slot = self.count
            self.count += 1
        return slot * CHUNK_SIZE

    def write(self, data: bytes, offset: int) -> None:
        """Keep `data`; zeros stay a hole. The lock is for a writer that did not see yet that the cut is finished."""
        if data.count(0) != len(data):
            with self._lock:
                self.disk.pwrite("preserve:block", self._fd, data, offset)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset).ljust(length, b"\0")

    def close(self) -> bool:
        """Keep nothing any more; whether there is a file to remove."""
        with self._lock:
            self._closed = True
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        return fd >= 0


class Scratch:
    """What is preserved for one cut: its slots, and the files detached for it. Read only until the cut is finished."""

    def __init__(
        self, folder: str, epoch: Epoch, disk: Disk, make_file: Callable[[str, Disk], SlotFile] = SlotFile
    ) -> None:
        self.path = os.path.join(folder, str(epoch))
        self.disk = disk
        self.file = make_file(self.path, disk)
        self.detached: list[str] = []
        self._closed = False
        self._lock = threading.Lock()

    @property
    def paths(self) -> list[str]:
        """Where what is kept lies."""
        with self._lock:
            return [self.path, *self.detached]

    def take_over(self, path: str) -> None:
        """Remove the detached file at `path` when the cut is finished."""
        with self._lock:
            self.detached.append(path)
            finished = self._closed
        if finished:
            self.close()

    def close(self) -> None:
        """Free the space. There are no readers any more."""
        with self._lock:
            self._closed = True
            detached, self.detached = self.detached, []
        if self.file.close():
            detached.append(self.path)
        for path in detached:
            self.disk.unlink("preserve:drop", path)


class Frozen:
    """One file as of the open cut."""

    __slots__ = (
        "consumed", "ctime_ns", "detached", "dirty", "inherited", "ino", "kept", "latch", "lost",
        "mtime_ns", "path", "readers", "scratch", "size",
    )  # fmt: skip

    def __init__(
        self,
        ino: Ino,
        size: int,
        times_ns: tuple[int, int],
        dirty: DirtyMap,
        inherited: DirtyMap | None,
        path: str,
        scratch: Scratch,
    ) -> None:
        self.ino, self.size, self.path, self.scratch = ino, size, path, scratch
        self.mtime_ns, self.ctime_ns = times_ns
        self.dirty, self.inherited = dirty, inherited
        self.latch = threading.Lock()
        self.kept: dict[int, tuple[int, int]] = {}  # chunk -> (slot's offset, mask)
        self.consumed: set[int] = set()
        self.lost: dict[int, OSError] = {}
        self.detached = False
        self.readers = 0

    def covers(self, chunk: int) -> bool:
        """Whether the cut needs `chunk`."""
        return self.dirty.covers(chunk) or (self.inherited is not None and self.inherited.covers(chunk))

    # -- the writer's side

    def preserve(self, fd: int, offset: int, length: int) -> None:
        """Keep what [offset, offset + length) would destroy; `fd` is the live file. Never raises OSError."""
        length = min(length, self.size - offset)
        if length <= 0 or self.detached:
            return
        for chunk, mask in masks_of_range(offset, length):
            if chunk not in self.consumed and self.covers(chunk):
                with self.latch:
                    self._preserve_chunk(fd, chunk, mask)

    def _preserve_chunk(self, fd: int, chunk: ChunkIndex, mask: int) -> None:
        if chunk in self.consumed or chunk in self.lost or self.detached:
            return
        slot, kept = self.kept.get(chunk, (-1, 0))
        missing = mask & ~kept
        if not missing:
            return
        try:
            if slot < 0:
                slot = self.scratch.file.claim()
            for low, count in mask_runs(missing):
                data = os.pread(fd, count * BLOCK_SIZE, chunk * CHUNK_SIZE + low * BLOCK_SIZE)
                self.scratch.file.write(data, slot + low * BLOCK_SIZE)
        except OSError as failure:
            self.lost[chunk] = failure
            return
        self.kept[chunk] = slot, kept | missing

    def pending_from(self, offset: int, limit: int) -> int:
        """How many chunks at or beyond `offset` still need keeping, counted up to `limit`."""
        if self.detached or offset >= self.size:
            return 0
        first, end = offset // CHUNK_SIZE, -(-self.size // CHUNK_SIZE)
        floor = min(self.dirty.floor, self.inherited.floor if self.inherited else end, end)
        below = {chunk for each in (self.dirty, self.inherited) if each for chunk in each.masks if chunk >= first}
        below.difference_update(self.consumed)
        above = end - max(first, floor) - sum(1 for chunk in self.consumed if chunk >= max(first, floor))
        return min(limit, max(above, 0) + sum(1 for chunk in below if chunk < floor))

    # -- the sealer's side

    def consume(self, fd: int, path: str, chunk: ChunkIndex) -> bytes | None:
        """The bytes of `chunk` as of the cut, clipped at the size; `fd` is what was found at `path`.

        None if `path` may be another file by now: to be opened again.

        From then on the chunk may be overwritten freely. Raises the OSError that lost it.
        """
        assert self.covers(chunk), (self.ino, chunk)
        length = min(CHUNK_SIZE, self.size - chunk * CHUNK_SIZE)
        if length <= 0:
            return b""
        data = os.pread(fd, length, chunk * CHUNK_SIZE).ljust(length, b"\0")
        with self.latch:
            if chunk in self.lost:
                raise OSError(self.lost[chunk].errno, f"a block of inode {self.ino} could not be kept for the snapshot")
            if self.path != path:
                return None
            self.consumed.add(chunk)
            slot, kept = self.kept.get(chunk, (0, 0))
        return self._overlaid(data, slot, kept) if kept else data

    def _overlaid(self, data: bytes, slot: int, kept: int) -> bytes:
        whole = bytearray(data)
        for low, count in mask_runs(kept):
            start = low * BLOCK_SIZE
            end = min(start + count * BLOCK_SIZE, len(whole))
            if start < end:
                whole[start:end] = self.scratch.file.read(slot + start, end - start)
        return bytes(whole)

    def is_at(self, path: str) -> bool:
        """Whether what was opened at `path`, before the call, is the file. Waits for a detach under way."""
        with self.latch:
            return self.path == path

    def kept_chunks(self, floor: int) -> list[int]:
        """Chunks from `floor` on that were kept or lost, ascending: with them, what a scan of the file missed."""
        with self.latch:
            return sorted(chunk for chunk in self.kept.keys() | self.lost.keys() if chunk >= floor)

    def check_invariants(self) -> None:
        for chunk, (slot, mask) in self.kept.items():
            assert 0 < mask < 1 << BLOCKS_PER_CHUNK
            assert slot % CHUNK_SIZE == 0
            assert slot // CHUNK_SIZE < self.scratch.file.count
            assert self.covers(chunk)
        assert len({slot for slot, _ in self.kept.values()}) == len(self.kept)


def preserve_tail(frozen: Frozen, fd: int, size: int) -> None:
    """Keep what a truncate to `size` would destroy. A hole needs no keeping: what is written into it later keeps it.

    The block that `size` falls into loses bytes too, even where all its data comes before.
    """
    for start, stop in data_ranges(fd, size, frozen.size):
        frozen.preserve(fd, start, stop - start)
