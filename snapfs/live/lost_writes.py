"""Writes of cached pages that failed for good: the file gets the length that the kernel believes in (cached_writes.py).

Invariants:
1. A lost write is counted before its file is lengthened, and its file stays in `_too_short` until it has the
   length; so `take` reports each loss at least once.
2. A lost write is listed in `undropped` before it is answered, and until the kernel has dropped the pages. A daemon
   that dies meanwhile leaves live/room empty: the next one has the kernel drop the pages of all files (`is_unknown`).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from snapfs.base.blocks import Ino
from snapfs.live.backing.host_health import WRITE, HostHealth
from snapfs.live.content.cached_writes import FULL, CachedRoom
from snapfs.live.content.content import Content


class LostWrites:
    """Any thread. `is_unknown`: an earlier daemon may have lost writes of which the kernel still shows the pages."""

    def __init__(self, content: Content, room: CachedRoom, health: HostHealth, *, adopted: bool) -> None:
        """`adopted`: the mount, and so the kernel's cache, is an earlier daemon's."""
        self._content, self._room, self._health = content, room, health
        self._reported = 0
        self._too_short: dict[Ino, int] = {}
        self._undropped: dict[Ino, int] = {}
        self.is_unknown = adopted and room.is_given_up

    def add(self, ino: Ino, end: int, number: int) -> None:
        """A write of pages that the kernel had taken, up to byte `end`, failed with errno `number`.

        EFBIG is of a request that no host could serve: it loses nothing that was promised.
        """
        if number != errno.EFBIG:
            self._undropped[ino] = self._room.note_loss(number)
            self._room.give_all()
            self._health.note(WRITE, number)
            self.lengthen(ino, end)

    def lengthen(self, ino: Ino, end: int) -> None:
        """The kernel shows the file up to byte `end`: it gets that length, with a hole, now or as soon as it can."""
        self._too_short[ino] = max(end, self._too_short.get(ino, 0))
        self._lengthen_all()

    def take(self) -> tuple[int, int]:
        """(how many writes were lost since the last call or are not settled yet, errno of the last). Waits."""
        self._lengthen_all()
        before, self._reported = self._reported, self._room.lost_writes
        return self._reported - before or len(self._too_short), self._room.lost_errno

    def undropped(self) -> dict[Ino, int]:
        """The files with lost writes whose pages the kernel may still show, each with the number of its last loss."""
        return dict(self._undropped)

    def dropped(self, losses: Mapping[Ino, int]) -> None:
        """The kernel has dropped the pages of these, which `undropped` returned."""
        for ino, loss in losses.items():
            if self._undropped.get(ino) == loss:
                del self._undropped[ino]

    def all_dropped(self) -> None:
        """The kernel has dropped all pages that it had of the earlier daemon's files, which have its lengths."""
        self.is_unknown = False

    def keep_room(self) -> None:
        """Keep the room again if there is plenty, and no page is shown that was not stored. Waits for the disk."""
        if not self.is_unknown and not self._undropped:
            self._room.keep()

    def _lengthen_all(self) -> None:
        """Lengthen what the host has room for; the others stay for the next call."""
        for ino, end in list(self._too_short.items()):
            if self._lengthen(ino, end):
                self._too_short.pop(ino, None)

    def _lengthen(self, ino: Ino, end: int) -> bool:
        """Whether the file has the length now, or is gone."""
        while True:
            try:
                if not self._content.lengthen(ino, end) and self._health.life is not None:
                    self._health.life.withdraw()
            except OSError as error:
                if error.errno in FULL and self._room.give(0):
                    continue
                return error.errno == errno.ESTALE
            return True
