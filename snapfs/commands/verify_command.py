"""The command `verify`: everything stored is read and checked, and with --repair put right where it can be."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_CORRUPT, CorruptionError, SnapfsError
from snapfs.base.volumes.volume import Volume
from snapfs.commands.snapshots import watched
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.gate_records import record_gate
from snapfs.commands.support.locate import VolumeLocation, control_line, locate
from snapfs.commands.support.output import json_option, progress_option
from snapfs.store.gates.gates import VERIFIED
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.repair import verify as check
from snapfs.store.repair.duplicate_store import rebuild_log
from snapfs.store.repair.gate_lines import verified_fields
from snapfs.store.repair.suspects import remove_suspects, write_suspects
from snapfs.store.repository.repository import Repository, SnapshotRecord

if TYPE_CHECKING:
    from snapfs.live.tree import LiveTree


@click.command("verify", short_help="Read everything stored and check it.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshots", metavar="[SNAPSHOT...]", nargs=-1)
@click.option(
    "--repair",
    is_flag=True,
    help="Bring back what is lost from where it still is, rebuild a damaged log, and mark what stays damaged.",
)
@click.option("--threads", type=click.IntRange(1, 64), default=min(4, os.cpu_count() or 1), show_default=True)
@json_option
@progress_option
def verify(
    place: str, snapshots: tuple[str, ...], repair: bool, threads: int, as_json: bool, progress: bool | None
) -> None:
    """Read everything that the snapshots of PLACE need (all of them, or those named) and check it.

    With --repair, objects that are bad are brought back from the live tree, from other snapshots, from a second copy or
    from a target where one has the same content. What cannot be brought back marks its snapshots as damaged until a
    later repair can.

    The exit code is 5 if there is damage, with --repair: if damage is left. A mounted volume is repaired by its daemon.
    """
    where = locate(place)
    if repair:
        facts = _repair(where, snapshots, threads, progress)
    else:
        facts = _verify(where, snapshots, threads, progress) | {"repaired": []}
    for line in facts["repaired"]:
        output.remark(line)
    if as_json:
        output.emit_json(facts)
    else:
        _print_report(facts, place, repair)
    if not facts["good"]:
        sys.exit(EXIT_CORRUPT)


def _verify(where: VolumeLocation, references: tuple[str, ...], threads: int, progress: bool | None) -> dict[str, Any]:
    with where.repository() as repository, output.progress("verify", progress) as advance:
        report = check.verify(repository, _chosen(repository, references), threads=threads, progress=advance)
        with contextlib.suppress(OSError):  # a volume that we may only read
            if report.bad:  # the next seal builds on none of them
                write_suspects(repository.store_dir, (bad.number for bad in report.bad), Disk())
            elif not references:
                remove_suspects(repository.store_dir, Disk())
        fields = verified_fields(repository, report, whole=not references)
        if fields is not None and report.is_good:
            _record(where, fields)
        return report.facts()


def _record(where: VolumeLocation, fields: dict[str, Any]) -> None:
    """Note in the log what has passed. A verification is as good without that, so a failure is a remark."""
    why = record_gate(where, VERIFIED, fields)
    if why:
        output.remark(f"not recorded in the log: {why}")


def _chosen(repository: Repository, references: tuple[str, ...]) -> list[SnapshotRecord]:
    return [repository.find(reference) for reference in references] or repository.snapshots()


def _repair(where: VolumeLocation, references: tuple[str, ...], threads: int, progress: bool | None) -> dict[str, Any]:
    """Put right what can be; what `verify` then finds, with a line in `repaired` for each thing done."""
    if where.mountpoint is not None:
        return watched(where, control_line("verify", references, ["repair"]), progress)
    from snapfs.transfer.repair import repair as repairing
    from snapfs.transfer.repair.repair_targets import RepairTargets

    done: list[str] = []
    try:
        with where.repository() as repository:
            repository.check_end()
    except CorruptionError as error:
        done += [str(error), *_rebuild_log(where)]
    with where.exclusive() as (volume, repository), output.progress("repair", progress) as advance:
        done += repository.recovered
        chosen = _chosen(repository, references)
        targets = contextlib.closing(RepairTargets(volume, done.append))
        with _live_tree(volume, repository, done) as tree, targets as elsewhere:
            result = repairing.repair(
                repository, chosen, tree=tree, fetch=elsewhere.fetch, threads=threads, progress=advance
            )
        fields = verified_fields(repository, result.after, whole=not references)
        if fields is not None:
            repository.record_event(VERIFIED, **fields)
    facts = {**result.after.facts(), "repaired_objects": result.repaired, "repaired": done + result.done}
    return {**facts, "mended": result.repaired}  # the name until 0.1; goes with 0.3


@contextlib.contextmanager
def _live_tree(volume: Volume, repository: Repository, notes: list[str]) -> Iterator[LiveTree | None]:
    """The live tree, recovered if need be; None, and a line, if it cannot be opened."""
    from snapfs.daemon.volume_opening import open_tree

    if not os.path.exists(volume.namespace_path):
        yield None
        return
    try:
        tree = open_tree(volume, Disk(), repository)
    except (OSError, SnapfsError) as error:
        notes.append(f"the live tree is of no help: {error}")
        yield None
        return
    try:
        notes += tree.recovered
        yield tree
    finally:
        tree.close()


def _rebuild_log(where: VolumeLocation) -> list[str]:
    volume = where.volume()
    volume.lock()
    try:
        found = rebuild_log(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), Disk())
    finally:
        volume.unlock()
    return [f"rebuilt snapshots.log with {len(found)} snapshots from the segments; the old is snapshots.log.damaged"]


def _print_report(facts: dict[str, Any], place: str, repaired: bool) -> None:
    for bad in facts["bad_objects"]:
        needed = ", ".join(map(str, bad["snapshots"])) or "none"
        inside = f"; first in inode {bad['ino']}" if bad["ino"] is not None else ""
        inside += f", chunk {bad['chunk']}" if bad["chunk"] is not None else ""
        why = output.printable(bad["why"])
        click.echo(f"{bad['kind']} {bad['number']:#x}: {why}; needed by snapshots {needed}{inside}")
    for line in facts["other_damage"]:
        click.echo(output.printable(line))
    verdict = "all good" if facts["good"] else f"{facts['bad_count']} bad"
    if facts["damaged_snapshots"]:
        verdict += f"; damaged snapshots: {', '.join(map(str, facts['damaged_snapshots']))}"
    read = f"{facts['objects']} objects, {output.size(facts['stored_bytes'])}"
    click.echo(f"checked {facts['snapshots']} snapshots: {read}: {verdict}")
    if not facts["good"]:
        output.remark(_advice(facts, place, repaired))


def _advice(facts: dict[str, Any], place: str, repaired: bool) -> str:
    """What to do about damage."""
    quoted = shlex.quote(place)
    if not repaired:
        return f"`snapfs verify --repair {quoted}` brings back what the live tree or another snapshot still has"
    if not facts["damaged_snapshots"]:
        return "no snapshot needs what is damaged; the next ones are whole"
    numbers = " ".join(map(str, facts["damaged_snapshots"]))
    return (
        "what is left is nowhere to be found: make a new snapshot, which will be whole; of the damaged ones you can "
        f"browse what is good, or `snapfs drop {quoted} {numbers}`"
    )


COMMANDS = (verify,)
