"""Disks that die at the n-th labelled act: by a kill, or by a power cut that takes what was not synced along.

After a kill everything done before lasts. After a power cut (the worst one allowed) a file has what it had at its last
sync, and a folder the names it had at its last sync; half of an act that was under way may or may not be there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from tests.fakes.disks.sync_hooks import SyncHookDisk


class Crash(BaseException):
    """The process died here. Not an Exception: nothing may clean up after it."""


class CrashDisk(SyncHookDisk):
    """Raises Crash instead of act number `at` (from 0) and of each one after it; with `half` it writes a half first."""

    def __init__(self, at: int | None = None, *, half: bool = False) -> None:
        self.at, self.half = at, half
        self.labels: list[str] = []

    def _act(self, label: str, half: Callable[[], object] = lambda: None) -> None:
        index = len(self.labels)
        if self.at is not None and index >= self.at:
            if index == self.at and self.half:
                half()
            self.labels.append(label)
            raise Crash(label)
        self.labels.append(label)

    def before_sync(self, label: str) -> None:
        self._act(label)

    def append(self, label: str, fd: int, data: bytes) -> None:
        self._act(label, lambda: os.write(fd, data[: len(data) // 2]))
        super().append(label, fd, data)

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        self._act(label, lambda: os.pwrite(fd, data[: len(data) // 2], offset))
        super().pwrite(label, fd, data, offset)

    def truncate(self, label: str, fd: int, size: int) -> None:
        self._act(label)
        super().truncate(label, fd, size)

    def rename(self, label: str, source: str, target: str) -> None:
        self._act(label)
        super().rename(label, source, target)

    def exchange(self, label: str, one: str, other: str) -> None:
        self._act(label)
        super().exchange(label, one, other)

    def link(self, label: str, source: str, target: str) -> None:
        self._act(label)
        super().link(label, source, target)

    def unlink(self, label: str, path: str) -> None:
        self._act(label)
        super().unlink(label, path)

    def mkdir(self, label: str, path: str) -> None:
        self._act(label)
        super().mkdir(label, path)

    def rmdir(self, label: str, path: str) -> None:
        self._act(label)
        super().rmdir(label, path)

    def remove_tree(self, label: str, path: str, *, ignore_errors: bool = False) -> None:
        self._act(label, lambda: remove_folders(path))
        super().remove_tree(label, path, ignore_errors=ignore_errors)


class PowerCutDisk(CrashDisk):
    """Knows what is durable below `root`; `cut` puts exactly that in the place of what is there."""

    def __init__(self, root: Path, at: int | None = None) -> None:
        super().__init__(at)
        self._root = root
        self._content = {inode(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self._names = {path: names(path) for path in (root, *root.rglob("*")) if path.is_dir()}

    def fsync(self, label: str, fd: int) -> None:
        super().fsync(label, fd)
        self._keep(fd)

    def fdatasync(self, label: str, fd: int) -> None:
        super().fdatasync(label, fd)
        self._keep(fd)

    def sync_dir(self, label: str, path: str) -> None:
        super().sync_dir(label, path)
        self._names[Path(path)] = names(Path(path))

    def rename(self, label: str, source: str, target: str) -> None:
        self._hold(target)
        super().rename(label, source, target)

    def unlink(self, label: str, path: str) -> None:
        self._hold(path)
        super().unlink(label, path)

    def cut(self) -> None:
        """The power fails: only what was synced is there when it comes back."""
        for folder, entries in self._names.items():
            for path in folder.iterdir():
                if path.is_file():
                    path.unlink()
            for name, number in entries.items():
                (folder / name).write_bytes(self._content.get(number, b""))

    def _hold(self, path: str) -> None:
        """Keep the inode of a file that goes, so that its number stands for nothing else."""
        if os.path.exists(path):
            os.link(path, self._root.parent / f"held-{len(self.labels)}")

    def _keep(self, fd: int) -> None:
        content = Path(f"/proc/self/fd/{fd}").read_bytes()  # it may be open for writing only
        self._content[os.fstat(fd).st_ino] = content


def remove_folders(path: str) -> None:
    """The half of a removed tree: what lies in its folders is gone, and its own files are still there."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)


def inode(path: Path) -> int:
    return path.stat().st_ino


def names(folder: Path) -> dict[str, int]:
    return {path.name: inode(path) for path in folder.iterdir() if path.is_file()}


class Story(Protocol):
    """What lives on such a disk. `die` closes what is open, without an orderly end."""

    def open(self, disk: CrashDisk, /) -> None: ...

    def die(self) -> None: ...


S = TypeVar("S", bound=Story)


def run_story(story: S, act: Callable[[S], None], disk: CrashDisk) -> bool:
    """Open the story on the disk, do what it is about, and let it die. True if it came to its end before."""
    try:
        story.open(disk)
        act(story)
    except Crash:
        return False
    finally:
        story.die()
    return True
