"""The history of a target, as if it were a store on this host: for commands that read it from anywhere.

A target (a mirror's URL, a folder, an object store) is opened as a source; its list of snapshots is read once, and
objects are fetched one by one as they are read, checked, and kept in memory only (store/lazy/reader_cache.py). What is
encrypted there is decrypted with the owner's key.

Invariants:
1. Nothing is changed at the target, and no writer is fenced off. While a snapshot is being read it is held there, if
   the target allows it: else it may be dropped meanwhile, which is an error and never another content.
2. Nothing is left on this host: what the repository needs of a folder is a temporary one.
3. Branches there are read like the history (`Repository.find_anywhere`).
4. Damage at the target is reported as that of a store: CorruptionError; silence as OSError.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.store.ingest.hold_writer import take_in
from snapfs.store.lazy.reader_cache import PassingObjects
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.sources.fetcher import Fetcher
from snapfs.transfer.sources.people_holds import held_by_people
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import open_source

WAIT_S = 30.0
_HOLD_S = 86400.0


@contextlib.contextmanager
def distant_repository(place: str, access: Access) -> Iterator[Repository]:
    """The target's snapshots, for reading. UserError, RefusedError, OSError where it cannot be read.

    The repository's `lazy.source` is the fetcher, whose one source is the target.
    """
    source = open_source(place, access, whole_history=True)
    try:
        identity, snapshots, on_branches = source.origin().identity, source.snapshots(), source.branches()
        gates = source.gates()
    except BaseException:
        source.close()
        raise
    with contextlib.ExitStack() as stack:
        undo = stack.enter_context(contextlib.ExitStack())
        undo.callback(source.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="snapfs-reading-"))
        Repository.create(folder, identity, Disk()).close()
        repository = Repository.open(folder, identity, Disk(), passing=PassingObjects(place))
        stack.callback(repository.close)
        assert repository.lazy is not None
        fetcher = Fetcher(repository.lazy, [source], wait_s=WAIT_S)
        undo.pop_all()  # the fetcher closes its sources
        stack.callback(fetcher.close)
        repository.lazy.attach(fetcher)
        for record in snapshots:
            repository.catalog.add(record)
        for entry in gates:
            if repository.catalog.root_number(entry.snapshot) == entry.root:
                repository.catalog.put_gates(SnapshotNumber(entry.snapshot), entry.gates)
        for record in on_branches:
            repository.catalog.add_branch(record)
        yield repository


def learn_holds(repository: Repository) -> None:
    """Let the repository of a target know what people hold there, for who wants to show it. OSError."""
    fetcher = repository.lazy.source if repository.lazy is not None else None
    if isinstance(fetcher, Fetcher):
        take_in(repository, held_by_people(fetcher.sources, repository.catalog.newest() or 0), "a target")


@contextlib.contextmanager
def held_there(repository: Repository, record: SnapshotRecord) -> Iterator[None]:
    """Hold the snapshot at the target for the time of the block, where the target allows it."""
    fetcher = repository.lazy.source if repository.lazy is not None else None
    if not isinstance(fetcher, Fetcher):
        yield
        return
    host = "".join(letter for letter in socket.gethostname() if letter.isalnum() and letter.isascii())[:40]
    holder = f"reading-{host or 'host'}-{os.getpid()}"
    for source in fetcher.sources:
        with contextlib.suppress(OSError, SnapfsError):
            source.hold(record, holder, _HOLD_S)
    try:
        yield
    finally:
        for source in fetcher.sources:
            with contextlib.suppress(OSError, SnapfsError):
                source.hold(record, holder, 0)
