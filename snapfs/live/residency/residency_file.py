"""The file that holds the residency of one partly present file: how its pages are written (residency_pages.py).

A file is replaced in one step: the image is written beside it, synced, and renamed. Later changes overwrite pages, both
copies of each, and only `write_pages` with `sync` makes them durable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from snapfs.base.blocks import Disk
from snapfs.live.residency.residency_pages import TIMES, FoundPages, Kind, Layout, boot_tag, read


class ResidencyFile:
    """Any thread; the lock is the caller's. OSError."""

    def __init__(self, path: str, chunks: int, disk: Disk, boot_id: str) -> None:
        self.path, self.layout = path, Layout(chunks)
        self._disk, self._boot_id, self._tag = disk, boot_id, boot_tag(boot_id)

    def read(self) -> FoundPages:
        """CorruptionError, VersionError, OSError."""
        with open(self.path, "rb") as file:
            return read(self.path, file.read(), self.layout, self._boot_id)

    def put(self, label: str, times_ns: tuple[int, int] | None, present: bytes, durable: bytes) -> None:
        """All of it in the place of what is at `path`, durably: after a crash it is the old or the new one."""
        self.write_image(label, f"{self.path}.new", times_ns, present, durable, sync=True)
        self._disk.rename("residency:name", f"{self.path}.new", self.path)
        self._disk.sync_dir("residency:folder", os.path.dirname(self.path))

    def write_image(
        self, label: str, path: str, times_ns: tuple[int, int] | None, present: bytes, durable: bytes, *, sync: bool
    ) -> None:
        """A new file at `path` with these bitmaps."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for offset, area in self.layout.image(self._tag, _packed_times(times_ns), present, durable):
                self._disk.pwrite(label, fd, area, offset)
            if sync:
                self._disk.fsync("residency:create", fd)
        finally:
            os.close(fd)

    def write_pages(
        self, label: str, kind: Kind, bits: bytes | bytearray, pages: Iterable[int], *, sync: bool = False
    ) -> None:
        """Overwrite these pages of one bitmap, which is `bits` in all."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for index in pages:
                page = self.layout.page(kind, index, self._tag, self.layout.payload(bits, index))
                for place in self.layout.places(kind, index):
                    self._disk.pwrite(label, fd, page, place)
            if sync:
                self._disk.fdatasync("residency:sync", fd)
        finally:
            os.close(fd)

    def write_times(self, times_ns: tuple[int, int] | None) -> None:
        """Overwrite the TIMES page."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            page = self.layout.page(Kind.TIMES, 0, self._tag, _packed_times(times_ns))
            for place in self.layout.places(Kind.TIMES, 0):
                self._disk.pwrite("residency:times", fd, page, place)
        finally:
            os.close(fd)


def _packed_times(times_ns: tuple[int, int] | None) -> bytes:
    return TIMES.pack(times_ns is not None, *(times_ns or (0, 0)))
