"""Builds a snapshot's tree in a folder of its own, with everything this user may recreate; not yet durable.

One thread walks the snapshot and several fetch and write file bytes. The tree grows as `tree` in the staging folder;
files of several names are held in `links/<inode>` beside it until all names are made.

Invariants:
1. The walk holds one directory open and goes by `openat` and `..`: neither depth nor the length of a path counts.
2. At most `threads * PARTS_PER_THREAD` parts of files are under way; memory and descriptors are bounded.
3. What could not be recreated without privilege (owners, devices, some xattrs) is counted and reported, never
   silently dropped. A set-user-id bit is not put on a file whose owner could not be restored.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from snapfs.blocks import CHUNK_SIZE, ROOT_INO, ChunkIndex, Ino
from snapfs.errors import CorruptionError
from snapfs.store.format import Pointer
from snapfs.store.repository import Repository
from snapfs.store.snapshot import DirEntry, InodeRecord, SnapshotTree
from snapfs.transfer.sparse import write_chunks

PART_CHUNKS = 64
PARTS_PER_THREAD = 4
EXAMPLES = 3
_SET_ID = stat.S_ISUID | stat.S_ISGID
_NOT_FOR_US = (errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL)
_TOO_LARGE = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)
"""Of an xattr: ext4, for one, has 4 KiB for all of a file, and says that there is no space. A full disk shows soon."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class RestoreReport:
    """What a restore made, and what it could not (`not_restored`: kind -> count, `examples`: kind -> paths)."""

    files: int = 0
    directories: int = 0
    others: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    verified: bool = False
    not_restored: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def missed(self, kind: str, name: bytes) -> None:
        self.not_restored[kind] = self.not_restored.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(os.fsdecode(name))


@dataclass(slots=True)
class _Output:
    """A file being written: its parts may end in any order; the last one finishes it."""

    record: InodeRecord
    name: bytes
    fd: int
    parts: int = 1  # under way; one is held by the walk until all are handed out


