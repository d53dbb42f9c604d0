"""The end of a mount as its supervisor sees it: the daemon was the last one, or no other is worth a try.

Invariant: what is written is written before anybody who waits for the mount is released.
"""

from __future__ import annotations

import logging
import signal
import sys
from typing import Final, NoReturn

from snapfs.base import systemd
from snapfs.base.errors import EXIT_DAEMON_DIED
from snapfs.daemon.daemon_deaths import DaemonDeaths
from snapfs.daemon.supervision.child_process import reap
from snapfs.daemon.supervision.daemon_handle import ENDED
from snapfs.daemon.supervision.fuse_connection import abort
from snapfs.daemon.supervision.mount_record import MountRecord
from snapfs.daemon.supervision.restart_policy import given_up
from snapfs.daemon.supervision.running_daemon import RunningDaemon
from snapfs.transfer.seal.seal_attempts import memory_limit_bytes, memory_words

log = logging.getLogger(__name__)


END_SECONDS: Final = 60.0
"""What a daemon that has no successor gets to be gone, and to report how it ended."""
_REAP_SECONDS: Final = 0.05


def exit_code(record: MountRecord, daemon: RunningDaemon) -> int | None:
    """Of a daemon that died, negative for a signal; None if its process is not gone yet. Exits with it if the mount is
    gone, or never was."""
    is_the_end = ENDED in daemon.reported or record.held is None
    code = reap(daemon.pid, END_SECONDS if is_the_end else _REAP_SECONDS)
    if is_the_end:
        code = -signal.SIGKILL if code is None else code
        end(record, 128 - code if code < 0 else code)
    return code


def end(record: MountRecord, code: int) -> NoReturn:
    """The mount is gone, or never was: exit with the code of its daemon."""
    record.forget()
    record.remove_status()
    sys.exit(code)


def give_up(record: MountRecord, deaths: DaemonDeaths) -> NoReturn:
    """Let the mount fail rather than hang."""
    memory = memory_words(memory_limit_bytes()) if deaths.known[-1].killed else ""
    words = given_up(record.mountpoint, deaths.known, memory)
    log.critical("%s", words)
    systemd.notify(f"STATUS={words}")
    record.forget()
    record.write_status("failed", None, deaths.gap_s, words)  # first: the abort releases those that wait
    abort(record.mountpoint, record.device)
    sys.exit(EXIT_DAEMON_DIED)
