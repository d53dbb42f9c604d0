"""A thread that runs before all that computes, for as long as applications wait for it.

The lowest real-time priority, as the threads of the router have it (fuse/native/threads.c); where that is not allowed
(root may, others by `ulimit -r`) nothing changes. Threads and processes that it begins meanwhile are usual ones.
"""

from __future__ import annotations

import contextlib
import os


def run_first() -> None:
    """This thread, until `run_as_usual`."""
    lowest = os.sched_param(os.sched_get_priority_min(os.SCHED_RR))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, lowest)


def run_as_usual() -> None:
    """This thread. Harmless if it did not run first."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
