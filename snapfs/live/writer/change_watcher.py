"""Who caches rows of the namespace: the protocol by which the writer keeps the cache equal to the database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from snapfs.live.database.namespace_rows import Inode


class ChangeWatcher(Protocol):
    """Caches inodes, and which have changes that may not be durable. Called before the change is answered.

    `set_lazy(True)` comes before the first directory whose names are only in the store is committed.
    """

    def names_changed(self, inos: Iterable[int], transaction: int) -> None: ...

    def all_names_changed(self, transaction: int) -> None: ...

    def names_synced(self, transaction: int) -> None: ...

    def cache_inode(self, inode: Inode, /) -> None: ...

    def drop_inode(self, ino: int, /) -> None: ...

    def drop_all_inodes(self) -> None: ...

    def set_no_xattrs(self, ino: int, has_none: bool, /) -> None: ...

    def set_lazy(self, lazy: bool, /) -> None: ...

    def close_names(self) -> None:
        """The database is about to be closed."""
