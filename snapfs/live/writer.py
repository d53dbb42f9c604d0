"""The one writing connection of the namespace, and what is kept in memory next to it.

Invariants:
1. Every change of the database is made between entering and leaving `Writer.change`: one transaction,
   committed to the WAL when it is left, rolled back by any exception.
2. What memory holds of a transaction (cached inodes, touched rows, sequence numbers of inodes) is taken over after the
   commit; after a rollback the cache holds none of it.
3. Inode numbers and cookies are given out below a limit that is in the database, raised in steps of
   `RESERVE`: a crash skips numbers and never repeats one.
4. A change to an inode or name that existed before the current epoch has a row in `touched` of this epoch, in
   the same transaction. Numbers from `first_ino` on are new in the epoch and need none.
5. `changed_at[ino]` is the transaction that last changed `ino`, unless that is durable or older than `changed_floor`.
6. A watcher's idea of rows and of bare inodes is the database's: it is told what is read, and what changed, after the
   commit and before anybody is answered.
7. A file that takes another one's name is in `heirs` before that is committed, for whoever syncs the WAL (wal.py).
"""

from __future__ import annotations

import errno
import sqlite3
import stat
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

from snapfs.blocks import Epoch, Ino
from snapfs.errors import CorruptionError
from snapfs.live.newborn import NewFiles
from snapfs.live.records import COOKIE_LIMIT, INO_LIMIT, Inode, LoadedEntry, NotLoadedError, error
from snapfs.live.schema import PLAIN_VERSION, os_error
from snapfs.live.wal import Wal

RESERVE = 1000
CACHED_INODES = 16384
REMEMBERED_TOUCHED = 4096
"""Small, because a cut throws the set away: freeing 65,536 rows took 3.7 ms."""
REMEMBERED_CHANGES = 16384
PURGE_EVERY = 64
PURGE_ROWS = 256
"""Rows of sealed epochs go in small portions, faster than operations (three rows at most) can add new ones."""

SELECT_INODE = (
    "SELECT ino, mode, uid, gid, rdev, nlink, atime_ns, mtime_ns, ctime_ns, target, parent FROM inode WHERE ino = ?"
)
COUNT_INODES = "SELECT count(*) FROM inode"
COUNT_NEW_FILES = f"SELECT count(*) FROM inode WHERE ino >= ? AND nlink > 0 AND (mode & {0o170000}) = {stat.S_IFREG}"
INSERT_INODE = "INSERT INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?)"
UPDATE_INODE = (
    "UPDATE inode SET mode=?, uid=?, gid=?, nlink=?, atime_ns=?, mtime_ns=?, ctime_ns=?, parent=? WHERE ino=?"
)
UPDATE_PARENT = "UPDATE inode SET nlink=?, mtime_ns=?, ctime_ns=? WHERE ino=?"
INSERT_ENTRY = "INSERT INTO entry VALUES (?,?,?,?)"
TOUCH = "INSERT OR IGNORE INTO touched VALUES (?,?,?)"
LOAD_INODE = "INSERT OR IGNORE INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?)"
LOAD_ENTRY = "INSERT OR IGNORE INTO entry VALUES (?,?,?,?)"
PURGE_UPTO = "SELECT epoch, ino, name FROM touched WHERE epoch <= ? ORDER BY epoch, ino, name LIMIT 1 OFFSET ?"
PURGE = "DELETE FROM touched WHERE (epoch, ino, name) <= (?,?,?)"


def as_signed(number: int) -> int:
    """A number of 64 bits as SQLite keeps it."""
    return number - (number >> 63 << 64)


