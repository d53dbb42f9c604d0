"""Where else a mount is: bind mounts of parts of it, and copies in other mount namespaces.

A filesystem ends with the last of its mounts. A container or a service with a mount namespace of its own may hold a
copy that unmounting here does not reach; a daemon then goes on serving, and the volume stays locked.

Invariants:
1. No filesystem is queried; the mount tables of processes are read, as far as we may.
2. What has the device number of a mount is a copy of it only if it has its type and source, too: the kernel gives the
   number of a filesystem that has ended to whatever is mounted next.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from snapfs.base.mountinfo import MountLine, mounts
from snapfs.commands.support import output


@dataclass(frozen=True, slots=True)
class Copy:
    """A mount of the same filesystem. `process`: one in whose mount namespace it is; None: it is in ours."""

    mountpoint: str
    process: int | None = None
    name: str = ""

    def named(self) -> str:
        place = output.printable(self.mountpoint)
        return place if self.process is None else f"{place} in the mount namespace of {self.name} ({self.process})"


def copies(of: MountLine) -> list[Copy]:
    """All mounts of the filesystem of this one that we can see, those of our own mount namespace first. It may be
    unmounted by now."""
    found = [Copy(mount.mountpoint) for mount in mounts() if _shows_the_same(mount, of)]
    seen = {_namespace("self")}
    for pid in sorted(map(int, filter(str.isdecimal, os.listdir("/proc")))):
        namespace = _namespace(str(pid))
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        with contextlib.suppress(OSError):  # it is gone, or not ours to look at
            name = _name(pid)
            found += [Copy(mount.mountpoint, pid, name) for mount in mounts(pid) if _shows_the_same(mount, of)]
    return found


def _shows_the_same(mount: MountLine, other: MountLine) -> bool:
    return (mount.device, mount.kind, mount.source) == (other.device, other.kind, other.source)


def named(found: list[Copy], most: int = 5) -> str:
    words = [copy.named() for copy in found[:most]]
    return ", ".join(words + ([f"and {len(found) - most} more"] if len(found) > most else []))


def _namespace(pid: str) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt")
    return None


def _name(pid: int) -> str:
    with open(f"/proc/{pid}/comm", "rb") as file:
        return output.printable(os.fsdecode(file.read().strip()))
