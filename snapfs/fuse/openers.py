"""Who has files of a mount open for writing, as far as /proc tells: for a daemon that adopted the mount.

The kernel counts open files, and tells nobody. A daemon that did not see them opened asks the processes instead: their
descriptors, and their shared writable mappings, which live on when the descriptor is closed.

Invariant: what cannot be looked at counts as open for writing. A wrong "nobody" would let a rollback pull the bytes
away from under an application; a wrong "somebody" costs the user a word of force.
"""

from __future__ import annotations

import ctypes
import os
import struct

from snapfs.fuse.writeback import device_of

_AT_FDCWD, _AT_STATX_DONT_SYNC = -100, 0x4000
_STATX_BYTES = 256
_DEVICE = struct.Struct("=136xII")  # major and minor in struct statx
_libc = ctypes.CDLL(None, use_errno=True)


def writers_of(mountpoint: str) -> int:
    """How many descriptors and mappings write to the mount, one for each process that may not be looked at.

    Asks no mount anything, lest it hangs. OSError if nothing is mounted there.
    """
    device = device_of(mountpoint)
    others = (pid for pid in filter(str.isdecimal, os.listdir("/proc")) if int(pid) != os.getpid())
    return sum(_writers(pid, device) for pid in others)


def _writers(pid: str, device: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as lines:
            status = dict(line.split(":", 1) for line in lines)
        if status["State"].strip().startswith(("Z", "X")):
            return 0
        if status.get("CoreDumping", "0").strip() == "1":
            return 0  # it is dead and writes no more; a look at its mappings could wait for us
        descriptors = os.listdir(f"/proc/{pid}/fd")
        with open(f"/proc/{pid}/maps") as maps:
            mapped = sum(_is_written(line, device) for line in maps)
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it is gone
    except OSError:
        return 1
    return mapped + sum(_writes(pid, fd, device) for fd in descriptors)


def _is_written(line: str, device: int) -> bool:
    """Whether a line of maps is a shared mapping, for writing, of a file on the device."""
    _, rights, _, where, *_ = line.split(maxsplit=5)
    major, minor = (int(part, 16) for part in where.split(":"))
    return rights[1] == "w" and rights[3] == "s" and os.makedev(major, minor) == device


def _writes(pid: str, fd: str, device: int) -> bool:
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}") as lines:
            flags = next(line for line in lines if line.startswith("flags:"))
        if int(flags.partition(":")[2], 8) & os.O_ACCMODE == os.O_RDONLY:
            return False
        return _device_of_open(f"/proc/{pid}/fd/{fd}") == device
    except (FileNotFoundError, ProcessLookupError):
        return False  # closed meanwhile, or the process is gone
    except (OSError, StopIteration):
        return True


def _device_of_open(link: str) -> int:
    """The device of what a link in /proc/PID/fd leads to, without asking its filesystem. OSError."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(_AT_FDCWD, os.fsencode(link), _AT_STATX_DONT_SYNC, 0, found):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), link)
    return os.makedev(*_DEVICE.unpack_from(found.raw))
