"""Open files: their bytes go through here, and only wait where they must."""

from __future__ import annotations

import errno
import os

import pyfuse3
from pyfuse3 import (
    FileHandleT,
    FileInfo,
    FlagT,
    InodeT,
    RequestContext,
)

from snapfs.blocks import Ino
from snapfs.fuse import handles
from snapfs.fuse.answers import answered_later
from snapfs.fuse.base import Handlers, failure
from snapfs.fuse.nodes import is_virtual


class FileHandlers(Handlers):
    """Requests about open files."""

    @answered_later
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if is_virtual(inode):
            return await self._virtual().open(inode, flags)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._refuse_change()
        await self._truncate_at_open(Ino(inode), flags, ctx)
        return self._open(Ino(inode), flags, ctx)

    async def _truncate_at_open(self, ino: Ino, flags: int, ctx: RequestContext) -> None:
        if flags & os.O_TRUNC:
            await self._ready_to_truncate(ino, 0)
            self.tree.setattr(ino, size=0, mode=self._weakened_mode(ino) if ctx.uid != 0 else None)

    def _open(self, ino: Ino, flags: int, ctx: RequestContext) -> FileInfo:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        self.tree.open(ino, writing)
        return FileInfo(fh=handles.handle(ino, writing=writing, privileged=ctx.uid == 0), keep_cache=True)

    @answered_later
    async def release(self, fh: FileHandleT) -> None:
        if is_virtual(fh):
            await self._virtual().release(fh)
            return
        self.plain.discard(handles.ino_of(fh))
        self.tree.release(handles.ino_of(fh), handles.is_writing(fh))

    @answered_later
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        if is_virtual(fh):
            return await self._virtual().read(fh, off, size)
        ino = handles.ino_of(fh)
        data = self.tree.read(ino, off, size, nowait=True)
        if data is None:
            data = await self._in_thread(self.tree.read, ino, off, size)
        assert data is not None
        return data

    @answered_later
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        if is_virtual(fh):
            return await self._virtual().write(fh, off, buf)
        ino = handles.ino_of(fh)
        if self.read_only:
            self.refused.add(ino)
            raise failure(errno.EROFS)
        if self.tether is not None:
            await self.tether.before_write()
        await self._ready_to_write(ino, off, len(buf))
        if handles.is_unprivileged(fh) and ino not in self.plain:
            self.weaken(ino)
        self._flush_cost.wrote(ino, len(buf))
        written = self.tree.write(ino, off, buf)
        if written < len(buf):  # of pages written back the kernel would take the rest for written, too
            raise failure(errno.ENOSPC)
        return written

    async def flush(self, fh: FileHandleT) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)  # nothing to do at close(2); said once, the kernel asks no more

    @answered_later
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if not is_virtual(fh):
            ino = handles.ino_of(fh)
            if self.tether is not None and not self.read_only:
                await self.tether.before_fsync()
            await self._flush(ino, lambda: self.tree.fsync(ino, datasync))
