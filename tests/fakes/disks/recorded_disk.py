"""A disk that records what is written to it and when it was flushed, and the states that a power cut may leave of it.

A process of its own serves one file over FUSE, without the kernel's writeback cache. A loop device on it sends it
each write, and an fsync for each flush (before a write with PREFLUSH, after one with FUA). All go into a log, in the
order in which they were done:

    RECORD  kind (0: write, 1: flush), offset, length; and the bytes of a write

A power cut at byte `upto` of the log leaves all writes before the last flush there, and of those after it, in blocks of
4 KiB, by the policy: none (`drop`), those up to some point (`prefix`), or any of them (`reorder`).

    python tests/fakes/disks/recorded_disk.py IMAGE LOG MOUNTPOINT      serves until it is unmounted
"""

from __future__ import annotations

import errno
import os
import random
import struct
import sys
from pathlib import Path

import pyfuse3
import trio

RECORD = struct.Struct("<QQQ")
WRITE, FLUSH = 0, 1
BLOCK = 4096
POLICIES = ("drop", "prefix", "reorder")
NAME = b"disk"
FILE = pyfuse3.InodeT(2)


def crash_image(log: Path, upto: int, policy: str, rng: random.Random, target: Path) -> None:
    """Make of `target`, a copy of the image as it was at the start, what a power cut at `upto` leaves."""
    writes, flushed = read_log(log, upto)
    loose = [
        (offset + at, data[at : at + BLOCK])
        for offset, data in writes[flushed:] for at in range(0, len(data), BLOCK)
    ]  # fmt: skip
    if policy == "drop":
        loose = []
    elif policy == "prefix":
        loose = loose[: rng.randrange(len(loose) + 1)]
    else:
        part = rng.random()
        loose = [each for each in loose if rng.random() < part]
    with open(target, "r+b") as image:
        for offset, data in (*writes[:flushed], *loose):
            image.seek(offset)
            image.write(data)


def read_log(log: Path, upto: int) -> tuple[list[tuple[int, bytes]], int]:
    """The writes before `upto`, and how many of them were before the last flush there."""
    writes: list[tuple[int, bytes]] = []
    flushed = 0
    with open(log, "rb") as file:
        while file.tell() + RECORD.size <= upto and len(head := file.read(RECORD.size)) == RECORD.size:
            kind, offset, length = RECORD.unpack(head)
            if kind == FLUSH:
                flushed = len(writes)
                continue
            data = file.read(length)
            if file.tell() > upto or len(data) < length:
                break
            writes.append((offset, data))
    return writes, flushed


class Recorder(pyfuse3.Operations):
    """The folder with the one file."""

    def __init__(self, image: str, log: str) -> None:
        super().__init__()
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE, ctx)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(0o100600 if inode == FILE else 0o040700)
        entry.st_size = os.fstat(self._image).st_size if inode == FILE else 0
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    async def setattr(
        self, inode: pyfuse3.InodeT, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None, ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:  # fmt: skip
        return await self.getattr(inode, ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(FILE))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(self._image, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        os.write(self._log, RECORD.pack(WRITE, off, len(buf)) + buf)
        return os.pwrite(self._image, buf, off)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        os.write(self._log, RECORD.pack(FLUSH, 0, 0))


def serve(image: str, log: str, mountpoint: str) -> None:
    """Mount, and answer until the mount is gone."""
    pyfuse3.init(Recorder(image, log), mountpoint, {"fsname=recorded"})
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    serve(*sys.argv[1:4])
