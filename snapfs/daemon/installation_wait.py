"""The wait for an installation of which a daemon can be started, after a supervisor slept.

A supervisor that has slept is the snapfs that is installed when it wakes up, and so are its daemons. After a `git pull`
without a build, or in the middle of an installation, none can begin. The applications would rather wait for the end of
that than have errors for good: so it is tried again for PATIENCE_SECONDS, each time by a fresh program, since this one
may be of the installation as it was. A signal, or the end of the mount, ends the wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from snapfs.daemon import mount_end
from snapfs.daemon.daemon_deaths import DaemonDeaths
from snapfs.daemon.supervision.fuse_connection import is_alive
from snapfs.daemon.supervision.mount_record import MountRecord

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 600.0
RETRY_SECONDS: Final = 2.0


def wait(record: MountRecord, deaths: DaemonDeaths, why: str, pause: Callable[[float], object]) -> bool:
    """Wait before the next try, which a fresh program is to make; False if there is to be none. Exits if the mount is
    gone. `why` no daemon can begin; `pause` waits for so many seconds, or until something happens."""
    waited_s = time.monotonic() - deaths.alone_since_s
    if waited_s > PATIENCE_SECONDS:
        return False
    record.not_started()
    words = f"no daemon can be started, and it tries again for {PATIENCE_SECONDS - waited_s:.0f} s: {why}"
    log.error("%s", words)
    record.write_status("restarting", None, deaths.gap_s, words)
    until_s = time.monotonic() + RETRY_SECONDS
    while (rest_s := until_s - time.monotonic()) > 0:
        pause(rest_s)
    if not is_alive(record.device):
        mount_end.end(record, 0)
    return True
