"""Files with neither setuid nor setgid, so that a write need not look. Kept here and by the router, for its threads.

Invariant: a file is in the set only while its mode is the one that was looked at: it leaves before a new mode is
answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from snapfs.base.blocks import Ino

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

_MOST = 4096


class NoSuidFiles:
    """For the thread in which modes change."""

    def __init__(self, router: Callable[[], Router | None] = lambda: None) -> None:
        """`router`: the one that answers writes by itself, if there is one."""
        self._inos: set[Ino] = set()
        self._router = router

    def __contains__(self, ino: Ino) -> bool:
        return ino in self._inos

    def add(self, ino: Ino) -> None:
        if len(self._inos) >= _MOST:
            self._inos.clear()
        self._inos.add(ino)
        if (router := self._router()) is not None:
            router.set_no_suid(ino, True)

    def discard(self, ino: Ino) -> None:
        self._inos.discard(ino)
        if (router := self._router()) is not None:
            router.set_no_suid(ino, False)

    def clear(self) -> None:
        """Any mode, and any attribute, may be another now."""
        self._inos.clear()
        if (router := self._router()) is not None:
            router.clear_no_suid()
