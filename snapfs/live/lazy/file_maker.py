"""Makes the backing files of absent files, whole: staged, filled, made durable, and renamed into place.

Invariant: a backing file is complete and durable before it has its name, and the name is durable before the file is
used. A crash leaves a staged file, which is removed when the tree is opened.
"""

from __future__ import annotations

import contextlib
import os

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.lazy.content_source import ContentSource


class FileMaker:
    """Any thread, each file by one at a time. `written_bytes`: of content, so far."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self.written_bytes = 0

    def is_made(self, ino: Ino) -> bool:
        """Whether the file has its backing file."""
        return os.path.exists(self._backing.path(ino))

    def make(self, ino: Ino, absent: AbsentFile, source: ContentSource | None) -> None:
        """Make the backing file, durably, with its content if `source` is given. OSError."""
        path = self._staged_path(ino)
        self._stage(path, ino, absent, source, sync=True)
        self._backing.replace(ino, path, "hydrate:rename")
        self._backing.sync_name(ino)

    def make_many(self, files: list[tuple[Ino, AbsentFile]], source: ContentSource) -> None:
        """Make backing files with two flushes for all. OSError: then none is left half made."""
        staged = {ino: self._staged_path(ino) for ino, _ in files}
        try:
            for ino, absent in files:
                self._stage(staged[ino], ino, absent, source)
            self._backing.sync_all("hydrate:bytes")
            for ino, path in staged.items():
                self._backing.replace(ino, path, "hydrate:rename")
        except OSError:
            self._undo(list(staged.values()))
            raise
        self._backing.sync_all("hydrate:names")

    def _undo(self, paths: list[str]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                self._backing.disk.unlink("hydrate:undo", path)

    def _staged_path(self, ino: Ino) -> str:
        return os.path.join(self._backing.staging, f"fill-{ino:x}")

    def _stage(
        self, path: str, ino: Ino, absent: AbsentFile, source: ContentSource | None, *, sync: bool = False
    ) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self.write_all(ino, absent, source, fd)
            if sync:
                self._backing.disk.fsync("hydrate:bytes", fd)
        finally:
            os.close(fd)

    def write_all(self, ino: Ino, absent: AbsentFile, source: ContentSource | None, fd: int) -> None:
        """Write all of an absent file to `fd`, an empty file, with its size and times. Nothing is synced."""
        if source is not None:
            source.fill(ino, absent.origin, fd)
            self.written_bytes += absent.size
        os.ftruncate(fd, absent.size)
        os.utime(fd, ns=(absent.ctime_ns, absent.mtime_ns))
