"""The names of a cut without what is excluded, as the sealer sees them, and what that changes against the parent.

`ShownNames` answers as `FrozenNamespace` does, of a tree without the paths that the patterns leave out
(base/settings/exclusion.py): an excluded name is not there, an inode has as many links as it has names left, and one
without any does not exist. What differs from the parent is then not only what was touched: a directory that was renamed
to or from an excluded name takes all that is below it along, and with other patterns anything may differ.

How it is found, before the first inode is visited: each name that may differ is looked at once, in the parent and in
the cut. They are the touched names of every touched directory, and all names of a directory that is *relisted*: it is
shown and was not in the parent, or the other way round; or its place changed while a pattern asks for the place; or
the patterns did. Below a directory relisted for its place or for patterns all are.

Invariants:
1. A name is counted once. The links of an inode are those that the parent has and the difference, but for a *fresh*
   one, which the parent cannot have: all its names were looked at, and what is excluded is taken off its links.
2. Everything whose record differs is among `changed_inodes`.
3. `joined` has every regular file of before the last snapshot that is in this one and was not in the parent. Nothing of
   it counts as changed, but all of it has to be stored.
4. Memory grows with the names looked at that came, went or are excluded; not with the tree.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import groupby
from typing import Protocol

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.base.errors import BusyError
from snapfs.base.settings.exclusion import Exclusion
from snapfs.live.database.namespace_rows import Inode
from snapfs.live.namespace.frozen_namespace import FrozenNamespace
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, SnapshotTree

_DIRECTORY = stat.S_IFDIR >> 12
_LOADING = "directories are still being loaded from where the volume came from, and patterns ask for their names: "


class CutNames(Protocol):
    """What the sealer asks of the names of a cut: `FrozenNamespace`, or `ShownNames`."""

    @property
    def first_new(self) -> Ino: ...
    def changed_inodes(self) -> Iterator[Ino]: ...
    def changed_names(self, directory: Ino) -> Iterator[bytes]: ...
    def inode(self, ino: Ino) -> Inode | None: ...
    def xattrs(self, ino: Ino) -> tuple[tuple[bytes, bytes], ...]: ...
    def entry(self, parent: Ino, name: bytes) -> tuple[Ino, int] | None: ...
    def entries(self, parent: Ino) -> Iterator[tuple[bytes, Ino, int]]: ...


class DirectoryPlaces:
    """Where directories are, and which of them are left out. One thread at a time."""

    def __init__(self, names: FrozenNamespace, exclusion: Exclusion) -> None:
        self._names, self._exclusion = names, exclusion
        self._known: dict[Ino, bytes | None] = {ROOT_INO: b""}

    def path(self, directory: Ino) -> bytes | None:
        """The path of a directory, with a slash at its end but for the root; None if it is left out, or gone."""
        above: list[Ino] = []
        here = directory
        while here not in self._known:
            inode = self._names.inode(here)
            if inode is None or here in above:
                self._known[here] = None
                break
            above.append(here)
            here = inode.parent
        for ino in reversed(above):  # from the top down: the directories of each are looked at once
            if ino not in self._known:
                self._learn(here)
                self._known.setdefault(ino, None)
            here = ino
        return self._known[directory]

    def _learn(self, parent: Ino) -> None:
        path = self._known[parent]
        for name, ino in self._names.directories(parent):
            self.note(path, name, ino)

    def note(self, parent_path: bytes | None, name: bytes, ino: Ino) -> None:
        """Learn where a directory is."""
        inside = None if parent_path is None else parent_path + name
        is_out = inside is None or self._exclusion.leaves_out(inside, is_directory=True)
        self._known[ino] = None if inside is None or is_out else inside + b"/"

    def leaves_out(self, directory: Ino, name: bytes, *, is_directory: bool) -> bool:
        """Whether what `name` in this directory means is left out."""
        path = self.path(directory)
        return path is None or self._exclusion.leaves_out(path + name, is_directory=is_directory)


class ShownNames:
    """Made for one seal, and used by its thread. CorruptionError, OSError; BusyError while names must be loaded."""

    def __init__(
        self, names: FrozenNamespace, parent: SnapshotTree | None, exclusion: Exclusion, *, anew: bool
    ) -> None:
        """`anew`: the parent was made with other patterns."""
        self._names, self._parent, self._anew = names, parent, anew
        self._places = DirectoryPlaces(names, exclusion)
        self._by_place = exclusion.depends_on_place
        self.first_new = names.first_new
        self._fresh_from = max(self.first_new, parent.root.next_ino) if parent else Ino(0)
        self._links: Counter[Ino] = Counter()  # against the parent's
        self._excluded: Counter[Ino] = Counter()  # names of what is fresh, or subdirectories of it
        self._relisted: set[Ino] = set()
        self._below: list[tuple[Ino, bool]] = []  # relisted, and still to be looked through; whether all below is, too
        self._look()
        self.joined = [ino for ino in sorted(self._links) if self._has_joined(ino)]

    @property
    def next_ino(self) -> Ino:
        """Above every number that was given out, also to what is left out."""
        return self._names.next_ino

    # -- as FrozenNamespace

    def changed_inodes(self) -> Iterator[Ino]:
        """Numbers of all inodes that may differ from the parent, ascending."""
        more = sorted(self._relisted.union(self._links))
        return (ino for ino, _ in groupby(merge(self._names.changed_inodes(), more)))

    def changed_names(self, directory: Ino) -> Iterator[bytes]:
        """Names of `directory` that may differ from the parent, sorted."""
        if directory not in self._relisted:
            return self._names.changed_names(directory)
        return self._all_names(directory)

    def inode(self, ino: Ino) -> Inode | None:
        """Attributes of `ino`, with the links it has here; None if it is not in the snapshot."""
        found = self._names.inode(ino)
        if found is None or (found.is_directory and self._places.path(ino) is None):
            return None
        links = self._count(ino, found)
        return found._replace(nlink=links) if links else None

    def xattrs(self, ino: Ino) -> tuple[tuple[bytes, bytes], ...]:
        return self._names.xattrs(ino)

    def entry(self, parent: Ino, name: bytes) -> tuple[Ino, int] | None:
        """(inode number, mode) of a name that is in the snapshot."""
        found = self._names.entry(parent, name)
        return None if found is None or self._is_out(parent, name, found[1]) else found

    def entries(self, parent: Ino) -> Iterator[tuple[bytes, Ino, int]]:
        """(name, inode number, mode) of everything in `parent` that is in the snapshot, sorted by name."""
        return (found for found in self._names.entries(parent) if not self._is_out(parent, found[0], found[2]))

    # -- counting

    def _count(self, ino: Ino, found: Inode) -> int:
        if ino >= self._fresh_from:
            return found.nlink - self._excluded[ino]
        before = self._in_parent(ino)
        links = before.nlink if before else 2 if found.is_directory else 0
        return links + self._links[ino]

    def _in_parent(self, ino: Ino) -> InodeRecord | None:
        return self._parent.inode(ino) if self._parent else None

    def _has_joined(self, ino: Ino) -> bool:
        """Invariant 3."""
        if self._links[ino] <= 0 or ino >= self.first_new or self._in_parent(ino) is not None:
            return False
        found = self.inode(ino)
        return found is not None and stat.S_ISREG(found.mode)

    def _is_out(self, directory: Ino, name: bytes, mode: int) -> bool:
        return self._places.leaves_out(directory, name, is_directory=stat.S_ISDIR(mode))

    # -- looking

    def _look(self) -> None:
        if self._anew or self._parent is None:
            self._relist(ROOT_INO, all_below=True)
        for directory in self._touched():
            self._look_at(directory, self._touched_names(directory), all_below=self._anew)
        while self._below:
            directory, all_below = self._below.pop()
            if self._names.is_unloaded(directory):
                raise BusyError(_LOADING + "try again later")
            seen = set(self._touched_names(directory))
            rest = (name for name in self._all_names(directory) if name not in seen)
            self._look_at(directory, rest, all_below=all_below)
            if all_below:  # what was touched was looked at without that
                self._relist_all(directory, seen)

    def _touched(self) -> Iterator[Ino]:
        unacknowledged = (each.ino for each in self._parent.inodes(self.first_new)) if self._parent else iter(())
        for ino, _ in groupby(merge(self._names.changed_inodes(), unacknowledged)):
            found = self._names.inode(ino)
            before = self._in_parent(ino) if found is None else None
            if (found is not None and found.is_directory) or (before is not None and stat.S_ISDIR(before.mode)):
                yield ino

    def _touched_names(self, directory: Ino) -> Iterator[bytes]:
        """As the plan's `changed_names`: also what the parent has of a directory that the tree calls new."""
        changed = self._names.changed_names(directory)
        before = self._in_parent(directory) if directory >= self.first_new else None
        if before is None or self._parent is None:
            return changed
        known = (entry.name for entry in self._parent.entries(before))
        return (name for name, _ in groupby(merge(changed, known)))

    def _all_names(self, directory: Ino) -> Iterator[bytes]:
        held = (name for name, _, _ in self._names.entries(directory))
        before = self._in_parent(directory)
        known = (entry.name for entry in self._parent.entries(before)) if before and self._parent else ()
        return (name for name, _ in groupby(merge(held, known)))

    def _look_at(self, directory: Ino, names: Iterable[bytes], *, all_below: bool) -> None:
        before, path = self._in_parent(directory), self._places.path(directory)
        for name in names:
            old = self._parent.entry(before, name) if before and self._parent else None
            new = self._names.entry(directory, name)
            if new is not None and stat.S_ISDIR(new[1]):
                self._places.note(path, name, new[0])
            shown = new if new is not None and not self._is_out(directory, name, new[1]) else None
            self._tally(directory, old, new, shown)
            came = old is None or new is None or old.ino != new[0]
            if new is not None and stat.S_ISDIR(new[1]):
                self._relist_if(new[0], all_below=all_below or (came and self._by_place))
            if old is not None and old.kind == _DIRECTORY and came:
                self._relist_if(old.ino, all_below=all_below)

    def _tally(
        self, directory: Ino, old: DirEntry | None, new: tuple[Ino, int] | None, shown: tuple[Ino, int] | None
    ) -> None:
        if old is not None and (shown is None or shown[0] != old.ino):
            self._link(directory if old.kind == _DIRECTORY else old.ino, -1)
        if shown is not None and (old is None or shown[0] != old.ino):
            self._link(directory if stat.S_ISDIR(shown[1]) else shown[0], 1)
        if new is not None and shown is None:
            owner = directory if stat.S_ISDIR(new[1]) else new[0]
            if owner >= self._fresh_from:
                self._excluded[owner] += 1

    def _link(self, ino: Ino, by: int) -> None:
        if ino < self._fresh_from:
            self._links[ino] += by
            if not self._links[ino]:
                del self._links[ino]

    def _relist_if(self, directory: Ino, *, all_below: bool) -> None:
        was, is_shown = self._in_parent(directory) is not None, self._places.path(directory) is not None
        all_below = all_below or self._anew
        if was != is_shown or (all_below and (was or self._parent is None)):
            self._relist(directory, all_below=all_below)

    def _relist(self, directory: Ino, *, all_below: bool) -> None:
        if directory not in self._relisted:
            self._relisted.add(directory)
            self._below.append((directory, all_below))

    def _relist_all(self, directory: Ino, names: set[bytes]) -> None:
        for name in names:
            found = self._names.entry(directory, name)
            if found is not None and stat.S_ISDIR(found[1]):
                self._relist_if(found[0], all_below=True)
