"""The bytes of files: orders the steps of each change, so that no crash and no cut can come between them wrongly.

A change of a file takes these steps, in this order, with the file's lock held from 1 on (epochs.py says what for):

1. *Begin*, once per file and epoch.
2. Preserve what the change would destroy of the unsealed cut (preserve.py).
3. Append an intent for the blocks that become dirty (write(2), so it outlives the process).
4. Mark them in the dirty map.
5. Change the backing file; then size and times in memory.

A failure or a crash after any step leaves: (1, 2) nothing; (3) an intent too many; (4) a dirty bit too many: a block
is read once more than needed. Never a change without its bit, or an overwritten block that the cut still needs.

Changes of bytes come from one thread here, the owner's, in functions that never yield. The native data path takes the
same steps in any thread (native/files.c, native.py); this is its reference, and what runs where it cannot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from snapfs.blocks import CHUNK_SIZE, Ino, chunk_count
from snapfs.live import ranges
from snapfs.live.backing import Backing
from snapfs.live.datapath import PYTHON, DataPath
from snapfs.live.dirty import growth
from snapfs.live.epochs import Epochs
from snapfs.live.intent_records import Kind, record
from snapfs.live.intents import Intents
from snapfs.live.known import FindAbsent, FindPartial
from snapfs.live.opens import Opens
from snapfs.live.presence import Presence
from snapfs.live.preserve import FEW_CHUNKS, preserve_tail
from snapfs.live.states import EpochFiles, FileState

if TYPE_CHECKING:
    from snapfs.live._content import Core
    from snapfs.live.writer import ChangeWatcher


class Content(Epochs):
    """For the owner thread, but for what says "any thread". Errors are OSErrors with the errno that Linux gives."""

    def __init__(
        self,
        backing: Backing,
        intents: Intents,
        latch: threading.Lock,
        current: EpochFiles,
        *,
        find_absent: FindAbsent,
        find_partial: FindPartial = lambda ino: None,
        bring: Callable[[Ino, list[int]], None] = lambda ino, chunks: None,
        prepare: Callable[[Ino], None],
        max_states: int,
        types: DataPath = PYTHON,
    ) -> None:
        super().__init__(
            backing, intents, latch, current,
            find_absent=find_absent, find_partial=find_partial, prepare=prepare, max_states=max_states, types=types,
        )  # fmt: skip
        self.descriptors = backing.descriptors
        self._bring = bring

    core: Core | None = None

    def make_opens(self) -> Opens:
        """Where opens are counted."""
        return Opens()

    def watch_names(self, watch: Callable[[ChangeWatcher], None]) -> None:
        """Hear of changes of names from now on, where that is of use."""

    # -- what is not here yet

    def prepare(self, ino: Ino) -> None:
        """Let a file be listed, and present at least in part. Waits. Any thread."""
        self._prepare(ino)

    def bring(self, ino: Ino, chunks: list[int]) -> None:
        """Bring chunks of a partly present file in. Waits. Any thread."""
        self._bring(ino, chunks)

    def lacking(self, ino: Ino, offset: int, length: int) -> list[int]:
        """Chunks of a partly present file that must be fetched before these bytes change; beyond the end: it grows."""
        state = self.state(ino)
        if not isinstance(state.absent, Presence):
            return []
        needed = self.cut is not None and ino < self.cut.end_ino
        return state.absent.lacking(offset, length, state.size, even_whole=needed)

    def lacking_to_truncate(self, ino: Ino, size: int) -> list[int]:
        """The same for a truncate to `size`: the chunk it falls into, and those that the unsealed cut needs."""
        state = self.state(ino)
        if not isinstance(state.absent, Presence):
            return []
        if size >= state.size:
            return state.absent.lacking(size, 0, state.size) if size > state.size else []
        frozen, tail = self.frozen_of(ino), size // CHUNK_SIZE if size % CHUNK_SIZE else -1
        return [
            chunk for chunk in state.absent.absent_chunks(size // CHUNK_SIZE)
            if chunk == tail or (frozen is not None and frozen.covers(chunk))
        ]  # fmt: skip

    def put_back_times(self, state: FileState) -> None:
        """After chunks were put into the backing file: to the host that was a change. Any thread."""
        known = self.states.get(state.ino, state)
        with self.descriptors.borrow(state.ino) as fd, known.lock:
            os.utime(fd, ns=(known.ctime_ns, known.mtime_ns))

    # -- changing

    def create(self, ino: Ino, now_ns: int) -> None:
        """Make the empty file of a new inode, before its row is."""
        fd = self.backing.create(ino)
        os.utime(fd, ns=(now_ns, now_ns))
        state = self.types.file_state(ino, 0, now_ns, now_ns)
        state.epoch, state.dirty = self.current.epoch, self._whole()
        with self.latch:
            self._keep(state)
        self._make_room()

    def write(self, ino: Ino, offset: int, data: bytes | memoryview) -> int:
        """Write; returns the bytes written, fewer only where the disk filled up. ENOSPC, EFBIG, EIO."""
        state = self.states.get(ino)
        if state is None or state.epoch != self.current.epoch:
            state = self.begin(ino)
        length = len(data)
        if not length:
            return 0
        while lacking := self.lacking(ino, offset, length) if state.absent is not None else []:
            self._bring(ino, lacking)  # waits; who must not has asked `lacking` before
        with state.lock:
            fd = self.descriptors.get(ino)
            self.give_up(state, fd, offset, length)
            state.wrote = True
            if isinstance(state.absent, Presence):
                done = state.absent.write(fd, data, offset, state.size)
            else:
                done = os.pwrite(fd, data, offset)
            state.size = max(state.size, offset + done)
        return done

    def give_up(self, state: FileState, fd: int, offset: int, length: int) -> None:
        """Steps 2 to 4 for bytes that will change. With the state's lock held."""
        if state.frozen is not None:
            self._preserve(state, fd, offset, length)
        if offset + length > state.size:
            self.mark_growth(state, offset + length)
        if not state.dirty.has(offset, length):
            self._mark(state, offset, length)

    def truncate(self, ino: Ino, size: int) -> None:
        """Set the size. EFBIG, ENOSPC, EIO."""
        state = self.begin(ino)
        while lacking := self.lacking_to_truncate(ino, size):
            self._bring(ino, lacking)
        with state.lock:
            if size > state.size:
                self.mark_growth(state, size)
                os.ftruncate(self.descriptors.get(ino), size)
            elif size < state.size:
                self._shrink(state, size)
            else:
                return
            state.size = size
            state.wrote = True

    def _shrink(self, state: FileState, size: int) -> None:
        self._mark_shrink(state, size)
        if not self._steal(state, size):
            fd = self.descriptors.get(state.ino)
            if state.frozen is not None and self.cut is not None:
                preserve_tail(state.frozen, fd, size)
            os.ftruncate(fd, size)
        if isinstance(state.absent, Presence):
            self._cut_off(state, state.absent, size)

    def _cut_off(self, state: FileState, presence: Presence, size: int) -> None:
        """The new end is durable before chunks beyond it count as present: as holes, if the file grows again."""
        self.backing.disk.fsync("presence:cut", self.descriptors.get(state.ino))
        self.backing.sync_name(state.ino)
        presence.cut_off(size)

    def fallocate(self, ino: Ino, mode: int, offset: int, length: int) -> None:
        """As fallocate(2): reserve room, punch a hole, zero a range. EOPNOTSUPP for any other mode."""
        ranges.fallocate(self, ino, mode, offset, length)

    def copy_range(self, source: Ino, source_offset: int, ino: Ino, offset: int, length: int) -> int:
        """Copy bytes within the host; returns how many, which may be fewer, 0 at the end of the source."""
        return ranges.copy_range(self, source, source_offset, ino, offset, length)

    def seek(self, ino: Ino, offset: int, whence: int) -> int:
        """The next data or hole from `offset` on: os.SEEK_DATA, os.SEEK_HOLE. ENXIO beyond the end. Any thread."""
        return ranges.seek(self, ino, offset, whence)

    def set_times(self, ino: Ino, mtime_ns: int | None, ctime_ns: int) -> None:
        """Set the times that the backing file carries."""
        state = self.begin(ino)
        with state.lock:
            if state.dirty.is_clean():
                self.intents.append(record(Kind.TIMES, ino))
            if mtime_ns is not None:
                state.mtime_ns = mtime_ns
            state.ctime_ns = ctime_ns
            self._set_pending(state, True)
        self.apply_times(state)

    def _preserve(self, state: FileState, fd: int, offset: int, length: int) -> None:
        """Step 2."""
        assert state.frozen is not None
        if self.cut is None:
            state.frozen = None
        else:
            state.frozen.preserve(fd, offset, length)

    def _mark(self, state: FileState, offset: int, length: int) -> None:
        """Steps 3 and 4 for a range of bytes."""
        first, last = offset // 4096, (offset + length - 1) // 4096
        self.intents.append(record(Kind.BLOCKS, state.ino, first, last - first + 1))
        self.current.chunks += state.dirty.mark(offset, length)

    def mark_growth(self, state: FileState, new_size: int) -> None:
        """Steps 3 and 4 for what an extension makes dirty of itself."""
        floor, blocks = growth(state.dirty, state.size, new_size)
        records = []
        if floor < state.dirty.floor:
            records.append(record(Kind.FLOOR, state.ino, floor, 0))
        if blocks is not None:
            records.append(record(Kind.BLOCKS, state.ino, *blocks))
        if records:
            self.intents.append(*records)
        state.dirty.lower(floor)
        if blocks is not None:
            self.current.chunks += state.dirty.mark_blocks(*blocks)

    def _mark_shrink(self, state: FileState, size: int) -> None:
        """Steps 3 and 4 for what a truncate drops."""
        dirty = state.dirty
        floor, reach = min(size // CHUNK_SIZE, dirty.floor), max(chunk_count(state.size), dirty.reach)
        if not dirty.whole and (floor, reach) != (dirty.floor, dirty.reach):
            self.intents.append(record(Kind.FLOOR, state.ino, floor, reach))
            dirty.lower(floor, reach)

    def _steal(self, state: FileState, size: int) -> bool:
        """Truncate to nothing by putting an empty file in the place of one that the cut needs most of."""
        frozen, cut = state.frozen, self.cut
        if size or frozen is None or cut is None or frozen.pending_from(0, FEW_CHUNKS + 1) <= FEW_CHUNKS:
            return False
        disk, path = self.backing.disk, self.backing.path(state.ino)
        kept = f"{cut.scratch.path}-{state.ino:x}"
        empty = os.path.join(self.backing.staging, f"empty-{state.ino:x}")
        try:
            with frozen.latch:
                disk.link("steal:keep", path, kept)
                os.close(os.open(empty, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
                self.backing.replace(state.ino, empty, "steal:replace")
                frozen.path, frozen.stolen = kept, True
                cut.scratch.take_over(kept)
        except OSError:
            for leftover in (kept, empty):
                with contextlib.suppress(OSError):
                    os.unlink(leftover)
            return False
        self._set_pending(state, True)
        return True

    # -- reading

    def read_cached(self, ino: Ino, offset: int, size: int) -> bytes | None:
        """Read what the host has in memory; None if it must be waited for. O(size)."""
        state = self.state(ino)
        size = min(size, state.size - offset)
        if size <= 0:
            return b""
        if state.absent is not None and not (isinstance(state.absent, Presence) and state.absent.has(offset, size)):
            return None
        buffer = bytearray(size)
        try:
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
        with self.descriptors.borrow(ino) as fd:
            return os.pread(fd, size, offset)

    # -- making durable

    def sync(self, ino: Ino, datasync: bool) -> None:
        """Make the bytes (and, unless `datasync`, the times) of a present file durable. Any thread."""
        state = self.states.get(ino)
        with self.descriptors.borrow(ino) as fd:
            if state is not None and not datasync:
                self._apply_times(state, fd)
            disk = self.backing.disk
            (disk.fdatasync if datasync else disk.fsync)("backing:sync", fd)
        self.backing.answer_for(ino)

    def pending_times(self) -> list[FileState]:
        """States whose times their backing files do not have yet. Any thread."""
        return list(self.unapplied.values())

    def apply_times(self, state: FileState) -> None:
        """Bring the times to the backing file. Any thread."""
        with self.descriptors.borrow(state.ino) as fd:
            self._apply_times(state, fd)

    def _apply_times(self, state: FileState, fd: int) -> bool:
        with state.lock:
            if not state.times_pending and not state.wrote:
                return False
            os.utime(fd, ns=(state.ctime_ns, state.mtime_ns))
            state.wrote = False
            self._set_pending(state, False)
            return True

    def attributes(self, ino: Ino) -> tuple[int, int, int, int] | None:
        """Size, times and blocks of a file that memory knows, where that is had without looking at the host's times."""
        return None

    def close(self) -> None:
        """Let nobody change anything any more."""
