"""The end of a fork: unmounted, and its volume removed without a trace.

The steps, and what a crash after each leaves:

1. *Unmount*, and wait for the daemon. (A fork that is not mounted.)
2. *Rename* the volume to PATH.discarded, under its lock. THE COMMIT POINT. (That folder, which the next discard of a
   fork beside it removes, as does one of the same path; `doctor` names it.)
3. *Remove* it, and the mountpoint if the fork made that.

Invariants:
1. Only a volume with a fork.json is removed, and only while nobody has it.
2. Nothing of the origin is changed: each volume unlinks its own names only.
"""

from __future__ import annotations

import contextlib
import os
import signal

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, UserError
from snapfs.base.mountinfo import FUSE_TYPE
from snapfs.base.volumes.fork_file import ForkFile, read_fork
from snapfs.base.volumes.volume import Volume
from snapfs.commands.mounting.unmounting import end_of_process
from snapfs.commands.overview.known_forks import DISCARDED_SUFFIX, FOLDER_SUFFIX, leftovers_beside, made_for
from snapfs.commands.overview.known_volumes import known_volumes
from snapfs.commands.support.locate import daemon_pid, locate, mount_entries
from snapfs.fuse.kernel import fuse_mount

LAZY_WAIT_S = 60.0


def fork_at(place: str) -> str:
    """The folder of the fork that `place` means: its mountpoint, its folder, or the mountpoint that it had.

    UserError if it is none.
    """
    path = os.path.abspath(place)
    if fuse_mount.mounted_type(place) == FUSE_TYPE or Volume.exists(path):
        where = locate(place)
        if read_fork(where.volume_path) is None:
            raise UserError(
                f"{place} is no fork: only what `snapfs fork` made is discarded; `snapfs umount {place}` unmounts it"
            )
        return where.volume_path
    if os.path.lexists(f"{path}{DISCARDED_SUFFIX}"):
        return path
    found = made_for(place, [each.path for each in known_volumes(mount_entries())])
    if len(found) > 1:
        raise UserError(f"{place} was the mountpoint of {len(found)} forks: name the folder: {', '.join(found)}")
    if not found:
        raise UserError(f"{place} is no fork and was none's mountpoint, as far as is known: name the fork's folder")
    return found[0]


def end_of_users(path: str) -> None:
    """After a lazy unmount: end the daemon although it has users, and wait. BusyError if it does not end."""
    pid = daemon_pid(path)
    if pid is None:
        return
    with end_of_process(pid) as ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not ended(LAZY_WAIT_S):
            raise BusyError(f"{path} is still in use by process {pid}: discard it when that has ended")


def remove_fork(path: str, disk: Disk) -> None:
    """Remove the volume of a fork that is not mounted, and what an interrupted discard left of it or beside it.

    UserError if it is no fork, BusyError if a process has it, OSError.
    """
    if os.path.lexists(path):
        _remove(path, disk)
    for left in {f"{path}{DISCARDED_SUFFIX}", *_discarded_beside(path)}:
        disk.remove_tree("discard:remove", left, ignore_errors=True)
    folder = os.path.dirname(path)
    if folder.endswith(FOLDER_SUFFIX):
        with contextlib.suppress(OSError):  # there are more
            disk.rmdir("discard:folder", folder)


def _remove(path: str, disk: Disk) -> None:
    volume = Volume.open(path, disk)
    fork = read_fork(path)
    if fork is None:
        raise UserError(f"{path} is no fork: only what `snapfs fork` made is discarded")
    volume.lock("discarding it")
    try:
        disk.rename("discard:begin", path, f"{path}{DISCARDED_SUFFIX}")
        disk.sync_dir("discard:begin", os.path.dirname(path))
        disk.remove_tree("discard:remove", f"{path}{DISCARDED_SUFFIX}")
        _remove_mountpoint(fork)
    finally:
        volume.unlock()


def _remove_mountpoint(fork: ForkFile) -> None:
    if fork.made_mountpoint:
        with contextlib.suppress(OSError):  # something is in it, or mounted there
            os.rmdir(fork.mountpoint)


def _discarded_beside(path: str) -> list[str]:
    if not os.path.dirname(path).endswith(FOLDER_SUFFIX):
        return []
    return [left for left in leftovers_in(os.path.dirname(path)) if left.endswith(DISCARDED_SUFFIX)]


def leftovers_in(folder: str) -> list[str]:
    """What interrupted forks and discards left in a folder of forks."""
    return leftovers_beside(folder.removesuffix(FOLDER_SUFFIX))
