"""The command `upgrade`: another daemon, of the snapfs that is installed now, takes over a living mount."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import click

import snapfs
from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, SnapfsError, UserError
from snapfs.base.mountinfo import resolved
from snapfs.base.volumes.volume import Volume
from snapfs.commands.mounting.mount_options import RequestedOptions
from snapfs.commands.mounting.mount_preparation import check_extensions
from snapfs.commands.mounting.unmounting import end_of_process
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import daemon_pid, mount_entries
from snapfs.daemon.supervision.supervisor_state import STATE
from snapfs.daemon.supervision.supervisor_status import read_status
from snapfs.daemon.supervision.supervisor_upgrade import NOT_UPGRADED, why_not_read

_UPGRADE_POLL_S = 0.01
PATIENCE_S = 75.0
"""The longest wait for the supervisor's next step: each has its own limit below that (supervisor.py, succession.py)."""


@click.command("upgrade", short_help="Let the installed snapfs take over a mount.")
@click.argument("mountpoint", shell_complete=folders)
@output.json_option
def upgrade(mountpoint: str, as_json: bool) -> None:
    """Swap the daemon of MOUNTPOINT for one of the snapfs that is installed now, while the mount stays in use.

    Applications see no error; their requests wait meanwhile. Returns when the new daemon answers.
    """
    place = resolved(mountpoint)
    volume = next((entry.volume for entry in reversed(mount_entries()) if entry.mountpoint == place), None)
    if volume is None:
        raise UserError(f"{mountpoint} is not a snapfs mount: `snapfs volumes` shows those there are")
    before = read_status(volume)
    if before is None or before["supervisor"] != daemon_pid(volume):
        raise UserError(f"{mountpoint} has no supervisor that could swap its daemon: unmount it and mount it again")
    _check_installed(volume, before)
    try:
        os.kill(before["supervisor"], signal.SIGUSR2)
    except PermissionError:
        raise UserError(f"{mountpoint}: only its owner and root may upgrade it: become one of them") from None
    after = _wait_for_upgrade(volume, before)
    if as_json:
        return output.emit_json({key: after[key] for key in ("supervisor", "daemon", "upgrades", "gap_s")})
    return click.echo(
        f"process {after['daemon']} (snapfs {snapfs.__version__}) took over from process {before['daemon']}: "
        f"the mount was unanswered for {output.seconds(after['gap_s'])}"
    )


def _check_installed(volume: str, status: dict[str, Any]) -> None:
    """What cannot even be started, or cannot read the volume's settings or what the supervisor hands over, must not
    take over. UserError. A supervisor tries that too, but not one that sleeps: it wakes up as what is installed."""
    if why := why_not_read(STATE.version, status.get("state_format", 1)):
        raise UserError(f"{volume}: {NOT_UPGRADED}: {why}")
    check_extensions(volume, RequestedOptions())
    try:
        import snapfs.daemon.daemon  # noqa: F401
    except Exception as failure:
        raise UserError(
            f"the installed snapfs cannot be started, nothing was changed: {failure!r}: install it again"
        ) from None
    Volume.open(volume, Disk())


def _wait_for_upgrade(volume: str, before: dict[str, Any]) -> dict[str, Any]:
    """The status of the supervisor when the new daemon answers. SnapfsError if it is gone or gives up, BusyError if it
    gets no further."""
    last, step_s = before, time.monotonic()
    with end_of_process(before["supervisor"]) as ended:
        while not ended(_UPGRADE_POLL_S):
            facts = read_status(volume) or last
            if facts != last:
                last, step_s = facts, time.monotonic()
            if facts["upgrades"] > before["upgrades"] and facts["state"] == "serving":
                return facts
            if facts != before and facts["words"].startswith(NOT_UPGRADED):
                raise UserError(f"{volume}: {facts['words']}")
            if time.monotonic() - step_s > PATIENCE_S:
                raise BusyError(f"{volume}: not upgraded yet, nothing has happened for {PATIENCE_S:g} s: {_at(facts)}")
    raise SnapfsError(f"the upgrade failed: see {volume}/daemon.log")


def _at(facts: dict[str, Any]) -> str:
    """What is waited for, and who serves meanwhile."""
    if facts["state"] != "serving":
        return f"process {facts['daemon']} is {facts['state']}, and applications wait for it; see daemon.log"
    words = facts["words"] or f"the supervisor, process {facts['supervisor']}, has not begun"
    return f"{words}; process {facts['daemon']} serves the mount, and the upgrade may still follow"


COMMANDS = (upgrade,)
