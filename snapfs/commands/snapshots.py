"""Making, looking at, comparing and dropping snapshots."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from typing import TYPE_CHECKING, Any

import click

from snapfs.commands import output
from snapfs.commands.output import json_option, progress_option
from snapfs.commands.place import Place, locate
from snapfs.store.holds import Hold, Holds
from snapfs.store.repository import Event, Repository, SnapshotRecord
from snapfs.store.snapshot import SnapshotTree

if TYPE_CHECKING:
    from snapfs.store.diff import PathChange

_POLL_S = 0.2


@click.command("snapshot", short_help="Make a snapshot of a mounted volume.")
@click.argument("mountpoint")
@click.argument("name", required=False)
@click.option(
    "--no-flush", is_flag=True, help="Do not write the kernel's dirty pages out first: what was fsynced is in."
)
@json_option
@progress_option
def snapshot(mountpoint: str, name: str | None, no_flush: bool, as_json: bool, progress: bool | None) -> None:
    """Make a snapshot of the volume mounted at MOUNTPOINT and return when it is durable.

    It is given the next number, and NAME if there is one.
    """
    place = locate(mountpoint)
    words = ["snapshot", *([name] if name else []), *(["flush=no"] if no_flush else [])]
    reply = watched(place, shlex.join(words), progress)
    if as_json:
        return output.emit_json(reply)
    record = reply.get("snapshot") or {}
    click.echo(record.get("number", ""))
    stats = record.get("stats", {})
    output.remark(
        f"snapshot {record.get('number')}{f' ({name})' if name else ''}: "
        f"{output.size(stats.get('stored_bytes', 0))} stored, sealed in {output.seconds(stats.get('seal_seconds', 0))}"
    )
    return None


def watched(place: Place, command: str, shown: bool | None) -> dict[str, Any]:
    """Send `command` and show what the daemon says of its progress until the reply is there."""
    place.status()  # says what is wrong, if something is, before a thread is started
    result: list[dict[str, Any] | Exception] = []

    def send() -> None:
        try:
            result.append(place.command(command))
        except Exception as error:
            result.append(error)

    sender = threading.Thread(target=send, name="command", daemon=True)
    sender.start()
    with output.progress(command.partition(" ")[0], shown) as tell:
        sender.join(_POLL_S)
        while sender.is_alive():
            facts = place.status()
            running = facts.get("busy") or facts.get("sealing") or {}
            tell(int(running.get("done_bytes", 0)), int(running.get("total_bytes", 0)))
            sender.join(_POLL_S)
    outcome = result[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _holds(repository: Repository) -> list[Hold]:
    """Who keeps which snapshots; nobody, as far as we may look."""
    with contextlib.suppress(PermissionError):
        return Holds(repository.store_dir, repository.disk).all()
    return []


def _held(holds: list[Hold], record: SnapshotRecord) -> dict[str, Any]:
    return {"held_by": [{"holder": each.holder, "why": each.why} for each in holds if record.number in each.snapshots]}


@click.command("list", short_help="List snapshots.")
@click.argument("place")
@json_option
def list_(place: str, as_json: bool) -> None:
    """List the snapshots of PLACE (a mountpoint or a volume), oldest first."""
    with locate(place).repository() as repository:
        records, holds = repository.snapshots(), _holds(repository)
    if as_json:
        return output.emit_json([output.record_facts(record) | _held(holds, record) for record in records])
    rows = [
        [
            str(record.number),
            output.utc(record.cut_time_ns),
            record.trigger,
            output.size(record.stats.stored_bytes),
            f"{record.state}, held" if _held(holds, record)["held_by"] else record.state,
            output.printable(record.name or ""),
        ]
        for record in records
    ]
    output.table(["NUMBER", "TIME", "TRIGGER", "STORED", "STATE", "NAME"], rows, right="NUMBER STORED")
    return None


@click.command("show", short_help="Show all that is known of a snapshot.")
@click.argument("place")
@click.argument("snapshot")
@json_option
def show(place: str, snapshot: str, as_json: bool) -> None:
    """Show all that is known of SNAPSHOT, a number or a name."""
    with locate(place).repository() as repository:
        record, holds = repository.find(snapshot), _holds(repository)
        root = SnapshotTree(repository, record.root).root
    facts = output.record_facts(record) | {"inodes": root.inodes, "total_bytes": root.total_bytes}
    facts |= _held(holds, record)
    if as_json:
        return output.emit_json(facts)
    stats = record.stats
    lines = [
        ("number", str(record.number)),
        ("name", output.printable(record.name or "-")),
        ("state", record.state),
        ("trigger", record.trigger),
        ("cut", output.utc(record.cut_time_ns)),
        ("sealed", f"{output.utc(record.seal_time_ns)} (took {output.seconds(stats.seal_seconds)})"),
        ("parent", "-" if record.parent is None else str(record.parent)),
        ("generation", str(record.generation)),
        ("holds", f"{root.inodes} inodes, {output.size(root.total_bytes)}"),
        ("changed", f"{stats.files} files, {stats.directories} directories, {stats.inodes} inodes"),
        ("read", output.size(stats.dirty_bytes)),
        ("stored", f"{output.size(stats.stored_bytes)} in {stats.new_objects} objects"),
        ("root", f"{record.root.number:016x} {record.root.proof.hex()}"),
        *(("held by", f"{each['holder']}: {output.printable(each['why'])}") for each in facts["held_by"]),
    ]
    for key, value in lines:
        click.echo(f"{key:<12}{value}")
    return None


@click.command("diff", short_help="Show what changed between two snapshots.")
@click.argument("place")
@click.argument("older", metavar="A")
@click.argument("newer", metavar="B")
@click.option("--summary", is_flag=True, help="Only the totals.")
@json_option
def diff(place: str, older: str, newer: str, summary: bool, as_json: bool) -> None:
    """Show what changed from snapshot A to snapshot B: `+` added, `-` removed, `M` changed, `R` renamed.

    The bytes are those of the blocks that differ. With --json, one object a line.
    """
    from snapfs.store.diff import diff_paths

    totals: dict[str, int] = {"added": 0, "removed": 0, "changed": 0, "renamed": 0, "changed_bytes": 0}
    with locate(place).repository() as repository:
        trees = [SnapshotTree(repository, repository.find(reference).root) for reference in (older, newer)]
        for change in diff_paths(*trees):
            totals[change.kind] += 1
            totals["changed_bytes"] += change.changed_bytes
            if not summary:
                _print_change(change, as_json)
    if as_json:
        output.emit_line({"totals": totals})
    else:
        counts = ", ".join(
            f"{totals[kind]} {kind}" for kind in ("added", "removed", "changed", "renamed") if totals[kind]
        )
        (click.echo if summary else output.remark)(
            f"{counts or 'no difference'}; {output.size(totals['changed_bytes'])}"
        )


_SIGNS = {"added": "+", "removed": "-", "changed": "M", "renamed": "R"}


def _print_change(change: PathChange, as_json: bool) -> None:
    old = change.old_path
    if as_json:
        facts = {"kind": change.kind, **output.path_facts(change.path), "changed_bytes": change.changed_bytes}
        if old:
            facts |= {f"old_{key}": value for key, value in output.path_facts(old).items()}
        return output.emit_line(facts)
    amount = f"  ({output.size(change.changed_bytes)})" if change.changed_bytes else ""
    origin = f"{output.printable(old)} -> " if old else ""
    return click.echo(f"{_SIGNS[change.kind]} {origin}{output.printable(change.path)}{amount}")


@click.command("drop", short_help="Drop snapshots.")
@click.argument("place")
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True)
@click.option("--dry-run", "-n", is_flag=True, help="Say what would be dropped, and drop nothing.")
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


def _drop(where: Place, records: list[SnapshotRecord]) -> None:
    from snapfs.transfer import upkeep

    if where.mountpoint is not None:
        for record in records:
            where.command(f"drop {record.number}")
        return
    with where.exclusive() as (_, repository):
        for record in records:
            upkeep.drop(repository, record)


@click.command("log", short_help="Print the audit trail.")
@click.argument("place")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until interrupted.")
@json_option
def log(place: str, follow: bool, as_json: bool) -> None:
    """Print the audit trail of PLACE: every snapshot and all that happened to it. With --json, one event a line.

    Its chain of hashes is checked as it is read.
    """
    with locate(place).repository() as repository:
        printed = _print_events(repository, 0, as_json)
        while follow:
            time.sleep(1)
            printed = _print_events(repository, printed, as_json)


def _print_events(repository: Repository, skip: int, as_json: bool) -> int:
    count = 0
    for count, event in enumerate(repository.events(), 1):
        if count > skip:
            _print_event(event, as_json)
    return max(count, skip)


def _print_event(event: Event, as_json: bool) -> None:
    if as_json:
        output.emit_line(
            {"kind": event.kind, "time": output.utc(event.time_ns), "time_ns": event.time_ns} | event.fields
        )
        return
    shown = {
        key: value for key, value in event.fields.items() if not isinstance(value, dict | list) and value is not None
    }
    words = " ".join(f"{key.removesuffix('_ns')}={_word(key, value)}" for key, value in shown.items())
    click.echo(f"{output.utc(event.time_ns)} {event.kind:<10} {words}".rstrip())


def _word(key: str, value: Any) -> str:
    return output.utc(value) if key.endswith("time_ns") else shlex.quote(output.printable(str(value)))


COMMANDS = (snapshot, list_, show, diff, drop, log)
