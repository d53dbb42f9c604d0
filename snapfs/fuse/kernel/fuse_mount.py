"""Mounting and unmounting: the fuse descriptor, the state of a mountpoint, and one clear line for what is wrong.

The descriptor comes from fusermount3, which is setuid root and therefore works for every user, in the way of libfuse
itself: over a socket whose number is in `_FUSE_COMMFD`. Root without fusermount3 mounts by mount(2).

Invariants:
1. A mountpoint that hangs is never touched before /proc/self/mountinfo shows what is mounted there.
2. Whatever the user can put right is a `UserError` or `BusyError` of one line; nothing is mounted then.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from enum import Enum

from snapfs.base.errors import BusyError, UserError
from snapfs.base.mountinfo import FUSE_TYPE, mount_at, resolved

_DEVICE = "/dev/fuse"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 1, 2, 4, 8, 1024
_MNT_DETACH = 2


class MountState(Enum):
    """What a mountpoint is."""

    MISSING = "missing"
    NOT_DIRECTORY = "not a directory"
    EMPTY = "an empty directory"
    NOT_EMPTY = "a directory that is not empty"
    DEAD = "a mount whose daemon is gone"
    SNAPFS = "a snapfs mount"
    OTHER_MOUNT = "a mountpoint of something else"


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How the kernel shows and guards the mount; always noatime, as access times are not kept.

    `source` is the first column of /proc/mounts: the volume."""

    source: str
    allow_other: bool
    dev: bool
    suid: bool
    noexec: bool = False
    ro: bool = False

    @staticmethod
    def usual(source: str, *, allow_other: bool | None = None) -> MountOptions:
        """Root: all users may use the mount, devices and setuid work. Others: themselves, without these."""
        root = os.geteuid() == 0
        return MountOptions(source, root if allow_other is None else allow_other, root, root)


def mounted_type(path: str) -> str | None:
    """The type of the filesystem mounted last on exactly `path`, or None. Sends no request to that filesystem."""
    mount = mount_at(path)
    return None if mount is None else mount.kind


def state_of(path: str) -> MountState:
    """What `path` is. OSError only for a folder above that cannot be searched."""
    mounted = mounted_type(path)
    try:
        mode = os.stat(path).st_mode
        if mounted == FUSE_TYPE:
            os.statvfs(path)  # the kernel's cache answers a stat long after the daemon is gone
    except FileNotFoundError:
        return MountState.MISSING
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return MountState.DEAD
        raise
    if mounted is not None:
        return MountState.SNAPFS if mounted == FUSE_TYPE else MountState.OTHER_MOUNT
    if not stat.S_ISDIR(mode):
        return MountState.NOT_DIRECTORY
    with os.scandir(path) as entries:
        return MountState.NOT_EMPTY if next(entries, None) else MountState.EMPTY


def check_mountpoint(path: str, *, nonempty: bool = False) -> None:
    """Raise unless `path` can be mounted on. A dead mount is removed first. `nonempty`: files may be hidden.

    UserError: missing, no directory, not empty, not permitted. BusyError: something is mounted there.
    """
    try:
        found = state_of(path)
        if found is MountState.DEAD:
            clear_dead(path)
            found = state_of(path)
    except PermissionError as error:
        raise UserError(f"{path}: {os.strerror(error.errno or errno.EACCES)}") from error
    if found is MountState.MISSING:
        raise UserError(f"{path} does not exist: make the mountpoint first (mkdir {path})")
    if found is MountState.NOT_DIRECTORY:
        raise UserError(f"{path} is not a directory: a mountpoint must be one")
    if found is MountState.SNAPFS:
        raise BusyError(f"{path} already is a snapfs mount: unmount it first (snapfs umount {path})")
    if found is MountState.OTHER_MOUNT:
        raise BusyError(f"{path} is a mountpoint of something else: unmount that first, or choose another directory")
    if found is MountState.NOT_EMPTY and not nonempty:
        raise UserError(f"{path} is not empty, and a mount would hide what is in it: choose an empty directory")


