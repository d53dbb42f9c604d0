"""The kernel's requests, one thin handler each.

A node id is the inode number; ids and handles with bit 63 set are virtual and go to `VirtualNodes`, as does the name
`.snapfs` in the root. The kernel checks permissions, the sticky bit and who may chown (default_permissions).

Invariants:
1. Nothing the kernel holds needs our memory: node ids are inode numbers, handles are computed (file_handles.py),
   cookies are the entries' own.
2. A handler that changes the live tree does so without awaiting in between: a cut falls before or after it.
3. The kernel may cache every reply, also that a name is missing, for only its own requests change the live tree.
4. What may block (a cold read, a first write, a slow flush) is done in a worker thread.
5. Names of live and virtual nodes never mix: nothing is created, renamed or linked under `.snapfs` or in its place.
"""

from __future__ import annotations

import os
import stat

from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    RequestContext,
    StatvfsData,
)

from snapfs.base.blocks import Ino
from snapfs.fuse.handlers.file_handlers import FileHandlers
from snapfs.fuse.handlers.inode_handlers import InodeHandlers
from snapfs.fuse.handlers.name_handlers import NameHandlers
from snapfs.fuse.handlers.replies import answered, answered_later, entry_of

_STATVFS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax")


class Operations(NameHandlers, InodeHandlers, FileHandlers):
    """Answers requests from `tree` and, where there are any, from `virtual` nodes. Served by one session."""

    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = True

    @answered_later
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        try:
            attr = self._make(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), 0, ctx)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            attr = self.tree.lookup(Ino(parent_inode), name)
            await self._truncate_at_open(attr.ino, flags, ctx)
        return self._open(attr.ino, flags, ctx), entry_of(attr)

    @answered
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        return _statvfs(self.tree.shown_statfs())

    def stacktrace(self) -> None:
        """pyfuse3's debugging aid, called for an xattr of the root; of no use here."""


def _statvfs(host: os.statvfs_result) -> StatvfsData:
    data = StatvfsData()
    for name in _STATVFS:
        setattr(data, name, getattr(host, name))
    return data
