"""Which epoch each file is in: how a file begins to change in one, and what a cut does to all of them.

Owns the registers of what changed in the current epoch and in the open cut.

To *begin* a file, once in each epoch, before its first change: it is present (hydrated) and durably listed
(intents.py); its state is rotated: what the open cut needs to know goes to a `Frozen`, an empty dirty map begins.

Invariants:
1. A change of a file, from the look at its epoch to its last step, is made with `state.lock` held: it belongs to the
   epoch that the file is in then. `state.epoch == current.epoch` means begun.
2. A cut (`freeze`) waits for no file: it takes the latch alone, and the latch is never held while a file's lock is
   waited for. A change under way goes on in the epoch that ended; a reader of the file for the cut takes
   the file's lock, and so sees all of it. A later change finds its epoch over, and begins the file anew.
3. `epoch`, `dirty` as a whole, `inherited` and `frozen` of a state change with its lock and the latch held.
   Only a change of the file adds to a begun state's `dirty`; an `inherited` map is immutable.
4. A file that changed in an epoch is in that epoch's `files`, unless its number is at or above the epoch's
   `new_from`: then it is new in it and all of it is dirty by that alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from snapfs.base.blocks import Ino
from snapfs.live.content.file_states import CutFiles, FileState
from snapfs.live.content.known_files import SWEEP, KnownFiles, is_noted
from snapfs.live.content.preserve import Frozen
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.residency.residency import Residency


class Epochs(KnownFiles):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    # -- beginning to change

    def is_ready(self, ino: Ino) -> bool:
        """Whether a change can begin without waiting for a disk, a store or a change that is under way."""
        state = self.state(ino)
        if state.lock.locked():
            return False
        if state.epoch == self.current.epoch:
            return True
        with self.latch:
            return self._can_change(state) and self.intents.is_listed(ino)

    def _can_change(self, state: FileState) -> bool:
        return state.absent is None or state.absent.can_change

    def begin(self, ino: Ino) -> FileState:
        """Let a file be of the current epoch. Waits if `is_ready` is false."""
        self._make_room()
        return self.begin_anywhere(ino)

    def begin_anywhere(self, ino: Ino) -> FileState:
        """As `begin`, from any thread: so a cut may come before it returns, and nothing makes room."""
        while True:
            begun = self.try_begin(ino)
            if begun is not None:
                return begun
            self._prepare(ino)

    @contextlib.contextmanager
    def changing(self, ino: Ino) -> Iterator[FileState]:
        """The state of a file, begun and locked. Any thread."""
        while True:
            state = self.begin_anywhere(ino)
            with state.lock:
                if state.epoch == self.current.epoch and self.states.get(ino) is state:
                    yield state
                    return

    def try_begin(self, ino: Ino) -> FileState | None:
        """As `begin`; None if it is to be prepared first. Any thread."""
        while True:
            state = self.state(ino)
            with state.lock, self.latch:
                if self.states.get(ino) is not state:
                    continue
                was = state.epoch
                if was != self.current.epoch:
                    if not self._can_change(state) or not self.intents.may_change(ino):
                        return None
                    self._rotate(state)
            if was != state.epoch:
                self._free_note(state)
            return state

    def _free_note(self, state: FileState) -> None:
        """Write out times that an older log has a note of: that log may be removed. Any thread."""
        if is_noted(state):
            with contextlib.suppress(OSError):  # the housekeeping, or the last close, tries again
                self.apply_times(state)

    def _rotate(self, state: FileState) -> None:
        """Let the state be of the current epoch. With its lock and the latch held, and the file listed."""
        ino, current = state.ino, self.current
        if self.cut is not None and ino < self.cut.end_ino:
            self._freeze(state, self.cut)
        else:
            state.frozen = None
        is_new = ino >= current.new_from
        state.dirty = self._whole() if is_new else self.types.dirty_map()
        state.inherited = None
        state.epoch = current.epoch
        if not is_new:
            current.files[ino] = state

    def _freeze(self, state: FileState, cut: CutFiles) -> Frozen:
        """What `cut` sees of the file, noted before its first change after it. With its lock and the latch held."""
        frozen = state.frozen
        if frozen is not None and frozen.scratch is cut.scratch:
            return frozen
        dirty, inherited = self.types.clean, None
        if state.epoch == cut.changed.epoch:
            dirty, inherited = state.dirty, state.inherited
        elif state.ino >= cut.changed.new_from:
            dirty = self._whole()
        assert state.epoch != self.current.epoch, "a begun file has its Frozen or needs none"
        state.frozen = self.types.frozen(
            state.ino, state.size, (state.mtime_ns, state.ctime_ns), dirty, inherited,
            self.backing.path(state.ino), cut.scratch,
        )  # fmt: skip
        return state.frozen

    # -- what has changed

    def residency_of(self, ino: Ino) -> Residency | None:
        """The residency of a file that is partly present, else None. Any thread."""
        return self._find_partial(ino)

    def dirty_inos(self) -> list[Ino]:
        """Files with changes that no snapshot has, or that is being made. Any thread."""
        while True:
            current, cut = self.current, self.cut
            found = [*current.files, *(cut.changed.files if cut is not None else ())]
            if current is self.current and cut is self.cut:  # no file was on its way from one to the other
                return found

    def dirty_chunks(self) -> int:
        """How many chunks the maps of the current epoch hold, roughly."""
        return self.current.chunks

    def replaced_by(self, ino: Ino, was: Ino) -> None:
        """Note that `ino` took the last name of `was`. A hint: the last snapshot may have similar bytes there."""
        current = self.current
        current.replaced[ino] = current.replaced.pop(was, was) if was >= current.new_from else was

    def mark_suspect(self, inos: list[Ino]) -> None:
        """Compare these files in full for the next snapshot."""
        for start in range(0, len(inos), SWEEP):
            batch = inos[start : start + SWEEP]
            self.intents.list_whole(batch)
            self._mark_whole(batch)

    def mark_present_suspect(self, inos: Iterable[Ino]) -> list[Ino]:
        """As `mark_suspect`, from any thread, for those that are here and can change; these are returned."""
        known = []
        for ino in inos:
            with contextlib.suppress(OSError):
                if not isinstance(self.state(ino).absent, AbsentFile):
                    known.append(ino)
        for start in range(0, len(known), SWEEP):
            batch = known[start : start + SWEEP]
            self.intents.list_whole(batch)
            for ino in batch:
                with contextlib.suppress(OSError), self.changing(ino) as state:
                    state.dirty.mark_whole()
        return known

    def _mark_whole(self, inos: Iterable[Ino]) -> None:
        for ino in inos:
            state = self.begin(ino)
            with state.lock:
                state.dirty.mark_whole()

    def reload(self, inos: list[Ino]) -> None:
        """The bytes of these files were replaced: load them anew, as wholly changed. No cut is open."""
        self.intents.list_whole(inos)
        for ino in inos:
            self.forget(ino)
            self._mark_whole([ino])

    def check_invariants(self) -> None:
        """What must hold between changes."""
        with self.latch:
            for files in (self.current, *((self.cut.changed,) if self.cut is not None else ())):
                for ino, state in files.files.items():
                    assert state.ino == ino
                    assert self.states.get(ino, state) is state
                    assert state.epoch >= files.epoch
                    assert self.intents.is_listed(ino)
                    state.dirty.check_invariants()
            self.types.clean.check_invariants()
            assert self.types.clean.is_clean()
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