def check_fuse() -> None:
    """Raise UserError unless this machine and this user can mount."""
    try:
        mode = os.stat(_DEVICE).st_mode
    except FileNotFoundError:
        hint = "load the kernel module (modprobe fuse), or give the container the device"
        raise UserError(f"there is no /dev/fuse: {hint}") from None
    if not stat.S_ISCHR(mode):
        raise UserError("/dev/fuse is not a device: remove it and load the module (modprobe fuse)")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise UserError("fusermount3 is not installed: install the package fuse3")


def open_mount(path: str, options: MountOptions) -> int:
    """Mount on `path` and return the fuse descriptor, close-on-exec. UserError with the words of fusermount3."""
    check_fuse()
    if shutil.which("fusermount3") is not None:
        return _by_fusermount(path, options)
    return _by_mount(path, options)


def _option_string(options: MountOptions) -> str:
    # Commas and backslashes separate options; fusermount3 takes them escaped.
    source = options.source.replace("\\", "\\\\").replace(",", "\\,")
    words = [f"fsname={source}", "subtype=snapfs", "default_permissions", "noatime"]
    words += [word for word in ("allow_other", "dev", "suid", "noexec", "ro") if getattr(options, word)]
    return ",".join(words)


def _by_fusermount(path: str, options: MountOptions) -> int:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            helper = subprocess.Popen(
                ["fusermount3", "-o", _option_string(options), "--", path],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        fd = _receive_fd(ours)
        words = helper.communicate()[1].decode(errors="replace").strip()
    if fd is None:
        raise UserError(_explain(path, words, helper.returncode))
    return fd


def _receive_fd(sock: socket.socket) -> int | None:
    size = array.array("i").itemsize
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data[:size])[0]
    return None


def _explain(path: str, words: str, code: int) -> str:
    last = words.splitlines()[-1].removeprefix("fusermount3: ") if words else f"fusermount3 ended with code {code}"
    if "user_allow_other" in last:
        return "allow_other is for root alone here: add the line user_allow_other to /etc/fuse.conf, or do without"
    if "/dev/fuse" in last and "ermission" in last:
        return "no permission to open /dev/fuse: its mode must be 0666, or you must be in its group"
    return f"cannot mount on {path}: {last}"


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _by_mount(path: str, options: MountOptions) -> int:
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    flags = (0 if options.suid else _MS_NOSUID) | (0 if options.dev else _MS_NODEV)
    flags |= (_MS_NOEXEC if options.noexec else 0) | (_MS_RDONLY if options.ro else 0) | _MS_NOATIME
    words = [f"fd={fd}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}", "default_permissions"]
    words += ["allow_other"] if options.allow_other else []
    arguments = [os.fsencode(word) for word in (options.source, path, FUSE_TYPE)]
    if _libc().mount(*arguments, ctypes.c_ulong(flags), ",".join(words).encode()) != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise UserError(f"cannot mount on {path}: {os.strerror(code)}")
    return fd


def unmount(path: str, *, lazy: bool = False, apart: bool = False) -> None:
    """Unmount `path`. Lazily: it disappears at once and ends when its last user is gone.

    `apart`: by another process if that can be, for the daemon of the mount: a process that is killed while it unmounts
    is not gone before its own last pages are written.

    BusyError if it is in use, UserError if it is not mounted or may not be unmounted.
    """
    if mounted_type(path) is None:
        raise UserError(f"{path} is not mounted: `snapfs volumes` shows what is")
    place = resolved(path)
    direct = os.geteuid() == 0 and not (apart and shutil.which("fusermount3"))
    error = _umount2(place, lazy) if direct else _fusermount_u(place, lazy)
    if error is None:
        return
    if "busy" in error.lower():
        raise BusyError(f"{path} is in use: stop what works in it (fuser -vm {path}), or unmount lazily")
    raise UserError(f"cannot unmount {path}: {error}")


def _umount2(path: str, lazy: bool) -> str | None:
    if _libc().umount2(os.fsencode(path), _MNT_DETACH if lazy else 0) == 0:
        return None
    return os.strerror(ctypes.get_errno())


def _fusermount_u(path: str, lazy: bool) -> str | None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        return "fusermount3 is not installed: install the package fuse3"
    if done.returncode == 0:
        return None
    return done.stderr.strip().removeprefix("fusermount3: ") or f"fusermount3 ended with code {done.returncode}"


def clear_dead(path: str) -> None:
    """Remove a mount whose daemon is gone. UserError if that is not permitted."""
    unmount(path, lazy=True)
