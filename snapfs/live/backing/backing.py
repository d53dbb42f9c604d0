"""The folder of backing files: where they are, which are open, and which names in it are not durable yet.

Invariants:
1. The file of inode N is ``data/<N & 255 as hex>/<N as hex>``, and complete: whatever else fills a file does it under
   another name and renames it here.
2. A file whose name may not be durable is in `unsynced_names`, or below `_suspect_below` in a folder that is in
   `_suspect_folders`; `sync_name` makes it so. A name that is given to another file while a flush is under way stays in
   `unsynced_names`.
3. The backing file's mtime is the file's mtime, its access time is the file's ctime. Where the host has stamped a write
   since (mtime and ctime of the backing file are equal then), the mtime is the file's ctime, or what the log notes.
4. The host reports bytes that it lost once, to the first flush. If that flush was our own housekeeping, the file is in
   `failed`, and in `unsynced_names`, until `answer_for` raises the error in an fsync of the file.
5. A file in `_names_synced_by_fsync` is in `unsynced_names` and still has the name it was created with: an fsync of the
   file makes that name durable too (host_filesystem.py).
6. `_root_fd` is opened before the first byte is written and stays open: the host reports once to each descriptor what
   it failed to write back of any file (`syncfs`), also what was evicted from memory meanwhile.
7. A backing file is changed within `changing`, or by native code that takes the same two steps: so it has a flush mark
   from before the change on (flush_marks.py). What has another name until it is complete and durable needs none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from snapfs.base.blocks import Disk, Ino, begin_writing
from snapfs.base.limits import HostLimits
from snapfs.live.backing import host_filesystem
from snapfs.live.backing.descriptors import Descriptors
from snapfs.live.backing.flush_marks import FlushMarks
from snapfs.live.backing.host_health import SYNC, HostHealth

FOLDERS = 256
FEW_FILES = 64
"""Up to so many files are synced one by one; for more, the whole host filesystem is."""

MakeCache = Callable[[str, int], Descriptors]


class Backing:
    """`get_fd` and `create` for the owner thread of the live tree; the rest for any."""

    def __init__(
        self, live_dir: str, disk: Disk, max_open_files: int, make_cache: MakeCache | None = None,
        health: HostHealth | None = None, settled: Callable[[], AbstractContextManager[None]] = nullcontext,
        flush_marks: FlushMarks | None = None,
    ) -> None:  # fmt: skip
        """`settled`: what a sync of all that is on the host filesystem runs in (wal.py, invariant 6)."""
        self.live_dir, self.disk = live_dir, disk
        self.flush_marks = FlushMarks() if flush_marks is None else flush_marks
        self.health = health or HostHealth()
        self.root = os.path.join(live_dir, "data")
        self.staging = os.path.join(live_dir, "staging")
        self.folders = [os.path.join(self.root, f"{number:02x}") for number in range(FOLDERS)]
        self.unsynced_names: list[set[Ino]] = [set() for _ in range(FOLDERS)]
        self.failed: dict[Ino, int] = {}
        self._names_synced_by_fsync: set[Ino] = set()
        self._fsync_syncs_new_names = False
        self.limits = HostLimits()
        self._replaced = 0
        self._naming = threading.Lock()
        self._settled = settled
        self._root_fd = -1
        self._births: Callable[[], list[int]] = list
        self._taking_births = threading.Lock()
        self._suspect_folders: set[int] = set()
        self._suspect_below = Ino(0)
        self.descriptors = (
            Descriptors(lambda ino: self.path(Ino(ino)), max_open_files)
            if make_cache is None else make_cache(self.root, max_open_files)
        )  # fmt: skip

    def make_folders(self) -> None:
        """Make what is missing of the layout, durably."""
        for path in (self.root, self.staging):
            with contextlib.suppress(FileExistsError):
                self.disk.mkdir("live:folder", path)
        self._fsync_syncs_new_names = host_filesystem.is_ext4(self.root)
        self.limits = host_filesystem.probe_limits(self.staging)
        missing = [path for path in self.folders if not os.path.isdir(path)]
        for path in missing:
            self.disk.mkdir("live:folder", path)
        if missing:
            self.disk.sync_dir("live:folders", self.root)
            self.disk.sync_dir("live:folders", self.live_dir)
        if self._root_fd < 0:
            self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def path(self, ino: Ino) -> str:
        return f"{self.folders[ino & 255]}/{ino:x}"

    def staged(self, ino: Ino) -> str:
        """Where a file waits to take the place of that of `ino`."""
        return f"{self.staging}/{ino:x}"

    def register_births(self, births: Callable[[], list[int]]) -> None:
        """`births` returns the files that the data path made since the last call. Before the first is made."""
        self._births = births

    def take_births(self) -> None:
        """Take over what the data path made: before each look at names that may not be durable. Any thread."""
        with self._taking_births:
            for ino in map(Ino, self._births()):
                self._note_birth(ino)

    def _note_birth(self, ino: Ino) -> None:
        self.unsynced_names[ino & 255].add(ino)
        if self._fsync_syncs_new_names:
            self._names_synced_by_fsync.add(ino)

    def create(self, ino: Ino) -> int:
        """Make the empty file of a new inode; returns the open descriptor. OSError."""
        with self.changing(ino):
            fd = self.descriptors.create(ino)
        self._note_birth(ino)
        return fd

    @contextlib.contextmanager
    def changing(self, ino: Ino, held: bool = False) -> Iterator[None]:
        """What a change of the bytes, size or times of a file runs in. `held`: of one that is partly present."""
        self.flush_marks.begin(ino, held)
        try:
            yield
        finally:
            self.flush_marks.end(ino)

    def remove(self, ino: Ino, label: str = "backing:unlink") -> None:
        """Remove the file of an inode that is gone; no file is fine."""
        self.take_births()
        self.descriptors.drop(ino)
        with contextlib.suppress(FileNotFoundError):
            self.disk.unlink(label, self.path(ino))
        self._names_synced_by_fsync.discard(ino)
        self.unsynced_names[ino & 255].discard(ino)
        self.failed.pop(ino, None)
        self.flush_marks.forget(ino)

    def share_unsynced_names(self, shared: Callable[[set[Ino]], set[Ino]]) -> None:
        """From now on `unsynced_names` are what this makes of them. Before any other thread uses them."""
        self.unsynced_names = [shared(inos) for inos in self.unsynced_names]

    def replace(self, ino: Ino, source: str, label: str) -> None:
        """Let the file at `source`, complete and durable, be the file of `ino`; `sync_name` makes that durable.

        A source that is not durable itself is put in place within `changing`.
        """
        self.take_births()
        with self._naming:
            self._names_synced_by_fsync.discard(ino)  # before, lest a sync of the file that goes counts
        self.disk.rename(label, source, self.path(ino))
        self.descriptors.drop(ino)
        with self._naming:
            self._replaced += 1
            self.unsynced_names[ino & 255].add(ino)

    def _was_synced(self, ino: Ino) -> None:
        """The file of `ino` was: make its name durable, if it is not by that."""
        self.take_births()
        with self._naming:
            if ino in self._names_synced_by_fsync and ino not in self.failed:
                self._names_synced_by_fsync.discard(ino)
                self.unsynced_names[ino & 255].discard(ino)
        self.sync_name(ino)

    def sync_name(self, ino: Ino) -> None:
        """Make the name of the file of `ino` durable, if it is not yet."""
        self.take_births()
        unsynced = self.unsynced_names[ino & 255]
        if ino not in unsynced and not (ino < self._suspect_below and ino & 255 in self._suspect_folders):
            return
        before, settled = self._replaced, unsynced.copy()
        self.disk.sync_dir("backing:name", self.folders[ino & 255])
        self._are_durable([(unsynced, settled)], before)
        self._suspect_folders.discard(ino & 255)

    def _are_durable(self, settled: list[tuple[set[Ino], set[Ino]]], before: int) -> None:
        """Take synced names out of their sets. If a name was given to another file, all stay (invariant 2)."""
        with self._naming:
            for unsynced, names in settled if self._replaced == before else ():
                unsynced.difference_update(durable := names - self.failed.keys())
                self._names_synced_by_fsync -= durable

    def mark_suspect(self, below: Ino) -> None:
        """A process before us made files with numbers below this, whose names may not be durable."""
        self._suspect_folders, self._suspect_below = set(range(FOLDERS)), below

    def settle_each(self, files: set[Ino]) -> None:
        """Make these files durable, and nothing else first. A failure is reported by the next fsync of the file."""
        for ino in files if len(files) > 1 else ():
            with contextlib.suppress(OSError), self.descriptors.borrow(ino) as fd:
                begin_writing(fd, 0, 0)
        for ino in files:
            with contextlib.suppress(OSError), self.descriptors.borrow(ino) as fd:
                self._flush(ino, fd)
                self._was_synced(ino)

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
        """For housekeeping: a failure is kept for the next fsync of the file (invariant 4). OSError."""
        try:
            with self.health.watching(SYNC):
                self.disk.fsync("backing:settle", fd)
        except OSError as failure:
            with self._naming:
                self.failed[ino] = failure.errno or errno.EIO
                self.unsynced_names[ino & 255].add(ino)
            raise

    def answer_for(self, ino: Ino) -> None:
        """At the end of an fsync: OSError if an earlier flush lost bytes of the file; else its name is made durable."""
        lost = self.failed.pop(ino, None)
        if lost is not None:
            raise OSError(lost, os.strerror(lost))
        self._was_synced(ino)

    def sync_all(self, label: str) -> None:
        """Make everything on the host filesystem durable, and first the files that names depend on (`settled`)."""
        with self._settled():
            self._sync_all(label)

    def _sync_all(self, label: str) -> None:
        begun = self.flush_marks.begin_sync()
        self.take_births()
        before, settled = self._replaced, [unsynced.copy() for unsynced in self.unsynced_names]
        with self.health.watching(SYNC):
            self.disk.sync_filesystem(label, self._root_fd)
            self.disk.fsync(label, self._root_fd)
        self.flush_marks.end_sync_all(begun)
        self._are_durable(list(zip(self.unsynced_names, settled, strict=True)), before)
        self._suspect_folders.clear()

    def forget_pages(self, ino: Ino) -> None:
        """Let the host read the clean pages of a file anew: one that could not be written back counts as clean."""
        with contextlib.suppress(OSError), self.descriptors.borrow(ino) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def scan(self) -> Iterator[tuple[Ino, str]]:
        """(inode, path) of everything in the folders; inode 0 for what has no proper name."""
        for number, folder in enumerate(self.folders):
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield _ino_of(entry, number), entry.path

    def close(self) -> None:
        self.descriptors.close()
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1


def _ino_of(entry: os.DirEntry[str], folder: int) -> Ino:
    with contextlib.suppress(ValueError):
        ino = Ino(int(entry.name, 16))
        if ino > 0 and ino & 255 == folder and entry.name == f"{ino:x}" and entry.is_file(follow_symlinks=False):
            return ino
    return Ino(0)
