"""Copies the files of an import to their places in the volume, with several threads.

The walk's thread submits files and takes the outcomes; the threads open, copy and close. A small file is one task; of a
large one each part (copied_content.py) is one, so that all threads work on it and a killed import goes on within it.

Invariants:
1. At most TASKS_PER_THREAD tasks a thread are under way: memory and descriptors are bounded.
2. A file counts as copied if it was the same before and after: the same inode, and the same `Signature`.
3. A copy has the size and the times of its file. It is not durable before the caller makes it so.
"""

from __future__ import annotations

import errno
import os
import queue
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from snapfs.base.blocks import Ino
from snapfs.base.limits import HostLimits
from snapfs.transfer.move_in import copied_content
from snapfs.transfer.move_in.copied_content import PART_BYTES
from snapfs.transfer.move_in.import_plan import CopiedPart, Signature

TASKS_PER_THREAD = 8
GROUP = 32
"""Small files that one task copies."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO)
XATTRS_TAKEN = ("user.", "trusted.", "security.", "system.posix_acl_")

Progress = Callable[[int], None]


@dataclass(slots=True)
class FileToCopy:
    """`name` in the walk's open directory; `path` is for messages. `parts`: those that are copied already, `hashes`:
    those of an earlier copy of the same state."""

    name: bytes
    path: bytes
    src: int
    ino: Ino
    signature: Signature
    hashes: dict[int, bytes] | None = None
    parts: dict[int, CopiedPart] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What became of a file. `facts` None: it changed meanwhile, or is gone."""

    file: FileToCopy
    facts: os.stat_result | None
    xattrs: list[tuple[bytes, bytes]] = field(default_factory=list)
    parts: list[CopiedPart] = field(default_factory=list)
    shared: bool = False
    is_whole: bool = True
    """False: of a large file, of which some parts are copied, and more to come."""


@dataclass(slots=True)
class _Large:
    """A large file whose parts are being copied."""

    file: FileToCopy
    source: int
    copy: int
    before: os.stat_result
    left: int


