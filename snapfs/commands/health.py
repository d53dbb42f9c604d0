"""How a volume is: its status, its settings, its bytes, and the machine it is on."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from snapfs import config as settings
from snapfs.blocks import Disk
from snapfs.commands import output
from snapfs.commands.output import json_option, progress_option
from snapfs.commands.place import Place, locate
from snapfs.commands.snapshots import watched
from snapfs.errors import EXIT_CORRUPT, EXIT_ENVIRONMENT, EXIT_VERSION, CorruptionError, SnapfsError
from snapfs.store import check
from snapfs.store.duplicate import rebuild_log
from snapfs.store.records import StoreIdentity
from snapfs.store.repository import Repository, SnapshotRecord
from snapfs.volume import Volume, lock_holder

if TYPE_CHECKING:
    from snapfs.live.tree import LiveTree


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
    if fenced := facts.get("fenced"):
        can = "nothing can be changed here" if fenced["read_only"] else "what is written here stays here"
        yield "FENCED", f"{fenced['by_holder']} is the writer (generation {fenced['by_generation']}): {can}"
        yield "kept as", fenced["branch"] or "nothing: all was replicated"
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
    if isinstance(value, list):
        return f"[{', '.join(settings.shown(table) for table in value)}]"
    return settings.shown(value)


@click.command("verify", short_help="Read everything stored and check it.")
@click.argument("place")
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


def _verify(where: Place, references: tuple[str, ...], threads: int, progress: bool | None) -> dict[str, Any]:
    with where.repository() as repository, output.progress("verify", progress) as tell:
        return check.verify(repository, _chosen(repository, references), threads=threads, progress=tell).facts()


def _chosen(repository: Repository, references: tuple[str, ...]) -> list[SnapshotRecord]:
    return [repository.find(reference) for reference in references] or repository.snapshots()


def _repair(where: Place, references: tuple[str, ...], threads: int, progress: bool | None) -> dict[str, Any]:
    """Put right what can be; what `verify` then finds, with a line in `repaired` for each thing done."""
    if where.mountpoint is not None:
        return watched(where, shlex.join(["verify", *references, "repair"]), progress)
    from snapfs.transfer import repair as repairing
    from snapfs.transfer.targets import Targets

    done: list[str] = []
    try:
        with where.repository() as repository:
            repository.check_end()
    except CorruptionError as error:
        done += [str(error), *_rebuild_log(where)]
    with where.exclusive() as (volume, repository), output.progress("repair", progress) as tell:
        done += repository.recovered
        chosen = _chosen(repository, references)
        targets = contextlib.closing(Targets(volume, done.append))
        with _live_tree(volume, repository, done) as tree, targets as elsewhere:
            result = repairing.repair(
                repository, chosen, tree=tree, fetch=elsewhere.fetch, threads=threads, progress=tell
            )
    return {**result.after.facts(), "mended": result.mended, "repaired": done + result.done}


@contextlib.contextmanager
def _live_tree(volume: Volume, repository: Repository, said: list[str]) -> Iterator[LiveTree | None]:
    """The live tree, recovered if need be; None, and a line, if it cannot be opened."""
    from snapfs import daemon

    if not os.path.exists(volume.namespace_path):
        yield None
        return
    try:
        tree = daemon.open_tree(volume, Disk(), repository)
    except (OSError, SnapfsError) as error:
        said.append(f"the live tree is of no help: {error}")
        yield None
        return
    try:
        said += tree.recovered
        yield tree
    finally:
        tree.close()


def _rebuild_log(where: Place) -> list[str]:
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


@click.command("doctor", short_help="Check this machine and a volume.")
@click.argument("place", required=False)
@json_option
def doctor(place: str | None, as_json: bool) -> None:
    """Check this machine, and the volume of PLACE if it is named: FUSE, kernel, limits, dead mounts, the store's chain.

    Exits with 3 if something keeps snapfs from working, with 5 if something stored is damaged, with 6 if a newer snapfs
    wrote the volume.
    """
    from snapfs.doctor import Level, examine

    findings = examine(locate(place).volume_path if place else None)
    if as_json:
        output.emit_json([finding.facts() for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.level.value:<8}{finding.what:<22}{output.printable(finding.words)}")
    bad = [finding for finding in findings if finding.level is Level.BAD]
    if any(finding.damage for finding in bad):
        sys.exit(EXIT_CORRUPT)
    if bad:
        sys.exit(EXIT_VERSION if any(finding.newer for finding in bad) else EXIT_ENVIRONMENT)


COMMANDS = (status, verify, configcheck, doctor)