class Counter:
    """Numbers that are never given out twice, not even after a crash. ENOSPC when they run out."""

    def __init__(self, writer: Writer, key: str, limit: int) -> None:
        self.writer, self.key, self.limit = writer, key, limit
        self.next: int = writer.must("SELECT value FROM meta WHERE key = ?", (key,))[0]
        self.reserved = self.next

    def take(self) -> int:
        if self.next >= self.reserved:
            if self.next >= self.limit:
                raise error(errno.ENOSPC)
            self.reserve(self.next + RESERVE)
        number = self.next
        self.next += 1
        return number

    def reserve(self, upto: int) -> None:
        """Promise in the database, in this transaction or one of its own, to give out nothing at or above `upto`."""
        upto = min(upto, self.limit)
        if self.writer.db.in_transaction:
            self.store(upto)
        else:
            with self.writer.change:
                self.store(upto)
        self.reserved = upto

    def store(self, upto: int) -> None:
        self.writer.db.execute("UPDATE meta SET value = ? WHERE key = ?", (upto, self.key))


class ChangeWatcher(Protocol):
    """Who wants to know of rows, and which inodes have changes that may not be durable. Told before the change is
    answered."""

    def names_changed(self, inos: Iterable[int], transaction: int) -> None: ...

    def all_names_changed(self, transaction: int) -> None: ...

    def names_synced(self, transaction: int) -> None: ...

    def row_is(self, inode: Inode, /) -> None: ...

    def row_is_gone(self, ino: int, /) -> None: ...

    def rows_are_unknown(self) -> None: ...

    def is_bare(self, ino: int, bare: bool, /) -> None: ...


