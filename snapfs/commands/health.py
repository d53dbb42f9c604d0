"""How a volume is: its status, its settings, its bytes, and the machine it is on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import click

from snapfs import config as settings
from snapfs.blocks import Disk
from snapfs.commands import output
from snapfs.commands.output import json_option, progress_option
from snapfs.commands.place import Place, locate
from snapfs.errors import EXIT_CORRUPT, EXIT_ENVIRONMENT, CorruptionError
from snapfs.store import check
from snapfs.store.duplicate import rebuild_log
from snapfs.store.records import DAMAGED, GOOD, StoreIdentity
from snapfs.volume import lock_holder


@click.command("status", short_help="Say how a volume is.")
@click.argument("place")
@json_option
def status(place: str, as_json: bool) -> None:
    """Say how the volume of PLACE is: mounted or not, its last snapshot, what is dirty, what went wrong."""
    where = locate(place)
    facts = _mounted_status(where) if where.mountpoint else _unmounted_status(where)
    if as_json:
        return output.emit_json(facts)
    for key, value in _mounted_lines(facts) if where.mountpoint else _unmounted_lines(facts):
        click.echo(f"{key:<12}{value}")
    return None


def _mounted_status(where: Place) -> dict[str, Any]:
    return {"mounted": True, **where.status()}


def _unmounted_status(where: Place) -> dict[str, Any]:
    volume = where.volume()
    with where.repository() as repository:
        records = repository.snapshots()
    return {
        "mounted": False,
        "volume": volume.path,
        "id": volume.volume_id,
        "generation": volume.generation,
        "held_by": lock_holder(volume.path),
        "snapshots": len(records),
        "last_snapshot": output.record_facts(records[-1]) if records else None,
    }


def _unmounted_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "volume", f"{output.printable(facts['volume'])} ({facts['id']})"
    yield "mounted", f"no; held by {facts['held_by']}" if facts["held_by"] else "no"
    yield "generation", str(facts["generation"])
    yield "snapshots", str(facts["snapshots"])
    if last := facts["last_snapshot"]:
        yield "last", _snapshot_line(last)


def _mounted_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the daemon said, for people. A daemon of another version may leave things out."""
    yield "volume", f"{output.printable(facts['volume'])} ({facts['volume_id']})"
    since = output.utc(facts["start_time_ns"])
    yield "mounted", f"at {output.printable(facts['mountpoint'])} by process {facts['pid']} since {since}"
    yield "generation", str(facts["generation"])
    dirty = facts["dirty"]
    yield "dirty", f"{dirty['files']} files, about {output.size(dirty['bytes'])}"
    yield "snapshots", str(facts["snapshots"])
    if last := facts["last_snapshot"]:
        yield "last", f"{_snapshot_line(last)}, {output.seconds(last['age_s'])} old"
    running = facts.get("sealing")
    yield "sealing", _sealing_line(running) if running else (facts.get("busy") or {}).get("what", "-")
    pause = facts.get("cut_pause_s") or {}
    if pause.get("count"):
        times = " ".join(f"{name} {output.seconds(pause[name])}" for name in ("p50", "p99", "max"))
        yield "cut pause", f"{times} of {pause['count']}"
    if absent := (facts.get("hydration") or {}).get("absent_files"):
        yield "absent", f"{absent} files are still read from the store"
    error = facts.get("last_error")
    yield "last error", f"{output.utc(error['time_ns'])} {error['what']}: {error['message']}" if error else "-"
    for line in facts.get("recovered", []):
        yield "recovered", output.printable(line)


def _snapshot_line(record: dict[str, Any]) -> str:
    name = f" {output.printable(record['name'])}" if record["name"] else ""
    return f"{record['number']}{name} of {output.utc(record['cut_time_ns'])}, {record['state']}"


def _sealing_line(running: dict[str, Any]) -> str:
    done, total = output.size(running["done_bytes"]), output.size(running["total_bytes"])
    return f"{running['phase']}: {done} of {total}, for {output.seconds(running['seconds_s'])}"


@click.command("configcheck", short_help="Check settings and print them.")
@click.argument("target", metavar="[VOLUME|FILE]", required=False)
@click.option("--defaults", is_flag=True, help="Print every setting with its reason and its default, as TOML.")
@json_option
def configcheck(target: str | None, defaults: bool, as_json: bool) -> None:
    """Check the settings of a volume, or of a file before it becomes one's, and print them all."""
    if defaults:
        return click.echo(settings.template().lstrip(), nl=False)
    if target is None:
        raise click.UsageError("Name a VOLUME or a FILE, or ask for --defaults.")
    config = _read_config(target)
    if as_json:
        return output.emit_json(settings.encode(config))
    for section, table in settings.encode(config).items():
        for name, value in table.items():
            click.echo(f"{section}.{name} = {_toml(value)}")
    return None


