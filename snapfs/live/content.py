"""The bytes of files: orders the steps of each change, so that no crash and no cut can come between them wrongly.

Owns the table of `FileState`, the registers of what changed in the current epoch and in the unsealed cut, and the
*latch* that guards both. A change of a file takes these steps, in this order, in one plain function:

1. *Begin*, once per file and epoch: the file is present (hydrated) and durably listed (intents.py); its state is
   rotated: what the unsealed cut needs to know of it goes to a `Frozen`, and an empty dirty map begins.
2. Preserve what the change would destroy of the unsealed cut (preserve.py).
3. Append an intent for the blocks that become dirty (write(2), so it outlives the process).
4. Mark them in the dirty map.
5. Change the backing file; then size and times in memory.

A failure or a crash after any step leaves: (1, 2) nothing; (3) an intent too many; (4) a dirty bit too many: a block
is read once more than needed. Never a change without its bit, or an overwritten block that the cut still needs.

Invariants:
1. Changes come from one thread, the owner's, in functions that never yield: between two of them everything holds, and
   there a cut may be made. (A native data path keeps the same with a gate around these functions.)
2. `state.epoch == current.epoch` means begun: the owner may change the file without the latch. Only the owner
   changes a begun state's `dirty`; other threads may add an `inherited` map, which is immutable.
3. A file that changed in an epoch is in that epoch's `files`, unless its number is at or above the epoch's
   `new_from`: then it is new in it and all of it is dirty by that alone.
4. `current.files` and, during a seal, `cut.files` hold the only knowledge of dirtiness: their states are never evicted.
   Everything else of a state can be had again from the disk. Begun states are evicted by the owner alone.
5. Latch before `Frozen.latch`; the latch is held for no system call but stat and utime, `Frozen.latch` for the
   preserving of one chunk or the stealing of the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable

from snapfs.blocks import CHUNK_SIZE, Epoch, Ino, chunk_count
from snapfs.live.backing import Backing, stat_backing
from snapfs.live.dirty import CLEAN, DirtyMap, growth, joined
from snapfs.live.intents import Intents, Kind, Log, record
from snapfs.live.presence import Presence
from snapfs.live.preserve import FEW_CHUNKS, Frozen, Scratch, preserve_tail
from snapfs.live.records import AbsentFile
from snapfs.live.states import CutFiles, EpochFiles, FileState

RECENT_NS = 30_000_000_000
"""Times that the kernel sends along with writes are this fresh; older ones were set on purpose."""
SWEEP = 256
SWEEPS_AT_ONCE = 16

FindAbsent = Callable[[Ino], AbsentFile | None]
FindPartial = Callable[[Ino], Presence | None]


class Content:
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
        clock: Callable[[], int],
        max_states: int,
    ) -> None:
        self.backing, self.intents, self.latch = backing, intents, latch
        self.descriptors = backing.descriptors
        self.current = current
        self.cut: CutFiles | None = None
        self.states: dict[Ino, FileState] = dict(current.files)
        self.unapplied: dict[Ino, FileState] = {}
        self._find_absent, self._prepare, self._clock = find_absent, prepare, clock
        self._find_partial, self._bring = find_partial, bring
        self._max_states = max_states
        self._sweep: list[Ino] = []

    # -- states

    def state(self, ino: Ino) -> FileState:
        """What is known of a file. EIO if its backing file is lost. Any thread."""
        found = self.states.get(ino)
        if found is None:
            with self.latch:
                found = self._locate(ino)
        return found

    def _locate(self, ino: Ino, find_absent: FindAbsent | None = None) -> FileState:
        """The one state of `ino`, loaded if need be. With the latch held."""
        found = self.states.get(ino) or self.current.files.get(ino)
        if found is None and self.cut is not None:
            found = self.cut.changed.files.get(ino)
        if found is None:
            found = self._load(ino, find_absent or self._find_absent)
        self.states[ino] = found
        return found

    def _load(self, ino: Ino, find_absent: FindAbsent) -> FileState:
        try:
            size, mtime_ns, ctime_ns, _ = stat_backing(self.backing.path(ino))
        except FileNotFoundError:
            absent = find_absent(ino)
            if absent is None:
                raise OSError(errno.EIO, f"the bytes of inode {ino} are lost") from None
            state = FileState(ino, absent.size, absent.mtime_ns, absent.ctime_ns)
            state.absent = absent
            return state
        state = FileState(ino, size, mtime_ns, ctime_ns)
        state.absent = self._find_partial(ino)
        if ino >= self.current.new_from:
            state.epoch, state.dirty = self.current.epoch, DirtyMap(floor=0, whole=True)
        return state

    def _make_room(self) -> None:
        """Only where the owner holds no state: a begun one must not go while it is being changed."""
        if len(self.states) > self._max_states:
            self.evict(SWEEP)

    def evict_surplus(self) -> None:
        """What `_make_room` could not do because the sealer loaded more than the owner."""
        self.evict(min(max(len(self.states) - self._max_states, 0), SWEEPS_AT_ONCE * SWEEP))

    def evict(self, count: int) -> None:
        """Forget up to `count` states that can be had again from the disk."""
        if count and not self._sweep:
            self._sweep = list(self.states)
        for _ in range(min(count, len(self._sweep))):
            state = self.states.get(self._sweep.pop())
            if state is not None:
                if state.times_pending:
                    with contextlib.suppress(OSError):
                        self.apply_times(state)
                with self.latch:
                    self._forget(state)

    def _forget(self, state: FileState) -> None:
        """With the latch held."""
        ino = state.ino
        if ino in self.current.files or state.times_pending or self.states.get(ino) is not state:
            return
        if self.cut is not None:
            if ino in self.cut.changed.files or (state.frozen is not None and state.frozen.readers):
                return
            if state.epoch == self.current.epoch and ino < self.cut.end_ino:
                return
        del self.states[ino]

    # -- beginning to change

    def is_ready(self, ino: Ino) -> bool:
        """Whether a change can begin without waiting for a disk or a store."""
        state = self.state(ino)
        if state.epoch == self.current.epoch:
            return True
        with self.latch:
            return (state.absent is None or state.absent.can_change) and self.intents.is_listed(ino)

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
        with self.descriptors.borrow(state.ino) as fd, self.latch:
            known = self.states.get(state.ino, state)
            os.utime(fd, ns=(known.ctime_ns, known.mtime_ns))

    def arrived(self, ino: Ino, forget: Callable[[], object]) -> None:
        """All of a partly present file is here, durably: it is one like any. `forget` its presence. Any thread."""
        with self.latch:
            forget()
            tables = [self.states, self.current.files, *([self.cut.changed.files] if self.cut is not None else [])]
            for state in filter(None, (table.get(ino) for table in tables)):
                state.absent = None

    def begin(self, ino: Ino) -> FileState:
        """Step 1. Waits if `is_ready` is false."""
        self._make_room()
        while True:
            with self.latch:
                state = self._locate(ino)
                if state.epoch == self.current.epoch:
                    return state
                if (state.absent is None or state.absent.can_change) and self.intents.may_change(ino):
                    self._rotate(state)
                    return state
            self._prepare(ino)

    def _rotate(self, state: FileState) -> None:
        """Let the state be of the current epoch. With the latch held, and the file listed."""
        ino, current = state.ino, self.current
        if self.cut is not None and ino < self.cut.end_ino:
            self._freeze(state, self.cut)
        else:
            state.frozen = None
        is_new = ino >= current.new_from
        state.dirty = DirtyMap(floor=0, whole=True) if is_new else DirtyMap()
        state.inherited = None
        state.epoch = current.epoch
        if not is_new:
            current.files[ino] = state

    def _freeze(self, state: FileState, cut: CutFiles) -> Frozen:
        """What `cut` sees of the file, noted before its first change after it. With the latch held."""
        frozen = state.frozen
        if frozen is not None and frozen.scratch is cut.scratch:
            return frozen
        dirty, inherited = CLEAN, None
        if state.epoch == cut.changed.epoch:
            dirty, inherited = state.dirty, state.inherited
        elif state.ino >= cut.changed.new_from:
            dirty = DirtyMap(floor=0, whole=True)
        assert state.epoch != self.current.epoch, "a begun file has its Frozen or needs none"
        state.frozen = Frozen(
            state.ino, state.size, (state.mtime_ns, state.ctime_ns), dirty, inherited,
            self.backing.path(state.ino), cut.scratch,
        )  # fmt: skip
        return state.frozen

    # -- changing

    def create(self, ino: Ino, now_ns: int) -> None:
        """Make the empty file of a new inode, before its row is."""
        fd = self.backing.create(ino)
        os.utime(fd, ns=(now_ns, now_ns))
        state = FileState(ino, 0, now_ns, now_ns)
        state.epoch, state.dirty = self.current.epoch, DirtyMap(floor=0, whole=True)
        with self.latch:
            self.states[ino] = state
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
        fd = self.descriptors.get(ino)
        if state.frozen is not None:
            self._preserve(state, fd, offset, length)
        if offset + length > state.size:
            self._mark_growth(state, offset + length)
        if not state.dirty.has(offset, length):
            self._mark(state, offset, length)
        state.wrote = True
        if isinstance(state.absent, Presence):
            done = state.absent.write(fd, data, offset, state.size)
        else:
            done = os.pwrite(fd, data, offset)
        state.size = max(state.size, offset + done)
        return done

    def truncate(self, ino: Ino, size: int) -> None:
        """Set the size. EFBIG, ENOSPC, EIO."""
        state = self.begin(ino)
        if size == state.size:
            return
        while lacking := self.lacking_to_truncate(ino, size):
            self._bring(ino, lacking)
        if size > state.size:
            self._mark_growth(state, size)
            os.ftruncate(self.descriptors.get(ino), size)
        else:
            self._mark_shrink(state, size)
            if not self._steal(state, size):
                fd = self.descriptors.get(ino)
                if state.frozen is not None and self.cut is not None:
                    preserve_tail(state.frozen, fd, size)
                os.ftruncate(fd, size)
            if isinstance(state.absent, Presence):
                self._cut_off(state, state.absent, size)
        state.size = size
        state.wrote = True

    def _cut_off(self, state: FileState, presence: Presence, size: int) -> None:
        """The new end is durable before chunks beyond it count as present: as holes, if the file grows again."""
        self.backing.disk.fsync("presence:cut", self.descriptors.get(state.ino))
        self.backing.sync_name(state.ino)
        presence.cut_off(size)

    def set_times(self, ino: Ino, mtime_ns: int | None, ctime_ns: int) -> None:
        """Set the times that the backing file carries."""
        state = self.begin(ino)
        if state.dirty.is_clean():
            self.intents.append(record(Kind.TIMES, ino))
        lazy = state.wrote and mtime_ns is not None and abs(self._clock() - mtime_ns) < RECENT_NS
        with self.latch:
            if mtime_ns is not None:
                state.mtime_ns = mtime_ns
            state.ctime_ns = ctime_ns
            state.times_pending = True
            self.unapplied[ino] = state
        if not lazy:
            self.apply_times(state)

    def _preserve(self, state: FileState, fd: int, offset: int, length: int) -> None:
        """Step 2."""
        assert state.frozen is not None or self.cut is None or state.ino >= self.cut.end_ino
        if state.frozen is None:
            return
        if self.cut is None:
            state.frozen = None
        else:
            state.frozen.preserve(fd, offset, length)

    def _mark(self, state: FileState, offset: int, length: int) -> None:
        """Steps 3 and 4 for a range of bytes."""
        first, last = offset // 4096, (offset + length - 1) // 4096
        self.intents.append(record(Kind.BLOCKS, state.ino, first, last - first + 1))
        self.current.chunks += state.dirty.mark(offset, length)

    def _mark_growth(self, state: FileState, new_size: int) -> None:
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
        with self.latch:
            state.times_pending = True
            self.unapplied[state.ino] = state
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
        timed = False
        with self.descriptors.borrow(ino) as fd:
            if state is not None and not datasync:
                timed = self._apply_times(state, fd)
            disk = self.backing.disk
            (disk.fsync if timed else disk.fdatasync)("backing:sync", fd)
        self.backing.sync_name(ino)

    def apply_times(self, state: FileState) -> None:
        """Bring the times to the backing file. Any thread."""
        with self.descriptors.borrow(state.ino) as fd:
            self._apply_times(state, fd)

    def _apply_times(self, state: FileState, fd: int) -> bool:
        with self.latch:
            if not state.times_pending:
                return False
            os.utime(fd, ns=(state.ctime_ns, state.mtime_ns))
            state.times_pending = state.wrote = False
            self.unapplied.pop(state.ino, None)
            return True

    # -- cuts

    def freeze(self, epoch: Epoch, log: Log, scratch: Scratch) -> CutFiles:
        """End the current epoch and begin `epoch`, whose log this is. O(1); cannot fail."""
        with self.latch:
            self.cut = CutFiles(self.current, log.new_from, scratch)
            self.current = EpochFiles(epoch, log.new_from)
            self.intents.logs.append(log)
            return self.cut

    def open_frozen(self, ino: Ino, find_absent: FindAbsent) -> Frozen | AbsentFile | None:
        """What the unsealed cut sees of a file; None if there was none. Give it back. EIO if it is lost. Any thread."""
        with self.latch:
            cut = self.cut
            assert cut is not None, "the cut is finished"
            if ino >= cut.end_ino:
                return None
            state = self._locate(ino, find_absent)
            if isinstance(state.absent, AbsentFile):
                return state.absent
            frozen = self._freeze(state, cut)
            frozen.readers += 1
            return frozen

    def presence_of(self, ino: Ino) -> Presence | None:
        """What is known of a file that is partly present. Any thread."""
        return self._find_partial(ino)

    def frozen_of(self, ino: Ino) -> Frozen | None:
        """What the unsealed cut sees of a file that will be changed; None if it needs nothing. Any thread."""
        with self.latch:
            cut = self.cut
            if cut is None or ino >= cut.end_ino:
                return None
            state = self._locate(ino)
            if state.epoch == self.current.epoch:
                return state.frozen
            return self._freeze(state, cut)

    def dirty_inos(self) -> list[Ino]:
        """Files with changes that no snapshot has, or that is being made. Any thread."""
        cut = self.cut
        return [*self.current.files, *(cut.changed.files if cut is not None else ())]

    def close_frozen(self, frozen: Frozen) -> None:
        """Any thread."""
        with self.latch:
            frozen.readers -= 1
            state = self.states.get(frozen.ino)
            if not frozen.readers and state is not None and state.epoch != self.current.epoch:
                self._forget(state)

    def end_cut(self) -> None:
        """The cut is in a snapshot: nothing of it is needed any more. Any thread."""
        with self.latch:
            cut, self.cut = self.cut, None
        assert cut is not None
        for state in list(cut.changed.files.values()):
            with self.latch:
                if state.epoch == cut.changed.epoch:
                    state.dirty, state.inherited, state.frozen = CLEAN, None, None

    def merge_back(self) -> None:
        """The seal failed: what was dirty at the cut is dirty in the current epoch. Any thread."""
        cut, current = self.cut, self.current
        assert cut is not None
        with self.latch:
            current.new_from = min(current.new_from, cut.changed.new_from)
        for state in list(cut.changed.files.values()):
            self._inherit(state, cut)
        for ino, state in list(current.files.items()):
            if ino >= current.new_from:
                state.inherited = DirtyMap(floor=0, whole=True)
        with self.latch:
            older = cut.changed.replaced
            current.replaced = older | {ino: older.get(was, was) for ino, was in current.replaced.items()}
            current.chunks += cut.changed.chunks
            self.cut = None

    def _inherit(self, state: FileState, cut: CutFiles) -> None:
        with self.latch:
            frozen = self._freeze(state, cut) if state.epoch != self.current.epoch else state.frozen
            assert frozen is not None
            if state.epoch != self.current.epoch:
                self._rotate(state)
        union = joined(each for each in (frozen.dirty, frozen.inherited) if each is not None)
        with self.latch:
            state.inherited = union

    def replaced_by(self, ino: Ino, was: Ino) -> None:
        """Note that `ino` took the last name of `was`. A hint: the last snapshot may have similar bytes there."""
        current = self.current
        current.replaced[ino] = current.replaced.pop(was, was) if was >= current.new_from else was

    def distrust(self, inos: list[Ino]) -> None:
        """Compare these files in full for the next snapshot."""
        for start in range(0, len(inos), SWEEP):
            batch = inos[start : start + SWEEP]
            self.intents.list_whole(batch)
            for ino in batch:
                self.begin(ino).dirty.mark_whole()

    def reload(self, inos: list[Ino]) -> None:
        """The bytes of these files were replaced: know them anew, as wholly changed. No cut is unsealed."""
        self.intents.list_whole(inos)
        for ino in inos:
            with self.latch:
                for table in (self.states, self.current.files, self.unapplied):
                    table.pop(ino, None)
            self.begin(ino).dirty.mark_whole()

    def forget(self, ino: Ino) -> None:
        """The inode is gone."""
        with self.latch:
            self.states.pop(ino, None)
            self.current.files.pop(ino, None)
            self.current.replaced.pop(ino, None)
            self.unapplied.pop(ino, None)

    def check_invariants(self) -> None:
        with self.latch:
            for files in (self.current, *((self.cut.changed,) if self.cut is not None else ())):
                for ino, state in files.files.items():
                    assert state.ino == ino
                    assert self.states.get(ino, state) is state
                    assert state.epoch >= files.epoch
                    assert self.intents.is_listed(ino)
                    state.dirty.check_invariants()
            CLEAN.check_invariants()
            assert CLEAN.is_clean()
            for ino, state in self.states.items():
                self._check_state(ino, state)

    def _check_state(self, ino: Ino, state: FileState) -> None:
        assert state.epoch <= self.current.epoch
        if state.frozen is not None and self.cut is not None and state.frozen.scratch is self.cut.scratch:
            state.frozen.check_invariants()
        if state.epoch == self.current.epoch:
            assert ino in self.current.files or ino >= self.current.new_from, ino
            assert state.absent is None or state.absent.can_change
        if not isinstance(state.absent, AbsentFile):
            with contextlib.suppress(FileNotFoundError):
                assert os.stat(self.backing.path(ino)).st_size == state.size, ino
