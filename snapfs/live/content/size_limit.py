"""The limit of the live tree's size (the setting live.limit), as Python sees it; native/size_limit.c has the rules.

The native data path alone has one. What it refuses is EDQUOT: there is room, but not for this volume.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from snapfs.base.blocks import Ino
from snapfs.live.content.file_states import FileState
from snapfs.live.database.namespace_rows import error

if TYPE_CHECKING:
    from snapfs.live.content._content import Core


class SizeLimit:
    """No limit. Any thread; a state's size with the file's lock held."""

    is_on = False

    @property
    def sizes(self) -> tuple[int, int]:
        """(limit, bytes that count); (0, 0) without a limit."""
        return 0, 0

    def begin(self, limit: int, used: int) -> None:
        """From now on up to `limit` bytes may count; `used` do so. Between changes."""
        raise AssertionError("this data path has no limit")

    def resize(self, state: FileState, size: int) -> None:
        """Set the size of a file, and count it."""
        state.size = size

    def check(self, state: FileState, end: int) -> None:
        """EDQUOT if the file may not grow up to byte `end`."""

    def refuses(self, ino: Ino) -> bool:
        """Whether a write(2) of the file that begins now is to be refused."""
        return False

    @property
    def is_reached(self) -> bool:
        """Whether nothing new may be made."""
        return False

    def count(self, more: int) -> None:
        """So many bytes count more, of files that came or went."""


class NativeSizeLimit(SizeLimit):
    """The Core's."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def sizes(self) -> tuple[int, int]:
        return self._core.size_limit()

    def begin(self, limit: int, used: int) -> None:
        self.is_on = limit > 0
        self._core.set_size_limit(limit, used)

    def resize(self, state: FileState, size: int) -> None:
        self._core.resize(state, size)

    def check(self, state: FileState, end: int) -> None:
        if not self._core.allows(state, end):
            raise error(errno.EDQUOT)

    def refuses(self, ino: Ino) -> bool:
        return self.is_on and self._core.refuses(ino)

    @property
    def is_reached(self) -> bool:
        limit, used = self._core.size_limit()
        return 0 < limit <= used

    def count(self, more: int) -> None:
        self._core.count_size(more)


def limited(host: os.statvfs_result, limit: int, used: int) -> os.statvfs_result:
    """What statfs shows of a host filesystem on which so many bytes may count: how much is left of both."""
    used_blocks = -(-max(used, 0) // host.f_frsize)
    free = min(max(limit // host.f_frsize - used_blocks, 0), host.f_bavail)
    shown = list(host)
    shown[2:5] = used_blocks + free, free, free
    return os.statvfs_result(shown)
