"""What a cut does to the epochs of files, what it shows of each file, and what its end leaves (rules: epochs.py)."""

from __future__ import annotations

from snapfs.base.blocks import Epoch, Ino
from snapfs.live.content.epochs import Epochs
from snapfs.live.content.file_states import CutFiles, EpochFiles, FileState
from snapfs.live.content.known_files import FindAbsent
from snapfs.live.content.preserve import Frozen, Scratch
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.intents.dirty_map import joined
from snapfs.live.intents.intent_log import Log


class EpochCuts(Epochs):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    def freeze(self, epoch: Epoch, log: Log, scratch: Scratch) -> CutFiles:
        """End the current epoch and begin `epoch`, whose log this is. O(1); cannot fail."""
        with self.latch:
            self.cut = CutFiles(self.current, log.new_from, scratch)
            self.current = EpochFiles(epoch, log.new_from)
            self.intents.logs.append(log)
            self._advance(self.cut, log)
            return self.cut

    def _advance(self, cut: CutFiles, log: Log) -> None:
        """The epoch has changed. With the latch held."""

    def open_frozen(self, ino: Ino, find_absent: FindAbsent) -> Frozen | AbsentFile | None:
        """What the open cut sees of a file; None if there was none. For `close_frozen`. EIO if lost. Any thread."""
        while True:
            with self.latch:
                cut = self.cut
                assert cut is not None, "the cut is finished"
                if ino >= cut.end_ino:
                    return None
                state = self._locate(ino, find_absent)
            with state.lock, self.latch:
                if self.states.get(ino) is not state:
                    continue
                if isinstance(state.absent, AbsentFile):
                    return state.absent
                frozen = state.frozen if state.epoch == self.current.epoch else self._freeze(state, cut)
                assert frozen is not None
                frozen.readers += 1
                return frozen

    def frozen_of(self, ino: Ino) -> Frozen | None:
        """What the open cut sees of a file that will be changed; None if it needs nothing. Any thread."""
        while True:
            with self.latch:
                if self.cut is None or ino >= self.cut.end_ino:
                    return None
                state = self._locate(ino)
            with state.lock, self.latch:
                if self.states.get(ino) is not state:
                    continue
                if self.cut is None:
                    return None
                return state.frozen if state.epoch == self.current.epoch else self._freeze(state, self.cut)

    def close_frozen(self, frozen: Frozen) -> None:
        """Any thread."""
        with self.latch:
            frozen.readers -= 1
            state = self.states.get(frozen.ino)
            idle = not frozen.readers and state is not None and state.epoch != self.current.epoch
        if state is not None and idle:
            self._free_note(state)
            with self.latch:
                if not frozen.readers and state.epoch != self.current.epoch:
                    self._forget(state)

    def end_cut(self) -> None:
        """The cut is in a snapshot: nothing of it is needed any more. Any thread."""
        with self.latch:
            cut, self.cut = self.cut, None
        assert cut is not None
        for state in list(cut.changed.files.values()):
            with state.lock, self.latch:
                if state.epoch == cut.changed.epoch:
                    state.dirty, state.inherited, state.frozen = self.types.clean, None, None
        self._drop_frozen(cut)

    def _drop_frozen(self, cut: CutFiles) -> None:
        """Give back the memory for what the cut saw of files that changed after it."""
        for state in list(self.current.files.values()):
            with state.lock, self.latch:
                if state.frozen is not None and state.frozen.scratch is cut.scratch:
                    state.frozen = None

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
                state.inherited = self._whole()
        with self.latch:
            older = cut.changed.replaced
            current.replaced = older | {ino: older.get(was, was) for ino, was in current.replaced.items()}
            current.chunks += cut.changed.chunks
            self.cut = None
        self._drop_frozen(cut)

    def _inherit(self, state: FileState, cut: CutFiles) -> None:
        with state.lock, self.latch:
            begun = state.epoch == self.current.epoch
            frozen = state.frozen if begun else self._freeze(state, cut)
            assert frozen is not None
            if not begun:
                self._rotate(state)
        union = joined(each for each in (frozen.dirty, frozen.inherited) if each is not None)
        with state.lock, self.latch:
            state.inherited = union
