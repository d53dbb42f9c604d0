"""Checks of a volume: its identity, its store's log and segments, its live tree, its supervisor.

Invariant: the volume is read and never written; its database is checked in a copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.base.volumes.fork_file import read_fork
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import NAMESPACE_DB
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.checks.findings import Finding, Level
from snapfs.commands.overview.known_forks import PARTIAL_SUFFIX, leftovers_beside
from snapfs.daemon.supervision.supervisor_status import read_status
from snapfs.live.recovery.recover_tree import has_lost_names
from snapfs.live.recovery.stray_files import kept
from snapfs.transfer.move_in.adoption_file import read_adoption

if TYPE_CHECKING:
    from snapfs.store.repository.repository import Repository, SnapshotRecord

STAGING = ".importing"
"""What an import builds a volume in, beside its place."""


def supervisor(volume: str) -> Iterator[Finding]:
    """The state of the volume's supervisor, or its last one."""
    facts = read_status(volume)
    if facts is None:
        return
    if facts["state"] == "failed":
        yield Finding("supervisor", Level.WARN, str(facts["words"]))
    elif lock_holder(volume) is not None:
        words = f"process {facts['supervisor']}, {facts['state']}: {facts['restarts']} restarts"
        yield Finding("supervisor", Level.OK, f"{words}, {facts['upgrades']} upgrades")


def adoption(path: str) -> Iterator[Finding]:
    """What is left to do of an adoption (snapfs adopt), or of an import that was interrupted."""
    if os.path.isdir(f"{path}{STAGING}"):
        words = f"{path}{STAGING} is of an import that was interrupted: run it again, or remove that folder"
        yield Finding("import", Level.NOTE, words)
    facts = read_adoption(path)
    if facts is None:
        return
    directory, rest = facts.directory, f"{facts.directory} {path}"
    if facts.state == "adopted":
        words = f"the original of {directory} is kept at {facts.original}: `snapfs adopt --forget-original {rest}`"
        yield Finding("adoption", Level.NOTE, f"{words} removes it, --undo puts it back")
    elif facts.state == "forgetting":
        words = f"the original of {directory} is partly removed: run `snapfs adopt --forget-original {rest}` again"
        yield Finding("adoption", Level.WARN, words)
    else:
        there = "the original is in its place" if not facts.is_beside() else f"the original is at {facts.original}"
        again = f"`snapfs adopt {rest}`" if facts.state == "prepared" else f"`snapfs adopt --undo {rest}`"
        words = f"that of {directory} was interrupted ({facts.state}); {there}: run {again} again"
        yield Finding("adoption", Level.WARN, words)


def identity(path: str) -> Iterator[Finding]:
    volume = Volume.open(path, Disk())
    missing = [name for name in (volume.live_dir, volume.store_dir) if not os.path.isdir(name)]
    if missing:
        words = f"{', '.join(missing)} missing: restore it from a copy, or clone the newest snapshot into a new volume"
        yield Finding("volume", Level.BAD, words, damage=True)
        return
    holder = lock_holder(path)
    yield Finding("volume", Level.OK, f"{volume.volume_id}, generation {volume.generation}, {holder or 'not in use'}")


