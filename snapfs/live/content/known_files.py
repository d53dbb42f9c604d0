"""The files that are in memory: the table of `FileState`, how one is loaded, and which may be forgotten.

Owns `states`, and the *latch*, which guards it and the registers of epochs.py.

Invariants:
1. A file has one state at most: in `states`, else in the registers of the epochs, else it is loaded from the disk.
2. What the registers of the current epoch and of the open cut hold is never evicted: nothing else has that
   dirtiness. Everything else of a state can be had again from the disk. Begun states are evicted by the owner alone.
3. A file's lock before the latch, and before `Frozen.latch`; those two are not held together (native/lock_order.h has
   the whole order). The latch is held for no system call but stat, `Frozen.latch` for the preserving of one chunk or
   the detaching of the file.
4. The times, size and `wrote` of a state change with its lock held.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.backing_files import stat_backing
from snapfs.live.content.datapath import PYTHON, DataPath
from snapfs.live.content.file_states import CutFiles, EpochFiles, FileState
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.intents.dirty_map import DirtyMap
from snapfs.live.intents.intents import Intents
from snapfs.live.residency.residency import Residency

SWEEP = 256
SWEEPS_AT_ONCE = 16
_USE_POLL_S = 20e-6

FindAbsent = Callable[[Ino], AbsentFile | None]
FindPartial = Callable[[Ino], Residency | None]


def is_noted(state: FileState) -> bool:
    """Whether only memory and the current log have the file's mtime: the host has stamped it, and the ctime differs."""
    return state.wrote and state.mtime_ns != state.ctime_ns


class KnownFiles(ABC):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    def __init__(
        self,
        backing: Backing,
        intents: Intents,
        latch: threading.Lock,
        current: EpochFiles,
        *,
        find_absent: FindAbsent,
        find_partial: FindPartial = lambda ino: None,
        prepare: Callable[[Ino], None],
        max_states: int,
        types: DataPath = PYTHON,
    ) -> None:
        self.backing, self.intents, self.latch, self.types = backing, intents, latch, types
        self.descriptors, self.limits, self.health = backing.descriptors, backing.limits, backing.health
        self.current = current
        self.cut: CutFiles | None = None
        self.states: dict[Ino, FileState] = dict(current.files)
        self.unapplied: dict[Ino, FileState] = {}
        self._find_absent, self._find_partial, self._prepare = find_absent, find_partial, prepare
        self._max_states = max_states
        self._sweep: list[Ino] = []

    # -- the table. A native data path overrides these four

    def _keep(self, state: FileState) -> None:
        """With the latch held."""
        self.states[state.ino] = state

    def _let_go(self, ino: Ino) -> bool:
        """Take a state out of the table; false if a thread is using it. With the latch held."""
        self.states.pop(ino, None)
        return True

    def _discard(self, ino: Ino) -> bool:
        """Take a file out of all tables; false if a thread is using its state. With the latch held."""
        for table in (self.states, self.current.files, self.unapplied):
            table.pop(ino, None)
        return True

    def _set_pending(self, state: FileState, pending: bool) -> None:
        """Whether the backing file has the times yet. With the state's lock held."""
        state.times_pending = pending
        if pending:
            self.unapplied[state.ino] = state
        else:
            self.unapplied.pop(state.ino, None)

    # -- states

    def state(self, ino: Ino) -> FileState:
        """The state of a file, loaded if need be. EIO if its backing file is lost. Any thread."""
        found = self.states.get(ino)
        if found is None:
            with self.latch:
                found = self._locate(ino)
        return found

    def _locate(self, ino: Ino, find_absent: FindAbsent | None = None) -> FileState:
        """The one state of `ino`, loaded if need be. With the latch held."""
        found = self.states.get(ino)
        if found is not None:
            return found
        found = self.current.files.get(ino)
        if found is None and self.cut is not None:
            found = self.cut.changed.files.get(ino)
        if found is None:
            found = self._load(ino, find_absent or self._find_absent)
        self._keep(found)
        return found

    def _load(self, ino: Ino, find_absent: FindAbsent) -> FileState:
        make = self.types.file_state
        try:
            size, mtime_ns, ctime_ns, _ = stat_backing(self.backing.path(ino))
        except FileNotFoundError:
            absent = find_absent(ino)
            if absent is None:
                raise OSError(errno.EIO, f"the bytes of inode {ino} are lost") from None
            state = make(ino, absent.size, absent.mtime_ns, absent.ctime_ns)
            state.absent = absent
            return state
        state = make(ino, size, mtime_ns, ctime_ns)
        state.absent = self._find_partial(ino)
        if ino >= self.current.new_from:
            state.epoch, state.dirty = self.current.epoch, self._whole()
        return state

    def _whole(self) -> DirtyMap:
        return self.types.dirty_map(floor=0, whole=True)

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
            if state is not None and not state.lock.locked():
                if state.times_pending or state.wrote:
                    with contextlib.suppress(OSError):
                        self.apply_times(state)
                with self.latch:
                    self._forget(state)

    @abstractmethod
    def apply_times(self, state: FileState) -> None:
        """Write the times out to the backing file. Any thread. OSError."""

    def _forget(self, state: FileState) -> None:
        """With the latch held."""
        ino = state.ino
        if ino in self.current.files or state.times_pending or is_noted(state) or self.states.get(ino) is not state:
            return
        if self.cut is not None:
            if ino in self.cut.changed.files or (state.frozen is not None and state.frozen.readers):
                return
            if state.epoch == self.current.epoch and ino < self.cut.end_ino:
                return
        self._let_go(ino)

    def forget(self, ino: Ino) -> None:
        """The inode is gone, or its bytes are others. Waits for the threads that use its state, without the latch: they
        may be waiting for the file's lock, which comes before it."""
        while True:
            with self.latch:
                if self._discard(ino):
                    self.current.replaced.pop(ino, None)
                    return
            time.sleep(_USE_POLL_S)

    def arrived(self, ino: Ino, forget: Callable[[], object]) -> None:
        """A partly present file is whole now, durably. `forget` removes its residency. Any thread."""
        with self.latch:
            forget()
            tables = [self.states, self.current.files, *([self.cut.changed.files] if self.cut is not None else [])]
            for state in filter(None, (table.get(ino) for table in tables)):
                state.absent = None
