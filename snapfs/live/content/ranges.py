"""Changes of ranges that carry no bytes from the caller: fallocate and copy_file_range; and SEEK_DATA, SEEK_HOLE.

The steps are those of a write (content.py), with two savings: what is a hole already neither needs keeping nor becomes
dirty by being zeroed, and what only reserves room changes no bytes.

After a failure the host may have changed the size, as when the disk fills up half-way: it is read anew. The marks were
made before, for all of the range.

Absent chunks of a partly present file are fetched before: these calls may wait for a network. From any thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapfs.base.blocks import Ino
from snapfs.base.limits import SIZE_MAX
from snapfs.live.backing.backing_files import data_ranges
from snapfs.live.content.file_states import FileState
from snapfs.live.database.namespace_rows import AbsentFile, error
from snapfs.live.residency.residency import Residency

if TYPE_CHECKING:
    from snapfs.live.content.content import Content

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
COPY_AT_ONCE = 64 << 20
_BUFFER_BYTES = 256 << 10
_CANNOT_COPY = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(content: Content, ino: Ino, mode: int, offset: int, length: int) -> None:
    """See `Content.fallocate`."""
    kind, keeps_size = mode & ~KEEP_SIZE, bool(mode & KEEP_SIZE)
    if length <= 0:
        raise error(errno.EINVAL)
    if kind not in (0, PUNCH_HOLE, ZERO_RANGE) or (kind == PUNCH_HOLE and not keeps_size):
        raise error(errno.EOPNOTSUPP)
    if offset + length > content.limits.max_bytes:
        raise error(errno.EFBIG)
    with _changing(content, ino, offset, length) as (state, fd):
        size = state.size
        if kind != PUNCH_HOLE:
            content.size_limit.check(state, offset + length)
        if kind:
            for start, stop in list(data_ranges(fd, offset, min(offset + length, size))):
                content.give_up(state, fd, start, stop - start)
        if not keeps_size and offset + length > size:
            content.mark_growth(state, offset + length)
        content.expect_stamp(state)
        try:
            _zero(fd, mode, offset, length)
        finally:
            content.size_limit.resize(state, os.fstat(fd).st_size)


@contextmanager
def _changing(content: Content, ino: Ino, offset: int, length: int) -> Iterator[tuple[FileState, int]]:
    """The file's state, begun and locked, and a descriptor; all of the range is here."""
    while True:
        _fetch_range(content, ino, offset, length)
        with content.changing(ino) as state, content.marked(state), content.descriptors.borrow(ino) as fd:
            if not _lacking(state, offset, length):
                yield state, fd
                return


def _lacking(state: FileState, offset: int, length: int) -> list[int]:
    if not isinstance(state.absent, Residency):
        return []
    return state.absent.lacking(offset, length, state.size, even_whole=True)


def _fetch_range(content: Content, ino: Ino, offset: int, length: int) -> None:
    """Let a file that is not all here have these bytes."""
    while isinstance(content.state(ino).absent, AbsentFile):
        content.prepare(ino)
    while chunks := _lacking(content.state(ino), offset, length):
        content.fetch_chunks(ino, chunks)


def _zero(fd: int, mode: int, offset: int, length: int) -> None:
    """A host that cannot zero a range can punch it, and reserve it again."""
    try:
        _host_fallocate(fd, mode, offset, length)
    except OSError as failure:
        if failure.errno != errno.EOPNOTSUPP or not mode & ZERO_RANGE:
            raise
        _host_fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        _host_fallocate(fd, mode & KEEP_SIZE, offset, length)


def punch(fd: int, offset: int, length: int) -> None:
    """Let the range of the backing file be a hole. OSError."""
    _host_fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)


def _host_fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        raise error(ctypes.get_errno())


def seek(content: Content, ino: Ino, offset: int, whence: int) -> int:
    """See `Content.seek`. What is not here counts as data."""
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise error(errno.EINVAL)
    state = content.state(ino)
    if state.absent is not None:
        if offset >= state.size:
            raise error(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else state.size
    with content.descriptors.borrow(ino) as fd:
        return os.lseek(fd, offset, whence)


# -- copies


def copy_range(content: Content, source: Ino, source_offset: int, ino: Ino, offset: int, length: int) -> int:
    """See `Content.copy_range`."""
    length = min(length, COPY_AT_ONCE)
    if source_offset + length > SIZE_MAX or offset >= content.limits.max_bytes:
        raise error(errno.EFBIG)
    length = min(length, content.limits.max_bytes - offset)
    if source == ino and source_offset < offset + length and offset < source_offset + length:
        raise error(errno.EINVAL)
    _fetch_range(content, source, source_offset, length)
    with content.descriptors.borrow(source) as source_fd, _changing(content, ino, offset, length) as (state, fd):
        length = min(length, os.fstat(source_fd).st_size - source_offset)
        if length <= 0:
            return 0
        content.size_limit.check(state, offset + length)
        content.give_up(state, fd, offset, length)
        content.expect_stamp(state)
        content.count_written(length)
        try:
            return _copy(source_fd, source_offset, fd, offset, length)
        finally:
            content.size_limit.resize(state, os.fstat(fd).st_size)


def _copy(source: int, source_offset: int, target: int, offset: int, length: int) -> int:
    done = 0
    while done < length:
        try:
            step = os.copy_file_range(source, target, length - done, source_offset + done, offset + done)
        except OSError as failure:
            if not done and failure.errno in _CANNOT_COPY:
                return _copy_by_hand(source, source_offset, target, offset, length)
            if not done:
                raise
            break
        if not step:
            break
        done += step
    return done


def _copy_by_hand(source: int, source_offset: int, target: int, offset: int, length: int) -> int:
    done = 0
    while done < length:
        data = os.pread(source, min(_BUFFER_BYTES, length - done), source_offset + done)
        if not data:
            break
        done += os.pwrite(target, data, offset + done)
    return done
