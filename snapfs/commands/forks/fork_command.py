"""The command `fork`: a writable copy of a live mount, begun at once."""

from __future__ import annotations

import click

from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.output import json_option


@click.command("fork", short_help="Make a writable fork of a live mount, and mount it.")
@click.argument("place", metavar="MNT", shell_complete=folders)
@click.argument("mountpoint", metavar="NEW-MNT", shell_complete=folders)
@click.option("--at", metavar="SNAPSHOT", help="Of this snapshot, by number or name, instead of what is there now.")
@click.option(
    "--volume", type=click.Path(), metavar="FOLDER",
    help="Where the fork's volume goes. Default: VOLUME.forks/NAME beside the volume of MNT, NAME after NEW-MNT. "
    "Elsewhere than on the filesystem of that volume the stored history is copied.",
)  # fmt: skip
@click.option("options", "-o", "--options", multiple=True, help="Mount options and settings, as of mount: allow_other")
@json_option
def fork(
    place: str, mountpoint: str, at: str | None, volume: str | None, options: tuple[str, ...], as_json: bool
) -> None:
    """Make a writable fork of what is at MNT now, and mount it at NEW-MNT, which is made if it does not exist.

    The fork begins with a snapshot of MNT, in a time that does not depend on the size of the state, and takes space
    for what is written to it. It is a volume of its own, with no targets, no hooks and no rules for snapshots: the
    application at MNT goes on, and either may be changed, forked again or removed. `snapfs umount --discard NEW-MNT`
    removes it.
    """
    from snapfs.commands.forks.fork_making import make_fork

    made = make_fork(place, mountpoint, at=at, volume=volume, options=options)
    for line in made.recovered:
        output.remark(f"recovered: {line}")
    if as_json:
        return output.emit_json(made)
    copied = f", {made.copied} segments copied: it is on another filesystem" if made.copied else ""
    took = output.seconds(made.snapshot_s + made.volume_s + made.mount_s)
    click.echo(f"forked snapshot {made.snapshot} to {made.mountpoint} (volume {made.volume}) in {took}{copied}")
    return None


COMMANDS = (fork,)
