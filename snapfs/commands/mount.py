"""The command `mount`: a volume is shown at a mountpoint, in the background, in the foreground or under a command.

The daemon is started as a process of its own, which reports through a pipe that the mount answers, or in one line of
JSON why it does not; only then does the command return. The daemon's log goes to VOLUME/daemon.log. Its process is
started first of all, because it takes longest: it imports what it needs while the volume is taken over or checked, and
touches nothing before it is released.

Invariants:
1. `mount` succeeds only when the mount answers. When it fails, nothing is mounted and no daemon is left.
2. With a command under the mount, the mount outlives neither the command nor us, whatever signal comes.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from snapfs.base.errors import EXIT_CORRUPT, UserError
from snapfs.base.mountinfo import resolved
from snapfs.base.volumes.volume_files import STANDBY_FILE
from snapfs.commands.mounting.daemon_start import DaemonStart
from snapfs.commands.mounting.log_option import log_format_option
from snapfs.commands.mounting.mount_options import parse_options
from snapfs.commands.mounting.mount_preparation import check_extensions, claim_again, prepare, take_over_volume
from snapfs.commands.support import create_volume, output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.create_volume import NewVolume
from snapfs.commands.support.run_in_child import run_in_child
from snapfs.commands.support.store_options import store_option
from snapfs.live.recovery.stray_files import DAMAGED

if TYPE_CHECKING:
    from snapfs.store.gates.gates import Requirement


@click.command("mount", short_help="Mount a volume; create it on first use.")
@click.argument("volume", shell_complete=folders)
@click.argument("mountpoint", shell_complete=folders)
@click.argument("command", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "options", "-o", "--options", multiple=True, help="Mount options and settings: allow_other,snapshots.every=10s"
)
@click.option("--foreground", "-f", is_flag=True, help="Do not go to the background; log to stderr.")
@log_format_option
@click.option(
    "sources",
    "--from",
    multiple=True,
    metavar="PLACE",
    help="Begin VOLUME with the newest snapshot of a mirror (https://MIRROR:8700/NAME), of an object store "
    "(s3://BUCKET/PREFIX) or of another volume's folder.",
)
@click.option("--token-file", type=click.Path(dir_okay=False), help="Of --from: holds the mirror's token.")
@store_option
@click.option("--ca", type=click.Path(dir_okay=False), help="Of --from: certificates to trust, not the system's.")
@click.option("--certificate", type=click.Path(dir_okay=False), help="Of --from: our own, if the mirror requires one.")
@click.option("--certificate-key", type=click.Path(dir_okay=False), help="The key of that. Default: in the same file.")
@click.option("--key-file", type=click.Path(dir_okay=False), help="Of --from: the key of an encrypted volume.")
@click.option("--key-command", metavar="COMMAND", help="Of --from: what prints that key.")
@click.option("--at", metavar="SNAPSHOT", help="With --from: show this snapshot, read-only; no writer is fenced off.")
@click.option("--writable", is_flag=True, help="With --at: begin a new, writable volume of its own with it.")
@click.option(
    "--require",
    type=click.Choice(["verified", "drilled"]),
    help="With --from: take the newest snapshot that has passed this, and say what is newer.",
)
@click.option("--refuse-changes", is_flag=True, hidden=True)
@click.option("--force", is_flag=True, help="With --from: also where the last writer cannot be fenced off.")
@click.option("--take-over", is_flag=True, help="Be the writer of VOLUME, though another host is: fence that one off.")
@click.option("--existing", is_flag=True, help="Refuse to create VOLUME: for units, fstab and scripts.")
@click.option("--ready-fd", type=int, default=-1, hidden=True)
@click.option("--go-fd", type=int, default=-1, hidden=True)
def mount(
    volume: str,
    mountpoint: str,
    command: tuple[str, ...],
    options: tuple[str, ...],
    foreground: bool,
    log_format: str,
    sources: tuple[str, ...],
    token_file: str | None,
    store_options: dict[str, str],
    ca: str | None,
    certificate: str | None,
    certificate_key: str | None,
    key_file: str | None,
    key_command: str | None,
    at: str | None,
    writable: bool,
    require: Requirement | None,
    refuse_changes: bool,
    force: bool,
    take_over: bool,
    existing: bool,
    ready_fd: int,
    go_fd: int,
) -> None:
    """Mount VOLUME at MOUNTPOINT. A volume that does not exist is created, unless --existing.

    With --from it is mounted and writable at once, and fetches what it does not have when it is requested, and the rest
    behind. Several places are tried in turn; what is on this host is never fetched from another. With --at as well, any
    snapshot is mounted, read-only, and only what is read is fetched; the volume that is made of it is one of its own.

    Returns when the mount answers; with exit code 5 if what was answered before is lost: the mount shows an earlier
    moment then, and a CMD is not run. With a CMD, runs it with the mount in place, unmounts when it ends, and exits
    with its exit code (128 + n if signal n ended it).
    """
    if log_format != "auto":
        options = (*options, f"log_format={log_format}")
    wanted = parse_options(options)
    if foreground and command:
        raise click.UsageError("--foreground and a command exclude each other.")
    files = {"token_file": token_file, "ca": ca, "certificate": certificate, "key": certificate_key}
    files = {name: path and os.path.abspath(path) for name, path in (files | {"key_file": key_file}).items()}
    access: dict[str, Any] = {**files, "key_command": key_command, "options": store_options}
    named = [each if "://" in each else os.path.abspath(each) for each in sources]

    is_standby = os.path.exists(os.path.join(volume, STANDBY_FILE))
    given: dict[str, object] = {**access, "certificate_key": certificate_key, "store_options": store_options}
    given |= {"force": force, "at": at, "writable": writable, "require": require}
    create_volume.check_partners(given, sources=bool(sources), standby=is_standby)
    refuse_changes = refuse_changes or "ro" in wanted.restrictions or (at is not None and not writable)
    if "ro" in wanted.restrictions and at is None and (sources or is_standby or take_over):
        raise UserError("ro: a takeover writes the volume: name a snapshot with --at, or leave ro out")
    if go_fd < 0:
        for remark in wanted.remarks:
            output.remark(remark)
    only_read = "ro" in wanted.restrictions and at is None
    must_exist = existing or only_read if wanted.create is None else not wanted.create
    because = "-o ro" if only_read and not existing and wanted.create is None else "--existing"
    new = NewVolume(volume, existing=go_fd >= 0 or must_exist, because=because)
    begins = bool(sources) or is_standby

    def before() -> None:
        check_extensions(volume, wanted)
        if begins:
            new.check()
            take_over_volume(volume, mountpoint, wanted, named, access, force, at, refuse_changes, require)
        if take_over:
            claim_again(volume)

    if foreground:
        from snapfs.commands.mounting.serve_mount import serve, serve_again
        from snapfs.daemon.supervisor_origin import goes_on

        if woken := click.get_current_context().obj:  # a daemon whose supervisor has slept (wake.py)
            supervisor, handle = woken
            return serve_again(volume, mountpoint, wanted, supervisor, handle, refuse_changes)
        if (begins or take_over) and go_fd < 0 and not goes_on():
            run_in_child(before)  # from here on we fork
        with new:
            return serve(new, mountpoint, wanted, ready_fd, go_fd, refuse_changes)
    with new, DaemonStart(os.path.realpath(volume), resolved(mountpoint), options, refuse_changes) as starting:
        before()
        prepare(new, mountpoint, wanted)
        recovered = starting.go()
        new.stays()
    return _end(mountpoint, command, recovered)


def _end(mountpoint: str, command: tuple[str, ...], recovered: list[str]) -> None:
    """The mount answers: report what was recovered, and run the command under it."""
    for line in recovered:
        output.remark(f"recovered: {line}")
    if any(line.startswith(DAMAGED) for line in recovered):
        if command:
            from snapfs.commands.mounting.command_under_mount import unmount_when_idle

            unmount_when_idle(mountpoint)
            output.remark(f"{mountpoint} is not mounted, and {command[0]} was not run: look first at what was lost")
        sys.exit(EXIT_CORRUPT)
    if command:
        from snapfs.commands.mounting.command_under_mount import run_under_mount

        sys.exit(run_under_mount(mountpoint, command))


COMMANDS = (mount,)