def _read_config(target: str) -> settings.Config:
    if not os.path.isfile(target):
        return locate(target).volume().config
    with open(target, encoding="utf-8") as file:
        tables = settings.parse_toml(file.read(), target).unwrap()
    tables.pop("volume", None)
    return settings.decode(tables, target)


def _toml(value: object) -> str:
    import tomlkit

    return tomlkit.item(value).as_string()


@click.command("verify", short_help="Read everything stored and check it.")
@click.argument("place")
@click.argument("snapshots", metavar="[SNAPSHOT...]", nargs=-1)
@click.option(
    "--repair",
    is_flag=True,
    help="Rebuild a damaged log; mark the snapshots that are lost, and those that are good again.",
)
@click.option("--threads", type=click.IntRange(1, 64), default=min(4, os.cpu_count() or 1), show_default=True)
@json_option
@progress_option
def verify(
    place: str, snapshots: tuple[str, ...], repair: bool, threads: int, as_json: bool, progress: bool | None
) -> None:
    """Read everything that the snapshots of PLACE need (all of them, or those named) and check it.

    The exit code is 5 if there is damage. Marks of a mounted volume's snapshots are made by its daemon.
    """
    where = locate(place)
    repaired = _repair(where, snapshots) if repair else []
    with where.repository() as repository, output.progress("verify", progress) as tell:
        records = [repository.find(ref) for ref in snapshots] if snapshots else repository.snapshots()
        report = check.verify(repository, records, threads=threads, progress=tell)
    for line in repaired:
        output.remark(line)
    if as_json:
        output.emit_json(_report_facts(report) | {"repaired": repaired})
    else:
        _print_report(report)
    if not report.is_good:
        sys.exit(EXIT_CORRUPT)


def _repair(where: Place, references: tuple[str, ...]) -> list[str]:
    """Put right what can be; a line for each thing done."""
    done: list[str] = []
    if where.mountpoint is not None:
        reply = where.command(shlex.join(["verify", *references]))
        return [f"marked snapshot {number} as damaged" for number in reply.get("damaged_snapshots", [])]
    try:
        with where.repository():
            pass
    except CorruptionError as error:
        done += [str(error), *_rebuild_log(where)]
    with where.exclusive() as (_, repository):
        done += repository.recovered
        records = [repository.find(ref) for ref in references] if references else repository.snapshots()
        report = check.verify(repository, records)
        for record in records:
            state = DAMAGED if record.number in report.damaged_snapshots else GOOD
            if record.state != state:
                repository.mark(record.number, state, report.why(record.number) or "read back in full")
                done.append(f"marked snapshot {record.number} as {state}")
    return done


def _rebuild_log(where: Place) -> list[str]:
    volume = where.volume()
    volume.lock()
    try:
        found = rebuild_log(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), Disk())
    finally:
        volume.unlock()
    return [f"rebuilt snapshots.log with {len(found)} snapshots from the segments; the old is snapshots.log.damaged"]


def _report_facts(report: check.Report) -> dict[str, Any]:
    return {
        "good": report.is_good,
        "snapshots": report.snapshots,
        "damaged_snapshots": report.damaged_snapshots,
        "objects": report.objects,
        "stored_bytes": report.stored_bytes,
        "bad": report.bad,
        "other_damage": report.other_damage,
    }


def _print_report(report: check.Report) -> None:
    for bad in report.bad:
        needed = ", ".join(map(str, bad.snapshots)) or "none"
        place = f"; first in inode {bad.ino}, chunk {bad.chunk}" if bad.ino is not None else ""
        click.echo(f"object {bad.number:#x}: {output.printable(bad.why)}; needed by snapshots {needed}{place}")
    for line in report.other_damage:
        click.echo(output.printable(line))
    verdict = "all good" if report.is_good else f"{report.bad_objects} bad"
    if report.damaged_snapshots:
        verdict += f"; damaged snapshots: {', '.join(map(str, report.damaged_snapshots))}"
    read = f"{report.objects} objects, {output.size(report.stored_bytes)}"
    click.echo(f"checked {report.snapshots} snapshots: {read}: {verdict}")


@click.command("doctor", short_help="Check this machine and a volume.")
@click.argument("place", required=False)
@json_option
def doctor(place: str | None, as_json: bool) -> None:
    """Check this machine, and the volume of PLACE if it is named: FUSE, kernel, limits, dead mounts, the store's chain.

    Exits with 3 if something keeps snapfs from working, with 5 if something stored is damaged.
    """
    from snapfs.doctor import Level, examine

    findings = examine(locate(place).volume_path if place else None)
    if as_json:
        output.emit_json([finding.facts() for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.level.value:<8}{finding.what:<22}{output.printable(finding.words)}")
    bad = [finding for finding in findings if finding.level is Level.BAD]
    if bad:
        sys.exit(EXIT_CORRUPT if any(finding.damage for finding in bad) else EXIT_ENVIRONMENT)


COMMANDS = (status, verify, configcheck, doctor)
