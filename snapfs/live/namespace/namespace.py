"""Names and attributes of the live tree: which inodes there are, where they are named, and to whom they belong.

Owns `namespace.db`: one writing connection (writer/), a pool of reading ones that cuts are made with
(frozen_namespace.py), and the WAL (wal.py). This module has durability, epochs and the end; looking is in
namespace_lookup.py, changes in name_changes.py, what is absent or still to be done in absent_rows.py.

Invariants (`check_invariants` tests those a database can be queried for):
1. Every name means an inode that exists; every inode with links is reachable from the root; no directory is
   below itself.
2. `nlink` of a directory is 2 and one for each subdirectory, 0 once it is removed; of anything else the number of
   its names. Inodes without links are orphans: they have no name, and go when the tree removes them.
3. Inode numbers and cookies are never used twice; the counters are above every number in use.
4. An operation is one transaction, answered after its commit to the WAL file; an operation that raises changed nothing.
5. An operation's error is an OSError with the errno that Linux gives. Permissions, the sticky bit and setgid without
   membership are the kernel's to check.

The writer's methods are called from one thread; C may change names as well, between two of its turns (turn.py). `sync`,
`checkpoint` and `wal_bytes` may be called from any, a frozen namespace from one other at a time. A crash leaves the
transactions that were committed, and
after a power cut those that were synced; never a part of one.
"""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from snapfs.base.blocks import Disk, Epoch, Ino
from snapfs.live.backing import host_filesystem
from snapfs.live.database.high_water_mark import LogVerdict
from snapfs.live.database.namespace_paths import reserve_path
from snapfs.live.database.reserve import Reserve
from snapfs.live.database.schema import os_error
from snapfs.live.namespace import namespace_invariants, namespace_opening
from snapfs.live.namespace.absent_rows import AbsentRows
from snapfs.live.namespace.frozen_namespace import FrozenNamespace
from snapfs.live.writer.change_watcher import ChangeWatcher
from snapfs.live.writer.kernel_clock import kernel_time_ns
from snapfs.live.writer.turn import SharedNames

SKIPPED = 1 << 20
"""Numbers that are skipped after transactions were lost: a log of any length has given out fewer."""


