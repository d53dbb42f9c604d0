"""What a supervisor keeps of its mount: in memory, with the service manager, and in the status file."""

from __future__ import annotations

import os
import time

from snapfs.base.blocks import Disk
from snapfs.daemon.supervision.daemon_handle import Held
from snapfs.daemon.supervision.descriptor_store import DescriptorStore
from snapfs.daemon.supervision.supervisor_state import STATE, HeldMount
from snapfs.daemon.supervision.supervisor_status import remove_status, write_status
from snapfs.transfer.seal.seal_attempts import memory_limit_bytes


class MountRecord:
    """`held`: the mount, None until a daemon handed it over. `daemons`: how many were started; `status_path`: of the
    status file."""

    def __init__(self, mountpoint: str, status_path: str, lock: int, mount: HeldMount | None, state_fd: int) -> None:
        """`lock`: the descriptor of the volume's lock; `mount`, `state_fd`: of a mount that is there already."""
        self.mountpoint, self.lock = mountpoint, lock
        self.held: Held | None = mount.held if mount is not None else None
        self.daemons = mount.daemons if mount is not None else 0
        self._restarts = mount.restarts if mount is not None else 0
        self._upgrades = mount.upgrades if mount is not None else 0
        self.status_path, self._disk = status_path, Disk()
        self._store = DescriptorStore(state_fd)

    @property
    def device(self) -> int:
        """The descriptor of /dev/fuse, -1 if there is none yet."""
        return self.held.device if self.held is not None else -1

    @property
    def state_fd(self) -> int:
        """The descriptor of what the service manager keeps, -1 if it keeps nothing."""
        return self._store.state_fd

    def hold(self, held: Held) -> None:
        """A daemon has handed the mount over."""
        self.held = held
        self._keep()

    def started(self) -> None:
        """One daemon more was started."""
        self.daemons += 1
        self._keep()

    def not_started(self) -> None:
        """The last one could not even begin."""
        self.daemons -= 1
        self._keep()

    def restarted(self) -> None:
        """The next daemon follows one that died."""
        self._restarts += 1

    def upgraded(self) -> None:
        """The next daemon follows one that left."""
        self._upgrades += 1

    def state(self, held: Held) -> HeldMount:
        """What the next supervisor needs."""
        return HeldMount(self.mountpoint, held, self.daemons, self._restarts, self._upgrades)

    def _keep(self) -> None:
        if self.held is not None:
            self._store.keep(self.state(self.held), self.lock)

    def forget(self) -> None:
        """The mount is gone, or given up: the service manager keeps nothing of it."""
        self._store.forget()

    def write_status(self, state: str, daemon: int | None, gap_s: float | None, words: str = "") -> None:
        """`daemon`: its process; `gap_s`: how long no daemon answered, the last time."""
        facts = {
            "state": state, "supervisor": os.getpid(), "daemon": daemon, "mountpoint": self.mountpoint,
            "lives": self.daemons, "restarts": self._restarts, "upgrades": self._upgrades, "gap_s": gap_s,
            "words": words, "time_ns": time.time_ns(), "memory_limit_bytes": memory_limit_bytes(),
            "state_format": STATE.version,
        }  # fmt: skip
        write_status(self.status_path, facts, self._disk)

    def remove_status(self) -> None:
        remove_status(self.status_path, self._disk)
