"""The bytes of files: orders the steps of each change, so that no crash and no cut can come between them wrongly.

A change of a file takes these steps, in this order, with the file's lock held from 1 on (epochs.py has the reason):

1. *Begin*, once per file and epoch.
2. Preserve what the change would destroy of the open cut (preserve.py).
3. Append an intent for the blocks that become dirty (write(2), so it outlives the process).
4. Mark them in the dirty map.
5. Change the backing file, which has a flush mark from before on (flush_marks.py); then size and times in memory.

A failure or a crash after any step leaves: (1, 2) nothing; (3) an intent too many; (4) a dirty bit too many: a block
is read once more than needed. Never a change without its bit, or an overwritten block that the cut still needs.

Changes of bytes come from one thread here, the owner's, in functions that never yield. The native data path takes the
same steps in any thread (native/files.c, native_content.py); this is its reference, and what runs where it cannot.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

from snapfs.base.blocks import Ino
from snapfs.live.backing.host_health import READ, SYNC, WRITE
from snapfs.live.content import ranges
from snapfs.live.content.open_counts import Opens
from snapfs.live.content.truncates import Truncates
from snapfs.live.database.namespace_rows import error
from snapfs.live.residency.residency import Residency

if TYPE_CHECKING:
    from snapfs.live.content._content import Core
    from snapfs.live.writer.change_watcher import ChangeWatcher
    from snapfs.live.writer.turn import SharedNames


class ServedNames(Protocol):
    """The namespace, as a data path that serves names needs it."""

    path: str

    def watch(self, watcher: ChangeWatcher) -> None: ...

    def share(self, shared: SharedNames) -> None: ...


class Content(Truncates):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    core: Core | None = None
    written = 0
    """Bytes of all changes in this life that this path made."""

    def make_opens(self) -> Opens:
        """Where opens are counted."""
        return Opens()

    def serve_names(self, names: ServedNames, changes: bool) -> None:
        """Watch changes of names from now on, look at them and (if `changes`) change them, where the data path does."""

    def take_orphans(self) -> list[Ino]:
        """Inodes that lost their last name by the data path's own changes since the last call. Any thread."""
        return []

    def set_orphan(self, ino: Ino, is_orphan: bool) -> None:
        """Whether it matters that the kernel forgets the inode."""

    def take_replaced(self) -> list[tuple[Ino, Ino]]:
        """(ino, whose last name it took) by the data path's own changes since the last call."""
        return []

    def note_replaced(self) -> None:
        """Take over which files took another one's last name in C: in the same epoch, and before one of them goes."""
        for ino, was in self.take_replaced():
            self.replaced_by(ino, was)

    def take_left_over(self) -> list[Ino]:
        """Backing files that the data path made, and whose rows it could not make."""
        return []

    # -- changing

    def create(self, ino: Ino, now_ns: int) -> None:
        """Make the empty file of a new inode, before its row is."""
        fd = self.backing.create(ino)
        with self.backing.changing(ino):
            os.utime(fd, ns=(now_ns, now_ns))
        state = self.types.file_state(ino, 0, now_ns, now_ns)
        state.epoch, state.dirty = self.current.epoch, self._whole()
        with self.latch:
            self._keep(state)
        self._make_room()

    def count_written(self, length: int) -> None:
        """So many bytes were written by applications. In the thread that writes."""
        self.written += length

    def write(self, ino: Ino, offset: int, data: bytes | memoryview, taken: bool = False) -> int:
        """Write; returns the bytes written, fewer only where the disk filled up. ENOSPC, EFBIG, EIO.

        `taken`: the kernel took the bytes from an application before; else EDQUOT beyond the limit of size.
        """
        state = self.states.get(ino)
        if state is None or state.epoch != self.current.epoch:
            state = self.begin(ino)
        room = self.limits.max_bytes - offset
        if len(data) > room:  # what fits is written, as for the host's own files; the rest is refused
            if room > 0:
                self.write(ino, offset, data[:room], taken)
            raise error(errno.EFBIG)
        length = len(data)
        if not length:
            return 0
        while lacking := self.lacking(ino, offset, length) if state.absent is not None else []:
            self._fetch_chunks(ino, lacking)  # waits; a caller that must not wait checks `lacking` first
        with state.lock, self.marked(state):
            if not taken:
                self.size_limit.check(state, offset + length)
            fd = self.descriptors.get(ino)
            with self.health.watching(WRITE):
                self.give_up(state, fd, offset, length)
                self.expect_stamp(state)
                if isinstance(state.absent, Residency):
                    done = state.absent.write(fd, data, offset, state.size)
                else:
                    done = os.pwrite(fd, data, offset)
            self.size_limit.resize(state, max(state.size, offset + done))
        self.count_written(done)
        return done

    def fallocate(self, ino: Ino, mode: int, offset: int, length: int) -> None:
        """As fallocate(2): reserve room, punch a hole, zero a range. EOPNOTSUPP for any other mode."""
        with self.health.watching(WRITE):
            ranges.fallocate(self, ino, mode, offset, length)

    def copy_range(self, source: Ino, source_offset: int, ino: Ino, offset: int, length: int) -> int:
        """Copy bytes within the host; returns how many, which may be fewer, 0 at the end of the source."""
        with self.health.watching(WRITE):
            return ranges.copy_range(self, source, source_offset, ino, offset, length)

    def seek(self, ino: Ino, offset: int, whence: int) -> int:
        """The next data or hole from `offset` on: os.SEEK_DATA, os.SEEK_HOLE. ENXIO beyond the end. Any thread."""
        return ranges.seek(self, ino, offset, whence)

    # -- reading

    def read_cached(self, ino: Ino, offset: int, size: int) -> bytes | None:
        """Read what the host has in memory; None if it must be waited for. O(size)."""
        state = self.state(ino)
        size = min(size, state.size - offset)
        if size <= 0:
            return b""
        if state.absent is not None and not (isinstance(state.absent, Residency) and state.absent.has(offset, size)):
            return None
        buffer = bytearray(size)
        try:
            with self.health.watching(READ):
                done = os.preadv(self.descriptors.get(ino), [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as failure:
            if failure.errno != errno.EOPNOTSUPP:
                raise
            return None
        return bytes(buffer) if done == size else None

    def read(self, ino: Ino, offset: int, size: int) -> bytes:
        """Read bytes of a present file. Any thread; may wait for the disk."""
        with self.health.watching(READ), self.descriptors.borrow(ino) as fd:
            return os.pread(fd, size, offset)

    # -- making durable

    def sync(self, ino: Ino, datasync: bool, flush: bool = False) -> None:
        """Make the bytes (and, unless `datasync`, the times) of a file that is here durable. Any thread.

        `flush`: sync the backing file even where nothing of it is to be flushed.
        """
        state = self.states.get(ino)
        with self.health.watching(SYNC), self.descriptors.borrow(ino) as fd:
            if state is not None and not datasync:
                self._apply_times(state, fd)
            disk = self.backing.disk
            (disk.fdatasync if datasync else disk.fsync)("backing:sync", fd)
        self.backing.answer_for(ino)

    def attributes(self, ino: Ino) -> tuple[int, int, int, int] | None:
        """Size, times and blocks of a file, where the data path has them in memory; else None."""
        return None

    def close(self) -> None:
        """Refuse every later change."""
