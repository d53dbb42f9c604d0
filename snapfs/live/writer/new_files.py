"""Counts the files that are new: those whose number is known to no snapshot, and that still have a name.

They have no dirty map (all of them is dirty by their number alone), so no map counts them; a query of the
database would cost what was made.

Invariants:
1. `count(new_from)` is the number of regular files with a name and a number of at least `new_from`, which is where the
   current epoch begins, or, after a failed seal, where the oldest one that is not sealed does.
2. A transaction counts when it is committed, and not at all if it is rolled back.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from snapfs.live.database.namespace_rows import Inode


class NewFiles:
    """In the hands of the namespace's writer."""

    def __init__(self, query: Callable[[int], int], first: int) -> None:
        """`query(first_ino)` counts in the database; `first` begins the current epoch."""
        self._query = query
        self.learn(first)

    def learn(self, first: int) -> None:
        """Count in the database: at the opening, and after a bulk change."""
        self._first = self._oldest = first
        self._since = self._query(first)
        self._before = self._staged = self._staged_before = 0

    def numbers(self) -> tuple[int, int, int, int]:
        """What is counted, between two changes."""
        return self._first, self._oldest, self._since, self._before

    def adopt(self, first: int, oldest: int, since: int, before: int) -> None:
        """Others made and lost files."""
        self._first, self._oldest, self._since, self._before = first, oldest, since, before

    def made(self, inode: Inode) -> None:
        """Within a change: an inode was made."""
        self._staged += stat.S_ISREG(inode.mode)

    def lost(self, inode: Inode) -> None:
        """Within a change: an inode has lost a name."""
        if inode.nlink or not stat.S_ISREG(inode.mode):
            return
        if inode.ino >= self._first:
            self._staged -= 1
        elif inode.ino >= self._oldest:
            self._staged_before -= 1

    def named(self, inode: Inode) -> None:
        """Within a change: a regular file that had no name got one."""
        if inode.ino >= self._first:
            self._staged += 1
        elif inode.ino >= self._oldest:
            self._staged_before += 1

    def committed(self) -> None:
        self._since += self._staged
        self._before += self._staged_before
        self.rolled_back()

    def rolled_back(self) -> None:
        self._staged = self._staged_before = 0

    def epoch_began(self, first: int) -> None:
        """A cut: what was new until now is the snapshot's that is being made."""
        self._before += self._since
        self._since, self._first = 0, first

    def sealed(self) -> None:
        """Everything before the current epoch is in a snapshot."""
        self._before, self._oldest = 0, self._first

    def count(self, new_from: int) -> int:
        if new_from < self._oldest - 1:  # what the last life did not seal
            self._before, self._oldest = self._query(new_from) - self._since, new_from
        return self._since + (self._before if new_from < self._first - 1 else 0)  # a cut skips one number
