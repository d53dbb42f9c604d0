"""Files whose backing bytes may differ from what dirty maps and snapshots have: they are compared in full.

The host failed to write bytes back, or nothing is known of the last snapshot. Each such file is listed in the intent
log as wholly changed before it counts as handled, so a crash leaves it suspect.
"""

from __future__ import annotations

import contextlib

from snapfs.base.blocks import Ino
from snapfs.base.errors import BusyError
from snapfs.live.backing.backing import Backing
from snapfs.live.content.content import Content
from snapfs.live.intents.intents import Intents
from snapfs.live.lazy.materializer import Materializer
from snapfs.live.namespace.namespace import Namespace


class SuspectFiles:
    """`list_files`, `mark` and `mark_all` for the owner thread; the rest for any."""

    def __init__(
        self, names: Namespace, content: Content, intents: Intents, backing: Backing, materializer: Materializer,
        *, adopted: bool,
    ) -> None:  # fmt: skip
        self._names, self._content, self._intents = names, content, intents
        self._backing, self._materializer = backing, materializer
        self._host_unchecked = adopted

    def check_host(self) -> None:
        """Once after an adoption: find out whether the host failed to write back what it had before."""
        if self._host_unchecked:
            self._host_unchecked = False
            with contextlib.suppress(OSError):  # the backing's health has noted it
                self._backing.sync_all("adopted:host")

    def list_files(self) -> list[Ino]:
        """Files to be given to `compare`; none while the host is not under suspicion."""
        if not self._backing.health.take_suspicion():
            return []
        listed, new_from = self._intents.suspects()
        return sorted(listed | {ino for ino in self._names.regular_inos() if ino >= new_from})

    def compare(self, inos: list[Ino]) -> list[Ino]:
        """Have the next snapshot compare these files in full, as they are on the disk. Waits for the disk.

        Returns those that the kernel should read anew. OSError if they cannot be listed: they stay suspect.
        """
        try:
            known = self._content.mark_present_suspect(inos)
        except BaseException:
            self._backing.health.suspect()
            raise
        for ino in known:
            self._backing.forget_pages(ino)
        return known

    def mark(self, inos: list[Ino]) -> None:
        """Have the next snapshot compare these files in full. Waits for the disk."""
        self._content.mark_suspect(inos)

    def mark_all(self) -> None:
        """Have the next snapshot contain everything, as if there were none before. Waits for the disk. BusyError."""
        if self._names.is_lazy:
            raise BusyError("directories are still being loaded from where the volume came from: try again later")
        partial = self._materializer.partial
        self.mark([ino for ino in self._names.touch_all() if ino in partial or self._names.absent(ino) is None])
