"""The standby command: follow a mirror, so that this host can take over at once."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import click

from snapfs.base.blocks import Disk
from snapfs.base.logs import log_output
from snapfs.commands.mounting.log_option import log_format_option
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.create_volume import check_partners
from snapfs.commands.support.store_options import store_option

if TYPE_CHECKING:
    from snapfs.store.log.snapshot_records import SnapshotRecord


@click.command("standby", short_help="Follow a mirror; to take over is then a mount.")
@click.argument("volume", shell_complete=folders)
@click.option("sources", "--from", multiple=True, metavar="PLACE", help="Where from, as of `mount`; given once.")
@click.option("--token-file", type=click.Path(dir_okay=False), help="Holds the mirror's token.")
@store_option
@click.option("--ca", type=click.Path(dir_okay=False), help="Certificates to trust, not the system's.")
@click.option("--certificate", type=click.Path(dir_okay=False), help="Our own, if the mirror requires one.")
@click.option("--certificate-key", type=click.Path(dir_okay=False), help="The key of that. Default: in the same file.")
@click.option("--key-file", type=click.Path(dir_okay=False), help="The key of a volume that is encrypted there.")
@click.option("--key-command", metavar="COMMAND", help="What prints that key.")
@log_format_option
@click.option("--once", is_flag=True, help="End when the newest snapshot is here.")
def standby(
    volume: str,
    sources: tuple[str, ...],
    token_file: str | None,
    store_options: dict[str, str],
    ca: str | None,
    certificate: str | None,
    certificate_key: str | None,
    key_file: str | None,
    key_command: str | None,
    log_format: str,
    once: bool,
) -> None:
    """Keep in VOLUME, which does not exist yet, all that a mirror has of the newest snapshots, as they appear, and the
    newest of them as a live tree.

    `snapfs mount VOLUME MOUNTPOINT` on this host ends the standby and takes over, without the network. Runs until then,
    or until it gets SIGTERM.
    """
    if log_output.choose(log_format) == "json":
        log_output.set_up_mount(os.path.abspath(volume), "json")
    from snapfs.transfer.failover.standby_volume import ReceivedSnapshot, Standby
    from snapfs.transfer.sources.source_access import Access

    every: dict[str, object] = {"token_file": token_file, "ca": ca, "certificate": certificate, "key_file": key_file}
    every |= {"certificate_key": certificate_key, "key_command": key_command, "store_options": store_options}
    check_partners(every, sources=bool(sources), standby=True)
    given = token_file, ca, certificate, certificate_key, key_file
    token_file, ca, certificate, certificate_key, key_file = (path and os.path.abspath(path) for path in given)
    access = Access(token_file, ca, certificate, certificate_key, key_file, key_command, store_options)
    places = [each if "://" in each else os.path.abspath(each) for each in sources]

    def show(received: ReceivedSnapshot) -> None:
        record = received.record
        named = f" ({record.name})" if record.name else ""
        sizes = f"{output.size(received.fetched_bytes)} from another host, of {output.size(received.bytes)}"
        output.remark(f"snapshot {record.number}{named}: {sizes}, in {received.seconds:.1f} s")

    def in_place(record: SnapshotRecord) -> None:
        output.remark(f"snapshot {record.number} is in place: to take over is a mount")

    signal.signal(signal.SIGTERM, _end)
    following = Standby(volume, places, access, Disk())
    try:
        following.follow(show, once=once, in_place=in_place)
    finally:
        following.close()


def _end(_number: int, _frame: object) -> None:
    """Every step bears being cut off."""
    raise SystemExit(0)


COMMANDS = (standby,)
