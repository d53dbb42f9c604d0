"""Files with neither setuid nor setgid, of which a write need not look. Kept here and by the router, for its threads.

Invariant: a file is in the set only while its mode is as it was looked at: it leaves before a new mode is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.blocks import Ino

if TYPE_CHECKING:
    from snapfs.fuse._router import Router

_MOST = 4096


class PlainFiles:
    """For the thread in which modes change."""

    def __init__(self) -> None:
        self._inos: set[Ino] = set()
        self.router: Router | None = None

    def __contains__(self, ino: Ino) -> bool:
        return ino in self._inos

    def add(self, ino: Ino) -> None:
        if len(self._inos) >= _MOST:
            self._inos.clear()
        self._inos.add(ino)
        if self.router is not None:
            self.router.plain(ino, True)

    def discard(self, ino: Ino) -> None:
        self._inos.discard(ino)
        if self.router is not None:
            self.router.plain(ino, False)

    def clear(self) -> None:
        """Any mode, and any attribute, may be another now."""
        self._inos.clear()
        if self.router is not None:
            self.router.forget()
