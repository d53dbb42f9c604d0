"""Names and attributes of the live tree: who is where, and whose it is.

Owns `namespace.db`: one writing connection (writer.py), a pool of reading ones that cuts are made with
(frozen.py), and the WAL (wal.py).

Invariants (`check_invariants` tests those a database can be asked about):
1. Every name means an inode that exists; every inode with links is reachable from the root; no directory is
   below itself.
2. `nlink` of a directory is 2 and one for each subdirectory, 0 once it is removed; of anything else the number of
   its names. Inodes without links are orphans: they have no name, and go when the tree says so.
3. Inode numbers and cookies are never used twice; the counters are above every number in use.
4. An operation is one transaction, answered after its commit to the WAL file; an operation that raises changed nothing.
5. An operation's error is an OSError with the errno that Linux gives. Permissions, the sticky bit and setgid without
   membership are the kernel's to check.

The writer's methods are called from one thread. `sync`, `checkpoint` and `wal_bytes` may be called from any, a frozen
namespace from one other at a time. A crash leaves the transactions that were committed, and
after a power cut those that were synced; never a part of one.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager

from snapfs.blocks import Disk, Epoch, Ino
from snapfs.live import invariants, renames
from snapfs.live.answers import Answers
from snapfs.live.bulk import Bulk
from snapfs.live.frozen import FrozenNamespace
from snapfs.live.records import LINK_MAX, AbsentFile, Entry, Inode, LoadedEntry, check_name, clamp_time, error
from snapfs.live.reserve import Reserve
from snapfs.live.schema import connect, open_database, opening_error, os_error
from snapfs.live.wal import Wal, reserve_path
from snapfs.live.writer import ChangeWatcher, Writer
from snapfs.live.xattrs import Xattrs

SPARE_READERS = 2
LIST = (
    "SELECT cookie, name, i.ino, mode, uid, gid, rdev, nlink, atime_ns, mtime_ns, ctime_ns, target, i.parent"
    " FROM entry AS e INDEXED BY listing CROSS JOIN inode AS i ON i.ino = e.ino"
    " WHERE e.parent = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)


class Namespace:
    """Opens the database at `path`, or creates it with an empty root directory of the calling user.

    VersionError for a later format, CorruptionError for a damaged file, OSError for a failing disk.
    """

    @staticmethod
    def give_room(path: str, *, if_needed: bool = False) -> bool:
        """Before it is opened on a full disk: free some room that was kept for that. False if there is none left."""
        return Reserve.give_some(reserve_path(path), if_needed=if_needed)

    def __init__(self, path: str, disk: Disk, clock: Callable[[], int] = time.time_ns) -> None:
        self.path = path
        self._spares: deque[sqlite3.Connection] = deque()
        self._wal = Wal(path, disk)
        db = open_database(path, clock())
        try:
            self._wal.open()
            self._writer = Writer(db, path, self._wal, clock)
            self._spares.extend(self._new_reader() for _ in range(SPARE_READERS))
        except BaseException as failure:
            self._close_readers()
            db.close()
            self._wal.close_files()
            if isinstance(failure, sqlite3.Error):
                raise opening_error(failure, path) from failure
            raise
        self.answers = Answers(self._writer)
        self._xattrs = Xattrs(self._writer)
        self._frozen: set[int] = set()

    # -- looking

    def inode(self, ino: Ino) -> Inode:
        """ESTALE if it does not exist; one without links is still found."""
        return self._writer.inode(ino)

    def lookup(self, parent: Ino, name: bytes) -> Inode:
        """ENOENT, ENOTDIR, ENAMETOOLONG."""
        check_name(name)
        self._writer.directory(parent)
        return self._writer.inode(self._writer.entry(parent, name))

    def readdir(self, parent: Ino, after_cookie: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with cookies above `after_cookie`, ascending; without "." and ".."."""
        self._writer.directory(parent)
        self._writer.must_be_loaded(parent)
        return [
            Entry(row[0], row[1], Inode(*row[2:])) for row in self._writer.rows(LIST, (parent, after_cookie, limit))
        ]

    def parent_of(self, directory: Ino) -> Ino:
        """The directory that ".." means; the root's is itself, a removed directory's is ENOENT."""
        found = self._writer.directory(directory)
        if not found.nlink:
            raise error(errno.ENOENT)
        return found.parent

    def names_of(self, inos: Container[Ino]) -> list[tuple[Ino, Ino, bytes]]:
        """(inode, directory, name) for every name of these inodes. Reads all names once. Any thread."""
        db = self._new_reader()
        try:
            rows = db.execute("SELECT ino, parent, name FROM entry")
            return [(Ino(ino), Ino(parent), name) for ino, parent, name in rows if ino in inos]
        finally:
            db.close()

    @contextmanager
    def view(self) -> Iterator[FrozenNamespace]:
        """Everything as it is now, to look at and no cut. The WAL grows while it is open. Any thread."""
        frozen = FrozenNamespace(self._new_reader(), self.epoch, self._wal, sqlite3.Connection.close)
        try:
            yield frozen
        finally:
            frozen.close()

    def path_of(self, directory: Ino) -> bytes:
        """The path of a directory from the root, b"" for the root itself. ENOENT if it was removed."""
        names: list[bytes] = []
        while (parent := self.parent_of(directory)) != directory:
            row = self._writer.row("SELECT name FROM entry WHERE parent = ? AND ino = ?", (parent, directory))
            assert row is not None
            names.append(row[0])
            directory = parent
        return b"/".join(reversed(names))

    def counts(self) -> int:
        """Inodes in the database, orphans included."""
        return self._writer.inode_count

    # -- making and unmaking names

    def allocate_ino(self) -> Ino:
        """A number for `create(ino=...)`, so that the backing file can be made first. ENOSPC when they run out."""
        return Ino(self._writer.inos.take())

    def create(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        ino: Ino | None = None,
        xattrs: Iterable[tuple[bytes, bytes]] = (),
    ) -> Inode:
        """Make an inode of any type (`mode` says which), with these extended attributes, under a new name.

        EEXIST, ENOENT (the directory was removed), ENOTDIR, ENAMETOOLONG, EMLINK, ENOSPC.
        """
        check_name(name)
        w = self._writer
        directory = w.living_directory(parent)
        is_dir = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if is_dir else 0
        if is_dir and directory.nlink >= LINK_MAX:
            raise error(errno.EMLINK)
        if ino is None:
            ino = self.allocate_ino()
        now = w.clock()
        child = Inode(
            ino, mode, uid, gid, rdev, 2 if is_dir else 1, now, now, now, target, parent if is_dir else Ino(0)
        )
        with w.change:
            w.insert_entry(parent, name, ino, w.cookies.take())
            w.insert_inode(child)
            self._xattrs.put_new(ino, xattrs)
            w.update_parent(directory, now, int(is_dir))
            w.note(ino)
        return child

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Inode:
        """One more name. EPERM for a directory, ENOENT for an orphan, EMLINK, EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG."""
        check_name(name)
        w = self._writer
        directory, inode = w.living_directory(parent), w.inode(ino)
        if inode.is_directory:
            raise error(errno.EPERM)
        if not inode.nlink:
            raise error(errno.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise error(errno.EMLINK)
        now = w.clock()
        inode = inode._replace(nlink=inode.nlink + 1, ctime_ns=now)
        with w.change:
            w.insert_entry(parent, name, ino, w.cookies.take())
            w.update_inode(inode)
            w.update_parent(directory, now)
            w.note(ino)
        return inode

    def unlink(self, parent: Ino, name: bytes) -> Inode:
        """Take a name away; returns the inode afterwards, maybe an orphan. EISDIR, ENOENT, ENOTDIR."""
        check_name(name)
        w = self._writer
        directory, inode = w.directory(parent), w.inode(w.entry(parent, name))
        if inode.is_directory:
            raise error(errno.EISDIR)
        return self._remove(directory, name, inode)

    def rmdir(self, parent: Ino, name: bytes) -> Inode:
        """Remove an empty directory; returns it afterwards, an orphan. ENOTEMPTY, ENOTDIR, ENOENT."""
        check_name(name)
        w = self._writer
        directory, inode = w.directory(parent), w.directory(w.entry(parent, name))
        if not w.is_empty(inode.ino):
            raise error(errno.ENOTEMPTY)
        return self._remove(directory, name, inode)

    def _remove(self, directory: Inode, name: bytes, inode: Inode) -> Inode:
        w = self._writer
        now = w.clock()
        with w.change:
            w.delete_entry(directory.ino, name)
            after = renames.lose_link(w, inode, now)
            w.update_parent(directory, now, -int(inode.is_directory))
            w.note(0)
        return after

    def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> Inode | None:
        """See renames.py. Returns the inode that was replaced, as it is afterwards (maybe an orphan), or None.

        ENOENT, EEXIST, EINVAL, ENOTDIR, EISDIR, ENOTEMPTY, EMLINK, ENAMETOOLONG.
        """
        return renames.rename(self._writer, parent, name, new_parent, new_name, flags)

    # -- attributes

    def setattr(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Inode:
        """Set what is given (of `mode` the permission bits); ctime becomes now unless it is given too. ESTALE."""
        w = self._writer
        inode = w.inode(ino)
        inode = inode._replace(
            mode=inode.mode if mode is None else stat.S_IFMT(inode.mode) | stat.S_IMODE(mode),
            uid=inode.uid if uid is None else uid,
            gid=inode.gid if gid is None else gid,
            atime_ns=inode.atime_ns if atime_ns is None else clamp_time(atime_ns),
            mtime_ns=inode.mtime_ns if mtime_ns is None else clamp_time(mtime_ns),
            ctime_ns=w.clock() if ctime_ns is None else clamp_time(ctime_ns),
        )
        with w.change:
            w.update_inode(inode)
            w.note(ino)
        return inode

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """ENODATA."""
        return self._xattrs.get(ino, name)

    def listxattr(self, ino: Ino) -> list[bytes]:
        """Names, sorted."""
        return self._xattrs.list(ino)

    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """Flags are XATTR_CREATE (EEXIST) and XATTR_REPLACE (ENODATA). ERANGE, E2BIG for lengths."""
        self._xattrs.set(ino, name, value, flags)

    def removexattr(self, ino: Ino, name: bytes) -> None:
        """ENODATA."""
        self._xattrs.remove(ino, name)

    # -- what waits to be done

    def orphans(self) -> list[Ino]:
        """Inodes without links, ascending."""
        return [Ino(ino) for (ino,) in self._writer.rows("SELECT ino FROM inode WHERE nlink = 0 ORDER BY ino")]

    def remove_orphans(self, inos: Iterable[Ino]) -> None:
        """Forget these inodes in one transaction; those that have links are left alone."""
        w = self._writer
        with w.change:
            for ino in inos:
                w.delete_orphan(ino)
                self._xattrs.forget_one(ino)

    def absent(self, ino: Ino) -> AbsentFile | None:
        """Where the bytes of the file are, if they are still only in the store."""
        row = self._writer.row("SELECT size, mtime_ns, ctime_ns, origin FROM absent WHERE ino = ?", (ino,))
        return None if row is None else AbsentFile(*row)

    def regular_inos(self) -> list[Ino]:
        """Every regular file, orphans included, ascending."""
        sql = f"SELECT ino FROM inode WHERE (mode & {0o170000}) = {stat.S_IFREG} ORDER BY ino"
        return [Ino(ino) for (ino,) in self._writer.rows(sql)]

    def absent_inos(self) -> list[Ino]:
        """Every file whose bytes are still only in the store, ascending."""
        return [Ino(ino) for (ino,) in self._writer.rows("SELECT ino FROM absent ORDER BY ino")]

    def set_absent(self, ino: Ino, absent: AbsentFile) -> None:
        """Note (or change) where the bytes of a file are."""
        w = self._writer
        with w.change:
            w.db.execute("INSERT OR REPLACE INTO absent VALUES (?,?,?,?,?)", (ino, *absent))
            w.touch(ino)

    def clear_absent(self, ino: Ino) -> None:
        """The bytes are here now. That alone is no change of the file: nothing is touched."""
        w = self._writer
        with w.change:
            w.db.execute("DELETE FROM absent WHERE ino = ?", (ino,))
            w.marked.append(ino)

    def clear_absent_files(self, inos: Iterable[Ino]) -> None:
        """As `clear_absent`, in one transaction."""
        w = self._writer
        with w.change:
            w.db.executemany("DELETE FROM absent WHERE ino = ?", ((ino,) for ino in inos))
            w.marked += inos

    # -- names that are still only in the store

    @property
    def is_lazy(self) -> bool:
        """Whether there are directories whose names are still only in the store."""
        return self._writer.lazy

    def unloaded(self, limit: int) -> list[tuple[Ino, bytes]]:
        """Up to `limit` of them, ascending, each with where its names are."""
        rows = self._writer.rows("SELECT ino, listing FROM unloaded ORDER BY ino LIMIT ?", (limit,))
        return [(Ino(ino), listing) for ino, listing in rows]

    def unloaded_count(self) -> int:
        """How many are known; there may be more below them."""
        return int(self._writer.rows("SELECT count(*) FROM unloaded")[0][0]) if self.is_lazy else 0

    def has_absent(self) -> bool:
        """Whether anything, names of a directory or bytes of a file, is still only in the store."""
        return self.is_lazy or self._writer.row("SELECT 1 FROM absent LIMIT 1") is not None

    def absent_count(self) -> int:
        """Files whose bytes are still in the store, in whole or in part."""
        return int(self._writer.rows("SELECT count(*) FROM absent")[0][0])

    def absent_after(self, ino: Ino, limit: int) -> list[Ino]:
        """Up to `limit` files with numbers above `ino` whose bytes are still in the store, ascending."""
        rows = self._writer.rows("SELECT ino FROM absent WHERE ino > ? ORDER BY ino LIMIT ?", (ino, limit))
        return [Ino(number) for (number,) in rows]

    def must_be_loaded(self, directory: Ino) -> None:
        """NotLoadedError if the names of the directory are still only in the store."""
        self._writer.must_be_loaded(directory)

    def load(self, directory: Ino, entries: Iterable[LoadedEntry], *, last: bool) -> None:
        """Take over names of an unloaded directory, all of them with the `last` call. Nothing counts as changed.

        To take a name over twice does nothing; so does a call for a directory that is loaded.
        """
        w = self._writer
        if w.row("SELECT 1 FROM unloaded WHERE ino = ?", (directory,)) is None:
            return
        with w.change:
            for entry in entries:
                w.load_entry(directory, entry)
                self._xattrs.forget_one(entry.inode.ino)
            if last:
                w.all_entries_loaded(directory)
        w.lazy = w.row("SELECT 1 FROM unloaded LIMIT 1") is not None

    def pending_swaps(self) -> list[Ino]:
        """Files whose staged bytes must still be renamed into place, ascending."""
        return [Ino(ino) for (ino,) in self._writer.rows("SELECT ino FROM pending_swap ORDER BY ino")]

    def clear_swaps(self) -> None:
        """All staged bytes are in place."""
        with self._writer.change:
            self._writer.db.execute("DELETE FROM pending_swap")

    # -- a standby's tree

    def image(self) -> int | None:
        """The number of the root object of the snapshot that a standby's tree is; None if it is none yet."""
        row = self._writer.row("SELECT value FROM meta WHERE key = 'image'")
        return None if row is None else row[0] & (1 << 64) - 1

    def refits(self, after: Ino, limit: int) -> list[tuple[Ino, int]]:
        """Up to `limit` (inode, action) above `after` of what must still be done to backing files, ascending."""
        sql = "SELECT ino, action FROM refit WHERE ino > ? ORDER BY ino LIMIT ?"
        return [(Ino(ino), action) for ino, action in self._writer.rows(sql, (after, limit))]

    def clear_refits(self) -> None:
        """All of it is done, durably."""
        with self._writer.change:
            self._writer.db.execute("DELETE FROM refit")

    @contextmanager
    def bulk(self, *, sealed: bool = False) -> Iterator[Bulk]:
        """Many changes in one transaction (bulk.py); meanwhile only `sync` and `checkpoint` may be called.

        `sealed`: what is filled in, with what is there already, is exactly the last snapshot.
        """
        w = self._writer
        try:
            with w.change:
                changes = Bulk(w, sealed)
                yield changes
                changes.finish()
        finally:
            w.lazy = w.row("SELECT 1 FROM unloaded LIMIT 1") is not None
            w.forget_memory()
            self._xattrs.forget()

    # -- durability

    def needs_sync(self, ino: Ino) -> bool:
        """Whether something of this inode (attributes, names of or in it) is committed and not known to be durable."""
        return self._writer.needs_sync(ino)

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
        """Tell `watcher` of each change from now on; all before may not be durable."""
        watcher.all_names_changed(self._wal.committed)
        self._writer.watcher = watcher

    def take_heirs(self) -> set[Ino]:
        """Files that took another one's name since the last call: to be made durable before names are. Any thread."""
        heirs = self._writer.heirs
        taken = heirs.copy()
        heirs.difference_update(taken)
        return taken

    def lean_on(self, inos: Iterable[Ino]) -> None:
        """Let `settle` of `settle_first` see to these files as well."""
        self._writer.heirs.update(inos)

    def settle_first(self, settle: Callable[[], None]) -> None:
        """What makes `take_heirs` durable, called before each sync. It raises nothing. Any thread."""
        self._wal.settle_heirs = settle

    def doubt(self) -> None:
        """A process before us, in this run of the machine, committed what nobody knows to be durable."""
        self._wal.committed += 1
        self._writer.changed_floor = self._wal.committed

    def checkpoint(self) -> None:
        """Keep the WAL short. Any thread; never waits for a reader, hardly ever lets the writer wait."""
        self._wal.checkpoint()

    def wal_bytes(self) -> int:
        """Bytes of the WAL in use."""
        return self._wal.bytes()

    # -- epochs

    @property
    def epoch(self) -> Epoch:
        """The epoch that changes belong to now."""
        return Epoch(self._writer.epoch)

    @property
    def sealed_epoch(self) -> Epoch:
        """The last epoch that is in a snapshot, 0 at first."""
        return Epoch(self._writer.sealed)

    @property
    def first_new(self) -> Ino:
        """All inode numbers from here on are unknown to the last snapshot."""
        row = self._writer.row("SELECT first_ino FROM epochs WHERE epoch > ? ORDER BY epoch", (self._writer.sealed,))
        assert row is not None
        return Ino(row[0])

    def set_epoch(self, epoch: Epoch) -> None:
        """Go on in a later epoch; the present one's changes stay unsealed."""
        self._writer.begin_epoch(epoch)

    def has_changes(self) -> bool:
        """Whether anything differs (or may differ) from the last sealed snapshot."""
        return self._writer.has_changes()

    def cut(self, epoch: Epoch) -> FrozenNamespace:
        """End `epoch`, which must be the current one, and keep a view of everything as it is now.

        The next epoch is `epoch` + 1. If this raises, the epoch may have advanced all the same; its changes are
        then part of the next cut.
        """
        assert epoch == self.epoch, (epoch, self.epoch)
        self._writer.begin_epoch(Epoch(epoch + 1))
        db = self._spares.popleft() if self._spares else self._new_reader()
        try:
            frozen = FrozenNamespace(db, epoch, self._wal, self._take_back)
        except sqlite3.Error as failure:
            db.close()
            raise os_error(failure, self.path) from failure
        self._frozen.add(id(db))
        return frozen

    def new_files(self, new_from: Ino) -> int:
        """Regular files that have a name and a number of at least `new_from`, where what is not sealed begins. O(1)."""
        return self._writer.new_files.count(new_from)

    def touch_all(self) -> list[Ino]:
        """Count every inode as changed; the regular files, ascending. The last snapshot cannot be relied on."""
        w = self._writer
        with w.change:
            w.db.execute("INSERT OR IGNORE INTO touched SELECT ?, ino, x'' FROM inode WHERE nlink > 0", (w.epoch,))
        regular = f"SELECT ino FROM inode WHERE nlink > 0 AND (mode & {0o170000}) = {stat.S_IFREG} ORDER BY ino"
        return [Ino(ino) for (ino,) in w.rows(regular)]

    def mark_sealed(self, epoch: Epoch, sealed_as: int = 0) -> None:
        """Everything up to `epoch` is in a durable snapshot, the store's number for which is told by `sealed_as` later.

        O(1); its rows go little by little.
        """
        self._writer.mark_sealed(epoch, sealed_as)

    @property
    def sealed_as(self) -> int:
        """The store's number for the snapshot of the last sealed epoch; 0 if it is not known."""
        row = self._writer.row("SELECT value FROM meta WHERE key = 'sealed_as'")
        return 0 if row is None else row[0] & (1 << 64) - 1

    def _new_reader(self) -> sqlite3.Connection:
        """A connection that has the schema in memory, so that its next transaction begins at once."""
        db = connect(self.path)
        db.execute("SELECT value FROM meta WHERE key = 'sealed'").fetchone()
        return db

    def _take_back(self, db: sqlite3.Connection) -> None:
        """End a reader's transaction and keep it ready for a later cut. Any thread."""
        self._frozen.discard(id(db))
        db.execute("ROLLBACK")
        if len(self._spares) >= SPARE_READERS:
            db.close()
            return
        db.execute("PRAGMA shrink_memory")
        self._spares.append(db)

    # -- ends

    def check_invariants(self) -> None:
        """AssertionError with a list of everything that is wrong. Reads the whole database."""
        invariants.check(self._writer)

    def close(self) -> None:
        """Write everything back to the database file and let go of it. Frozen namespaces are closed before."""
        assert not self._frozen, "a frozen namespace is still open"
        self._close_readers()
        try:
            self._writer.close()
        finally:
            self._wal.close_files()

    def _close_readers(self) -> None:
        while self._spares:
            self._spares.pop().close()
        self._wal.close_connection()
