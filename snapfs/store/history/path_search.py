"""Finds paths in a series of snapshots: every version of each, by following what changed from one snapshot to the next.

The first snapshot is walked as far as the patterns lead. What was come to is watched from then on: the folders in which
something can match, and what matched. To go on to the next snapshot the two inode tables are compared, and of what
differs only pages that hold a watched inode are opened; of a folder whose names differ, the pages of names that do. So
a snapshot costs what changed of what is watched, however much there is and however much else changed.

Invariants:
1. A step reads all it needs before it changes what is known: a snapshot that cannot be read is left out and named in
   `unreadable`, and the next one is compared with the last one that could be read.
2. A folder has one path. A file is known by each of its names that match.
3. Memory: the watched folders and inodes, and the versions that were found; not the trees. Pages are shared by all
   snapshots, in one bounded cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.base.errors import CorruptionError
from snapfs.store.history.path_patterns import PathPatterns, States
from snapfs.store.history.path_versions import PathVersions
from snapfs.store.history.tree_lookup import record_of_entry
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.tables import inode_table
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.inode_table import BITS as INODE_BITS
from snapfs.store.tables.name_search import DIRECTORY_KIND
from snapfs.store.tables.radix import BITS as RADIX_BITS
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree, listing_of
from snapfs.store.tables.table_compare import EntryChange, diff_entries, diff_inode_pages
from snapfs.store.tables.table_pages import ObjectReader, Pages

CACHE_BYTES: Final = 16 << 20
"""Of pages, plain: those that a step compares with are those of the step before."""
_LEVELS: Final = 4
"""Pages of the inode table above this level are opened whenever they differ: there are few."""
_ROOT: Final = b"."
_ABOVE_ROOT: Final = Ino(0)


@dataclass(slots=True)
class _Folder:
    """A folder in which something can match; `prefix` is its path with a slash at the end, empty for the top one."""

    prefix: bytes
    states: States
    names: dict[bytes, Ino] = field(default_factory=dict)
    """Of what is watched in it."""


class _Seen(NamedTuple):
    """A name that was come to. `states` is empty unless something below can match; `matches`: which patterns do."""

    parent: Ino
    name: bytes
    record: InodeRecord
    states: States
    path: bytes
    matches: set[int]


class _Watched:
    """Which inodes are watched, so that pages of the inode table without any are passed over."""

    def __init__(self) -> None:
        self._counts: list[Counter[int]] = [Counter() for _ in range(_LEVELS)]

    def add(self, ino: Ino) -> None:
        page = ino >> INODE_BITS
        for level, counts in enumerate(self._counts):
            counts[page >> RADIX_BITS * level] += 1

    def remove(self, ino: Ino) -> None:
        page = ino >> INODE_BITS
        for level, counts in enumerate(self._counts):
            key = page >> RADIX_BITS * level
            counts[key] -= 1
            if not counts[key]:
                del counts[key]

    def pages(self) -> dict[int, int]:
        """How often each page of inodes is watched."""
        return dict(self._counts[0])

    def is_below(self, level: int, start: int) -> bool:
        """Whether a page of this level, that covers inode pages from `start` on, leads to a watched inode."""
        return level >= _LEVELS or start >> RADIX_BITS * level in self._counts[level]


class PathSearch:
    """`run` goes through the snapshots; then `found` has what matched, by path. One thread."""

    def __init__(self, reader: ObjectReader, patterns: PathPatterns, *, attributes: bool = False) -> None:
        self._reader, self._patterns, self._attributes = reader, patterns, attributes
        self._pages = Pages(reader, CACHE_BYTES)
        self.snapshots: list[SnapshotRecord] = []
        """Those that were read, in their order: what spans count in."""
        self.unreadable: list[tuple[SnapshotRecord, CorruptionError]] = []
        self.found: dict[bytes, PathVersions] = {}
        self.matched: set[int] = set()
        """Which of the patterns found something."""
        self._tree: SnapshotTree | None = None
        self._folders: dict[Ino, _Folder] = {}
        self._names: dict[Ino, set[tuple[Ino, bytes]]] = {}  # of what matched
        self._watched = _Watched()

    def run(self, snapshots: Iterable[SnapshotRecord]) -> None:
        """Go through the snapshots. Raises OSError where they cannot be reached."""
        for snapshot in snapshots:
            try:
                tree = SnapshotTree(self._reader, snapshot.root, pages=self._pages)
                self._go_to(tree)
            except CorruptionError as error:
                self.unreadable.append((snapshot, error))
                continue
            self._tree = tree
            self.snapshots.append(snapshot)

    def in_order(self) -> list[PathVersions]:
        """What was found, by path: a folder before what is in it."""
        return [self.found[path] for path in sorted(self.found, key=lambda path: path.split(b"/"))]

    # -- one step

    def _go_to(self, tree: SnapshotTree) -> None:
        """Read what is new in `tree`, then take it in. Raises CorruptionError, and nothing has changed then."""
        at = len(self.snapshots)
        removed, seen, changed = self._differences(tree) if self._tree is not None else ([], self._all(tree), [])
        noted = [*self._named(removed, changed), *((each.path, each.record) for each in seen if each.matches)]
        made: dict[bytes, PathVersions] = {}
        keyed = []
        for path, record in noted:
            versions = self.found.get(path) or made.get(path)
            if versions is None:
                versions = made[path] = PathVersions(path, attributes=self._attributes)
            keyed.append((versions, record, versions.key(tree, record)))
        # All is read. From here on nothing fails.
        for parent, name in removed:
            self._forget(at, parent, name)
        for each in seen:
            self._watch(each)
        self.found |= made
        for versions, record, key in keyed:
            versions.note(at, record, key)

    def _differences(self, tree: SnapshotTree) -> tuple[list[tuple[Ino, bytes]], list[_Seen], list[InodeRecord]]:
        """The watched names that are gone or lead elsewhere, the names that are new, and the records that differ."""
        assert self._tree is not None
        changed = list(self._changed(self._tree, tree))
        relisted = [
            (after, list(self._relisted(self._tree, before, tree, after)))
            for before, after in changed
            if after.ino in self._folders and listing_of(before) != listing_of(after)
        ]
        removed = [
            (folder.ino, change.name)
            for folder, changes in relisted
            for change in changes
            if change.name in self._folders[folder.ino].names
        ]
        dropped = self._folders_below(removed)
        seen = [
            each
            for folder, changes in relisted
            if folder.ino not in dropped  # else it is seen where it went to
            for each in self._added(tree, folder, changes)
        ]
        return removed, seen, [after for _, after in changed]

    def _changed(self, old: SnapshotTree, new: SnapshotTree) -> Iterator[tuple[InodeRecord, InodeRecord]]:
        """The watched inodes of both snapshots whose records differ."""
        for first, before, after in diff_inode_pages(old, new, self._watched.is_below):
            for ino in range(first, first + inode_table.INODES_PER_PAGE):
                if ino not in self._names and ino not in self._folders:
                    continue
                if inode_table.slot_of(before, ino) == inode_table.slot_of(after, ino):
                    continue
                was = inode_table.record_of(self._pages, before, Ino(ino))
                record = inode_table.record_of(self._pages, after, Ino(ino))
                if was is not None and record is not None:
                    yield was, record

    def _relisted(
        self, old: SnapshotTree, before: InodeRecord, new: SnapshotTree, after: InodeRecord
    ) -> Iterator[EntryChange]:
        """The names of a folder that differ, as far as they can match."""
        names = self._patterns.names(self._folders[after.ino].states)
        if names is None:
            yield from diff_entries(old, before, new, after)
            return
        for name in names:
            was, entry = old.entry(before, name), new.entry(after, name)
            if was != entry:
                yield EntryChange(name, was, entry)

    def _folders_below(self, names: Iterable[tuple[Ino, bytes]]) -> set[Ino]:
        """The watched folders that these names lead to, and all in them."""
        found = set[Ino]()
        pending = [self._folders[parent].names[name] for parent, name in names]
        while pending:
            ino = pending.pop()
            if ino in self._folders and ino not in found:
                found.add(ino)
                pending += self._folders[ino].names.values()
        return found

    def _named(
        self, removed: Iterable[tuple[Ino, bytes]], changed: Iterable[InodeRecord]
    ) -> Iterator[tuple[bytes, InodeRecord]]:
        """(path, record) of the names that changed inodes keep."""
        gone = set(removed)
        dropped = self._folders_below(gone)
        for record in changed:
            for parent, name in self._names.get(record.ino, ()):
                if parent not in dropped and (parent, name) not in gone:
                    yield self._path(parent, name), record

    # -- what is come to

    def _all(self, tree: SnapshotTree) -> list[_Seen]:
        """Of the first snapshot."""
        root, start = tree.inode(ROOT_INO), self._patterns.start
        if root is None:
            return []
        states = start if self._patterns.goes_on(start) else frozenset()
        top = _Seen(_ABOVE_ROOT, b"", root, states, _ROOT, self._patterns.matched(start))
        return [top, *self._below(tree, root, b"", states)]

    def _added(self, tree: SnapshotTree, folder: InodeRecord, changes: Iterable[EntryChange]) -> Iterator[_Seen]:
        known = self._folders[folder.ino]
        for change in changes:
            if change.after is None:
                continue
            seen = self._at(tree, folder.ino, known.prefix, known.states, change.after)
            if seen is not None:
                yield seen
                yield from self._below(tree, seen.record, seen.path + b"/", seen.states)

    def _below(self, tree: SnapshotTree, folder: InodeRecord, prefix: bytes, states: States) -> Iterator[_Seen]:
        """What can match below a folder, a folder before what is in it."""
        pending = [(folder, prefix, states)] if states else []
        while pending:
            folder, prefix, states = pending.pop()
            names = self._patterns.names(states)
            entries = tree.entries(folder) if names is None else (tree.entry(folder, name) for name in names)
            for entry in entries:
                seen = self._at(tree, folder.ino, prefix, states, entry) if entry is not None else None
                if seen is not None:
                    yield seen
                    if seen.states:
                        pending.append((seen.record, seen.path + b"/", seen.states))

    def _at(self, tree: SnapshotTree, parent: Ino, prefix: bytes, states: States, entry: DirEntry) -> _Seen | None:
        """A name, if it matches or something below can."""
        after = self._patterns.step(states, entry.name)
        matches = self._patterns.matched(after)
        inside = after if entry.kind == DIRECTORY_KIND and self._patterns.goes_on(after) else frozenset()
        if not matches and not inside:
            return None
        return _Seen(parent, entry.name, record_of_entry(tree, entry), inside, prefix + entry.name, matches)

    # -- what is watched

    def _watch(self, seen: _Seen) -> None:
        ino = seen.record.ino
        self._watched.add(ino)
        self.matched |= seen.matches
        if seen.parent in self._folders:
            self._folders[seen.parent].names[seen.name] = ino
        if seen.matches:
            self._names.setdefault(ino, set()).add((seen.parent, seen.name))
        if seen.states:
            self._folders[ino] = _Folder(b"" if ino == ROOT_INO else seen.path + b"/", seen.states)

    def _forget(self, at: int, parent: Ino, name: bytes) -> None:
        """A name is gone, with all that was below it."""
        pending = [(parent, name)]
        while pending:
            parent, name = pending.pop()
            folder = self._folders.get(parent)
            if folder is None or name not in folder.names:
                continue  # gone with the folder
            ino = folder.names[name]
            inside = self._folders.get(ino)
            if inside is not None and inside.names:
                pending.append((parent, name))  # again, when it is empty
                pending += [(ino, each) for each in inside.names]
                continue
            self._folders.pop(ino, None)
            del folder.names[name]
            self._watched.remove(ino)
            names = self._names.get(ino, set())
            if (parent, name) in names:
                self.found[folder.prefix + name].note_gone(at)
                names.discard((parent, name))
                if not names:
                    del self._names[ino]

    def _path(self, parent: Ino, name: bytes) -> bytes:
        return self._folders[parent].prefix + name if parent != _ABOVE_ROOT else _ROOT

    def check_invariants(self) -> None:
        """What is watched is what the names lead to."""
        held = Counter(ino for folder in self._folders.values() for ino in folder.names.values())
        counted = self._watched.pages()
        held[ROOT_INO] += 1 if self._tree is not None else 0
        pages = Counter[int]()
        for ino, count in held.items():
            pages[ino >> INODE_BITS] += count
        assert {page: count for page, count in pages.items() if count} == counted
        for ino, names in self._names.items():
            assert names
            for parent, name in names - {(_ABOVE_ROOT, b"")}:
                assert self._folders[parent].names[name] == ino
        assert all(ino == ROOT_INO or held[ino] == 1 for ino in self._folders)
