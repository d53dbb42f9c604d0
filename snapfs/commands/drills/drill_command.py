"""The command `drill`: a snapshot is recovered in a scratch place, and the application says whether it works."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from snapfs.base.errors import SnapfsError, UserError
from snapfs.base.settings.proof_settings import DrillSettings
from snapfs.base.settings.units import parse_seconds
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import VolumeLocation, locate
from snapfs.commands.support.output import json_option
from snapfs.commands.support.target_options import Given, access_of, with_access

if TYPE_CHECKING:
    from snapfs.commands.drills.drill_report import DrillResult
    from snapfs.commands.drills.drill_run import DrillOrder
    from snapfs.transfer.sources.source_access import Access


@click.command("drill", short_help="Prove that a snapshot recovers: mount it elsewhere, and check the application.")
@click.argument("place", shell_complete=folders)
@click.option("--check", metavar="CHECK|CMD", help="What says whether it recovered. Default: [drill] check of PLACE.")
@click.option("--target", metavar="NAME", help="Of a volume: drill what this target of its settings has.")
@click.option(
    "--at",
    metavar="SNAPSHOT",
    help="Drill this snapshot, and no other; of a branch BRANCH/NUMBER. Default: the newest good one.",
)
@click.option(
    "--timeout",
    metavar="TIME",
    help="Longest time of one snapshot's drill: later has failed. Default: [drill] timeout, 10m.",
)
@click.option("--rto", metavar="TIME", help="Hold the recovery against this. Default: [objectives] rto of PLACE.")
@click.option("--tries", type=click.IntRange(1, 100), default=2, show_default=True, help="So many, while checks fail.")
@click.option("--no-whole", is_flag=True, help="Do not wait until all of the state has arrived.")
@click.option("--record", metavar="VOLUME", help="Of a URL: put the result into this volume's log.")
@click.option("--scratch", type=click.Path(file_okay=False), help="Where to mount. Default: TMPDIR.")
@with_access
@json_option
def drill(
    place: str,
    check: str | None,
    target: str | None,
    at: str | None,
    timeout: str | None,
    rto: str | None,
    tries: int,
    no_whole: bool,
    record: str | None,
    scratch: str | None,
    given: Given,
    as_json: bool,
) -> None:
    """Mount the newest snapshot of PLACE (a volume, or a target's URL) in a scratch place, run a check of the
    application on it, and report how long recovery takes and what would be lost.

    No writer is fenced off, nothing is claimed, and nothing changed at PLACE. CHECK is postgres, postgres:quick,
    sqlite, mariadb, redis or files; anything else is a command for the shell, which runs in the mounted snapshot
    (SNAPFS_DRILL_MOUNT). A snapshot whose check fails is bad for recovery: the one before is tried then.

    The result goes into the log of the volume (`snapfs audit`, `snapfs list`), and to its metrics. The exit code is 10
    if the check failed, 8 if the snapshot recovers later than objectives.rto allows.
    """
    from snapfs.commands.drills.drill_report import exit_code_of, verdict
    from snapfs.commands.drills.drill_run import drill as run

    order, where = _ordered(place, check, target, timeout, rto, record, given)
    order = _with(order, at=at, tries=1 if at else tries, whole=not no_whole, scratch=scratch)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    unrecorded: list[str] = []

    def done(result: DrillResult) -> None:
        if not as_json:
            for line in result.text():
                click.echo(line)
        why = _record(where, result) if where is not None else ""
        if why:
            unrecorded.append(why)
            output.remark(f"not recorded in the log: {why}")

    results = run(order, done)
    if as_json:
        recorded = where is not None and not unrecorded
        output.emit_json({"results": [each.facts() for each in results], "recorded": recorded})
    else:
        click.echo(verdict(results))
    sys.exit(exit_code_of(results))


def _end(number: int, _frame: FrameType | None) -> None:
    """A signal ends the drill in order: its mount and its folder go."""
    raise SystemExit(128 + number)


def _ordered(
    place: str, check: str | None, target: str | None, timeout: str | None, rto: str | None, record: str | None,
    given: Given,
) -> tuple[DrillOrder, VolumeLocation | None]:  # fmt: skip
    """What is to be drilled, and the volume whose log the result goes to. click.UsageError, UserError."""
    from snapfs.commands.drills.drill_run import DrillOrder

    if "://" in place:
        if target is not None:
            raise click.UsageError("--target is of a volume's settings: PLACE is a URL already.")
        where, named, access = locate(record) if record is not None else None, place, access_of(given)
    else:
        if record is not None:
            raise click.UsageError("--record belongs to a URL: a volume has its own log.")
        where = locate(place)
        named, access = _of_volume(where, target, given)
    config = where.volume().config if where is not None else None
    wanted = check or (config.drill.check if config is not None else "")
    if not wanted:
        raise click.UsageError("--check is needed: postgres, sqlite, mariadb, redis, files, or a command.")
    timeout_s = (
        _seconds("timeout", timeout) if timeout else float((config.drill if config else DrillSettings()).timeout)
    )
    if not timeout_s:
        raise click.UsageError("--timeout: a check needs a time above 0.")
    rto_s = _seconds("rto", rto) if rto else float(config.objectives.rto) if config is not None else 0.0
    return DrillOrder(named, access, wanted, timeout_s=timeout_s, rto_s=rto_s), where


def _of_volume(where: VolumeLocation, target: str | None, given: Given) -> tuple[str, Access]:
    """The place that is read: the volume's own store, or one of its targets."""
    from snapfs.base.settings.replication_settings import expanded, target_name
    from snapfs.transfer.sources.source_access import Access

    if target is None:
        return where.volume_path, access_of(given)
    settings = where.volume().config.replication
    found = next((each for each in settings.target if target_name(each) == target), None)
    if found is None:
        names = ", ".join(target_name(each) for each in settings.target) or "none"
        raise UserError(f"{where.volume_path} has no target {target}: there are {names}")
    return expanded(found).url, Access.of(found, settings.encryption)


def _seconds(option: str, text: str) -> float:
    try:
        return float(parse_seconds(text))
    except ValueError as error:
        raise click.UsageError(f"--{option}: {error}") from None


def _with(order: DrillOrder, **changed: Any) -> DrillOrder:
    from dataclasses import replace

    scratch = changed["scratch"]
    return replace(order, **changed | {"scratch": scratch and os.path.abspath(scratch)})


def _record(where: VolumeLocation, result: DrillResult) -> str:
    """Put the result into the volume's log; "" if it is there, else why not."""
    from snapfs.commands.support.gate_records import record_gate
    from snapfs.store.gates.gates import DRILLED

    try:
        with where.repository() as repository:
            here = repository.catalog.root(result.record.number)
            is_target = any(event.kind == "claimed" for event in repository.events())
    except (OSError, SnapfsError) as error:
        return str(error)
    if result.record.branch:
        return "gates are of the history, and this snapshot is of a branch"
    if is_target:
        return "it is a target's folder, whose log is the writer's: name your volume with --record"
    if here is None or here.number != result.record.root.number:
        return f"{where.volume_path} does not have this snapshot {result.record.number}"
    return record_gate(where, DRILLED, result.log_fields())


COMMANDS = (drill,)
