"""Requests about attributes and extended attributes; an ACL and the mode are kept equal."""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from functools import partial

from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    InodeT,
    RequestContext,
    SetattrFields,
    XAttrNameT,
)

from snapfs.base.blocks import Ino
from snapfs.fuse.handlers.handler_base import Handlers, done, failure, is_member
from snapfs.fuse.handlers.replies import answered, answered_later, entry_of
from snapfs.fuse.nodes import acl
from snapfs.fuse.nodes.node_ids import is_virtual
from snapfs.live.attributes import Attr

_TRUSTED = b"trusted."
_NAMESPACES = (b"user.", _TRUSTED, b"security.")


class InodeHandlers(Handlers):
    """Requests about an inode's attributes, extended ones included."""

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
        if self._read_only.is_on and _is_writing_back_times(fields):
            return entry_of(
                self.tree.getattr(ino)
            )  # of writes that were refused: an error would reach a process that only reads
        self._refuse_change()
        if fields.update_size:
            await self._ready_to_truncate(ino, attr.st_size)
        elif (fields.update_mtime or fields.update_ctime) and (fh is not None or self._is_file(ino)):
            await self._ready_to_write(ino)
        return entry_of(self._change(ino, attr, fields, fh, ctx))

    def _change(
        self, ino: Ino, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> Attr:
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
        if mode is not None:
            self._no_suid_files.discard(ino)
            self._chmod_acl(ino, mode)
        elif _is_chown(fields, fh) or (_is_by_writing(fields) and ctx.uid != 0):
            mode = self._weakened_mode(ino, ctx)
        change = partial(
            self.tree.setattr,
            ino,
            mode=mode,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._once(change, self.tree.getattr)

    def _is_file(self, ino: Ino) -> bool:
        return stat.S_ISREG(self.tree.getattr(ino).mode)

    def _chmod_acl(self, ino: Ino, mode: int) -> None:
        value = self._xattr(ino, acl.ACCESS)
        if value is not None:
            self.tree.setxattr(ino, acl.ACCESS, acl.chmod(value, mode))

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
        else:
            _check_namespace(name)
        self._once(partial(self.tree.setxattr, Ino(inode), name, value), done)

    def _set_access_acl(self, ino: Ino, value: bytes, ctx: RequestContext) -> None:
        old = self.tree.getattr(ino)
        mode, stored = acl.set_access(value, old.mode)
        if mode & stat.S_ISGID and ctx.uid != 0 and not is_member(ctx, old.gid):
            mode &= ~stat.S_ISGID
        if stored is not None:
            self.tree.setxattr(ino, acl.ACCESS, stored)
        elif self._xattr(ino, acl.ACCESS) is not None:
            self.tree.removexattr(ino, acl.ACCESS)
        self.tree.setattr(ino, mode=stat.S_IMODE(mode))

    @answered
    def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """An ACL that is not there is removed as well, as by filesystems of the kernel."""
        self._refuse_virtual(inode)
        if name not in (acl.ACCESS, acl.DEFAULT):
            _check_namespace(name)
        elif self._xattr(Ino(inode), name) is None:
            return
        self._once(partial(self.tree.removexattr, Ino(inode), name), done)


def _check_namespace(name: bytes) -> None:
    """As filesystems of the kernel: EOPNOTSUPP for a namespace that does not exist, EINVAL for an empty name in one."""
    namespace = next((known for known in _NAMESPACES if name.startswith(known)), None)
    if namespace is None:
        raise failure(errno.EOPNOTSUPP)
    if name == namespace:
        raise failure(errno.EINVAL)


def _given(fields: SetattrFields) -> set[str]:
    names = ("size", "mode", "uid", "gid", "atime", "mtime", "ctime")
    return {name for name in names if getattr(fields, f"update_{name}")}


def _is_chown(fields: SetattrFields, fh: FileHandleT | None) -> bool:
    """Whether an owner is set, be it to what it was: of chown(-1, -1) the kernel sends the ctime alone (modes.py)."""
    return fields.update_uid or fields.update_gid or (fh is None and _given(fields) == {"ctime"})


def _is_by_writing(fields: SetattrFields) -> bool:
    """Whether this is a truncate, or announces a write, fallocate or copy into a file with privileges (modes.py)."""
    return fields.update_size or not _given(fields)


def _is_writing_back_times(fields: SetattrFields) -> bool:
    """Whether the kernel writes back the times that it kept while its cache took writes."""
    others = (fields.update_size, fields.update_mode, fields.update_uid, fields.update_gid, fields.update_atime)
    return fields.update_mtime and fields.update_ctime and not any(others)
