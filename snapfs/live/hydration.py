"""Brings absent files in: regular files whose bytes are still only in the store.

Invariants:
1. A file is absent exactly if it has no backing file and has an `absent` row. A backing file is complete and durable,
   with its name, before anything may write to it; so where there are both, the file wins and the row is left over.
2. One thread fills a file; others that need it wait for that one.

A crash leaves a staged file, which is removed when the tree is opened, or a left-over row.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Protocol

from snapfs.blocks import Ino
from snapfs.live.backing import Backing
from snapfs.live.records import AbsentFile


class ContentSource(Protocol):
    """The store's side of absent files. OSError if the store cannot deliver."""

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        """Up to `size` bytes from byte `offset`, fewer only at the end of the file."""

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        """Write the whole content to `fd`, an empty file; holes may be left out."""


class Hydrator:
    """All methods from any thread. `arrived` collects the files whose rows are left over."""

    def __init__(self, backing: Backing, source: ContentSource | None) -> None:
        self.backing = backing
        self.source = source
        self.arrived: deque[Ino] = deque()
        self._filling: dict[Ino, threading.Lock] = {}
        self._lock = threading.Lock()

    def read(self, ino: Ino, absent: AbsentFile, offset: int, size: int) -> bytes:
        """Bytes of an absent file. EIO without a source."""
        size = min(size, absent.size - offset)
        return self._source().read(ino, absent.origin, offset, size) if size > 0 else b""

    def fetch(self, ino: Ino, absent: AbsentFile, empty: bool = False) -> None:
        """Make the file present, or (`empty`) just its size and times, its bytes being dropped anyhow."""
        with self._lock:
            turn = self._filling.setdefault(ino, threading.Lock())
        try:
            with turn:
                if not os.path.exists(self.backing.path(ino)):
                    self._fill(ino, absent, empty)
        finally:
            with self._lock:
                self._filling.pop(ino, None)

    def _fill(self, ino: Ino, absent: AbsentFile, empty: bool) -> None:
        disk, path = self.backing.disk, os.path.join(self.backing.staging, f"fill-{ino:x}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if not empty:
                self._source().fill(ino, absent.origin, fd)
            os.ftruncate(fd, absent.size)
            os.utime(fd, ns=(absent.ctime_ns, absent.mtime_ns))
            disk.fsync("hydrate:bytes", fd)
        finally:
            os.close(fd)
        self.backing.replace(ino, path, "hydrate:rename")
        self.backing.sync_name(ino)
        self.arrived.append(ino)

    def _source(self) -> ContentSource:
        if self.source is None:
            raise OSError(5, "the bytes of this file are in a store that is not at hand")
        return self.source
