"""How the daemons of a mount ended, and for how long none answered, as their supervisor remembers it."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Final

from snapfs.daemon.supervision import restart_policy
from snapfs.daemon.supervision.daemon_handle import PROGRESS
from snapfs.daemon.supervision.restart_policy import Death, how_it_ended
from snapfs.daemon.supervision.running_daemon import RunningDaemon

_DEATHS_KEPT: Final = 1000


class DaemonDeaths:
    """`known`: the deaths, the oldest first. `gap_s`: for how long no daemon answered, the last time."""

    def __init__(self, known: Sequence[Death], gap_s: float | None, woken_s: float, *, alone: bool) -> None:
        """`known`, `gap_s`: of an earlier program. `woken_s`: when one woke up for a death, monotonic, or 0. `alone`:
        whether it had noted that death already."""
        self.known, self.gap_s = list(known), gap_s
        self._woken_s = woken_s
        self.alone_since_s = woken_s if alone else 0.0
        """Since when no daemon answers, monotonic; 0: not known, or one does."""

    def begin_gap(self, daemon: RunningDaemon) -> None:
        """This daemon does not answer any more; if it never did, the gap began before."""
        if daemon.ready_s:
            self.alone_since_s = self._woken_s or time.monotonic()
        self._woken_s = 0.0

    def end_gap(self, ready_s: float) -> None:
        """A daemon answers, since then."""
        self.gap_s = ready_s - self.alone_since_s if self.alone_since_s else None

    def note(self, daemon: RunningDaemon, code: int) -> Death:
        """It has died with this exit code, negative for a signal."""
        now_s = time.monotonic()
        lived_s = now_s - daemon.ready_s if daemon.ready_s else 0.0
        death = Death(now_s, lived_s, code == -signal.SIGKILL, PROGRESS in daemon.reported, how_it_ended(code))
        self.known = [*self.known, death][-_DEATHS_KEPT:]
        return death

    def delay_s(self) -> float | None:
        """As `restart_policy.delay_s`, after the last of them."""
        return restart_policy.delay_s(self.known)
