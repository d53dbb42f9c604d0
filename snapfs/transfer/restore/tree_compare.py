"""Compares a plain directory with a snapshot: names, attributes, links and every byte.

It reads both sides and changes nothing; but with `unlock`, what is closed to its own owner is opened up while it is
read. The walk holds one directory open (`openat` and `..`), so neither depth nor the length
of a path counts; contents are compared by threads, in bounded memory.

What is compared: everything the snapshot holds of an inode but ctime and inode number, which no one can set. Of
hard links, that the same names belong together.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Ino
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, SnapshotTree
from snapfs.transfer.common.sparse_copy import Reader
from snapfs.transfer.seal.pipeline import Pipeline

_OPENED_UP = 0o700
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WINDOW_BYTES = 32 << 20


class Difference(NamedTuple):
    """`what`: missing, extra, type, mode, owner, device, links, target, xattrs, times, size or content."""

    path: bytes
    what: str


@dataclass(slots=True)
class _Found:
    """One name that was looked at: its differences so far, and the file whose content is still to be read."""

    path: bytes
    differs: list[str]
    record: InodeRecord | None = None
    fd: int = -1


def differences(
    reader: Reader, tree: SnapshotTree, path: str, *, fresh: bool = False, unlock: bool = False, threads: int = 2,
    left_out: Iterable[int] = (), content_hash_of: Callable[[bytes], bytes] | None = None,
    top: InodeRecord | None = None,
) -> Iterator[Difference]:  # fmt: skip
    """Yield where the directory `path` is not what `tree` holds; nothing if it is the same. With `top`, what that is in
    it: a directory below, or a file, which `path` is then.

    `fresh` drops each file's cached pages first, so that the disk itself is read. `unlock` is for a tree of the
    caller's own that is not in use yet. `left_out`: inodes that are not expected there. With `content_hash_of` a chunk
    whose hash is right is not read from the history. Raises OSError and CorruptionError.
    """
    comparing = _Comparing(reader, tree, fresh, unlock, frozenset(left_out), content_hash_of)
    pipeline: Pipeline[_Found, bool] = Pipeline(
        comparing.walk(path, top), comparing.same_content, _weight, threads=threads, window_bytes=WINDOW_BYTES
    )
    try:
        for found, same in pipeline:
            if found.fd >= 0:
                os.close(found.fd)
            yield from (Difference(found.path, what) for what in found.differs)
            if same is False:
                yield Difference(found.path, "content")
    finally:
        for found in pipeline.close():
            if found.fd >= 0:
                os.close(found.fd)


def _weight(found: _Found) -> int:
    return min(found.record.size + 1, 8 << 20) if found.record and found.fd >= 0 else 0


@dataclass(slots=True)
class _Level:
    """A directory of the walk."""

    path: bytes
    entries: Iterator[DirEntry]
    extra: set[bytes]
    locked: int | None = None  # the mode to put back when leaving


@dataclass(slots=True)
class _Comparing:
    reader: Reader
    tree: SnapshotTree
    fresh: bool
    unlock: bool
    left_out: frozenset[int] = frozenset()
    content_hash_of: Callable[[bytes], bytes] | None = None
    places: dict[Ino, tuple[int, int]] = field(default_factory=dict)  # of files of several names

    def walk(self, path: str, top: InodeRecord | None) -> Iterator[_Found]:
        root = top or self.tree.inode(ROOT_INO)
        assert root is not None
        if not stat.S_ISDIR(root.mode):
            yield from self._file(path, root)
            return
        here = _open_quietly(path, _DIRECTORY)
        try:
            yield self._attributes(here, b".", b"/", root)
            levels = [self._level(here, b"", root)]
            while levels:
                level = levels[-1]
                entry = next(level.entries, None)
                if entry is None:
                    yield from (_Found(level.path + b"/" + name, ["extra"]) for name in sorted(level.extra))
                    levels.pop()
                    here = self._up(here, level.locked) if levels else here
                    continue
                level.extra.discard(entry.name)
                found, record = self._entry(here, level.path, entry)
                yield found
                if record is not None:
                    here, locked = self._down(here, entry.name)
                    levels.append(self._level(here, found.path, record, locked))
        finally:
            os.close(here)

    def _file(self, path: str, record: InodeRecord) -> Iterator[_Found]:
        folder, name = os.path.split(os.fsencode(path))
        here = _open_quietly(folder, _DIRECTORY)
        try:
            if record.ino not in self.left_out or _exists(here, name):
                yield self._attributes(here, name, b"/", record)
        except FileNotFoundError:
            device = stat.S_ISCHR(record.mode) or stat.S_ISBLK(record.mode)
            yield _Found(b"/", ["device" if device else "missing"])
        finally:
            os.close(here)

    def _down(self, here: int, name: bytes) -> tuple[int, int | None]:
        """Into a directory: its descriptor, and its mode if that had to be changed."""
        locked = self._unlocked(here, name)
        inner = _open_quietly(name, _DIRECTORY, here)
        os.close(here)
        return inner, locked

    def _up(self, here: int, locked: int | None) -> int:
        outer = _open_quietly(b"..", _DIRECTORY, here)
        try:
            if locked is not None:
                os.fchmod(here, locked)
        finally:
            os.close(here)
        return outer

    def _unlocked(self, here: int, name: bytes) -> int | None:
        """The mode of what its owner, who is us, could not look into, and now can."""
        if not self.unlock or os.geteuid() == 0:
            return None
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        wanted = stat.S_IRUSR | (stat.S_IXUSR if stat.S_ISDIR(status.st_mode) else 0)
        if stat.S_ISLNK(status.st_mode) or status.st_mode & wanted == wanted:
            return None
        os.chmod(name, _OPENED_UP, dir_fd=here)
        return stat.S_IMODE(status.st_mode)

    def same_content(self, found: _Found) -> bool:
        assert found.record is not None
        if self.fresh:
            os.posix_fadvise(found.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        end = 0
        for chunk, pointer in self.tree.chunks(found.record):
            start = chunk * CHUNK_SIZE
            size = min(CHUNK_SIZE, found.record.size - start)
            if not _is_hole(found.fd, end, start):
                return False
            end = start + size
            data = os.pread(found.fd, size, start)
            if self.content_hash_of is not None and self.content_hash_of(data) == pointer.content_hash:
                continue
            if data != self.reader.read(pointer)[:size].ljust(size, b"\0"):
                return False
        return _is_hole(found.fd, end, found.record.size)

    def _level(self, here: int, path: bytes, record: InodeRecord, locked: int | None = None) -> _Level:
        names = {os.fsencode(name) for name in os.listdir(here)}
        return _Level(path, self.tree.entries(record), names, locked)

    def _entry(self, here: int, above: bytes, entry: DirEntry) -> tuple[_Found, InodeRecord | None]:
        """What is known of the entry, and its record where it is a directory to go into."""
        path = above + b"/" + entry.name
        record = self.tree.inode(entry.ino)
        if record is None:
            return _Found(path, ["missing"]), None
        if entry.ino in self.left_out and not _exists(here, entry.name):
            return _Found(path, []), None
        try:
            found = self._attributes(here, entry.name, path, record)
        except FileNotFoundError:
            device = stat.S_ISCHR(record.mode) or stat.S_ISBLK(record.mode)
            return _Found(path, ["device" if device else "missing"]), None
        return found, record if stat.S_ISDIR(record.mode) and "type" not in found.differs else None

    def _attributes(self, here: int, name: bytes, path: bytes, record: InodeRecord) -> _Found:
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(record.mode):
            return _Found(path, ["type"])
        locked = self._unlocked(here, name)
        try:
            return self._looked_at(here, name, path, status, record)
        finally:
            if locked is not None:
                os.chmod(name, locked, dir_fd=here)

    def _looked_at(self, here: int, name: bytes, path: bytes, status: os.stat_result, record: InodeRecord) -> _Found:
        found = _Found(path, [what for what, same in self._compared(here, name, status, record) if not same], record)
        if stat.S_ISREG(record.mode) and status.st_size == record.size:
            found.fd = _open_quietly(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, here)
        return found

    def _compared(
        self, here: int, name: bytes, status: os.stat_result, record: InodeRecord
    ) -> Iterator[tuple[str, bool]]:
        yield "mode", stat.S_ISLNK(record.mode) or status.st_mode == record.mode
        yield "owner", (status.st_uid, status.st_gid) == (record.uid, record.gid)
        looked_at = stat.S_ISLNK(record.mode)  # reading a link's target is an access that cannot be kept quiet
        yield "times", status.st_mtime_ns == record.mtime_ns and (looked_at or status.st_atime_ns == record.atime_ns)
        yield "xattrs", _xattrs(here, name) == record.xattrs
        if stat.S_ISREG(record.mode):
            yield "size", status.st_size == record.size
        elif stat.S_ISLNK(record.mode):
            yield "target", os.readlink(name, dir_fd=here) == record.target
        elif not stat.S_ISDIR(record.mode):
            yield "device", status.st_rdev == record.rdev
        if not stat.S_ISDIR(record.mode):
            place = (status.st_dev, status.st_ino)
            yield "links", status.st_nlink == record.nlink and self.places.setdefault(record.ino, place) == place


def _open_quietly(name: bytes | str, flags: int, here: int | None = None) -> int:
    """Open without changing the access time, where this user may."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=here)
    except PermissionError:
        return os.open(name, flags, dir_fd=here)


def _exists(here: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=here, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as failure:  # the name is longer than any there
        return failure.errno != errno.ENAMETOOLONG
    return True


def _xattrs(here: int, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    place = f"/proc/self/fd/{here}/".encode() + name
    try:
        names = sorted(os.fsencode(key) for key in os.listxattr(place, follow_symlinks=False))
    except OSError as failure:
        if failure.errno == errno.EOPNOTSUPP:
            return ()
        raise
    return tuple((key, os.getxattr(place, key, follow_symlinks=False)) for key in names)


def _is_hole(fd: int, start: int, end: int) -> bool:
    """True if the file reads as zeros from `start` to `end`."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as failure:
            if failure.errno == errno.ENXIO:
                return True
            raise
        size = min(end - start, CHUNK_SIZE)
        if size > 0 and os.pread(fd, size, start).strip(b"\0"):
            return False
        start += max(size, 1)
    return True
