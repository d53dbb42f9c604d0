"""The metrics of all mounts of a host as one Prometheus text. The agent serves the same at its endpoint."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path

import click

from snapfs.base.counting.merged_metrics import merged
from snapfs.base.errors import SnapfsError, UserError
from snapfs.base.mountinfo import mount_at
from snapfs.base.volumes.volume_mounts import volume_mounts
from snapfs.commands.support.bounded_look import WAIT_S, BoundedLook, NoAnswerError
from snapfs.commands.support.completion import folders


@click.command("metrics", short_help="Print the metrics of all mounts, for Prometheus.")
@click.argument("mountpoints", metavar="[MOUNTPOINT...]", nargs=-1, shell_complete=folders)
def metrics(mountpoints: tuple[str, ...]) -> None:
    """Print the metrics of the MOUNTPOINTS, or of all snapfs mounts of this host, as one Prometheus text.

    Each series has the labels `volume` and `mountpoint`. `snapfs-replicator agent` serves the same. For the textfile
    collector of node_exporter, by a timer: `snapfs metrics > snapfs.prom.new && mv snapfs.prom.new snapfs.prom`.
    """
    if mountpoints:
        wanted = {os.path.abspath(each): _volume_at(each) for each in mountpoints}
    else:
        wanted = {each.mountpoint: each.volume for each in volume_mounts()}
    looks = {mountpoint: BoundedLook(functools.partial(_text, mountpoint)) for mountpoint in wanted}
    end = time.monotonic() + WAIT_S
    texts: list[tuple[dict[str, str], str]] = []
    for mountpoint, look in looks.items():
        try:
            texts.append(({"volume": wanted[mountpoint], "mountpoint": mountpoint}, look.answer(end)))
        except SnapfsError as error:
            why = "its daemon does not answer" if isinstance(error, NoAnswerError) else str(error)
            if mountpoints:
                raise UserError(f"{mountpoint}: its metrics cannot be read ({why}): is it mounted?") from None
            with contextlib.suppress(OSError):  # a dead mount, or another user's: the others are printed
                click.echo(f"snapfs: {mountpoint}: {why}", err=True)
    click.echo(merged(texts), nl=False)


def _text(mountpoint: str) -> str:
    try:
        return Path(mountpoint, ".snapfs", "metrics").read_text(encoding="utf-8")
    except OSError as error:
        raise SnapfsError(error.strerror) from None


def _volume_at(mountpoint: str) -> str:
    mount = mount_at(mountpoint)
    return mount.source if mount is not None else ""


COMMANDS = (metrics,)
