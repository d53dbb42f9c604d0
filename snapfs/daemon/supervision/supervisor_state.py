"""What one supervisor hands to the next: over an `exec` when it is upgraded, or kept by the service manager.

Invariant: the encoded keys are older than the names here (`lives`: the daemons started; `undead`: predecessors that
were killed and are not gone; `kept`: the descriptor of this state), and stay. `STATE.version` grows when an older
program could not go on with what is handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, Final

from snapfs.base.json_file import JsonFile
from snapfs.daemon.supervision.daemon_handle import Held
from snapfs.daemon.supervision.restart_policy import Death
from snapfs.daemon.supervision.running_daemon import RunningDaemon

_REQUIRED: Final = ("mountpoint", "init", "flags", "lives", "restarts", "upgrades")
STATE: Final = JsonFile("supervisor state", dict[str, Any], check=lambda state: [state[name] for name in _REQUIRED])


@dataclass(frozen=True, slots=True)
class HeldMount:
    """What outlives a daemon: the mount, and how many daemons were started, restarted and upgraded on it."""

    mountpoint: str
    held: Held
    daemons: int = 0
    restarts: int = 0
    upgrades: int = 0

    def restarted(self) -> HeldMount:
        """After one restart more."""
        return replace(self, restarts=self.restarts + 1)

    def facts(self) -> dict[str, Any]:
        """With the encoded keys."""
        return {
            "mountpoint": self.mountpoint, "init": self.held.init.hex(), "flags": self.held.flags,
            "lives": self.daemons, "restarts": self.restarts, "upgrades": self.upgrades,
        }  # fmt: skip

    @staticmethod
    def of(facts: dict[str, Any], device: int) -> HeldMount:
        """From facts that STATE has checked. `device`: the descriptor of /dev/fuse in this process."""
        held = Held(device, bytes.fromhex(facts["init"]), facts["flags"])
        return HeldMount(facts["mountpoint"], held, facts["lives"], facts["restarts"], facts["upgrades"])


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What outlives a program besides: the daemon that serves, other children, a signal to be passed on, what is known
    of earlier daemons. `asleep`: it goes on after a sleep (asleep.py), else to replace the daemon."""

    daemon: RunningDaemon | None = None
    predecessors: Sequence[int] = ()
    children: Sequence[int] = ()
    passed_on: int = 0
    deaths: Sequence[Death] = ()
    gap_s: float | None = None
    asleep: bool = False
    status_path: str = ""

    def facts(self) -> dict[str, Any]:
        """With the encoded keys."""
        daemon = self.daemon
        return {
            "passed_on": self.passed_on, "undead": list(self.predecessors), "children": list(self.children),
            "daemon": None if daemon is None else [
                daemon.pid, daemon.channel.fileno(), sorted(daemon.reported), daemon.canary,
            ],
            "pidfd": -1 if daemon is None else daemon.pidfd, "ready_s": 0.0 if daemon is None else daemon.ready_s,
            "status": self.status_path,
            "deaths": [list(astuple(death)) for death in self.deaths], "gap_s": self.gap_s, "asleep": self.asleep,
        }  # fmt: skip
