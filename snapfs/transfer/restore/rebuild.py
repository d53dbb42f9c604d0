"""Builds a snapshot's tree in a folder of its own, with everything this user may recreate; not yet durable.

One thread walks the snapshot; several fetch and write the bytes of files (file_writer.py). The tree grows as `tree` in
the staging folder; files of several names are held in `links/<inode>` beside it until all names are made.

Invariants:
1. The walk holds one directory open and goes by `openat` and `..`: neither depth nor the length of a path counts.
2. What could not be recreated, without privilege (owners, devices, some xattrs) or because the filesystem cannot hold
   it (a name, a size, a time, more links), is counted and reported, never silently dropped, and the rest goes on. A
   set-user-id bit is not put on a file whose owner could not be restored (restored_attributes.py).
3. A file of more names than the filesystem gives a file becomes several files of the same content and attributes.
4. Of a part of a snapshot (`top`) a file can have names outside: it is linked to what `elsewhere` has of it, or else it
   is counted, as one that lost links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.base.errors import CorruptionError
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, SnapshotTree
from snapfs.transfer.restore.file_writer import FileWriter, Progress
from snapfs.transfer.restore.restore_report import ReportTally, RestoreReport
from snapfs.transfer.restore.restored_attributes import drop_inherited_acls, set_attributes

_CANNOT_HOLD = (
    errno.EFBIG, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EOVERFLOW, errno.EMLINK, errno.EOPNOTSUPP,
)  # fmt: skip
"""The failures of a filesystem that cannot hold a name, a type, a size or a link. A full disk is not among them."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


Elsewhere = Mapping[Ino, list[str]]


@dataclass(slots=True)
class _Linked:
    """A file of several names; `names` of them are there, of this or of one that took no more of them."""

    name: bytes
    nlink: int
    names: int = 1


