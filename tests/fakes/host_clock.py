"""The clock that the kernel stamps files with, which goes on once a tick."""

from __future__ import annotations

import time

from tests.fakes.patience import eventually

_CLOCK_REALTIME_COARSE = 5  # of <linux/time.h>


def wait_for_the_hosts_clock() -> None:
    """Return when the kernel stamps files later than all before.

    A file whose time somebody looked at gets a fine stamp (multigrain timestamps, Linux 6.13), and from then on no
    stamp is earlier than that: the clock has to pass the time of now, on a loaded host more than one tick away.
    """
    before_ns = time.time_ns()
    eventually(lambda: time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) > before_ns, "a tick")
