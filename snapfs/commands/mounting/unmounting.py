"""Unmounting, and the wait for the daemon's end.

Invariant: when `unmount_and_wait` returns without `lazy`, the daemon has ended and the volume is free. A volume that is
mounted in more places ends with the last of them; the wait is bounded then, and the error names the places.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator

from snapfs.base import systemd
from snapfs.base.errors import BusyError, SnapfsError, UserError
from snapfs.base.mountinfo import MountLine, mount_at, resolved
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.support import output
from snapfs.commands.support.bounded_look import look
from snapfs.commands.support.locate import VolumeLocation, daemon_pid, holder_pid, mount_entries
from snapfs.commands.support.other_mounts import copies, named
from snapfs.daemon.supervision.supervisor_status import read_status
from snapfs.fuse.kernel import fuse_mount

_LEAVE_PATIENCE_S = 60.0
_ELSEWHERE_PATIENCE_S = 10.0
_LOOK_S = 3.0


class StaysElsewhereError(BusyError):
    """It is unmounted here, and its daemon goes on."""


def end_elsewhere(volume: str, lazy: bool, wait_s: float | None) -> None:
    """End the daemon of a volume that is not mounted where we can see it. UserError, BusyError."""
    holder = lock_holder(volume) if Volume.exists(volume) else None
    if holder is None or ", mounted at " not in holder:
        raise UserError(f"{volume} is not mounted: `snapfs volumes` shows what is")
    pid = daemon_pid(volume)
    if not lazy or pid is None:
        raise BusyError(f"{volume} is in use by {holder}, in another mount namespace: unmount it there, or use --lazy")
    with end_of_process(pid) as ended:
        try:
            os.kill(pid, signal.SIGTERM)
        except PermissionError:
            raise UserError(f"{volume}: only its owner and root may end its daemon: become one of them") from None
        if not ended(_LEAVE_PATIENCE_S if wait_s is None else wait_s):
            raise BusyError(f"{volume} is still in use by {holder}")


def leave_to_next_start(unit: str, mountpoint: str) -> bool:
    """If the unit is being restarted, have the supervisor end without an unmount; whether it did."""
    if not systemd.is_restarting(unit):
        return False
    place = resolved(mountpoint)
    volume = next((entry.volume for entry in reversed(mount_entries()) if entry.mountpoint == place), None)
    facts = None
    with contextlib.suppress(SnapfsError):  # damaged: it is unmounted as any other
        facts = None if volume is None else read_status(volume)
    if facts is None or volume is None or facts["supervisor"] != daemon_pid(volume):
        return False
    with end_of_process(facts["supervisor"]) as ended:
        os.kill(facts["supervisor"], signal.SIGUSR1)
        return ended(_LEAVE_PATIENCE_S)


def unmount_and_wait(mountpoint: str, *, lazy: bool, wait_s: float | None = None) -> None:
    """Unmount, and wait for the daemon's end unless `lazy`. StaysElsewhereError if it does not come in time."""
    mount = mount_at(mountpoint)
    pid = _last_process(mountpoint, mount.source) if mount is not None else None
    with end_of_process(pid) as ended:
        fuse_mount.unmount(mountpoint, lazy=lazy)
        if mount is None:
            return
        if lazy:
            return _detach_copies(mount)
        if not ended(1.0 if wait_s is None else min(1.0, wait_s)):
            _wait_for_end(mountpoint, mount, ended, wait_s)


def _last_process(mountpoint: str, volume: str) -> int | None:
    """The process with which the mount ends; None if it is not known."""
    with contextlib.suppress(OSError):
        return holder_pid(volume)
    with contextlib.suppress(SnapfsError):  # the volume's disk is down, or not ours to read: the daemon may answer
        facts = look(VolumeLocation(volume, mountpoint).status, _LOOK_S)
        pid: int = facts["supervisor"] or facts["pid"]
        return pid
    return None


def _wait_for_end(
    mountpoint: str, mount: MountLine, ended: Callable[[float | None], bool], wait_s: float | None
) -> None:
    """Report what the wait is for. Where the volume stays mounted elsewhere, its length is unknown.

    The mount is gone from here: a signal ends the wait, also where it would have been passed on to a command before.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    found = copies(mount)
    if found:
        output.remark(f"the volume stays mounted at {named(found)}")
    output.remark("waiting for the daemon to end")
    if ended(_ELSEWHERE_PATIENCE_S if wait_s is None and found else wait_s):
        return
    found = copies(mount)
    if found:
        raise StaysElsewhereError(
            f"{mountpoint} is unmounted, but its volume stays mounted at {named(found)}: unmount that, or use "
            "--lazy with the folder of the volume"
        )
    if wait_s is None:
        ended(None)
        return
    raise StaysElsewhereError(f"{mountpoint} is unmounted, but its daemon has not ended within {wait_s:g} s")


def _detach_copies(mount: MountLine) -> None:
    """Unmount what else shows the filesystem in our mount namespace; report where it stays."""
    for copy in reversed(copies(mount)):
        if copy.process is None:
            with contextlib.suppress(SnapfsError):
                fuse_mount.unmount(copy.mountpoint, lazy=True)
    if found := copies(mount):
        output.remark(f"the volume stays mounted at {named(found)}")


@contextlib.contextmanager
def end_of_process(pid: int | None) -> Iterator[Callable[[float | None], bool]]:
    """A function that waits for the end of the process (seconds; None: as long as it takes); whether it has come."""
    try:
        fd = os.pidfd_open(pid) if pid is not None and pid != os.getpid() else -1
    except OSError:
        fd = -1
    if fd < 0:
        yield lambda _seconds: True
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        yield lambda seconds: bool(poll.poll(None if seconds is None else seconds * 1000))
    finally:
        os.close(fd)
