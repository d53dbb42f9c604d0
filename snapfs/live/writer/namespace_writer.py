"""The one writing connection of the namespace, and what is kept in memory next to it.

Invariants:
1. Every change of the database is made between entering and leaving `NamespaceWriter.change`: one transaction,
   committed to the WAL when it is left, rolled back by any exception.
2. What memory holds of a transaction (cached inodes, touched rows, sequence numbers of inodes) is taken over after the
   commit; after a rollback the cache holds none of it.
3. Inode numbers and cookies are never given out twice (number_counter.py).
4. What changed in the current epoch has a row in the same transaction (epoch_rows.py).
5. What may not be durable is known by inode (unsynced_inodes.py).
6. A watcher's cached inodes, and its set of those without extended attributes, equal the database: it is passed what is
   read, and what changed, after the commit and before the change is answered.
7. What memory holds belongs to the one that has the turn: this writer, or C (turn.py).
8. A file that takes another one's name is passed to `Wal.depend_on` before that is committed.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
from collections.abc import Callable

from snapfs.base.blocks import Epoch, Ino
from snapfs.live.database.namespace_rows import COOKIE_LIMIT, INO_LIMIT, Inode, LoadedEntry, error
from snapfs.live.database.schema import PLAIN_VERSION, os_error
from snapfs.live.database.wal import Wal
from snapfs.live.writer.cached_reads import CachedReads
from snapfs.live.writer.change import Change
from snapfs.live.writer.epoch_rows import EpochRows
from snapfs.live.writer.new_files import NewFiles
from snapfs.live.writer.number_counter import NumberCounter
from snapfs.live.writer.outside_reads import OutsideReads
from snapfs.live.writer.turn import SharedNames
from snapfs.live.writer.unsynced_inodes import UnsyncedInodes

COUNT_INODES = "SELECT count(*) FROM inode"
COUNT_NEW_FILES = f"SELECT count(*) FROM inode WHERE ino >= ? AND nlink > 0 AND (mode & {0o170000}) = {stat.S_IFREG}"
INSERT_INODE = "INSERT INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?)"
UPDATE_INODE = (
    "UPDATE inode SET mode=?, uid=?, gid=?, nlink=?, atime_ns=?, mtime_ns=?, ctime_ns=?, parent=? WHERE ino=?"
)
UPDATE_PARENT = "UPDATE inode SET nlink=?, mtime_ns=?, ctime_ns=? WHERE ino=?"
INSERT_ENTRY = "INSERT INTO entry VALUES (?,?,?,?)"
LOAD_INODE = "INSERT OR IGNORE INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?)"
LOAD_ENTRY = "INSERT OR IGNORE INTO entry VALUES (?,?,?,?)"


class NamespaceWriter(CachedReads):
    """All methods from one thread, those below "within a change" only there."""

    def __init__(self, db: sqlite3.Connection, path: str, wal: Wal, clock: Callable[[], int]) -> None:
        super().__init__(db, path)
        self.wal, self.clock = wal, clock
        self.change = Change(self)
        self.staged: dict[int, Inode] = {}
        self.marked: list[int] = []
        self.dropped: list[int] = []
        self.unsynced = UnsyncedInodes()
        self.inos, self.cookies = self._counter("next_ino", INO_LIMIT), self._counter("next_cookie", COOKIE_LIMIT)
        (sealed,) = self.must("SELECT value FROM meta WHERE key = 'sealed'")
        epoch, first_ino = self.must("SELECT epoch, first_ino FROM epochs ORDER BY epoch DESC LIMIT 1")
        self.epochs = EpochRows(db, epoch, first_ino, sealed)
        self.note: Callable[[int], None] = lambda value: None
        """Within a change: `value` is its outcome (reply_cache.py)."""
        self._serial = 0
        self.created = 0
        self.inode_count: int = self.must(COUNT_INODES)[0]
        self.new_files = NewFiles(lambda first: int(self.must(COUNT_NEW_FILES, (first,))[0]), self.epochs.first_ino)

    def begin_notes(self, serial: int) -> None:
        """The newest note of an outcome has this number (reply_cache.py)."""
        self._serial = serial

    def next_note(self) -> int:
        """Within a change: the number of the next note."""
        self._serial += 1
        return self._serial

    def pass_outcomes_to(self, note: Callable[[int], None]) -> None:
        """Call `note` with the outcome of each change that has one, within the change."""
        self.note = note

    def _counter(self, key: str, limit: int) -> NumberCounter:
        (first,) = self.must("SELECT value FROM meta WHERE key = ?", (key,))
        return NumberCounter(self.db, self.change, key, first, limit)

    def needs_sync(self, ino: int) -> bool:
        """Whether a change of `ino` is committed and not known to be durable."""
        shared = self.turn.shared
        return self.unsynced.needs_sync(ino, self.wal.synced) or (shared is not None and shared.needs_names(ino))

    # -- turns (turn.py)

    def numbers(self) -> tuple[int, ...]:
        """What memory holds next to the database, between two changes."""
        epochs = self.epochs
        own = (epochs.epoch, epochs.first_ino, epochs.sealed, self._serial, self.inode_count)
        return (*self.inos.numbers(), *self.cookies.numbers(), *own, *self.new_files.numbers())

    def adopt_numbers(self, numbers: tuple[int, ...]) -> None:
        """Take over what others made of it."""
        self.inos.adopt(*numbers[:2])
        self.cookies.adopt(*numbers[2:4])
        self._serial, self.inode_count = numbers[7:9]
        self.new_files.adopt(*numbers[9:])

    def share(self, shared: SharedNames) -> None:
        """Let others make changes as well; nothing happens if they cannot."""
        try:
            outside = OutsideReads(self.path)
        except sqlite3.Error as failure:
            raise os_error(failure, self.path) from failure
        if not self.wal.share(shared, self.numbers()):
            outside.close()
            return
        self.outside = outside
        self.cache.clear()
        self.turn.share(shared)

    def end_sharing(self) -> None:
        """Nobody else makes changes any more."""
        shared = self.turn.shared
        if shared is None:
            return
        with self.turn:
            self.wal.before_sharing_ends(shared)
            self.unsynced.all_changed(self.wal.committed)
            self.wal.sharing_ended(self.turn.end_sharing())
        outside, self.outside = self.outside, None
        if outside is not None:
            outside.close()

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
        self.epochs.touch_name(parent, name)

    def point_entry(self, parent: int, name: bytes, ino: int) -> None:
        """Let an existing name, and so its cookie, mean `ino`."""
        self.db.execute("UPDATE entry SET ino = ? WHERE parent = ? AND name = ?", (ino, parent, name))
        self.epochs.touch_name(parent, name)

    def rename_entry(self, parent: int, name: bytes, new_name: bytes) -> None:
        """Give an entry another, unused name in its directory; its cookie stays."""
        self.db.execute("UPDATE entry SET name = ? WHERE parent = ? AND name = ?", (new_name, parent, name))
        self.epochs.touch_name(parent, name)
        self.epochs.touch_name(parent, new_name)

    def delete_entry(self, parent: int, name: bytes) -> None:
        self.db.execute("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))
        self.epochs.touch_name(parent, name)

    def delete_orphan(self, ino: Ino) -> None:
        """Remove an inode that has no links, with all that hangs on it."""
        if self.db.execute("DELETE FROM inode WHERE ino = ? AND nlink = 0", (ino,)).rowcount:
            self.db.execute("DELETE FROM xattr WHERE ino = ?", (ino,))
            self.db.execute("DELETE FROM absent WHERE ino = ?", (ino,))
            self.dropped.append(ino)

    def touch(self, ino: int) -> None:
        """Note that the inode itself changed in this epoch."""
        self.marked.append(ino)
        self.epochs.touch(ino)

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
        self.wal.note_commit()
        number = self.wal.committed + 1
        for inode in self.staged.values():
            self.remember(inode)
        self.unsynced.changed(self.marked, number)
        if self.watcher is not None:
            self.watcher.names_changed(self.marked, number)
        for ino in self.dropped:
            self.forget_inode(ino)
        self.inode_count += self.created - len(self.dropped)
        self.new_files.committed()
        self.clear_staged()
        self.wal.count_commit()
        self.epochs.bound_memory()
        self.unsynced.bound_memory(self.wal.committed, self.wal.synced)

    def after_rollback(self) -> None:
        """Undo the transaction, in the database and in memory."""
        for counter in (self.inos, self.cookies):
            counter.rolled_back()
        for ino in self.staged:
            self.forget_inode(ino)
        self.clear_staged()
        self.new_files.rolled_back()
        self.epochs.rolled_back()
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def clear_staged(self) -> None:
        self.staged.clear()
        self.marked.clear()
        self.dropped.clear()
        self.created = 0

    def forget_memory(self) -> None:
        """After a bulk change: only the database is valid, and everything counts as unsynced."""
        self.cache.clear()
        self.epochs.forget_memory()
        self.unsynced.all_changed(self.wal.committed)
        if self.watcher is not None:
            self.watcher.all_names_changed(self.wal.committed)
            self.watcher.drop_all_inodes()
        self.inode_count = self.rows(COUNT_INODES)[0][0]
        self.new_files.learn(self.epochs.first_ino)

    # -- epochs

    def begin_epoch(self, epoch: Epoch) -> None:
        """End the current epoch: what changes from now on belongs to `epoch`."""
        assert epoch > self.epochs.epoch, (epoch, self.epochs.epoch)
        self.epochs.postpone_purge()
        self.wal.checkpoints.postpone()
        with self.turn:
            first_ino = self.inos.next
            with self.change:
                self.epochs.begin(epoch, first_ino)
            self.epochs.began(epoch, first_ino)
            self.new_files.epoch_began(first_ino)

    def mark_sealed(self, epoch: Epoch, sealed_as: int = 0) -> None:
        """Everything up to `epoch` is in a snapshot; its rows go little by little."""
        assert epoch < self.epochs.epoch, (epoch, self.epochs.epoch)
        with self.turn:
            with self.change:
                self.epochs.mark_sealed(epoch, sealed_as)
            if epoch == self.epochs.epoch - 1:
                self.new_files.sealed()
            self.epochs.was_sealed(epoch)

    def has_changes(self) -> bool:
        """Whether anything changed that no snapshot has."""
        touched = self.row("SELECT 1 FROM touched WHERE epoch > ? LIMIT 1", (self.epochs.sealed,))
        new = "SELECT 1 FROM inode WHERE ino >= (SELECT min(first_ino) FROM epochs) AND nlink > 0 LIMIT 1"
        return touched is not None or self.row(new) is not None

    def close(self) -> None:
        """Give back unused numbers; the last connection to close writes the WAL back to the database file."""
        try:
            with self.change:
                self.inos.give_back()
                self.cookies.give_back()
        finally:
            try:
                self.wal.pages.before_close()
            finally:
                self.db.close()
