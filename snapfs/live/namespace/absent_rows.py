"""What of the namespace is elsewhere or still to be done: absent files, unloaded directories, pending file swaps.

Changes of an absence are no changes of the file: they touch nothing, and no snapshot follows from them alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from snapfs.base.blocks import Ino
from snapfs.live.database.namespace_rows import AbsentFile, LoadedEntry
from snapfs.live.namespace.bulk_changes import Bulk
from snapfs.live.namespace.name_changes import NameChanges
from snapfs.live.writer.cached_reads import SELECT_REGULAR


class AbsentRows(NameChanges):
    """For the thread of the writer."""

    _absent_count = 0

    def absent(self, ino: Ino) -> AbsentFile | None:
        """Where the bytes of the file are, if they are still only in the store."""
        row = self._writer.row("SELECT size, mtime_ns, ctime_ns, origin FROM absent WHERE ino = ?", (ino,))
        return None if row is None else AbsentFile(*row)

    def regular_inos(self) -> list[Ino]:
        """Every regular file, orphans included, ascending."""
        return [Ino(ino) for (ino,) in self._writer.rows(SELECT_REGULAR)]

    def absent_inos(self) -> list[Ino]:
        """Every file whose bytes are still only in the store, ascending."""
        return [Ino(ino) for (ino,) in self._writer.rows("SELECT ino FROM absent ORDER BY ino")]

    def absent_sizes(self) -> dict[Ino, int]:
        """The size of every file of which bytes are still only in the store."""
        return {Ino(ino): int(size) for ino, size in self._writer.rows("SELECT ino, size FROM absent")}

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
            w.marked.extend(inos)

    def has_absent(self) -> bool:
        """Whether anything, names of a directory or bytes of a file, is still only in the store."""
        return self.is_lazy or self._writer.row("SELECT 1 FROM absent LIMIT 1") is not None

    def absent_count(self) -> int:
        """Files whose bytes are still in the store, in whole or in part; as of the last call if the host is gone."""
        with contextlib.suppress(OSError):
            self._absent_count = int(self._writer.rows("SELECT count(*) FROM absent")[0][0])
        return self._absent_count

    def absent_after(self, ino: Ino, limit: int) -> list[Ino]:
        """Up to `limit` files with numbers above `ino` whose bytes are still in the store, ascending."""
        rows = self._writer.rows("SELECT ino FROM absent WHERE ino > ? ORDER BY ino LIMIT ?", (ino, limit))
        return [Ino(number) for (number,) in rows]

    # -- directories whose names are still only in the store

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
        w.look_for_unloaded()

    # -- many changes in one transaction, and what they leave to do

    @contextmanager
    def bulk(self, *, sealed: bool = False) -> Iterator[Bulk]:
        """Many changes in one transaction (bulk_changes.py); meanwhile only `sync` and `checkpoint` may be called.

        `sealed`: what is filled in, with what is there already, is exactly the last snapshot.
        """
        w = self._writer
        with w.turn:
            try:
                with w.change:
                    changes = Bulk(w, sealed)
                    yield changes
                    changes.finish()
            finally:
                w.look_for_unloaded()
                w.forget_memory()
                self._xattrs.forget()

    def pending_swaps(self) -> list[Ino]:
        """Files whose staged bytes must still be renamed into place, ascending."""
        return [Ino(ino) for (ino,) in self._writer.rows("SELECT ino FROM pending_swap ORDER BY ino")]

    def clear_swaps(self) -> None:
        """All staged bytes are in place."""
        with self._writer.change:
            self._writer.db.execute("DELETE FROM pending_swap")

    def image(self) -> int | None:
        """The number of the root object of the snapshot that a standby's tree is; None if it is none yet."""
        row = self._writer.row("SELECT value FROM meta WHERE key = 'image'")
        return None if row is None else row[0] & (1 << 64) - 1

    def redo_list(self, after: Ino, limit: int) -> list[tuple[Ino, int]]:
        """Up to `limit` (inode, action) above `after` of what must still be done to backing files, ascending."""
        sql = "SELECT ino, action FROM refit WHERE ino > ? ORDER BY ino LIMIT ?"
        return [(Ino(ino), action) for ino, action in self._writer.rows(sql, (after, limit))]

    def clear_redo(self) -> None:
        """All of it is done, durably."""
        with self._writer.change:
            self._writer.db.execute("DELETE FROM refit")
