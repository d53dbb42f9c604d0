"""Going through the names of a snapshot, no further than needed: an inode has no record of its names.

Invariant: a walk holds one open listing for each directory above where it is, and what it is looking for.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree

DIRECTORY_KIND: Final = stat.S_IFDIR >> 12

Listing = Callable[[InodeRecord], Iterator[tuple[DirEntry, DirEntry | None]]]


def walk(
    tree: SnapshotTree, listing: Listing, enter: Callable[[Ino], bool]
) -> Iterator[tuple[bytes, DirEntry, DirEntry | None]]:
    """(path, entry, counterpart) of what `listing` gives of each directory, a directory before what is in it.

    `enter(ino)` is whether to go into a directory, when the walk comes to it. Raises CorruptionError.
    """
    root = tree.inode(ROOT_INO)
    stack = [(b"", listing(root))] if root else []
    while stack:
        prefix, names = stack[-1]
        entry, counterpart = next(names, (None, None))
        if entry is None:
            stack.pop()
            continue
        yield prefix + entry.name, entry, counterpart
        child = tree.inode(entry.ino) if entry.kind == DIRECTORY_KIND and enter(entry.ino) else None
        if child is not None:
            stack.append((prefix + entry.name + b"/", listing(child)))


class NameSearch:
    """Directories and files that a walk has still to come to; when there are none it need look only at what differs."""

    def __init__(self, directories: set[Ino], files: Iterable[Ino] = (), tree: SnapshotTree | None = None) -> None:
        self._directories = directories - {ROOT_INO}
        self.files = dict.fromkeys(files, 0)
        self._tree = tree

    @property
    def goes_on(self) -> bool:
        return bool(self._directories or self.files)

    def enter(self, ino: Ino) -> bool:
        """Is it worth going into this directory?"""
        wanted = ino in self._directories
        self._directories.discard(ino)
        return wanted or self.goes_on

    def found(self, entry: DirEntry) -> None:
        """A name of an inode: the search for it ends with the last of its links."""
        if entry.ino not in self.files or self._tree is None:
            return
        self.files[entry.ino] += 1
        record = self._tree.inode(entry.ino)
        if record is None or entry.kind == DIRECTORY_KIND or self.files[entry.ino] >= record.nlink:
            del self.files[entry.ino]
