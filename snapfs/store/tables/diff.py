"""What differs between two snapshots, by path; table_compare.py compares by inode, chunk and name.

Invariants:
1. To find where a changed inode is named, directories are read until all have been found: an inode has no record of its
   names. So the cost is what differs and, at worst, all directories; bytes of files only where they differ.
2. The numbers of the changed inodes are held in memory, and the paths of what was renamed; not the trees.

How the changes of a name are reported:
- Inode numbers are never used again, so an inode that lost a name and gained another was *renamed*, with all that is
  in it if it is a directory: what is below a renamed directory is reported only where it differs itself.
- A name that leads to another file of the same type than before (an editor's way to save) is *changed*.
- Each further name of one file (a hard link) is reported like the first, with no changed bytes of its own.
- A directory is *changed* if its mode, owner or attributes are; that names in it came and went is reported with the
  names.
- A time of access or of a change of status alone is no difference.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from typing import Literal

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ROOT_INO, Ino
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.name_search import DIRECTORY_KIND, NameSearch, walk
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree, listing_of
from snapfs.store.tables.table_compare import EntryChange, InodeChange, diff, diff_entries, diff_map

__all__ = [
    "EntryChange",
    "InodeChange",
    "PathChange",
    "changed_bytes",
    "diff",
    "diff_entries",
    "diff_map",
    "diff_paths",
]


@dataclass(frozen=True, slots=True)
class PathChange:
    """A name that differs. Paths are relative to the root, which is b"."; `mode` is the later one's that there is.

    `changed_bytes` counts the 4 KiB blocks that differ (`exact`) or the 64 KiB chunks; of what was added or removed,
    the data there is or was. `old_path` is where a renamed file or directory was.
    """

    path: bytes
    kind: Literal["added", "removed", "changed", "renamed"]
    changed_bytes: int
    mode: int
    old_path: bytes | None = None


def changed_bytes(
    a: SnapshotTree, before: InodeRecord | None, b: SnapshotTree, after: InodeRecord | None, *, exact: bool = True
) -> int:
    """Bytes of the 4 KiB blocks that differ (`exact`, which reads them), or of the chunks that do."""
    total, size = 0, max(file.size if file else 0 for file in (before, after))
    for chunk, old, new in diff_map(a, before, b, after):
        if exact and old.number and new.number:
            total += _differing_bytes(a.pages.read(old), b.pages.read(new))
        else:
            total += min(CHUNK_SIZE, size - chunk * CHUNK_SIZE)
    return total


def _differing_bytes(old: bytes, new: bytes) -> int:
    length = max(len(old), len(new))
    old, new = old.ljust(length, b"\0"), new.ljust(length, b"\0")
    starts = range(0, length, BLOCK_SIZE)
    return sum(min(BLOCK_SIZE, length - at) for at in starts if old[at : at + BLOCK_SIZE] != new[at : at + BLOCK_SIZE])


def diff_paths(a: SnapshotTree, b: SnapshotTree, *, exact: bool = True) -> Iterator[PathChange]:
    """The names that differ, sorted by path, a directory before what is in it. Raises CorruptionError."""
    paths = _Paths(a, b, exact)
    return merge(paths.removed(), paths.present(), key=_by_components)


def _by_components(change: PathChange) -> bytes:
    return b"" if change.path == b"." else change.path.replace(b"/", b"\0")


class _Paths:
    def __init__(self, a: SnapshotTree, b: SnapshotTree, exact: bool) -> None:
        self._a, self._b, self._exact = a, b, exact
        self._changed: set[Ino] = set()  # inodes of both snapshots that a user would call changed
        self._relisted: set[Ino] = set()  # directories, of either, whose names differ
        self._moves = Counter[Ino]()  # of inodes that lost names and gained others: how many were renamed
        self._counted: set[Ino] = set()
        self._find_changes()
        self._find_moves()
        self._old_paths = self._find_old_paths()

    def _find_changes(self) -> None:
        for ino, before, after in diff(self._a, self._b):
            if listing_of(before).content_hash != listing_of(after).content_hash:
                self._relisted.add(ino)
            if before and after and self._is_visible(before, after):
                self._changed.add(ino)

    def _is_visible(self, before: InodeRecord, after: InodeRecord) -> bool:
        """Is the difference more than a time of access or of change of status, or (a directory) what its names show?"""
        if _attributes(before) != _attributes(after):
            return True
        chunks = diff_map(self._a, before, self._b, after)  # of a directory there are none
        return next(chunks, None) is not None

    def _find_moves(self) -> None:
        lost, gained = Counter[Ino](), Counter[Ino]()
        for ino in sorted(self._relisted):
            before, after = _directory(self._a, ino), _directory(self._b, ino)
            for _, old, new in diff_entries(self._a, before, self._b, after):
                if old and new and old.ino == new.ino:
                    continue
                if old and self._b.inode(old.ino):
                    lost[old.ino] += 1
                if new and self._a.inode(new.ino):
                    gained[new.ino] += 1
        self._moves = lost & gained

    def _find_old_paths(self) -> dict[Ino, list[bytes]]:
        """Of the inodes that were renamed, the names they had and have no more."""
        found: dict[Ino, list[bytes]] = {}
        for path, entry, _ in self._names_lost() if self._moves else ():
            if entry.ino in self._moves:
                found.setdefault(entry.ino, []).append(path)
        return {ino: paths[: self._moves[ino]][::-1] for ino, paths in found.items()}

    def _names_lost(self) -> Iterator[tuple[bytes, DirEntry, DirEntry | None]]:
        """(path, entry, what the name leads to now) of the names that lead elsewhere or nowhere in `b`."""
        search = NameSearch({ino for ino in self._relisted if _directory(self._a, ino)})
        for path, entry, now in self._walk(self._a, self._b, search):
            if now is None or now.ino != entry.ino:
                yield path, entry, now

    def removed(self) -> Iterator[PathChange]:
        moves = self._moves.copy()
        for path, entry, now in self._names_lost():
            moves[entry.ino] -= 1
            if moves[entry.ino] < 0 and (now is None or now.kind != entry.kind):
                before = self._a.inode(entry.ino)
                lost_bytes = 0 if self._b.inode(entry.ino) else self._bytes(entry.ino)
                yield PathChange(path, "removed", lost_bytes, before.mode if before else 0)

    def present(self) -> Iterator[PathChange]:
        """The changes of names that are there in `b`."""
        if ROOT_INO in self._changed:
            yield PathChange(b".", "changed", 0, self._mode(ROOT_INO))
        relisted = {ino for ino in self._relisted if _directory(self._b, ino)}
        search = NameSearch(relisted, self._changed - {ROOT_INO}, self._b)
        for path, entry, before in self._walk(self._b, self._a, search):
            search.found(entry)
            if before is None or before.ino != entry.ino:
                yield self._new_name(path, entry, before)
            elif entry.ino in self._changed:
                yield PathChange(path, "changed", self._bytes(entry.ino), self._mode(entry.ino))

    def _walk(
        self, tree: SnapshotTree, other: SnapshotTree, search: NameSearch
    ) -> Iterator[tuple[bytes, DirEntry, DirEntry | None]]:
        """(path, entry, what the name leads to in `other`), of names that differ and of all others worth a look."""

        def listing(parent: InodeRecord) -> Iterator[tuple[DirEntry, DirEntry | None]]:
            changes: Iterator[EntryChange] = iter(())
            if parent.ino in self._relisted:
                changes = diff_entries(other, _directory(other, parent.ino), tree, parent)
            different = ((change.after, change.before) for change in changes if change.after)
            return _with_unchanged(tree.entries(parent), different) if search.goes_on else different

        return walk(tree, listing, search.enter)

    def _new_name(self, path: bytes, entry: DirEntry, before: DirEntry | None) -> PathChange:
        """A name that led elsewhere (`before`) or nowhere."""
        mode = self._mode(entry.ino)
        old_paths = self._old_paths.get(entry.ino)
        if old_paths:
            return PathChange(path, "renamed", self._bytes(entry.ino), mode, old_paths.pop())
        replaced = before and before.kind == entry.kind != DIRECTORY_KIND and not self._b.inode(before.ino)
        if before and replaced and not self._a.inode(entry.ino):
            return PathChange(path, "changed", self._bytes(entry.ino, before.ino), mode)
        return PathChange(path, "added", self._bytes(entry.ino), mode)

    def _mode(self, ino: Ino) -> int:
        record = self._b.inode(ino)
        return record.mode if record else 0

    def _bytes(self, ino: Ino, instead_of: Ino | None = None) -> int:
        """Changed bytes of an inode, for the first of its names."""
        before, after = self._a.inode(instead_of or ino), self._b.inode(ino)
        if ino in self._counted or not all(stat.S_ISREG(file.mode) for file in (before, after) if file):
            return 0
        if any(file.nlink > 1 for file in (before, after) if file):
            self._counted.add(ino)
        return changed_bytes(self._a, before, self._b, after, exact=self._exact)


def _with_unchanged(
    entries: Iterator[DirEntry], different: Iterator[tuple[DirEntry, DirEntry | None]]
) -> Iterator[tuple[DirEntry, DirEntry | None]]:
    """All the entries, each with its counterpart: itself, unless it is among the different ones."""
    changed, counterpart = next(different, (None, None))
    for entry in entries:
        if changed is not None and entry.name == changed.name:
            yield entry, counterpart
            changed, counterpart = next(different, (None, None))
        else:
            yield entry, entry


def _is_directory(record: InodeRecord | None) -> bool:
    return record is not None and stat.S_ISDIR(record.mode)


def _directory(tree: SnapshotTree, ino: Ino) -> InodeRecord | None:
    record = tree.inode(ino)
    return record if _is_directory(record) else None


def _attributes(record: InodeRecord) -> tuple[object, ...]:
    """What a user sees of a record; what the time and size of a directory show, its names show better."""
    attributes = record.mode, record.uid, record.gid, record.rdev, record.target, record.xattrs
    return attributes if _is_directory(record) else (*attributes, record.size, record.mtime_ns)
