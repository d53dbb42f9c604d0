"""The process of a mount in the background (daemon_arguments.py says why it is no command like the others)."""

from __future__ import annotations

import sys

from snapfs.commands.mounting.daemon_arguments import DaemonArguments
from snapfs.commands.mounting.mount_options import parse_options
from snapfs.commands.mounting.serve_mount import serve, serve_again
from snapfs.commands.support.create_volume import NewVolume
from snapfs.daemon.supervision.daemon_handle import DaemonHandle
from snapfs.daemon.supervisor import Supervisor


def run(arguments: DaemonArguments, woken: tuple[Supervisor, DaemonHandle] | None = None) -> int:
    """Be the process, until the mount is gone; its exit code. `woken`: a daemon's begin after its supervisor slept."""
    try:
        wanted = parse_options(arguments.options)
        refuse_changes = arguments.refuse_changes or "ro" in wanted.restrictions
        if woken is not None:
            serve_again(arguments.volume, arguments.mountpoint, wanted, *woken, refuse_changes)
            return 0
        with NewVolume(arguments.volume, existing=True) as new:
            serve(
                new, arguments.mountpoint, wanted, arguments.ready_fd, arguments.go_fd, refuse_changes,
                arguments.first_at,
            )  # fmt: skip
    except (Exception, KeyboardInterrupt) as error:
        from snapfs.base import commandline

        return commandline.exit_code_of(error, "snapfs")
    return 0


def main(arguments: DaemonArguments) -> None:
    """As the program, with the standard streams that the parent gave it."""
    sys.exit(run(arguments))
