"""The epochs of the namespace in the database, and the rows of what changed in each (table `touched`).

Invariants:
1. A change to an inode or name that existed before the current epoch has a row in `touched` of this epoch, in the same
   transaction. Numbers from `first_ino` on are new in the epoch and need none.
2. Rows of sealed epochs are removed in small portions, faster than operations (three rows at most) can add new ones.
"""

from __future__ import annotations

import sqlite3

from snapfs.base.blocks import Epoch

REMEMBERED_TOUCHED = 4096
"""Small, because a cut throws the set away: freeing 65,536 rows took 3.7 ms."""
PURGE_EVERY = 64
PURGE_ROWS = 256

TOUCH = "INSERT OR IGNORE INTO touched VALUES (?,?,?)"
PURGE_UPTO = "SELECT epoch, ino, name FROM touched WHERE epoch <= ? ORDER BY epoch, ino, name LIMIT 1 OFFSET ?"
PURGE = "DELETE FROM touched WHERE (epoch, ino, name) <= (?,?,?)"


def as_signed(number: int) -> int:
    """A number of 64 bits as SQLite keeps it."""
    return number - (number >> 63 << 64)


class EpochRows:
    """For the thread of the writer; all but the attributes and `began` within a change."""

    def __init__(self, db: sqlite3.Connection, epoch: int, first_ino: int, sealed: int) -> None:
        self._db = db
        self.epoch, self.first_ino, self.sealed = epoch, first_ino, sealed
        self._touched: set[int | tuple[int, bytes]] = set()
        self._purging = True
        self._changes_until_purge = 0

    def touch(self, ino: int) -> None:
        """Note that the inode itself changed in this epoch."""
        if ino < self.first_ino and ino not in self._touched:
            self._db.execute(TOUCH, (self.epoch, ino, b""))
            self._touched.add(ino)

    def touch_name(self, parent: int, name: bytes) -> None:
        """Note that a name of `parent` changed in this epoch."""
        if parent < self.first_ino and (parent, name) not in self._touched:
            self._db.execute(TOUCH, (self.epoch, parent, name))
            self._touched.add((parent, name))

    def purge_some(self) -> None:
        """Remove some rows of sealed epochs, if there are any."""
        if not self._purging:
            return
        self._changes_until_purge -= 1
        if self._changes_until_purge <= 0:
            self._changes_until_purge = PURGE_EVERY
            upto = self._db.execute(PURGE_UPTO, (self.sealed, PURGE_ROWS - 1)).fetchone()
            self._purging = upto is not None
            self._db.execute(PURGE, upto or (self.sealed + 1, -1, b""))

    def postpone_purge(self) -> None:
        """Purge nothing in the next transactions: not within a cut."""
        self._changes_until_purge = PURGE_EVERY

    def begin(self, epoch: Epoch, first_ino: int) -> None:
        """What changes after this transaction belongs to `epoch`."""
        self._db.execute("INSERT INTO epochs VALUES (?,?)", (epoch, first_ino))

    def began(self, epoch: Epoch, first_ino: int) -> None:
        """The transaction of `begin` is committed."""
        self.epoch, self.first_ino = epoch, first_ino
        self._touched = set()

    def mark_sealed(self, epoch: Epoch, sealed_as: int) -> None:
        """Everything up to `epoch` is in a snapshot, the store's number of which is `sealed_as` (0: unknown)."""
        if sealed_as:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('sealed_as', ?)", (as_signed(sealed_as),))
        self._db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'sealed'", (epoch,))
        self._db.execute("DELETE FROM epochs WHERE epoch <= ?", (epoch,))

    def was_sealed(self, epoch: Epoch) -> None:
        """The transaction of `mark_sealed` is committed; the rows go with the next ones."""
        self.sealed = max(self.sealed, epoch)
        self._purging, self._changes_until_purge = True, 0

    def bound_memory(self) -> None:
        """A touched row that was forgotten is tried again."""
        if len(self._touched) > REMEMBERED_TOUCHED:
            self._touched.clear()

    def forget_memory(self) -> None:
        """After a bulk change."""
        self._touched.clear()

    def rolled_back(self) -> None:
        self._touched.clear()
        self._purging = True