def store(path: str) -> Iterator[Finding]:
    from snapfs.store.repository.repository import Repository, StoreIdentity

    volume = Volume.open(path, Disk())
    if not os.path.exists(os.path.join(volume.store_dir, "snapshots.log")) and not os.listdir(volume.store_dir):
        yield Finding("store", Level.OK, "empty: never mounted")
        return
    identity = StoreIdentity(volume.volume_id, volume.seed)
    try:
        repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True)
        try:
            events = sum(1 for _ in repository.events())
            records = repository.snapshots()
            repository.check_end()
            is_lazy = repository.lazy is not None
            lacking = [] if is_lazy else [record for record in records if _lacks_segment(repository, record)]
        finally:
            repository.close()
    except CorruptionError as error:
        words = f"{error}: `snapfs verify --repair {path}` makes a new log of what is left"
        yield Finding("log", Level.BAD, words, damage=True)
        return
    yield Finding("log", Level.OK, f"{events} lines, their chain is whole")
    if is_lazy:
        yield Finding("hydration", Level.NOTE, "part of the store is still where the volume was mounted from")
    for record in records:
        if record.state != "good":
            words = f"snapshot {record.number} is {record.state}: `snapfs verify --repair {path}`, or drop it"
            yield Finding("snapshot", Level.BAD, words, damage=True)
    for record in lacking:
        words = f"what snapshot {record.number} wrote is missing or damaged, and others may need it, too"
        yield Finding("segments", Level.BAD, f"{words}: `snapfs verify --repair {path}`", damage=True)
    if not lacking:
        words = f"those of {len(records)} snapshots are there; `snapfs verify {path}` reads every byte of them"
        yield Finding("segments", Level.OK, words)


def _lacks_segment(repository: Repository, record: SnapshotRecord) -> bool:
    """Whether the last object that the snapshot wrote is not where it must be."""
    try:
        return repository.index.peek(record.last_number) is None
    except CorruptionError:
        return True


def forks(path: str) -> Iterator[Finding]:
    """What the volume is a fork of, and what interrupted forks and discards left beside it."""
    fork = read_fork(path)
    if fork is not None:
        yield Finding("fork", Level.OK, f"of {fork.origin}, snapshot {fork.snapshot}")
    for left in leftovers_beside(path):
        act = "fork" if left.endswith(PARTIAL_SUFFIX) else "`umount --discard`"
        words = f"{left} is what an interrupted {act} left, unless one is at work: nothing needs it, remove it"
        yield Finding("fork", Level.NOTE, words)


def live_tree(path: str) -> Iterator[Finding]:
    """The live tree, as far as one can look without opening it."""
    volume = Volume.open(path, Disk())
    lost = NAMESPACE_DB if has_lost_names(volume.live_dir, has_past=False) else ""
    if os.path.exists(volume.namespace_path) and not os.path.isdir(os.path.join(volume.live_dir, "data")):
        lost = "data/"
    if lost:
        words = f"live/{lost} is missing: put it back from a copy, or clone the newest snapshot into a new volume"
        yield Finding("live tree", Level.BAD, words, damage=True)
        return
    if not os.path.exists(volume.namespace_path):
        yield Finding("live tree", Level.OK, "not made yet: the first mount makes it")
        return
    for each in kept(volume.live_dir):
        words = f"{each.path} has {each.files} files that no inode has: take out what is of use, and remove the folder"
        yield Finding("stray files", Level.WARN if each.is_damage else Level.NOTE, words)
    if lock_holder(path) is not None:
        yield Finding("live tree", Level.OK, "in use; its daemon has checked it")
        return
    yield from _database(volume.namespace_path)


def _database(path: str) -> Iterator[Finding]:
    import sqlite3

    from snapfs.live.database.schema import SCHEMA_VERSION

    # A database with a WAL cannot be read without writing beside it, so the check works on a copy.
    with tempfile.TemporaryDirectory(prefix="snapfs-doctor-") as folder:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", os.path.join(folder, f"names.db{suffix}"))
        try:
            with contextlib.closing(sqlite3.connect(os.path.join(folder, "names.db"))) as database:
                version = database.execute("PRAGMA user_version").fetchone()[0]
                verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if version > SCHEMA_VERSION:
                words = f"{path} has namespace format {version}; this snapfs reads up to {SCHEMA_VERSION}"
                raise VersionError(f"{words}: use a newer snapfs")
        except sqlite3.DatabaseError as error:
            verdict = str(error)
    if verdict != "ok":
        words = f"namespace.db is damaged ({verdict}): clone the newest snapshot into a new volume"
        yield Finding("live tree", Level.BAD, words, damage=True)
    else:
        yield Finding("live tree", Level.OK, "namespace.db is sound")
