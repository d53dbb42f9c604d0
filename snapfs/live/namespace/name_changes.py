"""Changes of names and attributes: each is one transaction, answered after its commit; one that raises changed nothing.

Permissions, the sticky bit and setgid without membership are the kernel's to check.
"""

from __future__ import annotations

import errno
import functools
import stat
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar

from snapfs.base.blocks import Ino
from snapfs.base.limits import LINK_MAX, TARGET_MAX, clamp_time
from snapfs.live.database.namespace_rows import Inode, check_name, error
from snapfs.live.namespace import renames
from snapfs.live.namespace.namespace_lookup import NamespaceLookup
from snapfs.live.namespace.reply_cache import ReplyCache
from snapfs.live.namespace.xattrs import Xattrs
from snapfs.live.writer.namespace_writer import NamespaceWriter

P = ParamSpec("P")
T = TypeVar("T")


def in_turn(method: Callable[Concatenate[NameChanges, P], T]) -> Callable[Concatenate[NameChanges, P], T]:
    """An operation in one turn of the writer (turn.py), from its first look at a row to its commit."""

    @functools.wraps(method)
    def operation(self: NameChanges, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._writer.turn:
            return method(self, *args, **kwargs)

    return operation


class NameChanges(NamespaceLookup):
    """For the thread of the writer. Errors are OSErrors with the errno that Linux gives."""

    def __init__(self, writer: NamespaceWriter) -> None:
        super().__init__(writer)
        self.reply_cache = ReplyCache(writer)
        self._xattrs = Xattrs(writer)

    # -- names

    @in_turn
    def allocate_ino(self) -> Ino:
        """A number for `create(ino=...)`, so that the backing file can be made first. ENOSPC when they run out."""
        return Ino(self._writer.inos.take())

    @in_turn
    def create(
        self,
        parent: Ino,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        ino: Ino | None = None,
        xattrs: Iterable[tuple[bytes, bytes]] = (),
    ) -> Inode:
        """Make an inode of any type (`mode` has it), with these extended attributes, under a new name.

        EEXIST, ENOENT (the directory was removed), ENOTDIR, ENAMETOOLONG, EMLINK, ENOSPC.
        """
        check_name(name)
        if len(target) > TARGET_MAX:
            raise error(errno.ENAMETOOLONG)
        w = self._writer
        directory = w.living_directory(parent)
        is_dir = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if is_dir else 0
        if is_dir and directory.nlink >= LINK_MAX:
            raise error(errno.EMLINK)
        if ino is None:
            ino = self.allocate_ino()
        now = w.clock()
        child = Inode(
            ino, mode, uid, gid, rdev, 2 if is_dir else 1, now, now, now, target, parent if is_dir else Ino(0)
        )
        with w.change:
            w.insert_entry(parent, name, ino, w.cookies.take())
            w.insert_inode(child)
            self._xattrs.put_new(ino, xattrs)
            w.update_parent(directory, now, int(is_dir))
            w.note(ino)
        return child

    @in_turn
    def create_unnamed(
        self, parent: Ino, mode: int, uid: int, gid: int, ino: Ino, xattrs: Iterable[tuple[bytes, bytes]] = ()
    ) -> Inode:
        """Make a regular file without a name, an orphan that `link` can give one, as if it were made in `parent`."""
        w = self._writer
        directory = w.living_directory(parent)
        now = w.clock()
        gid = directory.gid if directory.mode & stat.S_ISGID else gid
        child = Inode(ino, mode, uid, gid, 0, 0, now, now, now, b"", Ino(0))
        with w.change:
            w.insert_inode(child)
            w.new_files.lost(child)
            self._xattrs.put_new(ino, xattrs)
            w.note(ino)
        return child

    @in_turn
    def link(self, ino: Ino, parent: Ino, name: bytes, unnamed: bool = False) -> Inode:
        """One more name. `unnamed`: also the first one of a regular file that has none (see `create_unnamed`).

        EPERM for a directory, ENOENT for another orphan, EMLINK, EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG.
        """
        check_name(name)
        w = self._writer
        directory, inode = w.living_directory(parent), w.inode(ino)
        if inode.is_directory:
            raise error(errno.EPERM)
        if not inode.nlink and not (unnamed and stat.S_ISREG(inode.mode)):
            raise error(errno.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise error(errno.EMLINK)
        now = w.clock()
        was_orphan = not inode.nlink
        inode = inode._replace(nlink=inode.nlink + 1, ctime_ns=now)
        with w.change:
            if was_orphan:
                w.new_files.named(inode)
            w.insert_entry(parent, name, ino, w.cookies.take())
            w.update_inode(inode)
            w.update_parent(directory, now)
            w.note(ino)
        return inode

    @in_turn
    def unlink(self, parent: Ino, name: bytes) -> Inode:
        """Take a name away; returns the inode afterwards, maybe an orphan. EISDIR, ENOENT, ENOTDIR."""
        check_name(name)
        w = self._writer
        directory, inode = w.directory(parent), w.inode(w.entry(parent, name))
        if inode.is_directory:
            raise error(errno.EISDIR)
        return self._remove(directory, name, inode)

    @in_turn
    def rmdir(self, parent: Ino, name: bytes) -> Inode:
        """Remove an empty directory; returns it afterwards, an orphan. ENOTEMPTY, ENOTDIR, ENOENT."""
        check_name(name)
        w = self._writer
        directory, inode = w.directory(parent), w.directory(w.entry(parent, name))
        if not w.is_empty(inode.ino):
            raise error(errno.ENOTEMPTY)
        return self._remove(directory, name, inode)

    def _remove(self, directory: Inode, name: bytes, inode: Inode) -> Inode:
        w = self._writer
        now = w.clock()
        with w.change:
            w.delete_entry(directory.ino, name)
            after = renames.lose_link(w, inode, now)
            w.update_parent(directory, now, -int(inode.is_directory))
            w.note(0)
        return after

    @in_turn
    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0,
        owner: tuple[int, int] = (0, 0),
    ) -> Inode | None:  # fmt: skip
        """See renames.py. Returns the inode that was replaced, as it is afterwards (maybe an orphan), or None.

        ENOENT, EEXIST, EINVAL, ENOTDIR, EISDIR, ENOTEMPTY, EMLINK, ENAMETOOLONG.
        """
        return renames.rename(self._writer, parent, name, new_parent, new_name, flags, owner)

    # -- attributes

    @in_turn
    def setattr(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Inode:
        """Set what is given (of `mode` the permission bits); ctime becomes now unless it is given too. ESTALE."""
        w = self._writer
        inode = w.inode(ino)
        inode = inode._replace(
            mode=inode.mode if mode is None else stat.S_IFMT(inode.mode) | stat.S_IMODE(mode),
            uid=inode.uid if uid is None else uid,
            gid=inode.gid if gid is None else gid,
            atime_ns=inode.atime_ns if atime_ns is None else clamp_time(atime_ns),
            mtime_ns=inode.mtime_ns if mtime_ns is None else clamp_time(mtime_ns),
            ctime_ns=w.clock() if ctime_ns is None else clamp_time(ctime_ns),
        )
        with w.change:
            w.update_inode(inode)
            w.note(ino)
        return inode

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """ENODATA."""
        return self._xattrs.get(ino, name)

    def listxattr(self, ino: Ino) -> list[bytes]:
        """Names, sorted."""
        return self._xattrs.list(ino)

    @in_turn
    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """Flags are XATTR_CREATE (EEXIST) and XATTR_REPLACE (ENODATA). ERANGE, E2BIG for lengths."""
        self._xattrs.set(ino, name, value, flags)

    @in_turn
    def removexattr(self, ino: Ino, name: bytes) -> None:
        """ENODATA."""
        self._xattrs.remove(ino, name)

    # -- orphans

    def orphans(self) -> list[Ino]:
        """Inodes without links, ascending."""
        return [Ino(ino) for (ino,) in self._writer.rows("SELECT ino FROM inode WHERE nlink = 0 ORDER BY ino")]

    @in_turn
    def remove_orphans(self, inos: Iterable[Ino]) -> None:
        """Forget these inodes in one transaction; those that have links are left alone."""
        w = self._writer
        with w.change:
            for ino in inos:
                w.delete_orphan(ino)
                self._xattrs.forget_one(ino)
