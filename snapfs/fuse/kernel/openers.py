"""Which processes have files of a mount open for writing, as far as /proc shows: for a daemon that adopted the mount.

The kernel counts open files, and exposes no count. A daemon that did not see them opened looks at the processes: their
descriptors, and their shared writable mappings, which live on when the descriptor is closed.

Invariant: what cannot be looked at counts as open for writing. A wrong "no" would let a rollback pull the bytes
away from under an application; a wrong "yes" costs the user the word `force`.
"""

from __future__ import annotations

import ctypes
import os
import struct

from snapfs.base.mountinfo import device_of

_AT_FDCWD, _AT_STATX_DONT_SYNC = -100, 0x4000
_STATX_BYTES = 256
_DEVICE = struct.Struct("=136xII")  # major and minor in struct statx
_libc = ctypes.CDLL(None, use_errno=True)


def writers_of(mountpoint: str) -> int:
    """How many descriptors and mappings write to the mount, one for each process that may not be looked at.

    Sends no request to a mount, which might hang. OSError if nothing is mounted there.
    """
    device = device_of(mountpoint)
    others = (pid for pid in filter(str.isdecimal, os.listdir("/proc")) if int(pid) != os.getpid())
    return sum(_writers(pid, device) for pid in others)


def _writers(pid: str, device: int) -> int:
    try:
        status = dict(line.split(b":", 1) for line in _lines(f"/proc/{pid}/status"))
        if status[b"State"].strip().startswith((b"Z", b"X")):
            return 0
        if status.get(b"CoreDumping", b"0").strip() == b"1":
            return 0  # it is dead and writes no more; a look at its mappings could wait for us
        descriptors = os.listdir(f"/proc/{pid}/fd")
        mapped = sum(_is_written(line, device) for line in _lines(f"/proc/{pid}/maps"))
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it is gone
    except OSError:
        return 1
    return mapped + sum(_writes(pid, fd, device) for fd in descriptors)


def _lines(path: str) -> list[bytes]:
    """As bytes, for a process chooses its own name and those of its files, carriage returns included."""
    with open(path, "rb") as file:
        return [line for line in file.read().split(b"\n") if line]


def _is_written(line: bytes, device: int) -> bool:
    """Whether a line of maps is a shared mapping, for writing, of a file on the device."""
    _, rights, _, where, *_ = line.split(maxsplit=5)
    major, minor = (int(part, 16) for part in where.split(b":"))
    return rights[1:2] == b"w" and rights[3:4] == b"s" and os.makedev(major, minor) == device


def _writes(pid: str, fd: str, device: int) -> bool:
    try:
        flags = next(line for line in _lines(f"/proc/{pid}/fdinfo/{fd}") if line.startswith(b"flags:"))
        if int(flags.partition(b":")[2], 8) & os.O_ACCMODE == os.O_RDONLY:
            return False
        return _device_of_open(f"/proc/{pid}/fd/{fd}") == device
    except (FileNotFoundError, ProcessLookupError):
        return False  # closed meanwhile, or the process is gone
    except (OSError, StopIteration):
        return True


def _device_of_open(link: str) -> int:
    """The device of what a link in /proc/PID/fd leads to, without a request to its filesystem. OSError."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(_AT_FDCWD, os.fsencode(link), _AT_STATX_DONT_SYNC, 0, found):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), link)
    return os.makedev(*_DEVICE.unpack_from(found.raw))
