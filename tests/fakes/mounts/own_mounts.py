"""A mount namespace for each process that runs tests, so that no test meets the mounts of another one's.

Tests run several at a time on one host. Without this they see each other's mounts wherever all of them are looked at
(`status`, `metrics`, `doctor`, /proc/self/mountinfo), and a test that copies a mount namespace (unshare(1)) holds the
mounts of all others: their daemons do not end with `umount`, which waits 10 s and then reports where they are.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from snapfs.base.mountinfo import MountLine, mounts

_HERE = Path(__file__).resolve()
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_MS_REC, _MS_SLAVE, _MS_SHARED = 1 << 14, 1 << 19, 1 << 20


def is_root_shared() -> bool:
    """Whether mounts below / are seen in namespaces that are copied from this one, as where systemd is at work."""
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines())
    return any(each[4] == "/" and any(word.startswith("shared:") for word in each[6:]) for each in lines)


def keep_mounts_apart() -> None:
    """From now on this thread, and all that it starts, have mounts of their own. Without the right to it nothing is
    done. To be called by the main thread, since /proc/self shows its namespace.

    Nothing of ours is seen elsewhere, nor held here what others have: of another run of the tests, all that it had
    mounted. How mounts propagate to namespaces that tests make is as it was.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    was_shared = is_root_shared()
    if os.geteuid() or libc.unshare(_CLONE_NEWNS):
        return
    for kind in (_MS_SLAVE, _MS_SHARED) if was_shared else (_MS_SLAVE,):
        if libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | kind), None):
            number = ctypes.get_errno()
            raise OSError(number, f"the mounts of this process cannot be kept apart: {os.strerror(number)}")
        if kind == _MS_SLAVE:
            for mount in filter(_is_of_tests, reversed(mounts())):
                libc.umount2(os.fsencode(mount.mountpoint), _MNT_DETACH)


def _is_of_tests(mount: MountLine) -> bool:
    return "snapfs" in mount.kind or ("/snapfs-" in mount.mountpoint and not _HERE.is_relative_to(mount.mountpoint))