class Rebuilding:
    """One restore's tree. `run` builds it and reports."""

    def __init__(
        self, repository: Repository, tree: SnapshotTree, staging: str, threads: int, progress: Progress | None
    ) -> None:
        self._repository = repository
        self._tree = tree
        self._staging = staging
        self._progress = progress or (lambda done, total: None)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="restore")
        self._slots = threading.BoundedSemaphore(threads * PARTS_PER_THREAD)
        self._lock = threading.Lock()  # guards the report, the counts of parts and the first failure
        self._failure: BaseException | None = None
        self._linked: set[Ino] = set()
        self._done_bytes = 0
        self._total_bytes = tree.root.total_bytes
        self.report = RestoreReport()

    def run(self) -> RestoreReport:
        links, root = f"{self._staging}/links", f"{self._staging}/tree"
        os.mkdir(links, 0o700)
        os.mkdir(root, 0o700)
        _drop_inherited_acls(root)
        self._links = os.open(links, _DIRECTORY)
        try:
            self._walk(os.open(root, _DIRECTORY))
        finally:
            self._pool.shutdown(wait=True, cancel_futures=self._failure is not None)
            os.close(self._links)
        self._raise_failure()
        return self.report

    # -- the walk --------------------------------------------------------------------------------------------

    def _walk(self, here: int) -> None:
        """Depth first from the open directory `here`, which it closes."""
        record = self._tree.inode(ROOT_INO)
        assert record is not None
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
                    above.append((record, entries))
                    record = self._record(entry)
                    here, entries = _enter(here, entry.name), self._tree.entries(record)
                else:
                    self._make(here, entry.name, self._record(entry))
                self._raise_failure()
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
            self._set_attributes(here, b".", record, here)
        except BaseException:
            os.close(parent)
            raise
        os.close(here)
        with self._lock:
            self.report.directories += 1
        return parent

    def _make(self, here: int, name: bytes, record: InodeRecord) -> None:
        if record.nlink > 1 and record.ino in self._linked:
            os.link(str(record.ino), name, src_dir_fd=self._links, dst_dir_fd=here, follow_symlinks=False)
            return
        made = self._make_file(here, name, record) if stat.S_ISREG(record.mode) else self._node(here, name, record)
        if made and record.nlink > 1:
            os.link(name, str(record.ino), src_dir_fd=here, dst_dir_fd=self._links, follow_symlinks=False)
            self._linked.add(record.ino)

    def _node(self, here: int, name: bytes, record: InodeRecord) -> bool:
        try:
            if stat.S_ISLNK(record.mode):
                os.symlink(record.target, name, dir_fd=here)
            else:
                os.mknod(name, stat.S_IFMT(record.mode) | 0o600, record.rdev, dir_fd=here)
        except PermissionError:
            self._missed("device", name)
            return False
        self._set_attributes(here, name, record, None)
        with self._lock:
            self.report.others += 1
        return True

    def _make_file(self, here: int, name: bytes, record: InodeRecord) -> bool:
        output = _Output(record, name, os.open(name, _NEW_FILE, 0o600, dir_fd=here))
        try:
            os.ftruncate(output.fd, record.size)
            for part in self._parts(record):
                with self._lock:
                    output.parts += 1
                self._slots.acquire()
                self._pool.submit(self._write_part, output, part).add_done_callback(partial(self._part_done, output))
        finally:
            self._finish_part(output)
        return True

    def _parts(self, record: InodeRecord) -> Iterator[list[tuple[ChunkIndex, Pointer]]]:
        part: list[tuple[ChunkIndex, Pointer]] = []
        for item in self._tree.chunks(record):
            part.append(item)
            if len(part) == PART_CHUNKS:
                yield part
                part = []
        if part:
            yield part

    # -- in the threads --------------------------------------------------------------------------------------

    def _write_part(self, output: _Output, part: list[tuple[ChunkIndex, Pointer]]) -> None:
        written = write_chunks(self._repository, output.fd, part, output.record.size)
        with self._lock:
            self.report.written_bytes += written
            self._done_bytes += len(part) * CHUNK_SIZE
            self._progress(min(self._done_bytes, self._total_bytes), self._total_bytes)

    def _part_done(self, output: _Output, future: Future[None]) -> None:
        """Runs when a part was written, failed or was cancelled."""
        self._slots.release()
        failure = None if future.cancelled() else future.exception()
        if failure is not None:
            self._failed(failure)
        try:
            self._finish_part(output)
        except OSError as failure:
            self._failed(failure)

    def _failed(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or failure

    def _finish_part(self, output: _Output) -> None:
        with self._lock:
            output.parts -= 1
            if output.parts:
                return
        try:
            self._set_attributes(output.fd, output.name, output.record, output.fd)
        finally:
            os.close(output.fd)
        with self._lock:
            self.report.files += 1

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # -- attributes ------------------------------------------------------------------------------------------

    def _set_attributes(self, at: int, name: bytes, record: InodeRecord, fd: int | None) -> None:
        """Owner, xattrs, mode, times, in this order: each one may undo what came before.

        `fd` is the open file; without it the attributes go to `name` in the open directory `at`.
        """
        place = f"/proc/self/fd/{fd}".encode() if fd is not None else f"/proc/self/fd/{at}/".encode() + name
        follow = fd is not None
        owned = self._chown(place, name, record, follow)
        for key, value in record.xattrs:
            try:
                os.setxattr(place, key, value, follow_symlinks=follow)
            except OSError as failure:
                if failure.errno not in _NOT_FOR_US and failure.errno not in _TOO_LARGE:
                    raise
                self._missed("xattrs", name)
        if not stat.S_ISLNK(record.mode):
            mode = stat.S_IMODE(record.mode)
            os.chmod(place, mode if owned else mode & ~_SET_ID)
            if not owned and mode & _SET_ID:
                self._missed("mode", name)
        os.utime(place, ns=(record.atime_ns, record.mtime_ns), follow_symlinks=follow)

    def _chown(self, place: bytes, name: bytes, record: InodeRecord, follow: bool) -> bool:
        try:
            os.chown(place, record.uid, record.gid, follow_symlinks=follow)
        except PermissionError:
            self._missed("owner", name)
            return False
        return True

    def _missed(self, kind: str, name: bytes) -> None:
        with self._lock:
            self.report.missed(kind, name)


def _enter(here: int, name: bytes) -> int:
    os.mkdir(name, 0o700, dir_fd=here)
    inner = os.open(name, _DIRECTORY, dir_fd=here)
    os.close(here)
    return inner


def _drop_inherited_acls(path: str) -> None:
    """A default ACL of the folder above must not leak into what is restored."""
    for name in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(path, name)
        except OSError as failure:
            if failure.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