class FileCopies:
    """The threads of one import. Methods are for the walk's thread. `close` it."""

    def __init__(
        self,
        place: Callable[[Ino], str],
        limits: HostLimits,
        threads: int,
        *,
        at_ns: int,
        sharing: bool,
        advance: Progress,
    ) -> None:
        """`place`: the path of an inode's copy. `at_ns`: when the pass began, by the clock of file times.
        `advance(bytes)`: as they are copied, from any thread."""
        self._place, self._limits, self._advance = place, limits, advance
        self._sharing = sharing
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="import")
        self._slots = threading.BoundedSemaphore(threads * TASKS_PER_THREAD)
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._group: list[FileToCopy] = []
        self._pending: list[Future[None]] = []
        self.at_ns = at_ns

    # -- the walk's thread

    def add(self, directory: int, file: FileToCopy) -> None:
        """Have a file of the open directory copied; `flush` before that is closed. Waits for a slot."""
        if file.signature.size > PART_BYTES:
            self._begin_large(directory, file)
            return
        self._group.append(file)
        if len(self._group) == GROUP:
            self.flush(directory)

    def flush(self, directory: int) -> None:
        """Submit what was added."""
        if self._group:
            group, self._group = self._group, []
            self._submit(self._copy_group, os.dup(directory), group)

    def outcomes(self, *, wait: bool) -> list[Outcome]:
        """What has ended since the last call. `wait`: for all that is under way. Raises the first failure."""
        if wait:
            for each in self._pending:
                each.exception()
        self._pending = [each for each in self._pending if not each.done()]
        if self._failure is not None:
            raise self._failure
        found = []
        while True:
            try:
                found.append(self._outcomes.get_nowait())
            except queue.Empty:
                return found

    def close(self) -> None:
        """Wait for what is under way; what has not begun is given up."""
        with self._lock:
            self._failure = self._failure or RuntimeError("closed")
        self._pool.shutdown(wait=True)

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        self._slots.acquire()
        future = self._pool.submit(self._guarded, work, *arguments)
        self._pending.append(future)

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as failure:
            with self._lock:
                self._failure = self._failure or failure
        finally:
            self._slots.release()

    @property
    def _is_over(self) -> bool:
        return self._failure is not None

    # -- small files, in a thread

    def _copy_group(self, directory: int, files: list[FileToCopy]) -> None:
        try:
            for file in files:
                if self._is_over:
                    return
                self._outcomes.put(self._copy(directory, file))
        finally:
            os.close(directory)

    def _copy(self, directory: int, file: FileToCopy) -> Outcome:
        source = open_source(directory, file)
        if source < 0:
            return Outcome(file, None)
        try:
            before = os.fstat(source)
            if not _is_it(before, file):
                return Outcome(file, None)
            copy = os.open(self._place(file.ino), _CREATE | os.O_TRUNC, 0o600)
            try:
                return self._copy_small(source, copy, file, before)
            finally:
                os.close(copy)
        finally:
            os.close(source)

    def _copy_small(self, source: int, copy: int, file: FileToCopy, before: os.stat_result) -> Outcome:
        shared = self._share(source, copy)
        parts = []
        if not shared:
            parts = [self._copy_part(source, copy, number, before) for number in range(_parts_of(before))]
        self._advance(before.st_size)
        return self._finished(source, copy, file, before, parts, shared)

    def _share(self, source: int, copy: int) -> bool:
        if not self._sharing:
            return False
        self._sharing = copied_content.share(source, copy)
        return self._sharing

    def _copy_part(self, source: int, copy: int, number: int, before: os.stat_result) -> CopiedPart:
        sparse = before.st_blocks * 512 < before.st_size
        return CopiedPart(number, self.at_ns, *copied_content.copy_part(source, copy, number, before.st_size, sparse))

    def _finished(
        self, source: int, copy: int, file: FileToCopy, before: os.stat_result, parts: list[CopiedPart], shared: bool
    ) -> Outcome:
        """Give the copy its size and times; whether the file is what it was before."""
        xattrs = xattrs_of(source)
        after = os.fstat(source)
        if Signature.of(after) != Signature.of(before):
            return Outcome(file, None)
        if os.fstat(copy).st_size != after.st_size:
            os.ftruncate(copy, after.st_size)
        clamp = self._limits.clamp_time
        os.utime(copy, ns=(clamp(after.st_ctime_ns), clamp(after.st_mtime_ns)))
        return Outcome(file, after, xattrs, parts, shared)

    # -- large files

    def _begin_large(self, directory: int, file: FileToCopy) -> None:
        source = open_source(directory, file)
        if source < 0:
            self._outcomes.put(Outcome(file, None))
            return
        before = os.fstat(source)
        if not _is_it(before, file):
            os.close(source)
            self._outcomes.put(Outcome(file, None))
            return
        flags = _CREATE if file.parts else _CREATE | os.O_TRUNC
        try:
            copy = os.open(self._place(file.ino), flags, 0o600)
        except BaseException:
            os.close(source)
            raise
        numbers = [number for number in range(_parts_of(before)) if number not in file.parts]
        large = _Large(file, source, copy, before, len(numbers))
        if not file.parts and self._share(source, copy):
            numbers, large.left = [], 0
            self._end_large(large, shared=True)
        elif not numbers:
            self._end_large(large, shared=False)
        for number in numbers:
            self._submit(self._copy_large_part, large, number)

    def _copy_large_part(self, large: _Large, number: int) -> None:
        part = None
        try:
            if not self._is_over:
                part = self._copy_part(large.source, large.copy, number, large.before)
        finally:
            with self._lock:
                large.left -= 1
                is_last = not large.left
            if is_last and (part is None or self._is_over):
                os.close(large.source)
                os.close(large.copy)
        if part is not None:
            self._advance(min(PART_BYTES, large.before.st_size - number * PART_BYTES))
            self._outcomes.put(Outcome(large.file, large.before, parts=[part], is_whole=False))
            if is_last:
                self._end_large(large, shared=False)

    def _end_large(self, large: _Large, *, shared: bool) -> None:
        try:
            self._outcomes.put(self._finished(large.source, large.copy, large.file, large.before, [], shared))
        finally:
            os.close(large.source)
            os.close(large.copy)


def open_source(directory: int, file: FileToCopy) -> int:
    """The file, without a new access time where we may; -1 if it is gone. OSError with its path."""
    try:
        try:
            return os.open(file.name, _READ | os.O_NOATIME, dir_fd=directory)
        except PermissionError:
            return os.open(file.name, _READ, dir_fd=directory)
    except OSError as failure:
        if failure.errno in _GONE:
            return -1
        raise OSError(failure.errno, failure.strerror, os.fsdecode(file.path)) from None


def xattrs_of(place: int | str, *, follow: bool = True) -> list[tuple[bytes, bytes]]:
    """The extended attributes that a volume can hold. OSError."""
    found = []
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as failure:
        if failure.errno == errno.EOPNOTSUPP:
            return []
        raise
    for name in names:
        if name.startswith(XATTRS_TAKEN):
            try:
                found.append((os.fsencode(name), os.getxattr(place, name, follow_symlinks=follow)))
            except OSError as failure:
                if failure.errno != errno.ENODATA:  # removed meanwhile: the ctime shows it
                    raise
    return found


def _is_it(facts: os.stat_result, file: FileToCopy) -> bool:
    return stat.S_ISREG(facts.st_mode) and facts.st_ino == file.src


def _parts_of(facts: os.stat_result) -> int:
    return copied_content.part_count(facts.st_size)
