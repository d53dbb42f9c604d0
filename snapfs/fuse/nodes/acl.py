"""POSIX ACLs as the kernel leaves them to a filesystem that requests FUSE_POSIX_ACL: pure functions on xattr values.

The kernel checks permissions by the ACL and hands a set ACL on as a setxattr. Ours is what ties ACL and mode together:
what a new ACL makes of the mode, what a chmod makes of the ACL, and what a new file inherits. The rules are those of
posix_acl(5) and of fs/posix_acl.c in the kernel.

The value is a header (version 2, u32) and entries of (tag u16, permissions u16, id u32), little-endian.

Invariants:
1. An access ACL that grants no more than the mode is not stored.
2. Where an access ACL is stored, the mode's owner and other bits equal its USER_OBJ and OTHER entries, and the mode's
   group bits its MASK, or without one its GROUP_OBJ.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

NO_ID = 0xFFFFFFFF
"""The id of an entry whose tag needs none."""

_VERSION = 2
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_PERMISSIONS = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO


class Tag(IntEnum):
    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


class AclEntry(NamedTuple):
    tag: Tag
    permissions: int
    id: int = NO_ID


class Inherited(NamedTuple):
    """What a new inode gets: its mode, and the ACLs to store, None where there are none."""

    mode: int
    access: bytes | None
    default: bytes | None


def parse(value: bytes) -> list[AclEntry]:
    """Decode an ACL. OSError(EINVAL) if it is malformed or lacks one of owner, group and other."""
    if value[: _HEADER.size] != _HEADER.pack(_VERSION):
        raise _invalid()
    try:
        entries = [AclEntry(Tag(tag), bits, who) for tag, bits, who in _ENTRY.iter_unpack(value[_HEADER.size :])]
    except (ValueError, struct.error):
        raise _invalid() from None
    tags = [entry.tag for entry in entries]
    named = Tag.USER in tags or Tag.GROUP in tags
    if any(tags.count(tag) != 1 for tag in (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER)):
        raise _invalid()
    if tags.count(Tag.MASK) > 1 or (named and Tag.MASK not in tags) or any(entry.permissions & ~7 for entry in entries):
        raise _invalid()
    return entries


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def encode(entries: Sequence[AclEntry]) -> bytes:
    """The xattr value of an ACL."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _class_tags(entries: Sequence[AclEntry]) -> tuple[Tag, Tag, Tag]:
    group = Tag.MASK if any(entry.tag is Tag.MASK for entry in entries) else Tag.GROUP_OBJ
    return Tag.USER_OBJ, group, Tag.OTHER


def _stored(entries: Sequence[AclEntry]) -> bytes | None:
    return encode(entries) if len(entries) > 3 else None


def mode_of(entries: Sequence[AclEntry], mode: int) -> int:
    """`mode` with the permission bits that the ACL stands for."""
    bits = {entry.tag: entry.permissions for entry in entries}
    owner, group, other = (bits[tag] for tag in _class_tags(entries))
    return mode & ~_PERMISSIONS | owner << 6 | group << 3 | other


def set_access(value: bytes, mode: int) -> tuple[int, bytes | None]:
    """An access ACL is set on an inode of `mode`: its new mode, and the value to store or None. OSError(EINVAL)."""
    entries = parse(value)
    return mode_of(entries, mode), _stored(entries)


def chmod(value: bytes, mode: int) -> bytes:
    """The access ACL `value` after a chmod to `mode`. OSError(EINVAL)."""
    entries = parse(value)
    bits = dict(zip(_class_tags(entries), (mode >> 6 & 7, mode >> 3 & 7, mode & 7), strict=True))
    return encode([entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries])


def inherit(default: bytes | None, mode: int, umask: int) -> Inherited:
    """What a new inode of `mode` (type bits included) gets in a directory with the default ACL `default`.

    The umask counts only without a default ACL. OSError(EINVAL) if that is malformed.
    """
    if default is None:
        return Inherited(mode & ~(umask & _PERMISSIONS), None, None)
    entries = parse(default)
    limits = dict(zip(_class_tags(entries), (mode >> 6 & 7, mode >> 3 & 7, mode & 7), strict=True))
    narrowed = [entry._replace(permissions=entry.permissions & limits.get(entry.tag, 7)) for entry in entries]
    return Inherited(mode_of(narrowed, mode), _stored(narrowed), default if stat.S_ISDIR(mode) else None)
