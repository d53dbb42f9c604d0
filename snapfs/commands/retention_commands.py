"""What stays and what goes: drop, prune, hold, release.

Of a target (a URL, or --target) `snapfs-replicator prune` does the work, in a process of its own: it acts on the
target's side, and knows what is locked there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from snapfs.base.errors import EXIT_BUSY, SnapfsError, UserError
from snapfs.base.settings import retention
from snapfs.base.settings.config import override
from snapfs.base.settings.retention import Verdict
from snapfs.base.settings.units import format_seconds, parse_seconds
from snapfs.base.volumes.volume import Volume
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.create_volume import OF_FROM
from snapfs.commands.support.locate import VolumeLocation, control_line, locate
from snapfs.commands.support.output import json_option
from snapfs.commands.support.target_options import Given, with_access
from snapfs.store.log.drops import PERSON, POLICY
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.retention import named_holds, protection
from snapfs.transfer.retention.expiry import Keeping, verdicts
from snapfs.transfer.retention.group_reasons import group_reasons

dry_run_option = click.option("--dry-run", "-n", is_flag=True, help="Print what would be dropped, and drop nothing.")


@click.command("drop", short_help="Drop snapshots.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True)
@dry_run_option
@json_option
def drop(place: str, snapshots: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Drop snapshots. The space that only they need is given back by and by."""
    where = locate(place)
    with where.repository() as repository:
        records = [repository.find(reference) for reference in snapshots]
    if not dry_run:
        _drop(where, records)
    if as_json:
        output.emit_json({"dropped": [output.record_facts(record) for record in records], "dry_run": dry_run})
    else:
        for record in records:
            name = f" ({output.printable(record.name)})" if record.name else ""
            click.echo(f"{'would drop' if dry_run else 'dropped'} {record.number}{name}")


def _drop(where: VolumeLocation, records: Sequence[SnapshotRecord], rule: str = "") -> list[tuple[int, str]]:
    """Drop them; with a rule, those that turned out to be needed stay, and are returned with the reason."""
    stay: list[tuple[int, str]] = []
    if where.mountpoint is not None:
        words = [f"rule={rule}"] if rule else []
        for record in records:
            try:
                where.command(control_line("drop", [str(record.number)], words))
            except SnapfsError as error:
                _unless_by_rule(rule, error)
                stay.append((record.number, str(error)))
        return stay
    with where.exclusive() as (volume, repository):
        reasons = _rule_reasons(volume, repository) if rule else (protection.replicated_reasons(volume),)
        for record in records:
            try:
                protection.drop(repository, record, POLICY if rule else PERSON, rule, reasons)
            except SnapfsError as error:
                _unless_by_rule(rule, error)
                stay.append((record.number, str(error)))
    return stay


def _rule_reasons(volume: Volume, repository: Repository) -> tuple[protection.Reasons, ...]:
    return protection.replicated_reasons(volume), group_reasons(repository, volume.volume_id)


def _unless_by_rule(rule: str, error: SnapfsError) -> None:
    if not rule or error.exit_code != EXIT_BUSY:
        raise error


@click.command("prune", short_help="Drop what no rule keeps.")
@click.argument("place", shell_complete=folders)
@dry_run_option
@click.option("--target", metavar="NAME", help="Of the volume at PLACE: prune this target of it, by its own rules.")
@click.option(
    "--option", "-o", "settings", multiple=True, metavar="RULE=VALUE",
    help="A rule in the place of the one in the settings: last=20, within=2h, daily=7...",
)  # fmt: skip
@with_access
@json_option
def prune(
    place: str, dry_run: bool, target: str | None, settings: tuple[str, ...], given: Given, as_json: bool
) -> None:
    """Show each snapshot of PLACE with the rule that keeps it, and drop those that none keeps.

    The rules are those of [retention] in the volume's settings. PLACE may be a target's URL: then they are given with
    -o; or name the target with --target.
    """
    if "://" in place or target is not None:
        raise click.exceptions.Exit(_replicator(place, dry_run, target, settings, given, as_json))
    where = locate(place)
    volume = where.volume()
    config = override(volume.config, dict(map(_rule, settings)))
    keeping = Keeping.of(config)
    with where.repository() as repository:
        records, found = _judged(repository, keeping, _rule_reasons(volume, repository))
    doomed = set(retention.going(found))
    wanted = [record for record in records if record.number in doomed]
    stay = [] if dry_run or not wanted else _drop(where, wanted, keeping.drop_reason())
    gone = [record.number for record in wanted if record.number not in dict(stay)]
    if as_json:
        shown = [
            output.record_facts(record) | retention.facts(verdict)
            for record, verdict in zip(records, found, strict=True)
        ]
        output.emit_json({"rules": keeping.text(), "dry_run": dry_run, "dropped": gone, "snapshots": shown})
    else:
        _print_verdicts(records, found, dry_run)
        output.remark(_summary(len(gone), len(records), keeping, dry_run))
    for number, why in stay:
        output.remark(f"snapshot {number} stays: {why}")
    if stay:
        raise click.exceptions.Exit(EXIT_BUSY)


