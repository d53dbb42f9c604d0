"""How a supervisor begins: with a new mount, or as the one that goes on with a mount that is there."""

from __future__ import annotations

import os
from collections.abc import Callable

from snapfs.daemon.supervision import descriptor_store, supervisor_upgrade
from snapfs.daemon.supervision.asleep import CommandLine
from snapfs.daemon.supervision.mount_record import MountRecord
from snapfs.daemon.supervisor import Supervisor


def first(
    mountpoint: str, status_path: str, lock: int, *, after_start: Callable[[], None], after_ready: Callable[[], None]
) -> Supervisor:
    """The supervisor of a mount that its first daemon makes. `lock`: the descriptor of the volume's lock."""
    record = MountRecord(mountpoint, status_path, lock, None, -1)
    return Supervisor(record, after_start=after_start, after_ready=after_ready)


def resumed(status_path: str) -> Supervisor | None:
    """The supervisor that this process was before an upgrade, None if it was none. Raises as STATE."""
    found = supervisor_upgrade.resume()
    if found is None:
        return None
    record = MountRecord(found.mount.mountpoint, status_path, found.lock, found.mount, found.state_fd)
    if found.processes.daemon is None:  # it had died before: what follows is of the new program
        record.upgraded()
    return Supervisor(record, found.processes)


def woken(command: CommandLine, woken_s: float) -> Supervisor:
    """The supervisor that this process was before it slept (asleep.py). Raises as STATE."""
    found = supervisor_upgrade.resume()
    assert found is not None
    daemon = found.processes.daemon
    record = MountRecord(
        found.mount.mountpoint, found.processes.status_path, found.lock, found.mount, found.state_fd
    )  # fmt: skip
    woken_s = woken_s if daemon is None or daemon.is_dead else 0.0
    return Supervisor(record, found.processes, command=command, woken_s=woken_s)


def kept(mountpoint: str, status_path: str) -> Supervisor | None:
    """The supervisor of a mount that the service manager kept alive; None if it kept none, or it has ended.

    Raises as `descriptor_store.kept`.
    """
    found = descriptor_store.kept(mountpoint)
    if found is None:
        return None
    return Supervisor(MountRecord(mountpoint, status_path, found.lock, found.mount.restarted(), found.state_fd))


def goes_on() -> bool:
    """Whether this process is to go on with a mount that is there, and not to make one."""
    return supervisor_upgrade.RESUME_VARIABLE in os.environ or os.environ.get("LISTEN_PID") == str(os.getpid())