class Namespace(AbsentRows):
    """Opens the database at `path`, or creates it with an empty root directory of the calling user.

    VersionError for a later format, CorruptionError for a damaged file, OSError for a failing disk. `boot_id` as for
    `LiveTree`. Without `verify` the pages of the database are not read: where that must not take time.
    """

    @staticmethod
    def give_room(path: str, *, if_needed: bool = False) -> bool:
        """Before it is opened on a full disk: free some room of the reserve. False if there is none left."""
        return Reserve.give_some(reserve_path(path), if_needed=if_needed)

    def __init__(
        self, path: str, disk: Disk, clock: Callable[[], int] = time.time_ns, boot_id: str | None = None,
        *, verify: bool = True,
    ) -> None:  # fmt: skip
        self.path = path
        boot_id = host_filesystem.boot_id() if boot_id is None else boot_id
        self._database = namespace_opening.open_all(path, disk, clock, boot_id, verify=verify)
        self._wal, self._readers = self._database.wal, self._database.readers
        super().__init__(self._database.writer)

    # -- the log, as it was found

    @property
    def log(self) -> LogVerdict:
        """Whether the log had all that was answered when it was opened (high_water_mark.py)."""
        return self._wal.mark.found

    def start_mark(self) -> None:
        """After recovery has done what `log` requires: from now on claim how far the log reaches. OSError."""
        self._wal.start_mark()

    def after_loss(self) -> None:
        """The log was cut short: use no number that it may have given out, and build on no snapshot. Durable."""
        w = self._writer
        for counter in (w.inos, w.cookies):
            with w.turn:
                counter.skip(SKIPPED)
        with w.change:
            w.db.execute("INSERT OR REPLACE INTO meta VALUES ('sealed_as', -1)")  # none has the number
        self.sync()

    def names_of(self, inos: Container[Ino]) -> list[tuple[Ino, Ino, bytes]]:
        """(inode, directory, name) for every name of these inodes. Reads all names once. Any thread."""
        db = self._readers.new()
        try:
            rows = db.execute("SELECT ino, parent, name FROM entry")
            return [(Ino(ino), Ino(parent), name) for ino, parent, name in rows if ino in inos]
        finally:
            db.close()

    @contextmanager
    def view(self) -> Iterator[FrozenNamespace]:
        """Everything as it is now, to be read, without a cut. The WAL grows while it is open. Any thread."""
        frozen = FrozenNamespace(self._readers.new(), self.epoch, self._wal, sqlite3.Connection.close)
        try:
            yield frozen
        finally:
            frozen.close()

    @property
    def transactions(self) -> int:
        """How many were committed in this life."""
        return self._wal.committed

    # -- durability

    def sync(self) -> None:
        """Make everything committed before the call durable; callers at the same time share a flush. Any thread."""
        self._wal.sync()
        if self._writer.watcher is not None:
            self._writer.watcher.names_synced(self._wal.synced)

    def write_out(self) -> int:
        """Let the next sync of another file on the same filesystem make what is committed durable (wal.py).

        0 if it will not; else to be given to `flushed` after that sync. OSError. Any thread.
        """
        return self._wal.write_out()

    def flushed(self, reached: int) -> None:
        """What `write_out` wrote is durable. Any thread."""
        self._wal.flushed(reached)
        if self._writer.watcher is not None:
            self._writer.watcher.names_synced(self._wal.synced)

    def watch(self, watcher: ChangeWatcher) -> None:
        """Call `watcher` for each change from now on, and for those before that may not be durable."""
        unsynced = self._writer.unsynced
        for ino, transaction in unsynced.changed_at.items():
            watcher.names_changed([ino], transaction)
        watcher.all_names_changed(unsynced.floor)
        watcher.names_synced(self._wal.synced)
        self._writer.watch(watcher)

    @property
    def turn(self) -> AbstractContextManager[None]:
        """Nobody else changes names meanwhile (turn.py). Nothing that waits is done in it."""
        return self._writer.turn

    def share(self, shared: SharedNames) -> None:
        """Let C change names as well; nothing happens where it cannot. `close` ends it, after C has ended."""
        self.absent_count()  # so that it is known
        if self._writer.clock in (time.time_ns, kernel_time_ns):  # C has no other
            self._writer.share(shared)

    def take_pending_replace(self) -> set[Ino]:
        """Files that took another one's name since the last call: to be made durable before names are. Any thread."""
        return self._wal.queue.take()

    def depend_on(self, inos: Iterable[Ino]) -> None:
        """Let the next sync make these files durable first, as those that took another one's name."""
        self._wal.depend_on(inos, soon=True)

    def settled(self) -> AbstractContextManager[None]:
        """For whatever makes names durable by another way than `sync` (a sync of the whole host filesystem)."""
        return self._wal.settled()

    def settle_first(self, settle: Callable[[], None]) -> None:
        """What makes `take_pending_replace` durable, called before each sync. It raises nothing. Any thread."""
        self._wal.queue.register(settle)

    def mark_suspect(self) -> None:
        """A process before us, in this run of the machine, made commits that may not be durable."""
        with self._writer.turn:
            self._writer.unsynced.all_changed(self._wal.count_commit())

    def checkpoint(self) -> None:
        """Keep the WAL short. Any thread; never waits for a reader, hardly ever lets the writer wait."""
        self._wal.checkpoints.checkpoint()

    def wal_bytes(self) -> int:
        """Bytes of the WAL in use."""
        return self._wal.bytes()

    # -- epochs

    @property
    def epoch(self) -> Epoch:
        """The epoch that changes belong to now."""
        return Epoch(self._writer.epochs.epoch)

    @property
    def sealed_epoch(self) -> Epoch:
        """The last epoch that is in a snapshot, 0 at first."""
        return Epoch(self._writer.epochs.sealed)

    @property
    def first_new(self) -> Ino:
        """All inode numbers from here on are unknown to the last snapshot."""
        sql = "SELECT first_ino FROM epochs WHERE epoch > ? ORDER BY epoch"
        row = self._writer.row(sql, (self._writer.epochs.sealed,))
        assert row is not None
        return Ino(row[0])

    def has_changes(self) -> bool:
        """Whether anything differs (or may differ) from the last sealed snapshot. What cannot be known is a change."""
        try:
            return self._writer.has_changes()
        except OSError:  # a host that is gone
            return True

    def cut(self, epoch: Epoch) -> FrozenNamespace:
        """End `epoch`, which must be the current one, and keep a view of everything as it is now.

        The next epoch is `epoch` + 1. If this raises, the epoch may have advanced all the same; its changes are
        then part of the next cut.
        """
        assert epoch == self.epoch, (epoch, self.epoch)
        with self._writer.turn:
            return self._cut(epoch)

    def _cut(self, epoch: Epoch) -> FrozenNamespace:
        self._writer.begin_epoch(Epoch(epoch + 1))
        db = self._readers.get()
        try:
            frozen = FrozenNamespace(db, epoch, self._wal, self._readers.take_back)
        except sqlite3.Error as failure:
            db.close()
            raise os_error(failure, self.path) from failure
        self._readers.lend(db)
        return frozen

    def new_files(self, new_from: Ino) -> int:
        """Regular files that have a name and a number of at least `new_from`, where what is not sealed begins. O(1)."""
        with self._writer.turn:
            return self._writer.new_files.count(new_from)

    def touch_all(self) -> list[Ino]:
        """Count every inode as changed; the regular files, ascending. The last snapshot cannot be relied on."""
        w = self._writer
        touch = "INSERT OR IGNORE INTO touched SELECT ?, ino, x'' FROM inode WHERE nlink > 0"
        with w.change:
            w.db.execute(touch, (w.epochs.epoch,))
        regular = f"SELECT ino FROM inode WHERE nlink > 0 AND (mode & {0o170000}) = {stat.S_IFREG} ORDER BY ino"
        return [Ino(ino) for (ino,) in w.rows(regular)]

    def mark_sealed(self, epoch: Epoch, sealed_as: int = 0) -> None:
        """Everything up to `epoch` is in a durable snapshot; `sealed_as` is the store's number for it.

        O(1); its rows go little by little.
        """
        self._writer.mark_sealed(epoch, sealed_as)

    @property
    def sealed_as(self) -> int:
        """The store's number for the snapshot of the last sealed epoch; 0 if it is not known."""
        row = self._writer.row("SELECT value FROM meta WHERE key = 'sealed_as'")
        return 0 if row is None else row[0] & (1 << 64) - 1

    # -- ends

    def check_invariants(self) -> None:
        """AssertionError with a list of everything that is wrong. Reads the whole database."""
        namespace_invariants.check(self._writer)

    def close(self) -> None:
        """Write everything back to the database file and close it. Frozen namespaces are closed before."""
        assert not self._readers.has_lent, "a frozen namespace is still open"
        self._writer.end_sharing()
        if self._writer.watcher is not None:
            self._writer.watcher.close_names()
        self._database.close()