def _rule(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text}: write RULE=VALUE, such as last=20")
    return f"retention.{name.removeprefix('retention.')}", value


def _judged(
    repository: Repository, keeping: Keeping, reasons: Sequence[protection.Reasons]
) -> tuple[list[SnapshotRecord], list[Verdict]]:
    records = repository.snapshots()
    stay = protection.protected(repository, reasons)
    return records, verdicts(records, keeping, repository.clock(), lambda: stay)


def _print_verdicts(records: Sequence[SnapshotRecord], found: Sequence[Verdict], dry_run: bool) -> None:
    goes = "would drop" if dry_run else "drop"
    rows = [
        [
            str(record.number), output.utc(record.cut_time_ns), output.printable(record.name or ""),
            goes if verdict.goes else "keep", output.printable(retention.reason(verdict, output.utc)),
        ]
        for record, verdict in zip(records, found, strict=True)
    ]  # fmt: skip
    output.table(["NUMBER", "TIME", "NAME", "ACTION", "RULE"], rows, right="NUMBER")


def _summary(gone: int, there: int, keeping: Keeping, dry_run: bool) -> str:
    if not keeping.is_on:
        return "there is no rule: set [retention] in volume.toml, or give -o last=20"
    return f"{gone} of {there} snapshots {'would go' if dry_run else 'dropped'}, by {keeping.text()}"


def _replicator(
    place: str, dry_run: bool, target: str | None, settings: Sequence[str], given: Given, as_json: bool
) -> int:
    """Run `snapfs-replicator prune` with the same options; its exit code."""
    if given["key_file"] or given["key_command"]:
        raise click.UsageError("--key-file and --key-command are of no use to prune: it reads no content.")
    words = [place, *(f"--rule={each}" for each in settings)]
    words += ["--dry-run"] * dry_run + ["--json"] * as_json + [f"--target={target}"] * (target is not None)
    for name in OF_FROM:
        value = given[name]
        if name == "store_options":
            words += [f"--option={key}={text}" for key, text in dict(value or {}).items()]
        elif value:
            words.append(f"--{name.replace('_', '-')}={value}")
    return subprocess.run([sys.executable, "-m", "replicator", "prune", *words], check=False).returncode


@click.command("hold", short_help="Keep a snapshot from being dropped.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshot")
@click.option("--why", default="", metavar="TEXT", help="The reason, one line; `list` and `show` have it.")
@click.option(
    "--until", metavar="TIME", help="When it ends: 30d from now, 2026-12-31, 2026-12-31T18:00:00Z. Else never."
)
@json_option
def hold(place: str, snapshot: str, why: str, until: str | None, as_json: bool) -> None:
    """Keep SNAPSHOT from being dropped, by whatever rule or person, until `release` or the time that is given.

    It holds at this host and at every target, which refuses to drop SNAPSHOT by itself; after a failover it is there
    again. The log of PLACE has who holds what.
    """
    where, now_ns = locate(place), time.time_ns()
    named_holds.check_reason(why)
    seconds = None if until is None else _seconds_until(until, now_ns)
    if where.mountpoint is not None:
        with where.repository() as repository:
            number = repository.find(snapshot).number
        words = [f"why={why}"] if why else []
        words += [f"for={format_seconds(max(seconds, 0.001))}"] if seconds is not None else []
        until_ns = where.command(control_line("hold", [str(number)], words))["held"]["until_ns"]
    else:
        with where.exclusive() as (_, repository):
            record = repository.find(snapshot)
            number = record.number
            until_ns = named_holds.until(named_holds.hold(repository, record, why, seconds), now_ns)
    if as_json:
        return output.emit_json({"held": number, "until_ns": until_ns, "why": why})
    return click.echo(f"held {number} {f'until {output.utc(until_ns)}' if until_ns else 'until it is released'}")


@click.command("release", short_help="End a hold.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshot")
@json_option
def release(place: str, snapshot: str, as_json: bool) -> None:
    """End the hold of `snapfs hold` on SNAPSHOT: the rules decide about it again."""
    where = locate(place)
    if where.mountpoint is not None:
        number = where.command(control_line("release", [snapshot]))["released"]
    else:
        with where.exclusive() as (_, repository):
            number = named_holds.held_number(repository, snapshot)
            named_holds.release(repository, number)
    if as_json:
        return output.emit_json({"released": number})
    return click.echo(f"released {number}")


def _seconds_until(text: str, now_ns: int) -> float:
    """From now to a time, or of a span. Raises UserError."""
    try:
        seconds = float(parse_seconds(text))
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise UserError(f"--until {text}: write 30d, 2026-12-31 or 2026-12-31T18:00:00Z (UTC)") from None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = moment.timestamp() - now_ns / 1e9
    if seconds <= 0:
        raise UserError(f"--until {text}: that has passed")
    return seconds


COMMANDS: tuple[Any, ...] = (drop, prune, hold, release)
