"""The kernel's requests, one thin handler each.

A node id is the inode number; ids and handles with bit 63 set are virtual and go to `VirtualNodes`, as does the name
`.snapfs` in the root. Permissions, the sticky bit and who may chown are the kernel's to check (default_permissions).

Invariants:
1. Nothing the kernel holds needs our memory: node ids are inode numbers, handles are computed (handles.py), cookies are
   the entries' own.
2. A handler that changes the live tree does so without awaiting in between: a cut falls before or after it.
3. The kernel is told that what it learned stays true, for only it makes us change it. A missing name too.
4. What may block (a cold read, a first write, a dear flush) is done in a worker thread.
5. Names of live and virtual nodes never mix: nothing is created, renamed or linked under `.snapfs` or in its place.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

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
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from snapfs.blocks import ROOT_INO, Ino
from snapfs.fuse import acl, handles, modes
from snapfs.fuse.answers import absence, answered, answered_later, entry_of, refusal
from snapfs.fuse.flushing import FlushCost
from snapfs.fuse.nodes import is_virtual
from snapfs.fuse.reader import RequestReader
from snapfs.fuse.virtual import NAME as VIRTUAL_NAME
from snapfs.fuse.virtual import VirtualNodes
from snapfs.fuse.writeback import Unsettled
from snapfs.live.tree import Attr, LiveTree

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 32
ENTRIES_AT_ONCE = 64
_SELF_COOKIE, _PARENT_COOKIE = 1, 2
_TRUSTED = b"trusted."
_SYSTEM = b"system."
_MAX_PLAIN = 4096
_STATVFS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax")


class Operations(pyfuse3.Operations):
    """Answers requests from `tree` and, where there are any, from `virtual` nodes. Served by one session."""

    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = True

    def __init__(self, tree: LiveTree, virtual: VirtualNodes | None, reader: RequestReader) -> None:
        super().__init__()
        self.tree = tree
        self.virtual = virtual
        self.reader = reader
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self._flush_cost = FlushCost()
        self.unsettled = Unsettled()  # changes that wait for something: what a flush before a cut waits for
        self._plain: set[Ino] = set()  # files being written that have neither setuid nor setgid

    def forget_modes(self) -> None:
        """The live tree was changed by other means than requests (a rollback)."""
        self._plain.clear()

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._threads)

    def _virtual(self) -> VirtualNodes:
        if self.virtual is None:
            raise _error(errno.ESTALE)
        return self.virtual

    def _refuse_virtual(self, *nodes: int) -> None:
        if any(is_virtual(node) for node in nodes):
            raise _error(errno.EROFS)

    def _refuse_name(self, parent: int, name: bytes) -> None:
        self._refuse_virtual(parent)
        if parent == ROOT_INO and name == VIRTUAL_NAME and self.virtual is not None:
            raise _error(errno.EPERM)

    # -- names

    @answered_later
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(parent_inode) or (parent_inode == ROOT_INO and name == VIRTUAL_NAME and self.virtual):
            return await self._virtual().lookup(parent_inode, name)
        return self._lookup_live(Ino(parent_inode), name)

    def _lookup_live(self, parent: Ino, name: bytes) -> EntryAttributes:
        if name == b".":
            return entry_of(self.tree.getattr(parent))
        if name == b"..":
            return entry_of(self.tree.getattr(self.tree.parent_of(parent)))
        try:
            return entry_of(self.tree.lookup(parent, name))
        except FileNotFoundError:
            return absence()

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            for inode, _ in inode_list:
                if not is_virtual(inode):
                    self.tree.forget(Ino(inode))
        except Exception as error:  # there is no reply to put it in
            refusal(error, "forget")

    def _make(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> Attr:
        self._refuse_name(parent, name)
        directory = Ino(parent)
        inherited = acl.inherit(self._xattr(directory, acl.DEFAULT), mode, ctx.umask)
        attr = self.tree.mknod(directory, name, inherited.mode, rdev, ctx.uid, ctx.gid)
        for key, value in ((acl.ACCESS, inherited.access), (acl.DEFAULT, inherited.default)):
            if value is not None:
                self.tree.setxattr(attr.ino, key, value)
        return attr

    def _xattr(self, ino: Ino, name: bytes) -> bytes | None:
        try:
            return self.tree.getxattr(ino, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return None

    @answered
    def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return entry_of(self._make(parent_inode, name, mode, rdev, ctx))

    @answered
    def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        return entry_of(self._make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), 0, ctx))

    @answered
    def symlink(self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext) -> EntryAttributes:
        self._refuse_name(parent_inode, name)
        return entry_of(self.tree.symlink(Ino(parent_inode), name, target, ctx.uid, ctx.gid))

    @answered
    def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._refuse_name(new_parent_inode, new_name)
        self._refuse_virtual(inode)
        return entry_of(self.tree.link(Ino(inode), Ino(new_parent_inode), new_name))

    @answered
    def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._refuse_name(parent_inode, name)
        self.tree.unlink(Ino(parent_inode), name)

    @answered
    def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._refuse_name(parent_inode, name)
        self.tree.rmdir(Ino(parent_inode), name)

    @answered
    def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        self._refuse_name(parent_inode_old, name_old)
        self._refuse_name(parent_inode_new, name_new)
        self.tree.rename(Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags)

    @answered_later
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        if is_virtual(inode):
            return FileNameT(await self._virtual().readlink(inode))
        return FileNameT(self.tree.readlink(Ino(inode)))

    # -- directories

    @answered_later
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(await self._virtual().opendir(inode) if is_virtual(inode) else inode)

    @answered_later
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        if is_virtual(fh):
            await self._virtual().readdir(fh, start_id, token)
        else:
            self._list(Ino(fh), start_id, token)

    def _list(self, directory: Ino, start: int, token: ReaddirToken) -> None:
        if start < _PARENT_COOKIE and not self._list_dots(directory, start, token):
            return
        after, room = start, True
        while room:
            batch = self.tree.readdir(directory, after, ENTRIES_AT_ONCE)
            for after, name, attr in batch:
                if not pyfuse3.readdir_reply(token, FileNameT(name), entry_of(attr), after):
                    return
            room = len(batch) == ENTRIES_AT_ONCE

    def _list_dots(self, directory: Ino, start: int, token: ReaddirToken) -> bool:
        dots = ((_SELF_COOKIE, b".", directory), (_PARENT_COOKIE, b"..", self.tree.parent_of(directory)))
        return all(
            pyfuse3.readdir_reply(token, FileNameT(name), entry_of(self.tree.getattr(ino)), cookie)
            for cookie, name, ino in dots
            if cookie > start
        )

    async def releasedir(self, fh: FileHandleT) -> None:
        return None

    @answered_later
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        if not is_virtual(fh):
            await self._flush(Ino(fh), lambda: self.tree.fsyncdir(Ino(fh)))

    # -- attributes

    @answered_later
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(inode):
            return await self._virtual().getattr(inode)
        return entry_of(self.tree.getattr(Ino(inode)))

    @answered_later
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if is_virtual(inode):
            return await self._virtual().setattr(inode, fields)
        ino = Ino(inode)
        if fields.update_size:
            await self._ready_to_truncate(ino, attr.st_size)
        elif (fields.update_mtime or fields.update_ctime) and (fh is not None or self._is_file(ino)):
            await self._ready_to_write(ino)
        return entry_of(self._change(ino, attr, fields, ctx))

    def _change(self, ino: Ino, attr: EntryAttributes, fields: SetattrFields, ctx: RequestContext) -> Attr:
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
        if mode is not None:
            self._plain.discard(ino)
            self._chmod_acl(ino, mode)
        elif fields.update_uid or fields.update_gid or (fields.update_size and ctx.uid != 0):
            mode = self._weakened_mode(ino)
        return self.tree.setattr(
            ino,
            mode=mode,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )

    def _is_file(self, ino: Ino) -> bool:
        return stat.S_ISREG(self.tree.getattr(ino).mode)

    def _chmod_acl(self, ino: Ino, mode: int) -> None:
        value = self._xattr(ino, acl.ACCESS)
        if value is not None:
            self.tree.setxattr(ino, acl.ACCESS, acl.chmod(value, mode))

    def _weakened_mode(self, ino: Ino) -> int | None:
        """The permission bits without setuid and setgid, None if that changes nothing."""
        mode = self.tree.getattr(ino).mode
        weaker = modes.without_privileges(mode)
        return None if weaker == mode else stat.S_IMODE(weaker)

    # -- extended attributes

    @answered_later
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        return (
            await self._virtual().getxattr(inode, name) if is_virtual(inode) else self.tree.getxattr(Ino(inode), name)
        )

    @answered_later
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = await self._virtual().listxattr(inode) if is_virtual(inode) else self.tree.listxattr(Ino(inode))
        return [XAttrNameT(name) for name in names if ctx.uid == 0 or not name.startswith(_TRUSTED)]

    @answered
    def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        self._refuse_virtual(inode)
        if name == acl.ACCESS:
            self._set_access_acl(Ino(inode), value, ctx)
            return
        if name == acl.DEFAULT:
            acl.parse(value)
        elif name.startswith(_SYSTEM):
            raise _error(errno.EOPNOTSUPP)
        self.tree.setxattr(Ino(inode), name, value)

    def _set_access_acl(self, ino: Ino, value: bytes, ctx: RequestContext) -> None:
        old = self.tree.getattr(ino)
        mode, stored = acl.set_access(value, old.mode)
        if mode & stat.S_ISGID and ctx.uid != 0 and not _is_member(ctx, old.gid):
            mode &= ~stat.S_ISGID
        if stored is not None:
            self.tree.setxattr(ino, acl.ACCESS, stored)
        elif self._xattr(ino, acl.ACCESS) is not None:
            self.tree.removexattr(ino, acl.ACCESS)
        self.tree.setattr(ino, mode=stat.S_IMODE(mode))

    @answered
    def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        self._refuse_virtual(inode)
        self.tree.removexattr(Ino(inode), name)

    # -- open files

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

    @answered_later
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if is_virtual(inode):
            return await self._virtual().open(inode, flags)
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
        self._plain.discard(handles.ino_of(fh))
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
        await self._ready_to_write(ino)
        if handles.is_unprivileged(fh) and ino not in self._plain:
            self._weaken(ino)
        self._flush_cost.wrote(ino, len(buf))
        return self.tree.write(ino, off, buf)

    async def _ready_to_write(self, ino: Ino) -> None:
        """Return when bytes and times of `ino` can be changed without waiting. Nothing else runs before the caller."""
        if self.tree.ready_to_write(ino):
            return
        with self.unsettled.change():
            while not self.tree.ready_to_write(ino):
                await self._in_thread(self.tree.prepare_write, ino)

    async def _ready_to_truncate(self, ino: Ino, size: int) -> None:
        """The same for a truncate to `size` bytes, which may have much to keep aside for a cut."""
        if self.tree.ready_to_truncate(ino, size):
            return
        with self.unsettled.change():
            await self._in_thread(self.tree.prepare_truncate, ino, size)

    def _weaken(self, ino: Ino) -> None:
        if modes.is_privileged(self.tree.getattr(ino).mode):
            self.tree.setattr(ino, mode=self._weakened_mode(ino))
        if len(self._plain) >= _MAX_PLAIN:
            self._plain.clear()
        self._plain.add(ino)

    async def flush(self, fh: FileHandleT) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)  # nothing to do at close(2); said once, the kernel asks no more

    @answered_later
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if not is_virtual(fh):
            ino = handles.ino_of(fh)
            await self._flush(ino, lambda: self.tree.fsync(ino, datasync))

    async def _flush(self, ino: Ino, flush: Callable[[], None]) -> None:
        small = self._flush_cost.is_small(ino)
        start = time.perf_counter()
        if small and self._flush_cost.is_cheap():
            flush()
        else:
            await self._in_thread(flush)
        if small:
            self._flush_cost.note(time.perf_counter() - start)

    # -- the whole

    @answered
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        return _statvfs(self.tree.statfs())

    def stacktrace(self) -> None:
        """pyfuse3's debugging aid, asked for by an xattr of the root; of no use here."""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _is_member(ctx: RequestContext, gid: int) -> bool:
    """Whether the process that asks is in the group; one that is gone already is not."""
    if ctx.gid == gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(ctx.pid)
    except OSError:
        return False


def _statvfs(host: os.statvfs_result) -> StatvfsData:
    data = StatvfsData()
    for name in _STATVFS:
        setattr(data, name, getattr(host, name))
    return data
