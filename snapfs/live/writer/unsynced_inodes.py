"""Which inodes have changes that are committed and may not be durable.

Invariant: `changed_at[ino]` is the transaction that last changed `ino`, unless that is durable or older than `floor`.
Forgetting entries (the floor rises) only makes a sync run that was not needed.
"""

from __future__ import annotations

from collections.abc import Iterable

REMEMBERED_CHANGES = 16384


class UnsyncedInodes:
    """Written by the writer's thread, read by any."""

    def __init__(self) -> None:
        self.changed_at: dict[int, int] = {}
        self.floor = 0

    def changed(self, inos: Iterable[int], transaction: int) -> None:
        for ino in inos:
            self.changed_at[ino] = transaction

    def needs_sync(self, ino: int, synced: int) -> bool:
        """Whether a change of `ino` is later than the transaction `synced`, or may be."""
        return max(self.changed_at.get(ino, 0), self.floor) > synced

    def all_changed(self, transaction: int) -> None:
        """Every inode may have changed up to this transaction."""
        self.floor = transaction  # first: other threads read both
        self.changed_at = {}

    def bound_memory(self, committed: int, synced: int) -> None:
        if len(self.changed_at) > REMEMBERED_CHANGES:
            self.changed_at = {ino: number for ino, number in self.changed_at.items() if number > synced}
            if len(self.changed_at) > REMEMBERED_CHANGES // 2:
                self.all_changed(committed)
