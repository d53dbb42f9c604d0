"""Who has files of a mount open for writing, as far as /proc tells: for a daemon that adopted the mount.

The kernel counts open files, and tells nobody. A daemon that did not see them opened asks the processes instead: their
descriptors, and their shared writable mappings, which live on when the descriptor is closed.

Invariant: what cannot be looked at counts as open for writing. A wrong "nobody" would let a rollback pull the bytes
away from under an application; a wrong "somebody" costs the user a word of force.
"""

from __future__ import annotations

import os
import re

_OF_NO_MOUNT = ("/memfd:", "/dev/zero", "/SYSV", "/[aio]", "/anon_hugepage")


def writers_of(mountpoint: str) -> int:
    """How many descriptors and mappings write to the mount, one for each process that may not be looked at.

    Asks no mount anything, lest it hangs. 0 if nothing is mounted there.
    """
    devices = {device for place, device in _mounts("self").values() if place == mountpoint}
    found = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if int(pid) != os.getpid():
            found += _writers(pid, devices)
    return found


def _mounts(pid: str) -> dict[str, tuple[str, int]]:
    """What a process sees mounted: place and device by the number of the mount."""
    found = {}
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            number, _, device, _, place, *_ = line.split(" ")
            plain = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
            found[number] = plain, os.makedev(*map(int, device.split(":")))
    return found


def _writers(pid: str, devices: set[int]) -> int:
    try:
        with open(f"/proc/{pid}/status") as lines:
            status = dict(line.split(":", 1) for line in lines)
        if status["State"].strip().startswith(("Z", "X")):
            return 0
        if status.get("CoreDumping", "0").strip() == "1":
            return 1  # a look at its mappings would wait for the dump, which may wait for us
        mounts = _mounts(pid)
        descriptors = os.listdir(f"/proc/{pid}/fd")
        with open(f"/proc/{pid}/maps") as maps:
            mapped = sum(_is_written(line, devices) for line in maps)
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it is gone
    except OSError:
        return 1
    return mapped + sum(_writes(pid, fd, mounts, devices) for fd in descriptors)


def _is_written(line: str, devices: set[int]) -> bool:
    """Whether a line of maps is a shared mapping, for writing, of a file on one of the devices."""
    _, rights, _, where, *_ = line.split(maxsplit=5)
    major, minor = (int(part, 16) for part in where.split(":"))
    return rights[1] == "w" and rights[3] == "s" and os.makedev(major, minor) in devices


def _writes(pid: str, fd: str, mounts: dict[str, tuple[str, int]], devices: set[int]) -> bool:
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}") as lines:
            info = dict(line.split(":", 1) for line in lines if line.startswith(("flags:", "mnt_id:")))
        if int(info["flags"], 8) & os.O_ACCMODE == os.O_RDONLY:
            return False
        mount = mounts.get(info["mnt_id"].strip())
        if mount is None:  # of a mount that is detached, and may hang: or of none, as a pipe is
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            return path.startswith("/") and not path.startswith(_OF_NO_MOUNT)
    except FileNotFoundError:
        return False  # closed meanwhile
    except (OSError, KeyError):
        return True
    return mount[1] in devices
