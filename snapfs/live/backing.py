"""The folder of backing files: where they are, which are open, and which names in it are not durable yet.

Invariants:
1. The file of inode N is ``data/<N & 255 as hex>/<N as hex>``, and complete: whatever else fills a file does it under
   another name and renames it here.
2. A file whose name may not be durable is in `fresh`, or below `_doubt_below` in a folder that is in `_doubted`;
   `sync_name` makes it so. A name that is given to another file while a flush is under way stays in `fresh`.
3. The host's mtime of a file is its mtime, the host's access time its ctime.
4. The host tells of bytes that it lost once, to whoever flushes first. If that was nobody who asked for these bytes,
   the file is in `failed`, and in `fresh`, until `answer_for` tells who does ask.
5. What is in `_born` is in `fresh`, under the name it was created with: a sync of the file makes it durable (host.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator

from snapfs.blocks import Disk, Ino
from snapfs.live import host
from snapfs.live.descriptors import Descriptors

FOLDERS = 256
FEW_FILES = 64
"""Up to so many files are synced one by one; for more, the whole host filesystem is."""

MakeCache = Callable[[str, int], Descriptors]

_libc = ctypes.CDLL(None, use_errno=True)


class Backing:
    """`get_fd` and `create` for the owner thread of the live tree; the rest for any."""

    def __init__(self, live_dir: str, disk: Disk, max_open_files: int, make_cache: MakeCache | None = None) -> None:
        self.live_dir, self.disk = live_dir, disk
        self.root = os.path.join(live_dir, "data")
        self.staging = os.path.join(live_dir, "staging")
        self.folders = [os.path.join(self.root, f"{number:02x}") for number in range(FOLDERS)]
        self.fresh: list[set[Ino]] = [set() for _ in range(FOLDERS)]
        self.failed: dict[Ino, int] = {}
        self._born: set[Ino] = set()
        self._names_with_files = False
        self._replaced = 0
        self._naming = threading.Lock()
        self._doubted: set[int] = set()
        self._doubt_below = Ino(0)
        self.descriptors = (
            Descriptors(lambda ino: self.path(Ino(ino)), max_open_files)
            if make_cache is None else make_cache(self.root, max_open_files)
        )  # fmt: skip

    def make_folders(self) -> None:
        """Make what is missing of the layout, durably."""
        for path in (self.root, self.staging):
            with contextlib.suppress(FileExistsError):
                self.disk.mkdir("live:folder", path)
        self._names_with_files = host.is_ext4(self.root)
        missing = [path for path in self.folders if not os.path.isdir(path)]
        for path in missing:
            self.disk.mkdir("live:folder", path)
        if missing:
            self.disk.sync_dir("live:folders", self.root)
            self.disk.sync_dir("live:folders", self.live_dir)

    def path(self, ino: Ino) -> str:
        return f"{self.folders[ino & 255]}/{ino:x}"

    def staged(self, ino: Ino) -> str:
        """Where a file waits to take the place of that of `ino`."""
        return f"{self.staging}/{ino:x}"

    def create(self, ino: Ino) -> int:
        """Make the empty file of a new inode; returns the open descriptor. OSError."""
        fd = self.descriptors.create(ino)
        self.fresh[ino & 255].add(ino)
        if self._names_with_files:
            self._born.add(ino)
        return fd

    def remove(self, ino: Ino, label: str = "backing:unlink") -> None:
        """Remove the file of an inode that is gone; no file is fine."""
        self.descriptors.drop(ino)
        with contextlib.suppress(FileNotFoundError):
            self.disk.unlink(label, self.path(ino))
        self._born.discard(ino)
        self.fresh[ino & 255].discard(ino)
        self.failed.pop(ino, None)

    def replace(self, ino: Ino, source: str, label: str) -> None:
        """Let the file at `source`, which is complete, be the file of `ino`; `sync_name` makes that durable."""
        with self._naming:
            self._born.discard(ino)  # before, lest a sync of the file that goes counts
        self.disk.rename(label, source, self.path(ino))
        self.descriptors.drop(ino)
        with self._naming:
            self._replaced += 1
            self.fresh[ino & 255].add(ino)

    def _was_synced(self, ino: Ino) -> None:
        """The file of `ino` was: make its name durable, if it is not by that."""
        with self._naming:
            if ino in self._born and ino not in self.failed:
                self._born.discard(ino)
                self.fresh[ino & 255].discard(ino)
        self.sync_name(ino)

    def sync_name(self, ino: Ino) -> None:
        """Make the name of the file of `ino` durable, if it is not yet."""
        fresh = self.fresh[ino & 255]
        if ino not in fresh and not (ino < self._doubt_below and ino & 255 in self._doubted):
            return
        before, settled = self._replaced, fresh.copy()
        self.disk.sync_dir("backing:name", self.folders[ino & 255])
        self._are_durable([(fresh, settled)], before)
        self._doubted.discard(ino & 255)

    def _are_durable(self, settled: list[tuple[set[Ino], set[Ino]]], before: int) -> None:
        """These names are; but those that were given to others meanwhile look the same, so then all stay `fresh`."""
        with self._naming:
            for fresh, names in settled if self._replaced == before else ():
                fresh.difference_update(durable := names - self.failed.keys())
                self._born -= durable

    def doubt(self, below: Ino) -> None:
        """A process before us made files with numbers below this, whose names it may not have made durable."""
        self._doubted, self._doubt_below = set(range(FOLDERS)), below

    def settle(self, files: set[Ino], new_from: Ino, upto: Ino) -> None:
        """Make these files durable, and all that exist with numbers in [new_from, upto)."""
        if len(files) + upto - new_from > FEW_FILES:
            self.sync_all("backing:settle")
            return
        for ino in (*files, *map(Ino, range(new_from, upto))):
            with contextlib.suppress(FileNotFoundError), self.descriptors.borrow(ino) as fd:
                self._flush(ino, fd)
                self._was_synced(ino)

    def _flush(self, ino: Ino, fd: int) -> None:
        """On behalf of nobody who would be told of a failure (invariant 4)."""
        try:
            self.disk.fsync("backing:settle", fd)
        except OSError as failure:
            with self._naming:
                self.failed[ino] = failure.errno or errno.EIO
                self.fresh[ino & 255].add(ino)
            raise

    def answer_for(self, ino: Ino) -> None:
        """Who asked for the bytes of a file is told that they are durable; or by an OSError that they were lost."""
        lost = self.failed.pop(ino, None)
        if lost is not None:
            raise OSError(lost, os.strerror(lost))
        self._was_synced(ino)

    def sync_all(self, label: str) -> None:
        """Make everything on the host filesystem durable."""
        before, settled = self._replaced, [fresh.copy() for fresh in self.fresh]
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(fd):
                raise OSError(ctypes.get_errno(), "syncfs", self.root)
            self.disk.fsync(label, fd)
        finally:
            os.close(fd)
        self._are_durable(list(zip(self.fresh, settled, strict=True)), before)
        self._doubted.clear()

    def scan(self) -> Iterator[tuple[Ino, str]]:
        """(inode, path) of everything in the folders; inode 0 for what has no proper name."""
        for number, folder in enumerate(self.folders):
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield _ino_of(entry, number), entry.path

    def close(self) -> None:
        self.descriptors.close()


def _ino_of(entry: os.DirEntry[str], folder: int) -> Ino:
    with contextlib.suppress(ValueError):
        ino = Ino(int(entry.name, 16))
        if ino > 0 and ino & 255 == folder and entry.name == f"{ino:x}" and entry.is_file(follow_symlinks=False):
            return ino
    return Ino(0)


def stat_backing(path: str) -> tuple[int, int, int, int]:
    """(size, mtime_ns, ctime_ns, 512-byte blocks) of a backing file. OSError."""
    found = os.stat(path)
    assert stat.S_ISREG(found.st_mode), path
    return found.st_size, found.st_mtime_ns, found.st_atime_ns, found.st_blocks


def allocated_bytes(path: str) -> int:
    """What a file takes of the disk, 0 if it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_blocks * 512
    return 0


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(from, to) of all data of a file in [start, end), ascending, in bytes. It may be truncated meanwhile."""
    while start < end:
        try:
            begin = os.lseek(fd, start, os.SEEK_DATA)
            if begin >= end:
                return
            start = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as failure:
            if failure.errno != errno.ENXIO:
                raise
            return
        yield begin, min(start, end)
