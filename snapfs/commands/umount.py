"""The command `umount`. It returns when the daemon has ended, so that the volume is free for the next mount."""

from __future__ import annotations

import time

import click

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, UserError
from snapfs.base.mountinfo import FUSE_TYPE
from snapfs.base.settings.units import parse_seconds
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.mounting.mount_users import users_of
from snapfs.commands.mounting.unmounting import (
    StaysElsewhereError,
    end_elsewhere,
    leave_to_next_start,
    unmount_and_wait,
)
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import locate
from snapfs.fuse.kernel import fuse_mount

_MOMENT_S = 2.0


@click.command("umount", short_help="Unmount and wait for the daemon.")
@click.argument("mountpoint", shell_complete=folders)
@click.option(
    "--lazy", "-l", is_flag=True, help="Even while in use: it disappears at once and ends with its last user."
)
@click.option(
    "--timeout", metavar="TIME",
    help="How long to wait for the end of the daemon. Default: as long as it takes, but 10 s where the volume stays "
    "mounted elsewhere.",
)  # fmt: skip
@click.option("--discard", is_flag=True, help="Of a fork: remove its volume as well, and all that was written to it.")
@click.option("--unless-restarting", metavar="UNIT", help="Leave the mount to the next start if systemd restarts UNIT.")
def umount(mountpoint: str, lazy: bool, timeout: str | None, discard: bool, unless_restarting: str | None) -> None:
    """Unmount MOUNTPOINT and wait until its daemon has ended.

    A volume that is mounted in more places (a bind mount of a part of it, a copy in another mount namespace) ends
    with the last of them: the error names them. With --lazy all that are in this mount namespace go; of a VOLUME
    that is mounted in others alone, the daemon is ended: those who use it there see errors.

    With --discard a fork (`snapfs fork`) goes without a trace; with --lazy as well, also from under its users. It may
    be unmounted already: then MOUNTPOINT is where it was, or its folder. What is no fork is refused.
    """
    try:
        wait_s = None if timeout is None else float(parse_seconds(timeout))
    except ValueError as error:
        raise click.UsageError(f"--timeout: {error}") from None
    if unless_restarting is not None and leave_to_next_start(unless_restarting, mountpoint):
        return
    if discard:
        return _discard(mountpoint, lazy, wait_s)
    return _unmount(mountpoint, lazy, wait_s)


def _discard(place: str, lazy: bool, wait_s: float | None) -> None:
    from snapfs.commands.forks import discarding

    path = discarding.fork_at(place)
    mounted = locate(path).mountpoint if Volume.exists(path) else None
    if mounted is not None or (Volume.exists(path) and lock_holder(path) is not None):
        _unmount(mounted or path, lazy, wait_s)
        if lazy:
            discarding.end_of_users(path)
    discarding.remove_fork(path, Disk())


def _unmount(mountpoint: str, lazy: bool, wait_s: float | None) -> None:
    entry = fuse_mount.mounted_type(mountpoint)
    if entry is None:
        mounted = locate(mountpoint).mountpoint if Volume.exists(mountpoint) else None
        if mounted is None:
            return end_elsewhere(mountpoint, lazy, wait_s)
        mountpoint = mounted
    elif entry != FUSE_TYPE:
        raise UserError(f"{mountpoint} is a mountpoint of something else ({entry}): use umount")
    return _unmount_when_free(mountpoint, lazy, wait_s)


def _unmount_when_free(mountpoint: str, lazy: bool, wait_s: float | None) -> None:
    """As `unmount_and_wait`. BusyError says who uses it, after a moment: a daemon that has just taken over looks into
    the mount itself (adopted_pages.py), and the last close of a file is the kernel's to finish."""
    until_s = time.monotonic() + _MOMENT_S
    while True:
        try:
            return unmount_and_wait(mountpoint, lazy=lazy, wait_s=wait_s)
        except StaysElsewhereError:
            raise
        except BusyError:
            if time.monotonic() > until_s:
                users = ", ".join(users_of(mountpoint)) or "something"
                raise BusyError(f"{mountpoint} is in use by {users}: stop it first, or use --lazy") from None
        time.sleep(0.1)


COMMANDS = (umount,)
