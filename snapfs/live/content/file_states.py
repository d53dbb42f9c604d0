"""What memory holds of files, and of the epochs they change in: plain data, as a native data path would keep it too.

Which thread may change what, and under which lock: epochs.py.
"""

from __future__ import annotations

import threading

from snapfs.base.blocks import Epoch, Ino
from snapfs.live.content.preserve import Frozen, Scratch
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.intents.dirty_map import CLEAN, DirtyMap
from snapfs.live.residency.residency import Residency


class FileState:
    """What memory holds of one regular file."""

    __slots__ = (
        "absent", "ctime_ns", "dirty", "epoch", "frozen", "inherited", "ino", "lock", "mtime_ns", "size",
        "times_pending", "wrote",
    )  # fmt: skip

    def __init__(self, ino: Ino, size: int, mtime_ns: int, ctime_ns: int) -> None:
        self.ino = ino
        self.lock = threading.Lock()
        self.size, self.mtime_ns, self.ctime_ns = size, mtime_ns, ctime_ns
        self.epoch = Epoch(0)
        self.dirty = CLEAN
        self.inherited: DirtyMap | None = None
        self.frozen: Frozen | None = None
        self.absent: AbsentFile | Residency | None = None  # None: all of it is here; else see materializer.py
        self.times_pending = False
        self.wrote = False  # the host has stamped a write of its own since it was given our times


class EpochFiles:
    """The files that changed in one epoch. `chunks` counts what their maps hold, for the pressure."""

    __slots__ = ("chunks", "epoch", "files", "new_from", "replaced")

    def __init__(self, epoch: Epoch, new_from: Ino) -> None:
        self.epoch, self.new_from = epoch, new_from
        self.files: dict[Ino, FileState] = {}
        self.replaced: dict[Ino, Ino] = {}
        self.chunks = 0


class CutFiles:
    """The files of the open cut. No inode number at or above `end_ino` existed then."""

    __slots__ = ("changed", "end_ino", "scratch")

    def __init__(self, changed: EpochFiles, end_ino: Ino, scratch: Scratch) -> None:
        self.changed, self.end_ino, self.scratch = changed, end_ino, scratch
