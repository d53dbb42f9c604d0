"""What a rollback does with live paths that are excluded, and so in no snapshot: it keeps them where it can.

Nothing says that they should go: a snapshot without them does not say that they were not there. An excluded name stays
as it is, unless the target needs its place:

- its directory is not in the target: then it goes with its directory;
- the target has that name, from before it was excluded: then it is the target's;
- it leads to an inode that the target has and the present does not, which was renamed to an excluded name since: the
  inode goes back to where it was, and what is in it is the target's.

Invariants:
1. After the turn each inode has as many links as names: those of the target, and the excluded ones that stay.
2. What is decided here is read from the live names while nothing but the excluded paths differs from the present; the
   turn takes place only if that is so.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.base.settings import exclusion
from snapfs.live.namespace.bulk_changes import Bulk
from snapfs.live.namespace.frozen_namespace import FrozenNamespace
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.seal.shown_names import DirectoryPlaces

_LINKS_OF_DIRECTORY = 2


@dataclass(slots=True)
class ExcludedLive:
    """The excluded names, and what becomes of them. `kept` and `removed` count those with no excluded name above."""

    kept: int = 0
    removed: int = 0
    going: list[tuple[Ino, bytes]] = field(default_factory=list)
    """(directory, name) of each name that goes."""
    staying: Counter[Ino] = field(default_factory=Counter)
    """Names that stay, of each inode."""
    subdirectories: Counter[Ino] = field(default_factory=Counter)
    """Those that stay with an excluded name, of each directory."""
    modes: dict[Ino, int] = field(default_factory=dict)
    """Of every inode with an excluded name, and of every directory that has one for a directory."""

    def take_names_away(self, bulk: Bulk) -> None:
        """Before the target's names are put."""
        for directory, name in self.going:
            bulk.delete_entry(directory, name)

    def set_links(self, bulk: Bulk, target: SnapshotTree) -> None:
        """After the target's inodes were put."""
        for ino, mode in self.modes.items():
            links = self._links(ino, mode, target)
            bulk.set_links(ino, links)
            if not links:
                bulk.clear_absent(ino)

    def _links(self, ino: Ino, mode: int, target: SnapshotTree) -> int:
        record = target.inode(ino)
        if not stat.S_ISDIR(mode):
            return (record.nlink if record else 0) + self.staying[ino]
        if record is None and not self.staying[ino]:
            return 0
        return (record.nlink if record else _LINKS_OF_DIRECTORY) + self.subdirectories[ino]

    def invalid(self) -> Iterator[tuple[Ino, list[bytes]]]:
        """What the kernel must forget after the turn, as `Rollback.invalid`."""
        for directory, name in self.going:
            yield directory, [name]
        for ino in self.modes:
            yield ino, []


def look(
    names: FrozenNamespace, patterns: tuple[str, ...], present: SnapshotTree, target: SnapshotTree
) -> ExcludedLive:
    """Decide over all excluded names. Reads every shown directory once."""
    found = ExcludedLive()
    if not patterns:
        return found
    looking = _Looking(names, DirectoryPlaces(names, exclusion.compiled(patterns)), present, target, found)
    looking.walk()
    return found


@dataclass(slots=True)
class _Looking:
    names: FrozenNamespace
    places: DirectoryPlaces
    present: SnapshotTree
    target: SnapshotTree
    found: ExcludedLive

    def walk(self) -> None:
        directories = [ROOT_INO]
        while directories:
            directory = directories.pop()
            path = self.places.path(directory)
            for name, ino, mode in self.names.entries(directory):
                is_directory = stat.S_ISDIR(mode)
                if is_directory:
                    self.places.note(path, name, ino)
                if self.places.leaves_out(directory, name, is_directory=is_directory):
                    self._excluded(directory, name, ino, mode)
                elif is_directory:
                    directories.append(ino)

    def _excluded(self, directory: Ino, name: bytes, ino: Ino, mode: int) -> None:
        """A name with no excluded one above it, and all that is below."""
        before = self.target.inode(directory)
        stays = before is not None and stat.S_ISDIR(before.mode) and self.target.entry(before, name) is None
        below = [(directory, name, ino, mode, stays)]
        first = True
        while below:
            directory, name, ino, mode, stays = below.pop()
            taken_back = self.target.inode(ino) is not None and self.present.inode(ino) is None
            stays = stays and not taken_back
            self._decided(directory, name, ino, mode, stays)
            if first:
                self.found.kept += stays
                self.found.removed += not stays
                first = False
            if stat.S_ISDIR(mode):
                below += [(ino, *entry, stays) for entry in self.names.entries(ino)]

    def _decided(self, directory: Ino, name: bytes, ino: Ino, mode: int, stays: bool) -> None:
        found = self.found
        found.modes[ino] = mode
        if stat.S_ISDIR(mode):
            found.modes.setdefault(directory, stat.S_IFDIR)
            found.subdirectories[directory] += stays
        found.staying[ino] += stays
        if not stays:
            found.going.append((directory, name))