class Change:
    """The transaction of an operation; one object, entered again and again."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        writer = self._writer
        try:
            writer.db.execute("BEGIN IMMEDIATE")
        except BaseException as failure:
            self._fail(failure)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if failure is not None:
            self._fail(failure)
            return
        writer = self._writer
        try:
            writer.purge_a_little()
            writer.db.execute("COMMIT")
        except BaseException as late:
            self._fail(late)
            raise
        writer.after_commit()
        if writer.wal.writer_should_finish:
            writer.wal.finish()

    def _fail(self, failure: BaseException) -> None:
        """Undo, and give the failure its errno."""
        writer = self._writer
        writer.after_rollback()
        if isinstance(failure, sqlite3.Error):
            raise os_error(failure, writer.path) from failure


class Writer:
    """All methods from one thread, those below "within a change" only there."""

    def __init__(self, db: sqlite3.Connection, path: str, wal: Wal, clock: Callable[[], int]) -> None:
        self.db, self.path, self.wal, self.clock = db, path, wal, clock
        self.watcher: ChangeWatcher | None = None
        self.change = Change(self)
        self.cache: dict[int, Inode] = {}
        self.staged: dict[int, Inode] = {}
        self.marked: list[int] = []
        self.dropped: list[int] = []
        self.touched: set[int | tuple[int, bytes]] = set()
        self.changed_at: dict[int, int] = {}
        self.changed_floor = 0
        self.heirs: set[Ino] = set()
        self.inos = Counter(self, "next_ino", INO_LIMIT)
        self.cookies = Counter(self, "next_cookie", COOKIE_LIMIT)
        (self.sealed,) = self.must("SELECT value FROM meta WHERE key = 'sealed'")
        self.epoch, self.first_ino = self.must("SELECT epoch, first_ino FROM epochs ORDER BY epoch DESC LIMIT 1")
        self.purging = True
        self.changes_until_purge = 0
        self.note: Callable[[int], None] = lambda value: None
        """Within a change: `value` is its outcome (answers.py)."""
        self.created = 0
        self.lazy: bool = self.must("SELECT count(*) FROM (SELECT 1 FROM unloaded LIMIT 1)")[0] > 0
        self.loaded: set[int] = set()  # directories that were found to be loaded
        self.inode_count: int = self.must(COUNT_INODES)[0]
        self.new_files = NewFiles(lambda first: int(self.must(COUNT_NEW_FILES, (first,))[0]), self.first_ino)

    # -- reading

    def row(self, sql: str, values: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, an OSError if it fails."""
        try:
            found: tuple[Any, ...] | None = self.db.execute(sql, values).fetchone()
        except sqlite3.Error as failure:
            raise os_error(failure, self.path) from failure
        return found

    def rows(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query, an OSError if it fails."""
        try:
            return self.db.execute(sql, values).fetchall()
        except sqlite3.Error as failure:
            raise os_error(failure, self.path) from failure

    def inode(self, ino: int) -> Inode:
        """The attributes of `ino`; ESTALE if there is none."""
        found = self.cache.get(ino)
        if found is None:
            row = self.row(SELECT_INODE, (ino,))
            if row is None:
                raise error(errno.ESTALE)
            found = self.remember(Inode(*row))
        return found

    def must(self, sql: str, values: tuple[object, ...] = ()) -> tuple[Any, ...]:
        """The first row of a query that has one in every namespace; `sqlite3.Error` if it fails."""
        row: tuple[Any, ...] | None = self.db.execute(sql, values).fetchone()
        if row is None:
            raise CorruptionError("the namespace", self.path, "a counter is missing")
        return row

    def directory(self, ino: int) -> Inode:
        """The attributes of the directory `ino`; ENOTDIR, ESTALE."""
        found = self.inode(ino)
        if not found.is_directory:
            raise error(errno.ENOTDIR)
        return found

    def living_directory(self, ino: int) -> Inode:
        """As `directory`, and ENOENT for one that was removed: nothing can be made in it. NotLoadedError."""
        found = self.directory(ino)
        if not found.nlink:
            raise error(errno.ENOENT)
        if self.lazy:
            self.must_be_loaded(ino)
        return found

    def must_be_loaded(self, directory: int) -> None:
        """NotLoadedError if its names are still only in the store."""
        if not self.lazy or directory in self.loaded:
            return
        row = self.row("SELECT listing FROM unloaded WHERE ino = ?", (directory,))
        if row is not None:
            raise NotLoadedError(Ino(directory), row[0])
        if len(self.loaded) >= CACHED_INODES:
            self.loaded.clear()
        self.loaded.add(directory)

    def entry(self, parent: int, name: bytes) -> Ino:
        """The inode number under `name`; ENOENT, NotLoadedError."""
        if self.lazy:
            self.must_be_loaded(parent)
        row = self.row("SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name))
        if row is None:
            raise error(errno.ENOENT)
        return Ino(row[0])

    def is_empty(self, directory: int) -> bool:
        self.must_be_loaded(directory)
        return self.row("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (directory,)) is None

    def remember(self, inode: Inode) -> Inode:
        cache = self.cache
        if len(cache) >= CACHED_INODES:
            del cache[next(iter(cache))]
        cache[inode.ino] = inode
        if self.watcher is not None:
            self.watcher.row_is(inode)
        return inode

    def forget_inode(self, ino: int) -> None:
        self.cache.pop(ino, None)
        if self.watcher is not None:
            self.watcher.row_is_gone(ino)

    def needs_sync(self, ino: int) -> bool:
        """Whether a change of `ino` is committed and not known to be durable."""
        return max(self.changed_at.get(ino, 0), self.changed_floor) > self.wal.synced

    # -- within a change

    def insert_inode(self, inode: Inode) -> None:
        self.db.execute(INSERT_INODE, inode)
        self.created += 1
        self.new_files.made(inode)
        self.stage(inode)

    def update_inode(self, inode: Inode) -> None:
        """Store all of `inode` but what never changes (rdev, target)."""
        _, mode, uid, gid, _, nlink, atime, mtime, ctime, _, parent = inode
        self.db.execute(UPDATE_INODE, (mode, uid, gid, nlink, atime, mtime, ctime, parent, inode.ino))
        self.stage(inode)

    def update_parent(self, directory: Inode, now_ns: int, links: int = 0) -> None:
        """Store the times of a directory whose names changed, and `links` more or fewer subdirectories.

        It needs no touched row of its own: that of the name stands for both.
        """
        directory = directory._replace(mtime_ns=now_ns, ctime_ns=now_ns, nlink=directory.nlink + links)
        self.db.execute(UPDATE_PARENT, (directory.nlink, now_ns, now_ns, directory.ino))
        self.staged[directory.ino] = directory
        self.marked.append(directory.ino)

    def stage(self, inode: Inode) -> None:
        self.staged[inode.ino] = inode
        self.touch(inode.ino)

    def insert_entry(self, parent: int, name: bytes, ino: int, cookie: int) -> None:
        """EEXIST if the name is taken."""
        try:
            self.db.execute(INSERT_ENTRY, (parent, name, ino, cookie))
        except sqlite3.IntegrityError:
            raise error(errno.EEXIST) from None
        self.touch_name(parent, name)

    def point_entry(self, parent: int, name: bytes, ino: int) -> None:
        """Let an existing name, and so its cookie, mean `ino`."""
        self.db.execute("UPDATE entry SET ino = ? WHERE parent = ? AND name = ?", (ino, parent, name))
        self.touch_name(parent, name)

    def rename_entry(self, parent: int, name: bytes, new_name: bytes) -> None:
        """Give an entry another, unused name in its directory; its cookie stays."""
        self.db.execute("UPDATE entry SET name = ? WHERE parent = ? AND name = ?", (new_name, parent, name))
        self.touch_name(parent, name)
        self.touch_name(parent, new_name)

    def delete_entry(self, parent: int, name: bytes) -> None:
        self.db.execute("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))
        self.touch_name(parent, name)

    def delete_orphan(self, ino: Ino) -> None:
        """Remove an inode that has no links, with all that hangs on it."""
        if self.db.execute("DELETE FROM inode WHERE ino = ? AND nlink = 0", (ino,)).rowcount:
            self.db.execute("DELETE FROM xattr WHERE ino = ?", (ino,))
            self.db.execute("DELETE FROM absent WHERE ino = ?", (ino,))
            self.dropped.append(ino)

    def touch(self, ino: int) -> None:
        """Note that the inode itself changed in this epoch."""
        self.marked.append(ino)
        if ino < self.first_ino and ino not in self.touched:
            self.db.execute(TOUCH, (self.epoch, ino, b""))
            self.touched.add(ino)

    def touch_name(self, parent: int, name: bytes) -> None:
        """Note that a name of `parent` changed in this epoch."""
        if parent < self.first_ino and (parent, name) not in self.touched:
            self.db.execute(TOUCH, (self.epoch, parent, name))
            self.touched.add((parent, name))

    def purge_a_little(self) -> None:
        """Drop some rows of sealed epochs, if there are any."""
        if not self.purging:
            return
        self.changes_until_purge -= 1
        if self.changes_until_purge <= 0:
            self.changes_until_purge = PURGE_EVERY
            upto = self.db.execute(PURGE_UPTO, (self.sealed, PURGE_ROWS - 1)).fetchone()
            self.purging = upto is not None
            self.db.execute(PURGE, upto or (self.sealed + 1, -1, b""))

    def load_entry(self, directory: Ino, entry: LoadedEntry) -> None:
        """Take over a name from the store, and its inode unless another name brought it. It is no change of anything.

        What is here of the inode counts: it may have changed since.
        """
        inode = entry.inode._replace(parent=directory if entry.inode.is_directory else Ino(0))
        if self.db.execute(LOAD_INODE, inode).rowcount:
            self.created += 1
            ino = inode.ino
            self.db.executemany("INSERT INTO xattr VALUES (?,?,?)", ((ino, *pair) for pair in entry.xattrs))
            if entry.absent is not None:
                self.db.execute("INSERT INTO absent VALUES (?,?,?,?,?)", (ino, *entry.absent))
            if entry.listing is not None:
                self.db.execute("INSERT INTO unloaded VALUES (?,?)", (ino, entry.listing))
        self.db.execute(LOAD_ENTRY, (directory, entry.name, inode.ino, self.cookies.take()))

    def all_entries_loaded(self, directory: Ino) -> None:
        self.db.execute("DELETE FROM unloaded WHERE ino = ?", (directory,))
        if self.db.execute("SELECT 1 FROM unloaded LIMIT 1").fetchone() is None:
            self.db.execute(f"PRAGMA user_version={PLAIN_VERSION}")

    # -- ends of a change

    def after_commit(self) -> None:
        """Take over into memory what the transaction made true."""
        number = self.wal.committed + 1
        for inode in self.staged.values():
            self.remember(inode)
        for ino in self.marked:
            self.changed_at[ino] = number
        if self.watcher is not None:
            self.watcher.names_changed(self.marked, number)
        for ino in self.dropped:
            self.forget_inode(ino)
        self.inode_count += self.created - len(self.dropped)
        self.new_files.committed()
        self.clear_staged()
        self.wal.committed = number
        self.bound_memory()

    def after_rollback(self) -> None:
        """Undo the transaction, in the database and in memory."""
        for counter in (self.inos, self.cookies):
            counter.reserved = counter.next
        for ino in self.staged:
            self.forget_inode(ino)
        self.clear_staged()
        self.new_files.rolled_back()
        self.touched.clear()
        self.purging = True
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def clear_staged(self) -> None:
        self.staged.clear()
        self.marked.clear()
        self.dropped.clear()
        self.created = 0

    def bound_memory(self) -> None:
        """Forget what may be forgotten: a touched row is then tried again, a sync made once too often."""
        if len(self.touched) > REMEMBERED_TOUCHED:
            self.touched.clear()
        if len(self.changed_at) > REMEMBERED_CHANGES:
            synced = self.wal.synced
            self.changed_at = {ino: number for ino, number in self.changed_at.items() if number > synced}
            if len(self.changed_at) > REMEMBERED_CHANGES // 2:
                self.changed_floor = self.wal.committed  # first: other threads look at both
                self.changed_at = {}

    def forget_memory(self) -> None:
        """After a bulk change: believe nothing but the database, and call everything unsynced."""
        self.cache.clear()
        self.touched.clear()
        self.changed_floor = self.wal.committed
        self.changed_at = {}
        if self.watcher is not None:
            self.watcher.all_names_changed(self.wal.committed)
            self.watcher.rows_are_unknown()
        self.inode_count = self.rows(COUNT_INODES)[0][0]
        self.new_files.learn(self.first_ino)

    # -- epochs

    def begin_epoch(self, epoch: Epoch) -> None:
        """End the current epoch: what changes from now on belongs to `epoch`."""
        assert epoch > self.epoch, (epoch, self.epoch)
        self.changes_until_purge, self.wal.writer_should_finish = PURGE_EVERY, False  # not within a cut
        with self.change:
            self.db.execute("INSERT INTO epochs VALUES (?,?)", (epoch, self.inos.next))
        self.epoch, self.first_ino = epoch, self.inos.next
        self.new_files.epoch_began(self.first_ino)
        self.touched = set()

    def mark_sealed(self, epoch: Epoch, sealed_as: int = 0) -> None:
        """Everything up to `epoch` is in a snapshot; its rows go little by little."""
        assert epoch < self.epoch, (epoch, self.epoch)
        with self.change:
            if sealed_as:
                self.db.execute("INSERT OR REPLACE INTO meta VALUES ('sealed_as', ?)", (as_signed(sealed_as),))
            self.db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'sealed'", (epoch,))
            self.db.execute("DELETE FROM epochs WHERE epoch <= ?", (epoch,))
        self.sealed = max(self.sealed, epoch)
        if epoch == self.epoch - 1:
            self.new_files.sealed()
        self.purging, self.changes_until_purge = True, 0

    def has_changes(self) -> bool:
        """Whether anything changed that no snapshot has."""
        touched = self.row("SELECT 1 FROM touched WHERE epoch > ? LIMIT 1", (self.sealed,))
        new = "SELECT 1 FROM inode WHERE ino >= (SELECT min(first_ino) FROM epochs) AND nlink > 0 LIMIT 1"
        return touched is not None or self.row(new) is not None

    def close(self) -> None:
        """Give back unused numbers; the last connection to close writes the WAL back to the database file."""
        try:
            with self.change:
                self.inos.store(self.inos.next)
                self.cookies.store(self.cookies.next)
        finally:
            self.db.close()
