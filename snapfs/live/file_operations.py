"""Operations on the bytes of files: open, read, write, and what makes a file ready for them.

A handler of a request first checks `ready_to_write` or `ready_to_truncate` in the owner thread. Where that is false it
runs `prepare_write` or `prepare_truncate` in another thread and checks again, since a cut may have come meanwhile.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from snapfs.base.blocks import Ino
from snapfs.live.content.cached_writes import CachedRoom
from snapfs.live.content.datapath import Need
from snapfs.live.content.size_limit import limited
from snapfs.live.lost_writes import LostWrites
from snapfs.live.name_operations import NameOperations
from snapfs.live.tree_parts import TreeParts

if TYPE_CHECKING:
    from snapfs.live.content._content import Core


class FileOperations(NameOperations):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    def __init__(self, parts: TreeParts) -> None:
        super().__init__(parts)
        self._types = parts.types
        self.room = CachedRoom(self.live_dir)
        self.lost_writes = LostWrites(self._content, self.room, self.health, adopted=parts.adopted)

    # -- opens

    def open(self, ino: Ino, writing: bool) -> None:
        """EIO if the bytes of the file are lost."""
        self._content.state(ino)
        self._opens.opened(ino, writing)

    def release(self, ino: Ino, writing: bool) -> None:
        """One open less; the last one writes out the times."""
        if self._opens.released(ino, writing):
            state = self._content.states.get(ino)
            if state is not None and (state.times_pending or state.wrote):
                self._content.apply_times(state)

    def open_for_writing(self) -> list[Ino]:
        return self._opens.writers()

    def may_be_written(self, ino: Ino) -> bool:
        """Whether the kernel may hold pages of the file that it has not written back."""
        return self.adopted or self._opens.is_written(ino)

    def is_opened(self, ino: Ino) -> bool:
        return self._opens.is_open(ino)

    def open_files(self) -> list[Ino]:
        return self._opens.files()

    # -- bytes

    def read(self, ino: Ino, offset: int, size: int, nowait: bool = False) -> bytes | None:
        """Bytes, fewer only at the end. With `nowait` None if it would wait; without, any thread."""
        if nowait:
            return self._content.read_cached(ino, offset, size)
        state = self._content.states.get(ino) or self._content.state(ino)
        absent = state.absent
        if absent is not None:
            return self._materializer.read(ino, absent, offset, size, state.size)
        return self._content.read(ino, offset, size)

    def write(self, ino: Ino, offset: int, data: bytes, taken: bool = False) -> int:
        """Returns the bytes written, fewer only where the disk filled up; see content.py, for `taken` as well."""
        if offset + len(data) > self.limits.max_bytes:
            self._misread.add(ino)
        return self._content.write(ino, offset, data, taken)

    def fallocate(self, ino: Ino, mode: int, offset: int, length: int) -> None:
        """As fallocate(2), but for modes that close or open gaps (EOPNOTSUPP). Waits. Any thread."""
        self._content.fallocate(ino, mode, offset, length)

    def copy_range(self, source: Ino, source_offset: int, ino: Ino, offset: int, length: int) -> int:
        """Copy bytes within the host; returns how many, maybe fewer, 0 at the end. Waits. Any thread."""
        return self._content.copy_range(source, source_offset, ino, offset, length)

    def lseek(self, ino: Ino, offset: int, whence: int) -> int:
        """The next data (os.SEEK_DATA) or hole (os.SEEK_HOLE) from `offset` on; ENXIO beyond the end. Any thread."""
        return self._content.seek(ino, offset, whence)

    # -- ready to change

    def ready_to_write(self, ino: Ino, offset: int = 0, length: int = 0) -> bool:
        """Whether `write` of these bytes, and `setattr` of the times, need not wait for the disk or the store."""
        if not self._content.is_ready(ino):
            return False
        return ino not in self._materializer.partial or not self._content.lacking(ino, offset, length)

    def ready_to_truncate(self, ino: Ino, size: int) -> bool:
        """Whether `setattr` of the size need not wait either, since no cut needs what lies beyond `size`."""
        if not self._content.is_ready(ino):
            return False
        quick = size == 0 or self._content.frozen_of(ino) is None
        return quick and self.has_to_truncate(ino, size)

    def has_to_truncate(self, ino: Ino, size: int) -> bool:
        """Whether all bytes are present that a truncate to `size` needs."""
        return not self._content.lacking_to_truncate(ino, size)

    def prepare_write(self, ino: Ino, offset: int = 0, length: int = 0) -> None:
        """Make `ready_to_write` true (if a cut comes meanwhile: again). Waits. Any thread."""
        self._hydration.prepare_write(ino, offset, length)

    def prepare_truncate(self, ino: Ino, size: int) -> None:
        """As `prepare_write`, and preserve what a truncate to `size` would destroy of a cut. Waits. Any thread."""
        self._hydration.prepare_truncate(ino, size)

    def prepare(self, ino: Ino, need: int) -> None:
        """Do what a native call needs before it is tried again (content_api.h). Waits. Any thread."""
        if need == Need.LOAD:
            self._content.state(ino)
        elif need == Need.BEGIN:
            self._content.begin_anywhere(ino)
        else:
            raise OSError(errno.ENOTCONN, "the live tree is closed")

    @property
    def data_path(self) -> str:
        """ "native" or "python"."""
        return self._types.name

    @property
    def native(self) -> Core | None:
        """What C callers use (native/content_api.h); None on the Python path."""
        return self._content.core

    # -- absent files (file_hydration.py)

    def hydrate(self, ino: Ino, max_chunks: int, chunks: Iterable[int] | None = None) -> bool:
        """Fetch up to `max_chunks` more chunks, or just `chunks`; whether the file is whole now. Waits. Any thread."""
        return self._hydration.hydrate(ino, max_chunks, chunks)

    def hydrate_small(self, inos: Iterable[Ino], max_bytes: int) -> int:
        """Fetch the smaller ones of these files, up to `max_bytes`; how many are whole now. Waits. Any thread."""
        return self._hydration.hydrate_small(inos, max_bytes)

    def supply(self, ino: Ino, origin: bytes, pieces: list[tuple[int, bytes]]) -> None:
        """Put (chunk, content) pairs that are at hand into a large absent file. Waits. Any thread."""
        self._hydration.supply(ino, origin, pieces)

    @property
    def partly_present(self) -> list[Ino]:
        """Files that have begun to change, or to come in, and are not whole."""
        return list(self._materializer.partial)

    @property
    def hydrated_bytes(self) -> int:
        """Bytes that were fetched in this life."""
        return self._materializer.written_bytes

    # -- writes that were lost (lost_writes.py)

    def lose(self, ino: Ino, end: int, number: int) -> None:
        """A write of pages that the kernel had taken, up to byte `end`, failed for good. Any thread."""
        self.lost_writes.add(ino, end, number)

    def take_lost(self) -> tuple[int, int]:
        """(how many writes were lost since the last call or are not settled yet, errno). Waits. Any thread."""
        return self.lost_writes.take()

    def statfs(self) -> os.statvfs_result:
        """Of the host filesystem that holds the bytes."""
        return os.statvfs(self.live_dir)

    # -- the limit of size (native/size_limit.c)

    def limit_size(self, limit: int) -> None:
        """From now on the sizes of all files may add up to `limit` bytes; 0: to any. Looks at every file. OSError.

        Before the first change, or while nothing can change. The native data path alone has a limit.
        """
        if limit:
            self._content.size_limit.begin(limit, self._count_sizes())

    def _count_sizes(self) -> int:
        absent, total = self.names.absent_sizes(), 0
        for ino in self.names.regular_inos():
            try:
                total += os.stat(self._backing.path(ino)).st_size
            except FileNotFoundError:
                total += absent.get(ino, 0)
        return total

    @property
    def size_limit(self) -> tuple[int, int]:
        """(limit, bytes that count), or (0, 0). Any thread."""
        return self._content.size_limit.sizes

    def refuses_writes(self, ino: Ino) -> bool:
        """Whether a write(2) of the file that begins now is to be refused, for the limit is passed. Any thread."""
        return self._content.size_limit.refuses(ino)

    def shown_statfs(self) -> os.statvfs_result:
        """What the mount shows: of the host, or what is left of the limit."""
        limit, used = self._content.size_limit.sizes
        return limited(self.statfs(), limit, used) if limit else self.statfs()
