"""A supervisor that has slept goes on (daemon/supervision/asleep.py).

It imports no more than a supervisor needs, for most that wakes one up takes no daemon: the end of the mount, or an
upgrade. Where another daemon is needed, that one imports the rest after the fork, and goes on in the command `mount`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from snapfs.base.blocks import Disk
from snapfs.base.errors import VersionError
from snapfs.base.logs import log_output
from snapfs.base.mountinfo import mount_at
from snapfs.base.volumes.volume_files import SUPERVISOR_FILE
from snapfs.commands.mounting.daemon_arguments import DaemonArguments
from snapfs.daemon.installation_wait import PATIENCE_SECONDS, RETRY_SECONDS
from snapfs.daemon.supervision.asleep import CommandLine
from snapfs.daemon.supervision.daemon_handle import UNFIT
from snapfs.daemon.supervision.supervisor_status import remove_status
from snapfs.daemon.supervisor_origin import woken

log = logging.getLogger(__name__)


def main(woken_s: float, arguments: int, words: Sequence[str]) -> NoReturn:
    """Go on. `woken_s`: since when, monotonic; `words`: those of the interpreter that the command was run with, the
    last `arguments` of which are those of the command."""
    command = CommandLine(words, arguments)
    own = words[len(words) - arguments :]
    usual = DaemonArguments.parse(own)
    log_output.set_up_mount("" if usual is None else usual.volume)
    try:
        supervisor = woken(command, woken_s)
    except VersionError as failure:
        _wait_for_another_version(failure, usual, woken_s)
    handle = supervisor.run()

    try:
        if usual is not None:
            from snapfs.commands.mounting import daemon_process
        else:
            from snapfs.base import commandline
            from snapfs.commands.cli import cli
    except (ImportError, SyntaxError) as failure:
        handle.report(f"{UNFIT} {failure}")
        raise
    if usual is not None:
        sys.exit(daemon_process.run(usual, (supervisor, handle)))
    sys.exit(commandline.run(cli, "snapfs", own, (supervisor, handle)))


def _wait_for_another_version(failure: VersionError, usual: DaemonArguments | None, woken_s: float) -> NoReturn:
    """The supervisor that slept was of a later snapfs, and this one cannot read what it held: the right one may be
    installed again, as in installation_wait.py. Ends with the mount. Raises the failure when it has lasted too long."""
    if usual is not None and mount_at(usual.mountpoint) is None:
        remove_status(os.path.join(usual.volume, SUPERVISOR_FILE), Disk())
        sys.exit(0)
    if time.monotonic() - woken_s > PATIENCE_SECONDS:
        raise failure
    log.error("the supervisor cannot go on, and tries again: %s", failure)
    time.sleep(RETRY_SECONDS)
    os.execv(sys.executable, sys.orig_argv)
