"""The one reader of /proc/PID/mountinfo, and where a path leads without a question to what is mounted there.

A line is (proc_pid_mountinfo(5)):

    36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    id parent device root mountpoint options fields... - type source options of the filesystem

A user who may mount chooses mountpoint and source: any user, by fusermount3. The kernel writes space, tab, newline and
backslash in them as octal escapes, and any other byte as it is, carriage returns and what is not UTF-8 among them.

Invariants:
1. Lines end at a newline and fields at a space, of the bytes; nothing else divides them. So no mountpoint can
   hide a mount, or look like a line of its own.
2. A line that is not understood is left out; it takes no other with it.
3. Names are decoded as Python decodes file names (surrogateescape), so they compare equal to paths.
4. No mounted filesystem is queried: one that hangs would keep us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass

FUSE_TYPE = "fuse.snapfs"
"""What a mount of ours is called there."""
_MOST_LINKS = 40  # as the kernel


@dataclass(frozen=True, slots=True)
class MountLine:
    """A mount. `device` is the st_dev of what is in it; `root` the part of the filesystem that is shown."""

    mount_id: int
    parent_id: int
    device: int
    root: str
    mountpoint: str
    options: frozenset[str]
    kind: str
    source: str
    filesystem_options: frozenset[str]

    @property
    def owner(self) -> int | None:
        """Of a FUSE mount: its user."""
        found = (option.partition("=")[2] for option in self.filesystem_options if option.startswith("user_id="))
        return next((int(number) for number in found if number.isdecimal()), None)


def mounts(process: int | str = "self") -> list[MountLine]:
    """All mounts that the process sees, in the order of the kernel: of several at one place, the last is on top.

    OSError if the process is gone or may not be looked at.
    """
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        lines = file.read().split(b"\n")
    return [mount for line in lines if (mount := _parse(line)) is not None]


def _parse(line: bytes) -> MountLine | None:
    try:
        fields = line.split(b" ")
        end = fields.index(b"-", 6)
        major, minor = map(int, fields[2].split(b":"))
        kind, source, options = fields[end + 1 : end + 4]
        return MountLine(
            int(fields[0]), int(fields[1]), os.makedev(major, minor), _decode(fields[3]), _decode(fields[4]),
            _words(fields[5]), _decode(kind), _decode(source), _words(options),
        )  # fmt: skip
    except (ValueError, IndexError):
        return None


def _decode(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def _words(field: bytes) -> frozenset[str]:
    return frozenset(_decode(word) for word in field.split(b","))


def mount_at(path: str, process: int | str = "self") -> MountLine | None:
    """What is mounted on exactly `path`, on top of what else is; None if nothing is. `path` may be a symbolic link."""
    place = resolved(path)
    found = [mount for mount in mounts(process) if mount.mountpoint == place]
    return found[-1] if found else None


def resolved(path: str) -> str:
    """`path` as mountinfo has it: absolute, without symbolic links, the last part's own too.

    The last part may be a mount that hangs: readlink(2) of a mountpoint sends no request to it, unlike stat(2).
    """
    place = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(place)
        place = os.path.join(os.path.realpath(folder), name)
        try:
            target = os.readlink(place)
        except OSError:
            return place  # no link, or not there
        place = os.path.normpath(os.path.join(os.path.dirname(place), target)) if name else place
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def device_of(mountpoint: str) -> int:
    """Which device the mount is. ENODEV if nothing is mounted there."""
    mount = mount_at(mountpoint)
    if mount is None:
        raise OSError(errno.ENODEV, "the mount is detached from its mountpoint")
    return mount.device


def user_of(place: str) -> int | None:
    """Who owns a folder; None if it is not there."""
    with contextlib.suppress(OSError):
        return os.stat(place).st_uid
    return None
