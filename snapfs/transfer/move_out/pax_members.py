"""The members of a tar archive in pax format (POSIX.1-2001), byte by byte: headers, records, sparse maps.

    member:  [extended header block, its records, padding] header block (ustar) [data, padding]
    record:  "<length> <key>=<value>\\n", the length with itself; keys and values are bytes

A value that the ustar header cannot hold exactly is in a record: long names, names that are not ASCII, times (always,
to the nanosecond, also before 1970), large sizes and owners. Besides those of POSIX there are SCHILY.xattr.NAME (the
raw value), SCHILY.acl.access and .default (text with numeric owners), as star, GNU tar and libarchive write them, and
GNU.sparse.* in version 1.0: the data begins with the map, in decimal lines.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence

from snapfs.store.tables.snapshot import InodeRecord

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two blocks of zeros end an archive; readers take any padding after them."""
Range = tuple[int, int]
"""Offset and length of data in a sparse file."""
_TYPES = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
          stat.S_IFIFO: b"6"}  # fmt: skip
_ACLS = {b"system.posix_acl_access": b"SCHILY.acl.access", b"system.posix_acl_default": b"SCHILY.acl.default"}
_ACL_VERSION = 2
_ACL_TAGS = {0x01: "user:", 0x02: "user:{}", 0x04: "group:", 0x08: "group:{}", 0x10: "mask:", 0x20: "other:"}


def padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def can_hold(record: InodeRecord) -> bool:
    """Whether a tar archive has a type for it: sockets have none."""
    return stat.S_IFMT(record.mode) in _TYPES


def member(
    path: bytes, record: InodeRecord, *, link: bytes | None = None, ranges: Sequence[Range] | None = None
) -> bytes:
    """All of a member but the file's data. `link`: the path of an earlier member that is the same file.

    `ranges`: of a sparse file, whose data is that of the ranges, one after the other; the map is part of the result.
    """
    is_file = stat.S_ISREG(record.mode) and link is None
    size = record.size if is_file else 0
    records = _attributes(record)
    sparse_map = b""
    if ranges is not None and is_file:
        sparse_map = _sparse_map(ranges)
        size = len(sparse_map) + sum(length for _, length in ranges)
        records |= {
            b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": path,
            b"GNU.sparse.realsize": b"%d" % record.size,
        }  # fmt: skip
        folder, _, name = path.rpartition(b"/")
        path = (folder + b"/" if folder else b"") + b"GNUSparseFile.0/" + name
    kind = b"1" if link is not None else _TYPES[stat.S_IFMT(record.mode)]
    target = link if link is not None else record.target
    if stat.S_ISDIR(record.mode):
        path += b"/"
    records |= _overflows(path, target, record, size)
    return _extended(records) + _header(path, target, record, size, kind) + sparse_map


def _overflows(path: bytes, target: bytes, record: InodeRecord, size: int) -> dict[bytes, bytes]:
    """Records for what the header's fields do not hold."""
    found: dict[bytes, bytes] = {}
    if len(path) > 100 or not path.isascii():
        found[b"path"] = path
    if len(target) > 100 or not target.isascii():
        found[b"linkpath"] = target
    for key, value, limit in ((b"uid", record.uid, 8**7), (b"gid", record.gid, 8**7), (b"size", size, 8**11)):
        if value >= limit:
            found[key] = b"%d" % value
    return found


def _attributes(record: InodeRecord) -> dict[bytes, bytes]:
    found = {
        b"mtime": _time(record.mtime_ns), b"atime": _time(record.atime_ns), b"ctime": _time(record.ctime_ns),
    }  # fmt: skip
    for name, value in record.xattrs:
        acl = acl_text(value) if name in _ACLS else None
        if acl is not None:
            found[_ACLS[name]] = acl.encode()
        else:
            found[b"SCHILY.xattr." + name] = value
    return found


def _time(time_ns: int) -> bytes:
    """Decimal seconds; the value counts, so that -0.25 is a quarter of a second before 1970."""
    sign, seconds, rest = b"-" * (time_ns < 0), *divmod(abs(time_ns), 10**9)
    return b"%s%d.%09d" % (sign, seconds, rest) if rest else b"%s%d" % (sign, seconds)


def acl_text(value: bytes) -> str | None:
    """A POSIX ACL of an xattr in its text form, with numbers for users and groups; None for what is none."""
    if len(value) < 4 or len(value) % 8 != 4 or struct.unpack_from("<I", value)[0] != _ACL_VERSION:
        return None
    entries = []
    for tag, bits, owner in struct.iter_unpack("<HHI", value[4:]):
        if tag not in _ACL_TAGS:
            return None
        letters = "".join(letter if bits & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))
        entries.append(f"{_ACL_TAGS[tag].format(owner)}:{letters}")
    return "\n".join(entries) + "\n"


def _extended(records: dict[bytes, bytes]) -> bytes:
    body = b"".join(_record(key, value) for key, value in records.items())
    return _block(b"././@PaxHeader", b"", 0o644, 0, 0, len(body), 0, b"x", 0, 0) + body + padding(len(body))


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _header(path: bytes, target: bytes, record: InodeRecord, size: int, kind: bytes) -> bytes:
    is_device = kind in (b"3", b"4")
    major, minor = (os.major(record.rdev), os.minor(record.rdev)) if is_device else (0, 0)
    uid, gid = (value if value < 8**7 else 0 for value in (record.uid, record.gid))
    seconds = record.mtime_ns // 10**9
    return _block(
        path, target, stat.S_IMODE(record.mode), uid, gid, size if size < 8**11 else 0,
        seconds if 0 <= seconds < 8**11 else 0, kind, major, minor,
    )  # fmt: skip


def _block(
    path: bytes,
    target: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    kind: bytes,
    major: int,
    minor: int,
) -> bytes:
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime)
    fields = b"".join((
        path[:100].ljust(100, b"\0"), numbers, b" " * 8, kind, target[:100].ljust(100, b"\0"), b"ustar\x0000",
        bytes(64), b"%07o\0%07o\0" % (major, minor), bytes(155 + 12),
    ))  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _sparse_map(ranges: Sequence[Range]) -> bytes:
    lines = [b"%d\n" % len(ranges), *(b"%d\n%d\n" % each for each in ranges)]
    text = b"".join(lines)
    return text + padding(len(text))
