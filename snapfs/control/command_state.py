"""What control commands leave for the status: the work under way, and the last failure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from snapfs.transfer.seal.running_snapshot import SnapshotFailure


class BusyWork:
    """A long command, with its progress in bytes. One at a time: such commands hold the snapshotter's lock."""

    def __init__(self) -> None:
        self.what: str | None = None
        self.bytes = (0, 0)
        """Done, and the total known so far."""

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Around the work, whose name the status shows."""
        self.what = what
        try:
            yield
        finally:
            self.what, self.bytes = None, (0, 0)

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Any thread."""
        self.bytes = done_bytes, total_bytes


class LastError:
    """What failed last, of commands and of everything else but snapshots."""

    def __init__(self) -> None:
        self.failure: SnapshotFailure | None = None

    def record(self, what: str, message: str, errno: int) -> None:
        self.failure = SnapshotFailure(what, message, errno, time.time_ns())
