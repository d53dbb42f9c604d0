"""Changes of a file's length, and the detaching of a file that the cut needs most of.

To truncate a file to nothing while the open cut needs many of its chunks would mean to preserve them all. Instead
the backing file is *detached*: it is linked into the preserve folder for the cut, and an empty file takes its place.
A crash between leaves the old file in both places, or the link alone, which recovery removes.
"""

from __future__ import annotations

import contextlib
import errno
import os

from snapfs.base.blocks import Ino
from snapfs.live.backing.host_health import WRITE
from snapfs.live.content.change_steps import ChangeSteps
from snapfs.live.content.file_states import FileState
from snapfs.live.content.preserve import FEW_CHUNKS, preserve_tail
from snapfs.live.database.namespace_rows import error
from snapfs.live.residency.residency import Residency


class Truncates(ChangeSteps):
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    def truncate(self, ino: Ino, size: int) -> None:
        """Set the size. EFBIG, ENOSPC, EDQUOT, EIO."""
        if size > self.limits.max_bytes:
            raise error(errno.EFBIG)
        state = self.begin(ino)
        while lacking := self.lacking_to_truncate(ino, size):
            self._fetch_chunks(ino, lacking)
        with state.lock, self.marked(state):
            if size > state.size:
                self.size_limit.check(state, size)
                self.mark_growth(state, size)
                self.expect_stamp(state)
                with self.health.watching(WRITE):
                    os.ftruncate(self.descriptors.get(ino), size)
            elif size < state.size:
                self._shrink(state, size)
            else:
                return
            self.size_limit.resize(state, size)

    def lengthen(self, ino: Ino, size: int) -> bool:
        """Let a file end at `size` at least, with a hole; whether the intent log has it. Any thread. OSError."""
        with self.changing(ino) as state, self.marked(state), self.descriptors.borrow(ino) as fd:
            if size <= state.size:
                return True
            recorded = True
            try:
                self.mark_growth(state, size)
                self.expect_stamp(state)
            except OSError:
                state.dirty.mark_whole()
                recorded = False
            state.wrote = True
            os.ftruncate(fd, size)
            self.size_limit.resize(state, size)
            return recorded

    def _shrink(self, state: FileState, size: int) -> None:
        self._mark_shrink(state, size)
        self.expect_stamp(state)
        if not self._detach(state, size):
            fd = self.descriptors.get(state.ino)
            if state.frozen is not None and self.cut is not None:
                preserve_tail(state.frozen, fd, size)
            with self.health.watching(WRITE):
                os.ftruncate(fd, size)
        if isinstance(state.absent, Residency):
            self._cut_off(state, state.absent, size)

    def _cut_off(self, state: FileState, residency: Residency, size: int) -> None:
        """The new end is durable before chunks beyond it count as present: as holes, if the file grows again."""
        self.backing.disk.fsync("residency:cut", self.descriptors.get(state.ino))
        self.backing.sync_name(state.ino)
        residency.cut_off(size)

    def _detach(self, state: FileState, size: int) -> bool:
        """Truncate to nothing by putting an empty file in the place of one that the cut needs most of."""
        frozen, cut = state.frozen, self.cut
        if size or frozen is None or cut is None or frozen.pending_from(0, FEW_CHUNKS + 1) <= FEW_CHUNKS:
            return False
        disk, path = self.backing.disk, self.backing.path(state.ino)
        kept = f"{cut.scratch.path}-{state.ino:x}"
        empty = os.path.join(self.backing.staging, f"empty-{state.ino:x}")
        try:
            with frozen.latch:
                disk.link("detach:keep", path, kept)
                os.close(os.open(empty, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
                os.utime(empty, ns=(state.ctime_ns, state.mtime_ns))
                self.backing.replace(state.ino, empty, "detach:replace")
                frozen.path, frozen.detached = kept, True
                cut.scratch.take_over(kept)
        except OSError:
            for leftover in (kept, empty):
                with contextlib.suppress(OSError):
                    disk.unlink("detach:undo", leftover)
            return False
        self._set_pending(state, True)
        return True
