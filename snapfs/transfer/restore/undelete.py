"""Undelete: into the live mount comes back what a path was in a snapshot, through the mount as any process would.

Folders above it that are gone are made again, with their attributes. A file of which the live tree still has another
name, unchanged since that snapshot, is linked to that one, and no second file is made.

What is undeleted appears at once when it is complete (restore.py); the folders above it before, closed to others until
it is there. A crash in between leaves such folders, empty or with a `.partial` in them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from snapfs.base.blocks import Ino
from snapfs.base.errors import UserError
from snapfs.store.history.tree_lookup import Located, look_up, record_of_entry
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.name_search import DIRECTORY_KIND, NameSearch, walk
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.transfer.restore.restore import restore
from snapfs.transfer.restore.restore_report import RestoreReport
from snapfs.transfer.restore.restored_attributes import set_attributes


def undelete(
    repository: Repository, found: Located, mountpoint: str, *, replace: bool = False, threads: int = 4
) -> RestoreReport:
    """Put what was found to its path below `mountpoint`. `replace`: also where something is.

    Raises UserError if something is there and for the top of the tree, CorruptionError, OSError of the mount.
    """
    if not found.path:
        raise UserError("all of a tree is put back by `snapfs rollback`")
    target = os.path.join(mountpoint, os.fsdecode(found.path))
    made = _make_folders(found, mountpoint)
    try:
        report = restore(
            repository, found.snapshot, target, top=found.record, threads=threads, replace=replace, sync_files=True,
            elsewhere=_live_names(found, mountpoint),
        )  # fmt: skip
    except BaseException:
        for folder, _ in reversed(made):
            os.rmdir(folder)
        raise
    for folder, record in reversed(made):
        _set_attributes(folder, record, report)
    return report


def _make_folders(found: Located, mountpoint: str) -> list[tuple[str, InodeRecord]]:
    """The folders above that were gone, from the top down, each with what it was."""
    made: list[tuple[str, InodeRecord]] = []
    path = b""
    for name in found.path.split(b"/")[:-1]:
        path = path + b"/" + name if path else name
        folder = os.path.join(mountpoint, os.fsdecode(path))
        if os.path.lexists(folder):
            if not os.path.isdir(folder) or os.path.islink(folder):
                raise UserError(f"{folder} is no directory any more: move it away, or restore to another place")
            continue
        record = look_up(found.tree, path)
        assert record is not None  # what is below it was found
        os.mkdir(folder, 0o700)
        made.append((folder, record))
    return made


def _set_attributes(folder: str, record: InodeRecord, report: RestoreReport) -> None:
    def missed(kind: str, name: bytes) -> None:
        report.not_restored[kind] = report.not_restored.get(kind, 0) + 1
        report.examples.setdefault(kind, []).append(os.fsdecode(name))

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        set_attributes(fd, os.fsencode(os.path.basename(folder)), record, fd, missed)
    finally:
        os.close(fd)


def _live_names(found: Located, mountpoint: str) -> dict[Ino, list[str]]:
    """Of the files to come back, the names outside that the live tree still has, and has unchanged."""
    linked = {record.ino: record for record in _files_below(found.tree, found.record) if record.nlink > 1}
    names: dict[Ino, list[str]] = {}
    for path, ino in _names_of(found.tree, set(linked)) if linked else ():
        if path == found.path or path.startswith(found.path + b"/"):
            continue
        place = os.path.join(mountpoint, os.fsdecode(path))
        try:
            status = os.lstat(place)
        except OSError:
            continue
        if status.st_ino == ino and _is_unchanged(status, linked[ino]):
            names.setdefault(ino, []).append(place)
    return names


def _is_unchanged(status: os.stat_result, record: InodeRecord) -> bool:
    now = status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns
    return now == (record.mode, record.uid, record.gid, record.size, record.mtime_ns)


def _files_below(tree: SnapshotTree, top: InodeRecord) -> Iterator[InodeRecord]:
    pending = [top]
    while pending:
        record = pending.pop()
        if not stat.S_ISDIR(record.mode):
            yield record
            continue
        pending += [record_of_entry(tree, entry) for entry in tree.entries(record)]


def _names_of(tree: SnapshotTree, inodes: set[Ino]) -> Iterator[tuple[bytes, Ino]]:
    """All names of these files; the walk ends when they have been found."""
    search = NameSearch(set(), inodes, tree)

    def listing(parent: InodeRecord) -> Iterator[tuple[DirEntry, DirEntry | None]]:
        return ((entry, None) for entry in tree.entries(parent))

    for path, entry, _ in walk(tree, listing, search.enter):
        if entry.kind != DIRECTORY_KIND and entry.ino in inodes:
            yield path, entry.ino
            search.found(entry)
        if not search.goes_on:
            return
