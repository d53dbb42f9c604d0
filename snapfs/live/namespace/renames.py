"""rename(2) in all its forms, as one transaction.

Rules, in the order they are checked (those about permissions are the kernel's):
1. Both directories exist and were not removed (ENOENT), the old name exists (ENOENT).
2. NOREPLACE: the new name does not (EEXIST). EXCHANGE: it does (ENOENT).
3. Two names of one inode: nothing happens.
4. A directory never moves into itself or below (EINVAL).
5. A directory replaces an empty directory only (ENOTDIR, ENOTEMPTY), and nothing else replaces one (EISDIR).
6. WHITEOUT, not with EXCHANGE: a character device 0:0 takes the old name in the same transaction, the mark of overlay
   filesystems for what a lower layer has and this one does not.
7. A directory that comes from elsewhere must find room for one more link (EMLINK).

Cookies: a name that exists before and after keeps its cookie and only means another inode; a name that moves to an
unused name within its directory takes its cookie along; into another directory it gets a new one. So a listing that
runs meanwhile shows every name that exists all the time once, and a file renamed under it at most once.
"""

from __future__ import annotations

import errno
import stat

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.base.limits import LINK_MAX
from snapfs.live.database.namespace_rows import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Inode,
    check_name,
    error,
)
from snapfs.live.writer.namespace_writer import NamespaceWriter

_ALLOWED = (0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE)


def rename(
    w: NamespaceWriter,
    parent: Ino,
    name: bytes,
    new_parent: Ino,
    new_name: bytes,
    flags: int,
    owner: tuple[int, int] = (0, 0),
) -> Inode | None:
    """Returns the inode that lost its name, as it is afterwards. `owner`: (uid, gid) of a whiteout."""
    if flags not in _ALLOWED:
        raise error(errno.EINVAL)
    check_name(name)
    check_name(new_name)
    old_dir, new_dir = w.living_directory(parent), w.living_directory(new_parent)
    moved = w.inode(w.entry(parent, name))
    there = find(w, new_parent, new_name)
    if there is None and flags & RENAME_EXCHANGE:
        raise error(errno.ENOENT)
    if there is not None and flags & RENAME_NOREPLACE:
        raise error(errno.EEXIST)
    if there is not None and there.ino == moved.ino:
        return None
    refuse_loop(w, moved, new_parent)
    if flags & RENAME_EXCHANGE:
        assert there is not None
        refuse_loop(w, there, parent)
        exchange(w, old_dir, name, moved, new_dir, new_name, there)
        return None
    whiteout = make_whiteout(w, old_dir, owner) if flags & RENAME_WHITEOUT else None
    return move(w, old_dir, name, moved, new_dir, new_name, there, whiteout)


def make_whiteout(w: NamespaceWriter, directory: Inode, owner: tuple[int, int]) -> Inode:
    uid, gid = owner
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
    now = w.clock()
    return Inode(Ino(w.inos.take()), stat.S_IFCHR, uid, gid, 0, 1, now, now, now, b"", Ino(0))


def find(w: NamespaceWriter, parent: Ino, name: bytes) -> Inode | None:
    try:
        return w.inode(w.entry(parent, name))
    except FileNotFoundError:
        return None


def refuse_loop(w: NamespaceWriter, moved: Inode, new_parent: Ino) -> None:
    """EINVAL if `new_parent` is the directory `moved` or lies below it."""
    if not moved.is_directory:
        return
    above = new_parent
    while above != ROOT_INO:
        if above == moved.ino:
            raise error(errno.EINVAL)
        above = w.inode(above).parent


def check_replace(w: NamespaceWriter, moved: Inode, there: Inode) -> None:
    """Rule 5."""
    if moved.is_directory and not there.is_directory:
        raise error(errno.ENOTDIR)
    if there.is_directory:
        if not moved.is_directory:
            raise error(errno.EISDIR)
        if not w.is_empty(there.ino):
            raise error(errno.ENOTEMPTY)


def check_room(directory: Inode, links: int) -> None:
    if links > 0 and directory.nlink + links > LINK_MAX:
        raise error(errno.EMLINK)


def move(
    w: NamespaceWriter, old_dir: Inode, name: bytes, moved: Inode, new_dir: Inode, new_name: bytes, there: Inode | None,
    whiteout: Inode | None,
) -> Inode | None:  # fmt: skip
    """The plain rename; `there` is what it replaces, `whiteout` what takes the old name."""
    lost = 0
    if there is not None:
        check_replace(w, moved, there)
        lost = int(there.is_directory)
    same = old_dir.ino == new_dir.ino
    came = int(moved.is_directory and not same)
    check_room(new_dir, came - lost)
    if there is not None and stat.S_ISREG(moved.mode):
        w.wal.depend_on([moved.ino])
    now = w.clock()
    with w.change:
        move_entry(w, old_dir.ino, name, moved.ino, new_dir.ino, new_name, there is not None)
        w.update_inode(moved._replace(ctime_ns=now, parent=new_dir.ino if moved.is_directory else Ino(0)))
        if whiteout is not None:
            w.insert_entry(old_dir.ino, name, whiteout.ino, w.cookies.take())
            w.insert_inode(whiteout)
        if there is not None:
            there = lose_link(w, there, now)
        w.update_parent(new_dir, now, came - lost)
        if not same:
            w.update_parent(old_dir, now, -came)
        w.note(0)
    return there


def move_entry(
    w: NamespaceWriter, parent: Ino, name: bytes, ino: Ino, new_parent: Ino, new_name: bytes, replaces: bool
) -> None:
    if replaces:
        w.delete_entry(parent, name)
        w.point_entry(new_parent, new_name, ino)
    elif parent == new_parent:
        w.rename_entry(parent, name, new_name)
    else:
        w.delete_entry(parent, name)
        w.insert_entry(new_parent, new_name, ino, w.cookies.take())


def lose_link(w: NamespaceWriter, inode: Inode, now_ns: int) -> Inode:
    """One name less; a directory that loses its name is gone at once, with both of its links."""
    if inode.is_directory:
        inode = inode._replace(nlink=0, ctime_ns=now_ns, parent=Ino(0))
    else:
        inode = inode._replace(nlink=inode.nlink - 1, ctime_ns=now_ns)
    w.new_files.lost(inode)
    w.update_inode(inode)
    return inode


def exchange(
    w: NamespaceWriter, old_dir: Inode, name: bytes, moved: Inode, new_dir: Inode, new_name: bytes, there: Inode
) -> None:
    same = old_dir.ino == new_dir.ino
    gain = 0 if same else int(moved.is_directory) - int(there.is_directory)
    check_room(new_dir, gain)
    check_room(old_dir, -gain)
    w.wal.depend_on(inode.ino for inode in (moved, there) if stat.S_ISREG(inode.mode))
    now = w.clock()
    with w.change:
        w.point_entry(new_dir.ino, new_name, moved.ino)
        w.point_entry(old_dir.ino, name, there.ino)
        w.update_inode(moved._replace(ctime_ns=now, parent=new_dir.ino if moved.is_directory else Ino(0)))
        w.update_inode(there._replace(ctime_ns=now, parent=old_dir.ino if there.is_directory else Ino(0)))
        w.update_parent(new_dir, now, gain)
        if not same:
            w.update_parent(old_dir, now, -gain)
        w.note(0)
