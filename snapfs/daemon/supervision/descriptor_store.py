"""What the service manager keeps for a supervisor: the mount, the lock of the volume, and their state.

The unit's next start goes on with it, also after the supervisor was killed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from snapfs.base import systemd
from snapfs.daemon.supervision.daemon_handle import MESSAGE_BYTES
from snapfs.daemon.supervision.fuse_connection import is_alive
from snapfs.daemon.supervision.supervisor_state import STATE, HeldMount

DEVICE_NAME: Final = "snapfs-device"
LOCK_NAME: Final = "snapfs-lock"
STATE_NAME: Final = "snapfs-state"
_NAMES: Final = (DEVICE_NAME, LOCK_NAME, STATE_NAME)


class DescriptorStore:
    """The service manager's store, as far as it is ours. `state_fd` is -1 until something is kept."""

    def __init__(self, state_fd: int = -1) -> None:
        self.state_fd = state_fd

    def keep(self, mount: HeldMount, lock: int) -> None:
        """Have the service manager keep these, if there is one; later calls only change the state."""
        if "NOTIFY_SOCKET" not in os.environ:
            return
        is_new = self.state_fd < 0
        if is_new:
            self.state_fd = os.memfd_create("snapfs-state", os.MFD_CLOEXEC)
        os.ftruncate(self.state_fd, 0)
        os.pwrite(self.state_fd, STATE.encode(mount.facts()), 0)
        if is_new:
            for name, fd in zip(_NAMES, (mount.held.device, lock, self.state_fd), strict=True):
                systemd.store(name, fd)

    def forget(self) -> None:
        """The mount is gone: let the service manager close what it keeps."""
        for name in _NAMES if self.state_fd >= 0 else ():
            systemd.forget(name)


@dataclass(frozen=True, slots=True)
class Kept:
    """What the service manager kept."""

    mount: HeldMount
    lock: int
    state_fd: int


def kept(mountpoint: str) -> Kept | None:
    """What was kept of the mount there; None if nothing was, or it has ended.

    CorruptionError, VersionError for a state that cannot be understood: it stays with the service manager.
    """
    found = systemd.kept()
    if not set(_NAMES) <= found.keys():
        return None
    data = os.pread(found[STATE_NAME], MESSAGE_BYTES, 0)
    facts = STATE.decode(data, "what the service manager keeps of the supervisor") if data else {}
    if facts.get("mountpoint") != mountpoint or not is_alive(found[DEVICE_NAME]):
        for name, fd in found.items():
            systemd.forget(name)
            os.close(fd)
        return None
    return Kept(HeldMount.of(facts, found[DEVICE_NAME]), found[LOCK_NAME], found[STATE_NAME])