class Rebuilding:
    """One restore's tree. `run` builds it and reports."""

    def __init__(
        self, repository: Repository, tree: SnapshotTree, staging: str, threads: int, progress: Progress | None, *,
        top: InodeRecord | None = None, elsewhere: Elsewhere | None = None, sync: bool = False,
    ) -> None:  # fmt: skip
        """`top`: what `tree` becomes, the root directory by default. `elsewhere`: names that files of the snapshot have
        now, by inode, on the same filesystem. `sync` makes each file durable."""
        self._tree, self._staging, self._top, self._elsewhere = tree, staging, top, elsewhere or {}
        self._tally = ReportTally()
        total_bytes = tree.root.total_bytes if top is None else 0 if stat.S_ISDIR(top.mode) else top.size
        self._writer = FileWriter(repository, tree, self._tally, threads, progress, total_bytes, sync)
        self._linked: dict[Ino, _Linked] = {}

    def run(self) -> RestoreReport:
        """Build the tree. Raises CorruptionError, OSError."""
        links = f"{self._staging}/links"
        os.mkdir(links, 0o700)
        self._links = os.open(links, _DIRECTORY)
        try:
            self._build()
        finally:
            self._writer.close()
            os.close(self._links)
        self._writer.raise_failure()
        for linked in self._linked.values():
            if linked.names < linked.nlink:
                self._tally.missed("links", linked.name)
        return self._tally.report

    def _build(self) -> None:
        top = self._top or self._tree.inode(ROOT_INO)
        assert top is not None
        if stat.S_ISDIR(top.mode):
            root = f"{self._staging}/tree"
            os.mkdir(root, 0o700)
            drop_inherited_acls(root)
            self._walk(os.open(root, _DIRECTORY), top)
            return
        here = os.open(self._staging, _DIRECTORY)
        try:
            self._make(here, b"tree", top)
        finally:
            os.close(here)

    def _walk(self, here: int, record: InodeRecord) -> None:
        """Build `record` depth first in the open directory `here`, which is closed at the end."""
        above: list[tuple[InodeRecord, Iterator[DirEntry]]] = []
        entries = self._tree.entries(record)
        try:
            while True:
                entry = next(entries, None)
                if entry is None:
                    here, at_root = self._leave(here, record, top=not above), not above
                    if at_root:
                        return
                    record, entries = above.pop()
                elif entry.kind == stat.S_IFDIR >> 12:
                    inner = self._record(entry)
                    if self._directory_made(here, entry.name, inner):
                        above.append((record, entries))
                        here, record, entries = _enter(here, entry.name), inner, self._tree.entries(inner)
                else:
                    self._make(here, entry.name, self._record(entry))
                self._writer.raise_failure()
        finally:
            os.close(here)

    def _record(self, entry: DirEntry) -> InodeRecord:
        record = self._tree.inode(entry.ino)
        if record is None:
            raise CorruptionError(f"inode {entry.ino}", "the snapshot", "an entry leads to it and it is not there")
        return record

    def _leave(self, here: int, record: InodeRecord, top: bool) -> int:
        """Give the directory its attributes, after everything in it was made; return its parent."""
        parent = os.open(".." if not top else ".", _DIRECTORY, dir_fd=here)
        try:
            set_attributes(here, b".", record, here, self._tally.missed)
        except BaseException:
            os.close(parent)
            raise
        os.close(here)
        self._tally.made(directories=1)
        return parent

    def _directory_made(self, here: int, name: bytes, record: InodeRecord) -> bool:
        try:
            os.mkdir(name, 0o700, dir_fd=here)
        except OSError as failure:
            self._leave_out("directories", name, record, failure)
            return False
        return True

    def _leave_out(self, kind: str, name: bytes, record: InodeRecord, failure: OSError) -> None:
        """Go on without it, if the filesystem cannot hold it; else raise the failure."""
        if failure.errno not in _CANNOT_HOLD:
            raise failure
        self._tally.left_out(kind, name, record.ino)

    def _make(self, here: int, name: bytes, record: InodeRecord) -> None:
        if record.ino not in self._linked and record.ino in self._elsewhere:
            self._begin_with(self._elsewhere[record.ino], name, record)
        if record.nlink > 1 and record.ino in self._linked and self._link(here, name, record):
            self._linked[record.ino].names += 1
            return
        made = self._make_file(here, name, record) if stat.S_ISREG(record.mode) else self._node(here, name, record)
        if made and record.nlink > 1:
            os.link(name, str(record.ino), src_dir_fd=here, dst_dir_fd=self._links, follow_symlinks=False)
            others = self._linked.get(record.ino)
            self._linked[record.ino] = _Linked(name, record.nlink, 1 + (others.names if others else 0))

    def _begin_with(self, names: list[str], name: bytes, record: InodeRecord) -> None:
        """The file is there already: what is made now are more names of it. If that fails, it is made anew."""
        with contextlib.suppress(OSError):
            os.link(names[0], str(record.ino), dst_dir_fd=self._links, follow_symlinks=False)
            self._linked[record.ino] = _Linked(name, record.nlink, len(names))

    def _link(self, here: int, name: bytes, record: InodeRecord) -> bool:
        """Make one more name. False: the file has as many as it can; the names to come are those of another file."""
        try:
            os.link(str(record.ino), name, src_dir_fd=self._links, dst_dir_fd=here, follow_symlinks=False)
        except OSError as failure:
            if failure.errno != errno.EMLINK:
                self._leave_out("others", name, record, failure)
                return True
            self._tally.missed("links", name)
            os.unlink(str(record.ino), dir_fd=self._links)
            return False
        return True

    def _node(self, here: int, name: bytes, record: InodeRecord) -> bool:
        try:
            if stat.S_ISLNK(record.mode):
                os.symlink(record.target, name, dir_fd=here)
            else:
                os.mknod(name, stat.S_IFMT(record.mode) | 0o600, record.rdev, dir_fd=here)
        except PermissionError:
            self._tally.missed("device", name)
            return False
        except OSError as failure:
            self._leave_out("others", name, record, failure)
            return False
        set_attributes(here, name, record, None, self._tally.missed)
        self._tally.made(others=1)
        return True

    def _make_file(self, here: int, name: bytes, record: InodeRecord) -> bool:
        try:
            fd = self._sized_file(here, name, record.size)
        except OSError as failure:
            self._leave_out("files", name, record, failure)
            return False
        self._writer.write(fd, name, record)
        return True

    @staticmethod
    def _sized_file(here: int, name: bytes, size: int) -> int:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=here)
        try:
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=here)
            raise
        return fd


def _enter(here: int, name: bytes) -> int:
    inner = os.open(name, _DIRECTORY, dir_fd=here)
    os.close(here)
    return inner
