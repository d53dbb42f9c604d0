"""The times of files: in memory, in the backing file, and in the intent log where only that survives a kill.

The host stamps a backing file with each write, but the mtime that is reported is the one that the kernel set. The mtime
that the stamp replaces is still known from the file's ctime if they are equal, as after any write through the kernel.
Where they differ, they are noted in the intent log before the first stamp (`expect_stamp`): once after they were set,
and once in each epoch, since the log of the epoch before may be removed.
"""

from __future__ import annotations

import os

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing_files import set_file_times
from snapfs.live.content.epoch_cuts import EpochCuts
from snapfs.live.content.file_states import FileState
from snapfs.live.intents.intent_records import IntentKind, note_of_times, record


class FileTimes(EpochCuts):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    def set_times(self, ino: Ino, mtime_ns: int | None, ctime_ns: int) -> None:
        """Set the times that the backing file carries, the nearest ones that it holds."""
        mtime_ns = None if mtime_ns is None else self.limits.clamp_time(mtime_ns)
        ctime_ns = self.limits.clamp_time(ctime_ns)
        state = self.begin(ino)
        with state.lock:
            if state.dirty.is_clean():
                self.intents.append(record(IntentKind.TIMES, ino))
            if mtime_ns is not None:
                state.mtime_ns = mtime_ns
            state.ctime_ns = ctime_ns
            self._set_pending(state, True)
        self.apply_times(state)

    def put_back_times(self, state: FileState) -> None:
        """After chunks were put into the backing file: to the host that was a change. Any thread."""
        known = self.states.get(state.ino, state)
        with self.backing.changing(state.ino, True), self.descriptors.borrow(state.ino) as fd, known.lock:
            os.utime(fd, ns=(known.ctime_ns, known.mtime_ns))

    def expect_stamp(self, state: FileState) -> None:
        """Before the host stamps a write of its own: note the times that only its file has. With the lock held."""
        if not state.wrote:
            if state.mtime_ns != state.ctime_ns:
                self.intents.append(note_of_times(state.ino, state.mtime_ns, state.ctime_ns))
            state.wrote = True

    def pending_times(self) -> list[FileState]:
        """States whose times their backing files do not have yet. Any thread."""
        return list(self.unapplied.values())

    def apply_times(self, state: FileState) -> None:
        """Write the times out to the backing file. Any thread. OSError."""
        with self.descriptors.borrow(state.ino) as fd:
            self._apply_times(state, fd)

    def _apply_times(self, state: FileState, fd: int) -> bool:
        with state.lock:
            if not state.times_pending and not state.wrote:
                return False
            with self.backing.changing(state.ino, state.absent is not None):
                state.ctime_ns = set_file_times(fd, state.mtime_ns, state.ctime_ns)
            state.wrote = False
            self._set_pending(state, False)
            return True
