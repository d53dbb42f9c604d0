"""Requests about names and directories: look up, make, remove, rename, list."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from functools import partial

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
)

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.fuse.handlers import file_handles
from snapfs.fuse.handlers.handler_base import Handlers, done
from snapfs.fuse.handlers.replies import absence, answered, answered_later, entry_of, refusal
from snapfs.fuse.nodes import acl
from snapfs.fuse.nodes.node_ids import is_virtual
from snapfs.fuse.virtual.virtual_nodes import NAME as VIRTUAL_NAME
from snapfs.live.attributes import Attr

ENTRIES_AT_ONCE = 64
UNNAMED = b"/"
"""What the kernel calls a file that has no name (O_TMPFILE), in a request that the router makes a CREATE."""
_SELF_COOKIE, _PARENT_COOKIE = 1, 2

_COOKIE_BITS, _BOUND_BITS = 36, 27
_BOUNDS = (1 << _BOUND_BITS) - 1


def tag_of(bound: int) -> int:
    """What an offset carries above its cookie, of the newest cookie that the listing may reach; 0 if there is no room
    for it (68 billion names): such a listing has no bound."""
    return 0 if bound >> _COOKIE_BITS else (bound % _BOUNDS + 1) << _COOKIE_BITS


def bound_of(offset: int, newest: int) -> tuple[int, int]:
    """(cookie, bound) of an offset, where `newest` is the newest cookie. Without a tag: from an earlier version."""
    cookie, tag = offset & (1 << _COOKIE_BITS) - 1, offset >> _COOKIE_BITS
    if newest >> _COOKIE_BITS or not tag:
        return offset, (1 << 63) - 1
    return cookie, newest - (newest - (tag - 1)) % _BOUNDS


class NameHandlers(Handlers):
    """Requests about names and directories."""

    @answered_later
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        if is_virtual(parent_inode) or (parent_inode == ROOT_INO and name == VIRTUAL_NAME and self.virtual):
            return await self._virtual().lookup(parent_inode, name)
        return self._lookup_live(Ino(parent_inode), name)

    def _lookup_live(self, parent: Ino, name: bytes) -> EntryAttributes:
        if name == b".":
            return self._by_handle(parent)
        if name == b"..":
            return entry_of(self.tree.getattr(self.tree.parent_of(parent)))
        try:
            return entry_of(self.tree.lookup(parent, name))
        except FileNotFoundError:
            return absence()

    def _by_handle(self, ino: Ino) -> EntryAttributes:
        """As opened by its handle, of an inode that the kernel does not have: so one without a name is gone."""
        attr = self.tree.getattr(ino)
        if not attr.nlink:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return entry_of(attr)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            for inode, _ in inode_list:
                if not is_virtual(inode):
                    self.tree.forget(Ino(inode))
            self._reclaimer.wake()
        except Exception as error:  # there is no reply to put it in
            refusal(error, "forget")

    def _make(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> Attr:
        self._refuse_name(parent, name)
        directory = Ino(parent)
        inherited = acl.inherit(self._xattr(directory, acl.DEFAULT), mode, ctx.umask)
        given = ((acl.ACCESS, inherited.access), (acl.DEFAULT, inherited.default))
        acls = [(key, value) for key, value in given if value is not None]
        if name == UNNAMED:
            unnamed = partial(self.tree.make_unnamed, directory, inherited.mode, ctx.uid, ctx.gid, acls)
            return self._once(unnamed, self.tree.getattr)
        make = partial(self.tree.mknod, directory, name, inherited.mode, rdev, ctx.uid, ctx.gid, acls)
        return self._once(make, self.tree.getattr)

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
        make = partial(self.tree.symlink, Ino(parent_inode), name, target, ctx.uid, ctx.gid)
        return entry_of(self._once(make, self.tree.getattr))

    @answered
    def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        self._refuse_name(new_parent_inode, new_name)
        self._refuse_virtual(inode)
        make = partial(self.tree.link, Ino(inode), Ino(new_parent_inode), new_name)
        return entry_of(self._once(make, self.tree.getattr))

    @answered
    def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._refuse_name(parent_inode, name)
        self._once(partial(self.tree.unlink, Ino(parent_inode), name), done)

    @answered
    def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._refuse_name(parent_inode, name)
        self._once(partial(self.tree.rmdir, Ino(parent_inode), name), done)

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
        old, new = Ino(parent_inode_old), Ino(parent_inode_new)
        owner = (ctx.uid, ctx.gid)
        self._once(partial(self.tree.rename, old, name_old, new, name_new, flags, owner), done)

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
            self._list(file_handles.ino_of(fh), start_id, token)

    def _list(self, directory: Ino, start: int, token: ReaddirToken) -> None:
        """A listing ends with the newest name that there was when it began: every offset that the kernel gets
        carries that bound, so it needs no memory of ours."""
        newest = self.tree.newest_cookie()
        start, bound = bound_of(start, newest) if start else (0, newest)
        tag = tag_of(bound)
        if start < _PARENT_COOKIE and not self._list_dots(directory, start, token, tag):
            return
        after, room = start, True
        while room:
            batch = self.tree.readdir(directory, after, ENTRIES_AT_ONCE)
            for after, name, attr in batch:
                if after > bound or not pyfuse3.readdir_reply(token, FileNameT(name), entry_of(attr), after | tag):
                    return
            room = len(batch) == ENTRIES_AT_ONCE

    def _list_dots(self, directory: Ino, start: int, token: ReaddirToken, tag: int) -> bool:
        dots = ((_SELF_COOKIE, b".", directory), (_PARENT_COOKIE, b"..", self.tree.parent_of(directory)))
        return all(
            pyfuse3.readdir_reply(token, FileNameT(name), entry_of(self.tree.getattr(ino)), cookie | tag)
            for cookie, name, ino in dots
            if cookie > start
        )

    async def releasedir(self, fh: FileHandleT) -> None:
        return None

    @answered_later
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        if not is_virtual(fh):
            ino = file_handles.ino_of(fh)
            await self._flush(ino, lambda: self.tree.fsyncdir(ino))
