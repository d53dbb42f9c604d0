"""The range of every field of a file, in one place: what the live tree accepts, every later part holds.

    field        range                                   who sets it             beyond it
    mode         32 bits                                 the kernel's            -
    uid, gid     0 .. 2^32 - 2                           the kernel's            EINVAL from the kernel
    rdev         32 bits                                 the kernel's            -
    nlink        1 .. LINK_MAX                           a signed st_nlink       EMLINK
    times        TIME_MIN_NS .. TIME_MAX_NS              clamped, as the kernel does for a filesystem with a range
    size         0 .. the host's largest file            probed at mount         EFBIG
    name         1 .. NAME_MAX bytes, any but / and NUL                          ENAMETOOLONG, EINVAL
    target       1 .. TARGET_MAX bytes                   PATH_MAX of the kernel  ENAMETOOLONG
    xattr        name 1 .. 255, value 0 .. XATTR_VALUE_MAX bytes                 ERANGE, E2BIG
    xattrs       XATTRS_MAX bytes for all of an inode with its target            ENOSPC

Invariants:
1. The live tree refuses or clamps a value before anything of the operation is done. The store, the wire, a restore
   and another host then hold each value as it is.
2. The times hold in every backing file: the lower end is that of ext4 and XFS (2^31 seconds before 1970), the upper one
   that of signed 64-bit nanoseconds. A host with less (an ext4 with small inodes ends in 2038) narrows
   them: `HostLimits`.
3. What older versions stored beyond these ranges is read as it is, and clamped as it is taken into a live tree.
"""

from __future__ import annotations

from typing import Final, NamedTuple

NAME_MAX: Final = 255
TARGET_MAX: Final = 4095
XATTR_VALUE_MAX: Final = 65536
XATTRS_MAX: Final = 1 << 28
"""Of one inode, as a snapshot holds them: each name and value with 5 bytes, the symlink's target with 2."""
XATTR_BYTES: Final = 5
LINK_MAX: Final = (1 << 31) - 1
"""Links of a file, or subdirectories of a directory plus two: what a 32-bit st_nlink of any sign holds."""
SIZE_MAX: Final = (1 << 63) - 1
TIME_MIN_NS: Final = -(1 << 31) * 10**9
"""1901-12-13 20:45:52 UTC."""
TIME_MAX_NS: Final = (1 << 63) - 1
"""2262-04-11 23:47:16 UTC."""


def clamp_time(time_ns: int) -> int:
    """The nearest time that every part holds."""
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)


class HostLimits(NamedTuple):
    """What a file of the host filesystem holds: its size in bytes, its times in ns since 1970."""

    max_bytes: int = SIZE_MAX
    time_min_ns: int = TIME_MIN_NS
    time_max_ns: int = TIME_MAX_NS

    def clamp_time(self, time_ns: int) -> int:
        """The nearest time that a file of this host holds as well."""
        return min(max(time_ns, self.time_min_ns), self.time_max_ns)
