"""Attributes of a restored inode: owner, xattrs, mode, times, as far as this user and the filesystem allow."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from snapfs.store.tables.snapshot import InodeRecord

_SET_ID = stat.S_ISUID | stat.S_ISGID
_NOT_FOR_US = (errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL)
_TOO_LARGE = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)
"""Of an xattr: ext4, for one, has 4 KiB for all of a file, and reports that there is no space. A full disk shows
soon."""

Missed = Callable[[str, bytes], None]
"""`missed(kind, name)`: an attribute could not be restored."""


def set_attributes(at: int, name: bytes, record: InodeRecord, fd: int | None, missed: Missed) -> None:
    """Set owner, xattrs, mode, times, in this order: each one may undo the one before. Raises OSError.

    `fd` is the open file; without it the attributes go to `name` in the open directory `at`.
    """
    place = f"/proc/self/fd/{fd}".encode() if fd is not None else f"/proc/self/fd/{at}/".encode() + name
    follow = fd is not None
    owned = _set_owner(place, name, record, follow, missed)
    _set_xattrs(place, name, record, follow, missed)
    if not stat.S_ISLNK(record.mode):
        mode = stat.S_IMODE(record.mode)
        os.chmod(place, mode if owned else mode & ~_SET_ID)
        if not owned and mode & _SET_ID:
            missed("mode", name)
    os.utime(place, ns=(record.atime_ns, record.mtime_ns), follow_symlinks=follow)
    found = os.stat(place, follow_symlinks=follow)
    if (found.st_atime_ns, found.st_mtime_ns) != (record.atime_ns, record.mtime_ns):
        missed("times", name)


def _set_owner(place: bytes, name: bytes, record: InodeRecord, follow: bool, missed: Missed) -> bool:
    try:
        os.chown(place, record.uid, record.gid, follow_symlinks=follow)
    except OSError as failure:
        if failure.errno not in (*_NOT_FOR_US, errno.EOVERFLOW):
            raise
        missed("owner", name)
        return False
    return True


def _set_xattrs(place: bytes, name: bytes, record: InodeRecord, follow: bool, missed: Missed) -> None:
    for key, value in record.xattrs:
        try:
            os.setxattr(place, key, value, follow_symlinks=follow)
        except OSError as failure:
            if failure.errno not in _NOT_FOR_US and failure.errno not in _TOO_LARGE:
                raise
            missed("xattrs", name)


def drop_inherited_acls(path: str) -> None:
    """Remove ACLs that a new directory inherited, so that what is restored below it gets none of them."""
    for name in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(path, name)
        except OSError as failure:
            if failure.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
