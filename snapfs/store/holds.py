"""Holds: snapshots that are not to be dropped for a while, because somebody outside the daemon still needs them.

`store/holds/NAME.json` is one holder's wish: {"format": 1, "snapshots": [numbers], "expires_ns": UTC since 1970,
"why": a line for people}. A replicator, for one, holds what it is sending, and the newest snapshot that each of its
targets has, which the next difference is made against.

Invariants:
1. A hold is one file, replaced in one step; after a crash it is the old or the new one (or none, if not durable).
2. It ends by itself: one that has expired, or cannot be understood, holds nothing. So a holder that is gone for good
   costs space for a limited time. The file of an expired hold may be removed by anybody.
3. A hold keeps a snapshot from being dropped; it does not bring one back. Who takes a hold looks afterwards whether the
   snapshot still exists: dropping asks for holds immediately before it acts, so that one of the two sees the other, or
   the holder finds the objects gone, which every reader of the store must be able to bear anyway.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from snapfs.blocks import Disk, SnapshotNumber

FOLDER: Final = "holds"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SUFFIX: Final = ".json"
_LARGEST_BYTES: Final = 1 << 20


class _File(msgspec.Struct, frozen=True):
    format: int
    snapshots: list[int]
    expires_ns: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """Snapshots that `holder` needs until `expires_ns` (UTC since 1970)."""

    holder: str
    snapshots: frozenset[SnapshotNumber]
    expires_ns: int
    why: str


class Holds:
    """The holds in one store. Any process may read and write them."""

    def __init__(self, store_dir: str, disk: Disk, clock: Callable[[], int] = time.time_ns) -> None:
        self.folder = os.path.join(store_dir, FOLDER)
        self._disk, self._clock = disk, clock

    def take(
        self, holder: str, snapshots: Iterable[SnapshotNumber], seconds: float, why: str = "", *, durable: bool = True
    ) -> None:
        """Hold exactly these snapshots, and no others, for this holder from now on. Raises OSError.

        `holder`: letters, digits and `._-`, at most 100 of them. Not `durable`: a power cut may end the hold, which a
        holder that comes back with the machine does not mind, and each second's hold spares the disk a flush.
        """
        wanted = sorted(set(snapshots))
        if not wanted:
            self.release(holder)
            return
        with contextlib.suppress(FileExistsError):
            self._disk.mkdir("hold:folder", self.folder)
        held = _File(1, list(wanted), self._clock() + int(seconds * 1e9), why)
        data, path = msgspec.json.encode(held) + b"\n", self._path(holder)
        if durable:
            self._disk.replace_file("hold:take", path, data)
            return
        with open(f"{path}.new", "wb") as file:
            file.write(data)
        os.rename(f"{path}.new", path)

    def release(self, holder: str) -> None:
        """Hold nothing any more for this holder. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("hold:release", self._path(holder))

    def all(self) -> list[Hold]:
        """The holds that have not expired. Raises OSError if they cannot be read: then nothing is to be dropped."""
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        found = (self._read(name) for name in names if name.endswith(_SUFFIX))
        now_ns = self._clock()
        return [hold for hold in found if hold is not None and hold.expires_ns > now_ns]

    def held(self) -> frozenset[SnapshotNumber]:
        """The numbers of all snapshots that anybody holds. Raises OSError."""
        return frozenset(number for hold in self.all() for number in hold.snapshots)

    def _path(self, holder: str) -> str:
        if not _NAME.fullmatch(holder):
            raise ValueError(f"{holder!r} cannot be the name of a hold")
        return os.path.join(self.folder, f"{holder}{_SUFFIX}")

    def _read(self, name: str) -> Hold | None:
        try:
            with open(os.path.join(self.folder, name), "rb") as file:
                told = msgspec.json.decode(file.read(_LARGEST_BYTES), type=_File)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        snapshots = frozenset(SnapshotNumber(number) for number in told.snapshots)
        return Hold(name.removesuffix(_SUFFIX), snapshots, told.expires_ns, told.why)
