"""Operations on names and attributes: each puts the steps on the namespace and on backing files in order.

Invariants:
1. A file's bytes exist before its name can be seen: create makes the backing file, then the row. A crash between
   leaves a stray file, which recovery removes.
2. A file that loses its last name becomes an orphan (pending_deletes.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from snapfs.base.blocks import Ino
from snapfs.base.limits import HostLimits
from snapfs.live.attributes import Attr
from snapfs.live.database.namespace_rows import RENAME_EXCHANGE, Inode, LoadedEntry, NotLoadedError, error
from snapfs.live.tree_parts import TreeParts


class NameOperations:
    """For the owner thread, but for what is marked "any thread". Errors are OSErrors with the errno of Linux."""

    def __init__(self, parts: TreeParts) -> None:
        self.live_dir, self.names, self._disk, self._clock = parts.live_dir, parts.names, parts.disk, parts.clock
        self.adopted, self.health = parts.adopted, parts.backing.health
        self._backing, self._content, self._opens = parts.backing, parts.content, parts.opens
        self._materializer, self._intents, self._hydration = parts.materializer, parts.intents, parts.hydration
        self._deletes, self._replaces = parts.deletes, parts.replaces
        self._attr, self._misread = parts.attributes.of, set[Ino]()

    # -- looking

    def lookup(self, parent: Ino, name: bytes) -> Attr:
        return self._attr(self.names.lookup(parent, name))

    def getattr(self, ino: Ino) -> Attr:
        return self._attr(self.names.inode(ino))

    def readlink(self, ino: Ino) -> bytes:
        inode = self.names.inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return inode.target

    def readdir(self, ino: Ino, after: int, limit: int) -> list[tuple[int, bytes, Attr]]:
        """Up to `limit` (cookie, name, attributes) with cookies above `after`."""
        return [(cookie, name, self._attr(inode)) for cookie, name, inode in self.names.readdir(ino, after, limit)]

    def newest_cookie(self) -> int:
        """Every name that exists has a cookie up to this; every later one, one above."""
        return self.names.newest_cookie()

    def parent_of(self, directory: Ino) -> Ino:
        """The directory that ".." means. NotLoadedError, so that a listing that has begun need not begin again."""
        self.names.must_be_loaded(directory)
        return self.names.parent_of(directory)

    def fetch_names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        """What `load` takes; `wanted` by an application. Waits. OSError, CorruptionError. Any thread."""
        return self._materializer.names(listing, wanted)

    def load(self, directory: Ino, entries: list[LoadedEntry]) -> None:
        """Take over all names of an unloaded directory, in one transaction; nothing counts as changed."""
        size = self._new_sizes(directory, entries) if self._content.size_limit.is_on else 0
        self.names.load(directory, entries, last=True)
        self._content.size_limit.count(size)

    def _new_sizes(self, directory: Ino, entries: list[LoadedEntry]) -> int:
        """The sizes of the files that `load` will make known."""
        with contextlib.suppress(NotLoadedError):
            self.names.must_be_loaded(directory)
            return 0  # loaded already
        sizes = {entry.inode.ino: entry.absent.size for entry in entries if entry.absent is not None}
        return sum(size for ino, size in sizes.items() if not self._is_known(ino))

    def _is_known(self, ino: Ino) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.names.inode(ino))
        return False

    def _refuse_new(self, parent: Ino, name: bytes | None = None) -> None:
        """EDQUOT if the limit of size is reached, unless the name exists, which is another error."""
        if not self._content.size_limit.is_reached:
            return
        with contextlib.suppress(FileNotFoundError):
            if name is not None and self.names.lookup(parent, name):
                return
        raise error(errno.EDQUOT)

    # -- names

    def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, uid: int, gid: int,
        xattrs: Sequence[tuple[bytes, bytes]] = (),
    ) -> Attr:  # fmt: skip
        """Make a file, directory, fifo, socket or device, as `mode` gives, with its extended attributes."""
        self._refuse_new(parent, name)
        if not stat.S_ISREG(mode):
            return self._attr(self.names.create(parent, name, mode, uid, gid, rdev, xattrs=xattrs))
        with self._new_file() as ino:
            return self._attr(self.names.create(parent, name, mode, uid, gid, ino=ino, xattrs=xattrs))

    def make_unnamed(
        self, parent: Ino, mode: int, uid: int, gid: int, xattrs: Sequence[tuple[bytes, bytes]] = ()
    ) -> Attr:
        """Make a regular file without a name, as open(2) with O_TMPFILE; `link` can give it one."""
        self._refuse_new(parent)
        with self._new_file() as ino:
            inode = self.names.create_unnamed(parent, mode, uid, gid, ino, xattrs)
        self._deletes.add(ino)
        return self._attr(inode)

    @contextlib.contextmanager
    def _new_file(self) -> Iterator[Ino]:
        """A new inode number with an empty backing file, which is removed if the row cannot be made."""
        ino = self.names.allocate_ino()
        self._content.create(ino, self._clock())
        try:
            yield ino
        except BaseException:
            self._content.forget(ino)
            self._backing.remove(ino)
            raise

    def symlink(self, parent: Ino, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        self._refuse_new(parent, name)
        return self._attr(self.names.create(parent, name, stat.S_IFLNK | 0o777, uid, gid, target=target))

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Attr:
        found = self.names.inode(ino)
        if not found.nlink and stat.S_ISREG(found.mode) and ino < self._content.current.new_from:
            self._content.mark_suspect([ino])  # no snapshot has its bytes, and it no longer counts as a new file
        inode = self.names.link(ino, parent, name, unnamed=True)
        self._deletes.cancel(ino)
        return self._attr(inode)

    def unlink(self, parent: Ino, name: bytes) -> None:
        self._after_loss(self.names.unlink(parent, name))

    def rmdir(self, parent: Ino, name: bytes) -> None:
        self._after_loss(self.names.rmdir(parent, name))

    def rename(
        self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0,
        owner: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        """As renameat2(2); `owner`: (uid, gid) of what RENAME_WHITEOUT leaves at the old name."""
        with self.names.turn:
            replaced = self.names.rename(parent, name, new_parent, new_name, flags, owner)
            if replaced is None or flags & RENAME_EXCHANGE or replaced.nlink:
                return
            if stat.S_ISREG(replaced.mode):
                moved = self.names.lookup(new_parent, new_name)
                self._content.replaced_by(moved.ino, replaced.ino)
            self._after_loss(replaced)

    def _after_loss(self, inode: Inode) -> None:
        if not inode.nlink:
            self._deletes.add(inode.ino)

    def forget(self, ino: Ino) -> None:
        """The kernel does not know this inode any more."""
        self._deletes.forget(ino)

    # -- attributes

    def setattr(
        self,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Attr:
        """Set what is given. Of a regular file, size and times wait for the disk unless `ready_to_write`."""
        inode = self.names.inode(ino)
        is_file = stat.S_ISREG(inode.mode)
        if is_file:
            self._set_file(ino, size, mtime_ns, ctime_ns)
            mtime_ns = None
        elif size is not None:
            raise OSError(*((errno.EISDIR, "is a directory") if inode.is_directory else (errno.EINVAL, "not a file")))
        row = {"mode": mode, "uid": uid, "gid": gid, "atime_ns": atime_ns, "mtime_ns": mtime_ns}
        if any(value is not None for value in row.values()) or (ctime_ns is not None and not is_file):
            inode = self.names.setattr(ino, **row, ctime_ns=ctime_ns)
        return self._attr(inode)

    def _set_file(self, ino: Ino, size: int | None, mtime_ns: int | None, ctime_ns: int | None) -> None:
        """Set what a backing file carries: its size, then its times."""
        now_ns = self._clock()
        if size is not None:
            self._content.truncate(ino, size)
            if not size:
                self._replaces.note_emptied(ino)
            mtime_ns = now_ns if mtime_ns is None else mtime_ns
        if mtime_ns is not None or ctime_ns is not None:
            if mtime_ns is not None and self.limits.clamp_time(mtime_ns) != mtime_ns:
                self._misread.add(ino)
            self._content.set_times(ino, mtime_ns, now_ns if ctime_ns is None else ctime_ns)

    @property
    def limits(self) -> HostLimits:
        """What a file of the host filesystem holds."""
        return self._backing.limits

    def take_misread(self) -> set[Ino]:
        """Files of which the kernel caches a time or a size that the live tree could not take, since the last call.

        Under the writeback cache the kernel trusts only its own values as long as it knows the inode.
        """
        taken, self._misread = self._misread, set()
        return taken

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        return self.names.getxattr(ino, name)

    def setxattr(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        self.names.setxattr(ino, name, value, flags)

    def listxattr(self, ino: Ino) -> list[bytes]:
        return self.names.listxattr(ino)

    def removexattr(self, ino: Ino, name: bytes) -> None:
        self.names.removexattr(ino, name)
