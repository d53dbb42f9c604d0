"""Which backing files may have changes that are not durable: the twin of native/flush_marks.c for Python's data path.

Here every file may: an fsync always reaches the host. The native one, which has the theory, knows better.
"""

from __future__ import annotations

from snapfs.base.blocks import Ino


class FlushMarks:
    """Any thread."""

    is_trusted: bool = False
    """Whether a file without a mark is known to be durable."""

    def begin(self, ino: Ino, held: bool = False, /) -> None:
        """Before a change of bytes, size or times. `held`: of a file that is partly present."""

    def end(self, ino: Ino, /) -> None:
        """After the change, done or failed, and before it is answered."""

    def is_clean(self, ino: Ino, datasync: bool, /) -> bool:
        """Whether an fsync, or an fdatasync, of the file has nothing to flush. Its name is another matter."""
        return False

    def begin_sync(self) -> int:
        """Before the file to be synced is opened: a number for `end_sync` or `end_sync_all`."""
        return 0

    def end_sync(self, ino: Ino, begun: int, datasync: bool, /) -> None:
        """The file was synced, and what is on record of it is durable as well."""

    def end_sync_all(self, begun: int, /) -> None:
        """All of the host filesystem was synced."""

    def forget(self, ino: Ino, /) -> None:
        """The file is gone."""

    def trust(self) -> None:
        """All files are durable: the last life ended in order, and none has changed since without a mark."""

    def fail(self) -> None:
        """The host may have lost what it had taken: no file is clean from now on."""

    def __len__(self) -> int:
        """How many files have a mark."""
        return 0
