"""The hot lists of a mirror's volume: of each snapshot, what the volume uses most, in store/hot/NUMBER.

They are hints for mounts from this mirror, packed by the writer (hot_codec.pack_hot) or encrypted by it. Synchronous.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.base.volumes.volume_files import HOT_FILE
from snapfs.store.protocol.hint_files import HOT

HOT_FOLDER: Final = HOT_FILE


class HotLists:
    """The hot lists of one volume. The caller holds the receiver's lock where it changes something."""

    def __init__(self, store_dir: str, disk: Disk) -> None:
        self._folder, self._disk = os.path.join(store_dir, HOT_FOLDER), disk

    def put(self, number: SnapshotNumber, data: bytes) -> None:
        """Keep the list of a snapshot, durably. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self._disk.mkdir("hot:folder", self._folder)
        self._disk.replace_file("hot:write", self._path(number), HOT.encode(data))

    def get(self, number: SnapshotNumber) -> bytes:
        """The list of a snapshot, or of the nearest before it that has one; b"" if there is none. Raises OSError."""
        with contextlib.suppress(FileNotFoundError, CorruptionError):
            known = [int(name) for name in os.listdir(self._folder) if name.isdecimal() and int(name) <= number]
            return HOT.read(self._path(max(known, default=0))) or b""
        return b""

    def remove(self, number: SnapshotNumber) -> None:
        """Remove the list of a snapshot that was dropped, if there is one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("hot:remove", self._path(number))

    def _path(self, number: int) -> str:
        return os.path.join(self._folder, str(number))
