"""Makes the cuts of a live tree (cut.py has their theory), one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable

from snapfs.base.blocks import Disk, Epoch
from snapfs.base.errors import BusyError
from snapfs.live.backing.backing_files import allocated_bytes
from snapfs.live.content.content import Content
from snapfs.live.content.datapath import DataPath
from snapfs.live.content.preserve import Scratch
from snapfs.live.cut import READERS, Cut
from snapfs.live.intents.intents import Intents
from snapfs.live.namespace.namespace import Namespace


class CutMaker:
    """For the owner thread; the callbacks of a cut come from the sealer's thread."""

    def __init__(
        self, live_dir: str, names: Namespace, content: Content, intents: Intents, types: DataPath, disk: Disk,
        clock: Callable[[], int], max_readers: int = READERS,
    ) -> None:  # fmt: skip
        self._folder = os.path.join(live_dir, "preserve")
        self._names, self._content, self._intents = names, content, intents
        self._types, self._disk, self._clock, self._max_readers = types, disk, clock, max_readers
        self._sealed: tuple[Epoch, int] | None = None
        self.copied_bytes = 0
        """Bytes that were preserved for cuts that are finished."""

    def make(self) -> Cut:
        """End the epoch. BusyError while another cut is open; OSError if the disk fails: then nothing happened."""
        if self._content.cut is not None:
            raise BusyError("a snapshot is being made already")
        self.note_sealed()
        with self._names.turn:
            return self._make()

    def _make(self) -> Cut:
        self._content.note_replaced()
        log = self._intents.new_log(Epoch(self._names.epoch + 1), self._names.allocate_ino())
        try:
            frozen_names = self._names.cut(self._names.epoch)
        except BaseException:
            self._intents.discard(log)
            raise
        time_ns = self._clock()
        scratch = Scratch(self._folder, frozen_names.epoch, self._disk, self._types.slot_file)
        files = self._content.freeze(self._names.epoch, log, scratch)
        return Cut(self._content, frozen_names, files, time_ns, self._seal_done, self._note_copied, self._max_readers)

    def _note_copied(self, size: int) -> None:
        self.copied_bytes += size

    def _seal_done(self, epoch: Epoch, sealed_as: int) -> None:
        self._intents.mark_sealed(epoch)
        self._sealed = epoch, sealed_as

    def note_sealed(self) -> None:
        """Record in the namespace, from its own thread, the snapshot that was sealed since the last call."""
        sealed, self._sealed = self._sealed, None
        if sealed is not None:
            self._names.mark_sealed(*sealed)

    @property
    def preserved_bytes(self) -> int:
        """Bytes on the disk that are preserved for the open cut."""
        cut = self._content.cut
        return sum(map(allocated_bytes, cut.scratch.paths)) if cut is not None else 0
