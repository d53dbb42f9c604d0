"""Requests about open files and their bytes. A handler waits only where it must."""

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

from snapfs.base.blocks import Ino
from snapfs.fuse.handlers import file_handles
from snapfs.fuse.handlers.handler_base import Handlers, failure
from snapfs.fuse.handlers.replies import answered_later
from snapfs.fuse.nodes.node_ids import is_virtual
from snapfs.live.content.cached_writes import FULL


class FileHandlers(Handlers):
    """Requests about open files."""

    @answered_later
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if is_virtual(inode):
            return await self._virtual().open(inode, flags, ctx)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._refuse_change()
        await self._truncate_at_open(Ino(inode), flags, ctx)
        return self._open(Ino(inode), flags, ctx)

    async def _truncate_at_open(self, ino: Ino, flags: int, ctx: RequestContext) -> None:
        if flags & os.O_TRUNC:
            await self._ready_to_truncate(ino, 0)
            weaker = self._weakened_mode(ino, ctx) if ctx.uid != 0 else None
            self.tree.setattr(ino, size=0, mode=weaker)
            if weaker is not None:
                self.kernel.forget_attributes(ino)

    def _open(self, ino: Ino, flags: int, ctx: RequestContext) -> FileInfo:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        self.tree.open(ino, writing)
        fh = file_handles.handle(ino, writing=writing, privileged=ctx.uid == 0, direct=bool(flags & os.O_DIRECT))
        return FileInfo(fh=fh, keep_cache=True)

    @answered_later
    async def release(self, fh: FileHandleT) -> None:
        if is_virtual(fh):
            await self._virtual().release(fh)
            return
        self._no_suid_files.discard(file_handles.ino_of(fh))
        self.tree.release(file_handles.ino_of(fh), file_handles.is_writing(fh))
        self._reclaimer.wake()
        if not self.tree.is_opened(file_handles.ino_of(fh)):
            self.kernel.closed(file_handles.ino_of(fh))

    @answered_later
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        if is_virtual(fh):
            return await self._virtual().read(fh, off, size)
        ino = file_handles.ino_of(fh)
        data = self.tree.read(ino, off, size, nowait=True)
        if data is None:
            data = await self._in_thread(self.tree.read, ino, off, size)
        assert data is not None
        return data

    @answered_later
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        if is_virtual(fh):
            return await self._virtual().write(fh, off, buf)
        ino = file_handles.ino_of(fh)
        if self._read_only.is_on:
            self.forget_pages(ino)
            raise failure(errno.EROFS)
        if self._throttle is not None:
            with self._unsettled.change():  # a flush before a cut waits for it
                await self._throttle.before_write()
        while True:
            try:
                await self._write(fh, ino, off, buf)
            except OSError as error:
                if file_handles.is_direct(fh):
                    raise
                if error.errno in FULL and await self._in_thread(self.tree.room.give, len(buf)):
                    continue
                await self._in_thread(self.tree.lose, ino, off + len(buf), error.errno or errno.EIO)
                self.forget_pages(ino)
                raise
            return len(buf)

    async def _write(self, fh: FileHandleT, ino: Ino, off: int, buf: bytes) -> None:
        await self._ready_to_write(ino, off, len(buf))
        if file_handles.is_unprivileged(fh) and ino not in self._no_suid_files:
            self.weaken(ino)
        self._flush_cost.wrote(ino, len(buf))
        if self.tree.write(ino, off, buf, not file_handles.is_direct(fh)) < len(
            buf
        ):  # else the kernel takes the rest for written, too
            raise failure(errno.ENOSPC)
        self.kernel.wrote(ino)
        if self.tree.refuses_writes(ino):
            self.kernel.forget_attributes(ino)

    async def flush(self, fh: FileHandleT) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)  # nothing to do at close(2); after one ENOSYS the kernel sends no more

    @answered_later
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if not is_virtual(fh):
            ino = file_handles.ino_of(fh)
            if self._throttle is not None and not self._read_only.is_on:
                await self._throttle.before_fsync()
            await self._flush(ino, lambda: self.tree.fsync(ino, datasync))
