"""The note that `before` was begun and `after` is still to be run: `hook-begun.json`, beside the live tree.

It outlives the daemon, and so the next one runs `after`. It is not synced: after a power cut the application is gone as
well. A damaged one is none, one of a later format is refused before the volume is opened (seal/seal_notes.py).
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError
from snapfs.base.json_file import JsonFile

NAME = "hook-begun.json"


class Begun(msgspec.Struct, frozen=True):
    """`before` was begun at `time_ns` (since 1970) in the process group `group` (0: not yet) of the boot `boot`.

    `born`: when the group's leader was started, in ticks since the boot; another process may have its number later.
    """

    time_ns: int
    boot: str
    trigger: str
    group: int = 0
    born: int = 0
    format: int = 1


BEGUN: JsonFile[Begun] = JsonFile("hook", Begun)


class HookNote:
    """The note of one volume. One thread at a time."""

    def __init__(self, folder: str, disk: Disk) -> None:
        """Raises VersionError for a note of a later format."""
        self._path, self._disk = os.path.join(folder, NAME), disk
        self.left: Begun | None = None
        """What a daemon before this one left."""
        with contextlib.suppress(CorruptionError, OSError):
            self.left = BEGUN.read(self._path)

    def begun(self, note: Begun) -> None:
        """Raises OSError: then nothing may be begun."""
        self._disk.replace_unsynced("hook:begun", self._path, BEGUN.encode(note))

    def ended(self) -> None:
        """`after` was run."""
        self.left = None
        with contextlib.suppress(OSError):
            self._disk.unlink("hook:ended", self._path)


def born(pid: int) -> int:
    """When the process was started, in ticks since the boot; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
