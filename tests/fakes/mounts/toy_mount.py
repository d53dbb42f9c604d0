"""A filesystem in a few lines, to try sessions on: files in memory, and a count of the requests of each kind.

As a program it serves a mount whose descriptor a test holds: `toy_mount.py MOUNTPOINT FD SAVED_INIT FOLDER`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
    XAttrNameT,
)

from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.session.session import Session


class Toy(pyfuse3.Operations):
    """Node ids and handles come from names alone, so one instance can go on for another."""

    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = True

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.requests: Counter[str] = Counter()

    def _path(self, node: int) -> str:
        return f"{self.folder}/{node}"

    def _attributes(self, node: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(node)
        entry.entry_timeout = entry.attr_timeout = 1e6
        entry.st_uid, entry.st_gid = os.geteuid(), os.getegid()
        entry.st_mode = ModeT(stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o644)
        if node != 1:
            try:
                entry.st_size = os.stat(self._path(node)).st_size
            except FileNotFoundError:
                raise pyfuse3.FUSEError(errno.ENOENT) from None
        return entry

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        self.requests["lookup"] += 1
        if not name.isdigit():
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(int(name))

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        self.requests["getattr"] += 1
        return self._attributes(inode)

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        self.requests["setattr"] += 1
        return self._attributes(inode)

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        self.requests["create"] += 1
        os.close(os.open(self._path(int(name)), os.O_CREAT | os.O_RDWR, 0o600))
        return FileInfo(fh=FileHandleT(int(name))), self._attributes(int(name))

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        with open(self._path(fh), "rb") as file:
            file.seek(off)
            return file.read(size)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self.requests["write"] += 1
        with open(self._path(fh), "r+b") as file:
            file.seek(off)
            return file.write(buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self.requests["fsync"] += 1

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    async def flush(self, fh: FileHandleT) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        self.requests["getxattr"] += 1
        raise pyfuse3.FUSEError(errno.ENODATA)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        pass


def main() -> None:
    mountpoint, fd, saved_init, folder = sys.argv[1:]
    session = Session.adopt(Toy(folder), mountpoint, int(fd), bytes.fromhex(saved_init), reader=RequestReader())
    print("adopted", flush=True)
    trio.run(session.serve)
    session.close()


if __name__ == "__main__":
    main()
