"""A FUSE connection as its supervisor sees it: whether it still has a mount, and how to end it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from collections.abc import Iterator
from typing import Final

from snapfs.base import mountinfo

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on all machines
_CLOEXEC: Final = 1
_CMD_CREATE: Final = 6  # FSCONFIG_CMD_CREATE
_libc = ctypes.CDLL(None, use_errno=True)


def is_alive(device: int) -> bool:
    """Whether the connection of this descriptor of /dev/fuse still has a mount."""
    poll = select.poll()
    poll.register(device, select.POLLIN)
    return not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


def abort(mountpoint: str, device: int) -> None:
    """End a connection: by the kernel's own means where they are there, and by closing our descriptor of it. That alone
    is not enough while a process has one that waits for the mount, and cannot be killed."""
    abort_mount(mountpoint)
    os.close(device)


def abort_mount(mountpoint: str) -> None:
    """End the connection of a mount of ours by the kernel's own means, where there are any: who waits gets an error."""
    with contextlib.suppress(OSError):
        mount = mountinfo.mount_at(mountpoint)
        if mount is not None and mount.kind == mountinfo.FUSE_TYPE:  # another may have been mounted over it
            _switch_off(os.minor(mount.device))


def _switch_off(number: int) -> None:
    """OSError if that is not permitted."""
    name = f"{number}/abort"
    try:
        switch = os.open(os.path.join("/sys/fs/fuse/connections", name), os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        with _switches() as folder:
            switch = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(switch, b"1")
    finally:
        os.close(switch)


@contextlib.contextmanager
def _switches() -> Iterator[int]:
    """The kernel's switches of all connections, where nobody has mounted them (a container): a mount without a place.
    Root's alone. OSError."""
    context = _call(_FSOPEN, b"fusectl", _CLOEXEC)
    try:
        _call(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        folder = _call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        yield folder
    finally:
        os.close(folder)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A system call that the C library may not have. OSError."""
    result = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
