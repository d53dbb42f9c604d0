"""Going back: to a plain directory, in place, or into a volume of its own."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import click
import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_CORRUPT, UserError
from snapfs.base.settings import exclusion
from snapfs.commands.moving.directory_output import remark_excluded, write_directory
from snapfs.commands.snapshots import watched
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.history_paths import place_first
from snapfs.commands.support.locate import VolumeLocation, control_line, locate
from snapfs.commands.support.output import json_option, progress_option
from snapfs.commands.support.restore_output import needing_room
from snapfs.commands.support.target_options import Given, access_of, with_access

_THREADS = min(4, os.cpu_count() or 1)


@click.command("restore", short_help="Write a snapshot, or a path of it, to a plain place.")
@click.argument("words", metavar="[PLACE] SNAPSHOT[:PATH] DEST", nargs=-1, shell_complete=folders)
@click.option("--verify", is_flag=True, help="Read everything back from DEST and compare it with the snapshot.")
@click.option("--threads", type=click.IntRange(1, 64), default=_THREADS, show_default=True)
@with_access
@json_option
@progress_option
def restore(
    words: tuple[str, ...], verify: bool, threads: int, given: Given, as_json: bool, progress: bool | None
) -> None:
    """Write SNAPSHOT to the plain directory DEST, which is empty or does not exist. PLACE may be a target's URL, and is
    the mount that you are in if it is left out; BRANCH/NUMBER is a snapshot of a branch there.

    With PATH, from the top of the tree, only that is written: a directory as DEST, anything else as DEST or, if that is
    a directory, into it. What exists is never overwritten.

    DEST appears when it is complete and on the disk. What takes privilege that you do not have (owners, devices, some
    extended attributes) is counted and reported, and the rest restored.
    """
    if not 2 <= len(words) <= 3:
        raise click.UsageError("Write [PLACE] SNAPSHOT[:PATH] DEST.")
    place, (reference, dest) = place_first(words, 2)
    write_directory(place, reference, dest, verify, threads, given, as_json, progress)


@click.command("rollback", short_help="Put a volume back to a snapshot, in place.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshot", required=False)
@click.option(
    "--to", "fork", metavar="FORK", shell_complete=folders,
    help="Bring a fork of PLACE back into it: its mount, or its folder and a SNAPSHOT of it.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Even while files are open for writing: their writers see the past appear.")
@json_option
@progress_option
def rollback(
    place: str, snapshot: str | None, fork: str | None, force: bool, as_json: bool, progress: bool | None
) -> None:
    """Put PLACE back to SNAPSHOT, in place. The state you leave is kept as a snapshot of its own.

    With --to, PLACE becomes what its fork FORK is now, or was at its SNAPSHOT. The fork stays as it is.

    Paths that are excluded (snapshots.exclude) are in neither. They stay as they are, unless SNAPSHOT needs their
    place; how many stayed and went is reported.

    On a mount it is refused while files are open for writing: stop the application first.
    """
    if snapshot is None and fork is None:
        raise click.UsageError("Missing argument 'SNAPSHOT'.")
    where, forked = locate(place), locate(fork) if fork is not None else None
    if forked is not None:
        from snapfs.transfer.restore.fork_target import check_fork

        check_fork(where.volume(), forked.volume_path)
    reference = snapshot if snapshot is not None or forked is None else _now(forked)
    assert reference is not None
    words = ["force"] if force else []
    if where.mountpoint is not None:
        words += [f"fork={forked.volume_path}"] if forked is not None else []
        facts = watched(where, control_line("rollback", [reference], words), progress)
    else:
        facts = _roll_back_unmounted(where, reference, forked, progress)
    if forked is not None:
        facts["fork"] = forked.volume_path
    if as_json:
        return output.emit_json(facts)
    for line in _excluded_lines(facts):
        output.remark(output.printable(line))
    of = f" of the fork {forked.volume_path}" if forked is not None else ""
    click.echo(f"rolled back to snapshot {facts['target']}{of}; what was there is snapshot {facts['kept']}")
    return None


def _now(fork: VolumeLocation) -> str:
    """The number of a snapshot of what the fork is now."""
    from snapfs.commands.forks.fork_making import snapshot_now

    if fork.mountpoint is None:
        raise UserError(f"{fork.volume_path} is not mounted: mount it, or name a snapshot of it")
    return snapshot_now(fork)


def _excluded_lines(facts: dict[str, Any]) -> list[str]:
    """What became of paths that are in no snapshot, and so not in the one of what was there either."""
    kept, removed = facts.get("excluded_kept", 0), facts.get("excluded_removed", 0)
    patterns = exclusion.words(tuple(facts.get("exclude", ())))
    lines = [f"{kept} excluded paths stay as they are: {patterns}"] if kept else []
    if removed:
        lines.append(f"{removed} excluded paths are gone, and in no snapshot, as their place is the snapshot's")
    return lines


def _roll_back_unmounted(
    where: VolumeLocation, snapshot: str, fork: VolumeLocation | None, shown: bool | None
) -> dict[str, Any]:
    """The same without a daemon: the live tree is opened here, and recovered first if need be."""
    from snapfs.daemon.volume_opening import open_tree
    from snapfs.transfer.restore.fork_target import fork_target
    from snapfs.transfer.restore.rollback import roll_back
    from snapfs.transfer.seal.base_snapshot import parent_of

    with (
        where.exclusive() as (volume, repository),
        contextlib.ExitStack() as stack,
        output.progress("rollback", shown) as advance,
    ):
        source = None
        if fork is None:
            target = repository.find(snapshot)
        else:
            source, target = stack.enter_context(fork_target(volume, fork.volume_path, snapshot, Disk()))
        tree = open_tree(volume, Disk(), repository)
        try:
            generations = volume.generation, volume.bump_generation()
            parent, note = parent_of(tree, repository)
            if note:
                output.remark(note)
            report = roll_back(
                tree, repository, target, Disk(), parent=parent, generations=generations, progress=advance,
                exclude=volume.config.snapshots.exclude, source=source,
            )  # fmt: skip
        finally:
            tree.close()
    facts: dict[str, Any] = msgspec.to_builtins(report)
    return facts


@click.command("clone", short_help="Make a snapshot a volume of its own.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshot")
@click.argument("new_volume")
@json_option
@progress_option
def clone(place: str, snapshot: str, new_volume: str, as_json: bool, progress: bool | None) -> None:
    """Make SNAPSHOT a volume of its own at NEW_VOLUME, which must not exist.

    Nothing is copied on the same filesystem: the two share the stored history, and either may be changed or removed.
    """
    from snapfs.transfer.lazy.snapshot_hold import held_while
    from snapfs.transfer.restore.clone import clone as run

    where = locate(place)
    with where.repository() as repository, output.progress("clone", progress, unit=" inodes") as advance:
        record = repository.find(snapshot)
        with needing_room("clone to", new_volume), held_while(repository, record, "clone"):
            report = run(where.volume(), repository, record, new_volume, Disk(), progress=advance)
    remark_excluded(record)
    if as_json:
        return output.emit_json(report)
    copied = f", {output.size(report.copied_bytes)} copied" if report.copied else ""
    took = f"{report.inodes} inodes in {output.seconds(report.seconds)}{copied}"
    click.echo(f"cloned snapshot {record.number} to {new_volume}: {took}")
    return None


@click.command("fetch", short_help="Bring all of a target's history to this host.")
@click.argument("place", metavar="URL")
@click.argument("folder")
@with_access
@json_option
@progress_option
def fetch(place: str, folder: str, given: Given, as_json: bool, progress: bool | None) -> None:
    """Bring every snapshot that is at URL (a mirror, file:///FOLDER, an object store) into FOLDER, verified.

    FOLDER becomes a volume that is listed, compared, restored, cloned and mounted from. An interrupted fetch goes on
    where it was; a later one brings what is new. The exit code is 5 if something could not be had whole.
    """
    from snapfs.transfer.restore.fetch_history import fetch_history
    from snapfs.transfer.sources.source_urls import open_source

    source = open_source(place if "://" in place else os.path.abspath(place), access_of(given), whole_history=True)
    with contextlib.closing(source), output.progress("fetch", progress, "snapshots") as advance:
        report = fetch_history(source, folder, Disk(), advance)
    if as_json:
        output.emit_json(msgspec.to_builtins(report) | {"put_aside": report.branch_snapshots})  # its name of before
    else:
        fetched = output.size(report.fetched_bytes)
        branches = f" (and {report.branch_snapshots} on branches)" if report.branch_snapshots else ""
        click.echo(f"{report.snapshots} snapshots{branches}, {report.new} of them new, {fetched} fetched")
    for number, why in report.left_out.items():
        output.remark(f"left out snapshot {number}: {why}")
    if report.left_out:
        raise click.exceptions.Exit(EXIT_CORRUPT)


COMMANDS = (restore, rollback, clone, fetch)
