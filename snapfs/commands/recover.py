"""Going back: to a plain directory, in place, or into a volume of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from snapfs.blocks import Disk
from snapfs.commands import output
from snapfs.commands.output import json_option, progress_option
from snapfs.commands.place import Place, locate
from snapfs.commands.snapshots import watched
from snapfs.errors import UserError

_THREADS = min(4, os.cpu_count() or 1)


@click.command("restore", short_help="Write a snapshot to a plain directory.")
@click.argument("place")
@click.argument("snapshot")
@click.argument("dest")
@click.option("--verify", is_flag=True, help="Read everything back from DEST and compare it with the snapshot.")
@click.option("--threads", type=click.IntRange(1, 64), default=_THREADS, show_default=True)
@json_option
@progress_option
def restore(
    place: str, snapshot: str, dest: str, verify: bool, threads: int, as_json: bool, progress: bool | None
) -> None:
    """Write SNAPSHOT to the plain directory DEST, which is empty or does not exist.

    DEST appears when it is complete and on the disk. What takes privilege that you do not have (owners, devices, some
    extended attributes) is counted and told, and the rest restored.
    """
    from snapfs.transfer.keeping import held_while
    from snapfs.transfer.restore import restore as run

    with locate(place).repository() as repository, output.progress("restore", progress) as tell:
        record = repository.find(snapshot)
        with _needing_room("restore to", dest), held_while(repository, record, "restore"):
            report = run(repository, record, dest, verify=verify, threads=threads, progress=tell)
    for kind, count in report.not_restored.items():
        examples = ", ".join(output.printable(path) for path in report.examples.get(kind, []))
        output.remark(f"not restored: {kind} of {count} ({examples})")
    if as_json:
        return output.emit_json(
            {"snapshot": record.number, "destination": os.path.abspath(dest)} | msgspec.to_builtins(report)
        )
    rate = report.written_bytes / max(report.seconds, 1e-9)
    click.echo(
        f"restored snapshot {record.number} to {dest}: {report.files} files, {report.directories} directories, "
        f"{output.size(report.written_bytes)} in {output.seconds(report.seconds)} ({output.size(rate)}/s)"
        f"{', verified' if report.verified else ''}"
    )
    return None


@contextlib.contextmanager
def _needing_room(act: str, place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot {act} {place}: {error.strerror}: nothing of it is left, make room first") from None


@click.command("rollback", short_help="Put a volume back to a snapshot, in place.")
@click.argument("place")
@click.argument("snapshot")
@click.option("--force", is_flag=True, help="Even while files are open for writing: their writers see the past appear.")
@json_option
@progress_option
def rollback(place: str, snapshot: str, force: bool, as_json: bool, progress: bool | None) -> None:
    """Put PLACE back to SNAPSHOT, in place. The state you leave is kept as a snapshot of its own.

    On a mount it is refused while files are open for writing: stop the application first.
    """
    where = locate(place)
    if where.mountpoint is not None:
        facts = watched(where, shlex.join(["rollback", snapshot, *(["force"] if force else [])]), progress)
    else:
        facts = _roll_back_unmounted(where, snapshot, progress)
    if as_json:
        return output.emit_json(facts)
    click.echo(f"rolled back to snapshot {facts['target']}; what was there is snapshot {facts['kept']}")
    return None


def _roll_back_unmounted(where: Place, snapshot: str, shown: bool | None) -> dict[str, Any]:
    """The same without a daemon: the live tree is opened here, and recovered first if need be."""
    from snapfs import daemon
    from snapfs.transfer.parentage import parent_of
    from snapfs.transfer.rollback import roll_back

    with where.exclusive() as (volume, repository), output.progress("rollback", shown) as tell:
        target = repository.find(snapshot)
        tree = daemon.open_tree(volume, Disk(), repository)
        try:
            generations = volume.generation, volume.bump_generation()
            parent, said = parent_of(tree, repository)
            if said:
                output.remark(said)
            report = roll_back(
                tree, repository, target, Disk(), parent=parent, generations=generations, progress=tell
            )
        finally:
            tree.close()
    facts: dict[str, Any] = msgspec.to_builtins(report)
    return facts


@click.command("clone", short_help="Make a snapshot a volume of its own.")
@click.argument("place")
@click.argument("snapshot")
@click.argument("new_volume")
@json_option
@progress_option
def clone(place: str, snapshot: str, new_volume: str, as_json: bool, progress: bool | None) -> None:
    """Make SNAPSHOT a volume of its own at NEW_VOLUME, which must not exist.

    Nothing is copied on the same filesystem: the two share the stored history, and either may be changed or removed.
    """
    from snapfs.transfer.clone import clone as run
    from snapfs.transfer.keeping import held_while

    where = locate(place)
    with where.repository() as repository, output.progress("clone", progress, unit=" inodes") as tell:
        record = repository.find(snapshot)
        with _needing_room("clone to", new_volume), held_while(repository, record, "clone"):
            report = run(where.volume(), repository, record, new_volume, Disk(), progress=tell)
    if as_json:
        return output.emit_json(report)
    copied = f", {output.size(report.copied_bytes)} copied" if report.copied else ""
    took = f"{report.inodes} inodes in {output.seconds(report.seconds)}{copied}"
    click.echo(f"cloned snapshot {record.number} to {new_volume}: {took}")
    return None


COMMANDS = (restore, rollback, clone)
