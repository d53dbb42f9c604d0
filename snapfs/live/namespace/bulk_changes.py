"""Many changes in one transaction: how a rollback, a clone or a standby fills the namespace.

Invariants:
1. All of it becomes true at the commit, or nothing.
2. An inode is put before the entries that name it: a directory learns its parent from its entry.
3. Link counts are taken as given: the caller passes those of the tree.
4. Every change counts as touched in the current epoch. A caller that makes of it a whole tree that is the last snapshot
   (a clone, a standby) sets `sealed`: then nothing counts as changed afterwards.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from snapfs.base.blocks import Ino
from snapfs.live.database.namespace_rows import AbsentFile, Inode, check_name
from snapfs.live.database.schema import SCHEMA_VERSION
from snapfs.live.writer.namespace_writer import NamespaceWriter

PUT_INODE = (
    "INSERT INTO inode VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (ino) DO UPDATE SET mode=excluded.mode,"
    " uid=excluded.uid, gid=excluded.gid, rdev=excluded.rdev, nlink=excluded.nlink, atime_ns=excluded.atime_ns,"
    " mtime_ns=excluded.mtime_ns, ctime_ns=excluded.ctime_ns, target=excluded.target"
)
PUT_ENTRY = "INSERT INTO entry VALUES (?,?,?,?) ON CONFLICT (parent, name) DO UPDATE SET ino=excluded.ino"
SET_PARENT = f"UPDATE inode SET parent=? WHERE ino=? AND (mode & {0o170000}) = {stat.S_IFDIR}"


class Bulk:
    """Use as made by `Namespace.bulk`, within its ``with``."""

    def __init__(self, writer: NamespaceWriter, sealed: bool) -> None:
        self._writer = writer
        self._db = writer.db
        self._sealed = sealed
        self.highest = Ino(0)

    def put_inode(self, inode: Inode, xattrs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Create or replace an inode and all its xattrs. `inode.parent` is not looked at."""
        known_parent = inode.ino if inode.ino == 1 else 0
        self._db.execute(PUT_INODE, (*inode[:10], known_parent))
        self._db.execute("DELETE FROM xattr WHERE ino = ?", (inode.ino,))
        self._db.executemany("INSERT INTO xattr VALUES (?,?,?)", ((inode.ino, name, value) for name, value in xattrs))
        self.highest = max(self.highest, inode.ino)
        self._touched(inode.ino)

    def delete_inode(self, ino: Ino) -> None:
        """Remove an inode, its xattrs and its absence. Its entries are the caller's to delete."""
        for table in ("inode", "xattr", "absent"):
            self._db.execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))
        self._touched(ino)

    def set_links(self, ino: Ino, links: int) -> None:
        """Give an inode that there is another number of links."""
        self._db.execute("UPDATE inode SET nlink = ? WHERE ino = ?", (links, ino))
        self._touched(ino)

    def put_entry(self, parent: Ino, name: bytes, ino: Ino) -> None:
        """Let `name` in `parent` mean `ino`, whatever it meant before. An existing name keeps its cookie."""
        check_name(name)
        self._db.execute(PUT_ENTRY, (parent, name, ino, self._writer.cookies.take()))
        self._db.execute(SET_PARENT, (parent, ino))
        self._touched(parent, name)

    def delete_entry(self, parent: Ino, name: bytes) -> None:
        self._db.execute("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))
        self._touched(parent, name)

    def set_absent(self, ino: Ino, absent: AbsentFile) -> None:
        self._db.execute("INSERT OR REPLACE INTO absent VALUES (?,?,?,?,?)", (ino, *absent))
        self._touched(ino)

    def set_unloaded(self, ino: Ino, listing: bytes) -> None:
        """The names of the directory are only in the store."""
        self._writer.become_lazy()  # `Namespace.bulk` looks anew at its end
        self._db.execute("INSERT OR REPLACE INTO unloaded VALUES (?,?)", (ino, listing))
        self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def clear_absent(self, ino: Ino) -> None:
        self._db.execute("DELETE FROM absent WHERE ino = ?", (ino,))
        self._touched(ino)

    def add_swap(self, ino: Ino) -> None:
        """Note that the staged bytes of `ino` must be renamed into place after the commit."""
        self._db.execute("INSERT OR IGNORE INTO pending_swap VALUES (?)", (ino,))
        self._touched(ino)

    def add_redo(self, ino: Ino, action: int) -> None:
        """Note what must be done to the backing file of `ino` after the commit (apply_changes.py)."""
        self._db.execute("INSERT OR REPLACE INTO refit VALUES (?,?)", (ino, action))

    def set_image(self, root: int) -> None:
        """With this the tree is the snapshot whose root is the object of that number, and nothing else."""
        number = root - (1 << 64) if root >> 63 else root
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('image', ?)", (number,))

    def raise_next_ino(self, next_ino: int) -> None:
        """Give out no inode number below `next_ino` from now on (what the snapshot's volume had given out)."""
        self.highest = max(self.highest, Ino(next_ino - 1))

    def _touched(self, ino: Ino, name: bytes = b"") -> None:
        if not self._sealed and ino < self._writer.epochs.first_ino:
            self._db.execute("INSERT OR IGNORE INTO touched VALUES (?,?,?)", (self._writer.epochs.epoch, ino, name))

    def finish(self) -> None:
        """Raise the counter of inode numbers above all that was put; the last step before the commit."""
        inos = self._writer.inos
        inos.raise_to(self.highest + 1)
        if self._sealed:
            self._db.execute("DELETE FROM touched")
            self._db.execute("DELETE FROM meta WHERE key = 'sealed_as'")
            self._db.execute("UPDATE epochs SET first_ino = ?", (inos.next,))
