"""A disk that lets a test act before each sync."""

from __future__ import annotations

from snapfs.base.blocks import Disk


class SyncHookDisk(Disk):
    """`before_sync` is called with the label of each act that makes something durable, before it."""

    def before_sync(self, label: str) -> None:
        """To be overridden."""

    def fsync(self, label: str, fd: int) -> None:
        self.before_sync(label)
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self.before_sync(label)
        super().fdatasync(label, fd)

    def write_out(self, label: str, fd: int) -> None:
        self.before_sync(label)
        super().write_out(label, fd)

    def sync_filesystem(self, label: str, fd: int) -> None:
        self.before_sync(label)
        super().sync_filesystem(label, fd)

    def sync_dir(self, label: str, path: str) -> None:
        self.before_sync(label)
        super().sync_dir(label, path)
