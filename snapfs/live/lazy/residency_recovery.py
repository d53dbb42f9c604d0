"""Opens the residency files of the last life, and repairs what a crash or a bad disk left of them.

Invariants:
1. A residency file without its backing file, or without an absent row, is removed, or handed to `discard`.
2. What a damaged residency file does not show is compared with the store before the file is used (residency.py,
   invariant 5).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from snapfs.base.blocks import Ino, chunk_count
from snapfs.base.errors import CorruptionError
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.backing_files import reported_mtime
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.lazy.content_source import ContentSource, chunks_of
from snapfs.live.residency.residency import Residency

PIECE_CHUNKS = 64
"""Chunks that are requested at a time."""
_HEX = frozenset("0123456789abcdef")


def residency_folder(live_dir: str) -> str:
    """Where the residency files of a live tree are."""
    return os.path.join(live_dir, "presence")


@dataclass(frozen=True, slots=True)
class FoundResidency:
    """What `ResidencyRecovery.run` found."""

    partial: dict[Ino, Residency] = field(default_factory=dict)
    recovered: list[str] = field(default_factory=list)
    """A line for people for each repair."""
    suspects: list[Ino] = field(default_factory=list)
    """Files of which bytes were compared with the store: any of them may be another now."""


class ResidencyRecovery:
    """Run once, before the tree is used."""

    def __init__(
        self, backing: Backing, boot_id: str, source: Callable[[], ContentSource],
        find_absent: Callable[[Ino], AbsentFile | None], discard: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        """`source` raises OSError where there is none. `discard` takes residency files that no inode has; else they
        are removed."""
        self._backing, self._disk, self._boot_id = backing, backing.disk, boot_id
        self._source, self._find_absent, self._discard = source, find_absent, discard
        self._folder = residency_folder(backing.live_dir)
        self._found = FoundResidency()

    def run(self) -> FoundResidency:
        """Raises OSError, VersionError, and CorruptionError where a damaged file needs the store and cannot have it."""
        with contextlib.suppress(FileExistsError):
            self._disk.mkdir("residency:make", self._folder)
            self._disk.sync_dir("residency:make", self._backing.live_dir)
        for name in os.listdir(self._folder):
            self._load(os.path.join(self._folder, name), Ino(int(name, 16)) if set(name) <= _HEX else Ino(0))
        return self._found

    def _load(self, path: str, ino: Ino) -> None:
        absent = self._find_absent(ino) if ino else None
        if absent is None or not os.path.exists(self._backing.path(ino)):
            self._remove(path, ino)
            return
        residency = Residency.load(path, absent, self._disk, self._boot_id)
        if residency.damage:
            self._found.recovered.append(f"{path}: {residency.damage}")
            self._settle_unknown(ino, residency)
        with self._backing.changing(ino, True):
            if residency.interrupted_times is not None:
                os.utime(self._backing.path(ino), ns=residency.interrupted_times)
                residency.note_times(None)
            residency.cut_off(os.stat(self._backing.path(ino)).st_size)
        self._found.partial[ino] = residency

    def _remove(self, path: str, ino: Ino) -> None:
        if ino and self._discard is not None:
            self._discard(path)
        else:
            self._disk.unlink("residency:leftover", path)

    def _settle_unknown(self, ino: Ino, residency: Residency) -> None:
        """Compare the unknown chunks with the store."""
        with open(self._backing.path(ino), "r+b") as file:
            was = os.fstat(file.fileno())
            beyond = chunk_count(was.st_size)
            wanted = [chunk for chunk in range(min(residency.chunks, beyond)) if residency.unknown >> chunk & 1]
            for low in range(0, len(wanted), PIECE_CHUNKS):
                pieces = self._fetch(ino, residency, wanted[low : low + PIECE_CHUNKS])
                residency.settle_unknown(file.fileno(), pieces, was.st_size)
            self._disk.fsync("residency:compared", file.fileno())
            if residency.interrupted_times is None:
                os.utime(file.fileno(), ns=(was.st_atime_ns, reported_mtime(was)))
        residency.end_unknown()
        if wanted:
            self._found.suspects.append(ino)
            self._found.recovered.append(f"{residency.path}: {len(wanted)} chunks were compared with the store")

    def _fetch(self, ino: Ino, residency: Residency, wanted: list[int]) -> list[tuple[int, bytes]]:
        try:
            return chunks_of(self._source(), ino, residency.origin, wanted, True)
        except (OSError, CorruptionError) as error:
            why = f"{residency.damage}, and the store, which has them, cannot be read: {error}"
            raise CorruptionError("the residency record of a file", residency.path, why) from None
