"""Checks of the filesystem under a volume: its features, tried out in a folder that is removed, and its free space."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Callable, Iterator

from snapfs.commands.checks.findings import Finding, Level

_FICLONE = 0x40049409


def filesystem(volume: str) -> Iterator[Finding]:
    """What the filesystem under the volume can do, tried out in a folder that goes again."""
    if os.statvfs(volume).f_flag & os.ST_RDONLY:
        yield Finding("filesystem", Level.BAD, f"{volume} is on a read-only filesystem: mount that for writing")
        return
    if not os.access(volume, os.W_OK):
        yield Finding("filesystem", Level.BAD, f"{volume} cannot be written: become its owner or root")
        return
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=volume) as folder:
        path = os.path.join(folder, "probe")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lacking = [name for name, works in _abilities(fd, path) if not works]
        finally:
            os.close(fd)
    if "a clone of files" in lacking:
        lacking.remove("a clone of files")
        yield Finding(
            "reflink", Level.NOTE, "not here: a rollback copies the files it changes; XFS and btrfs would share them"
        )
    else:
        yield Finding("reflink", Level.OK, "files can be cloned")
    if lacking:
        yield Finding("filesystem", Level.BAD, f"under {volume} lacks {', '.join(lacking)}: use ext4, XFS or btrfs")
    else:
        yield Finding("filesystem", Level.OK, "sparse files, hard links, locks, times to the nanosecond")


def _abilities(fd: int, path: str) -> Iterator[tuple[str, bool]]:
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"x", (1 << 20) - 1)
    yield "sparse files", os.fstat(fd).st_blocks * 512 < 1 << 20
    yield "finding holes (SEEK_DATA)", _works(lambda: os.lseek(fd, 0, os.SEEK_DATA))
    yield "hard links", _works(lambda: os.link(path, f"{path}.link"))
    yield "locks", _works(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
    os.utime(fd, ns=(10**18 + 1, 10**18 + 1))
    yield "times to the nanosecond", os.fstat(fd).st_mtime_ns == 10**18 + 1
    yield "files above 4 GiB", _works(lambda: os.ftruncate(fd, 1 << 40))
    os.ftruncate(fd, 4096)
    clone = os.open(f"{path}.clone", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield "a clone of files", _works(lambda: fcntl.ioctl(clone, _FICLONE, fd))
    finally:
        os.close(clone)


def _works(act: Callable[[], object]) -> bool:
    try:
        act()
    except (OSError, struct.error):
        return False
    return True


def space(volume: str) -> Iterator[Finding]:
    facts = os.statvfs(volume)
    free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    words = f"{free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB free"
    short = free < max(total // 50, 64 << 20)
    yield Finding("space", Level.WARN if short else Level.OK, f"{words}: make room" if short else words)
    if facts.f_files and facts.f_favail * 50 < facts.f_files:
        yield Finding("space", Level.WARN, f"{facts.f_favail} inodes free: each file of the state takes one")
