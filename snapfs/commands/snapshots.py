"""Making snapshots and looking at them."""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import click

from snapfs.base.settings import exclusion
from snapfs.base.volumes.fork_file import read_fork
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.gate_records import ShownGates
from snapfs.commands.support.locate import VolumeLocation, control_line, locate
from snapfs.commands.support.output import json_option, progress_option
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.store.log.branches import reference
from snapfs.store.log.holds import Hold, Holds
from snapfs.store.repository.repository import Event, Repository, SnapshotRecord
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.retention import named_holds

_POLL_S = 0.2


@click.command("snapshot", short_help="Make a snapshot of a mounted volume.")
@click.argument("mountpoint", shell_complete=folders, required=False)
@click.argument("name", required=False)
@click.option("--group", metavar="GROUP", help="Of all members of a group, at one instant; no MOUNTPOINT then.")
@click.option(
    "--no-flush", is_flag=True, help="Do not write the kernel's dirty pages out first: what was fsynced is in."
)
@json_option
@progress_option
def snapshot(
    mountpoint: str | None, name: str | None, group: str | None, no_flush: bool, as_json: bool, progress: bool | None
) -> None:
    """Make a snapshot of the volume mounted at MOUNTPOINT and return when it is durable.

    It is given the next number, and NAME if there is one. With --group it is one of every member of GROUP, and shows
    one instant over all of them.
    """
    if group is not None:
        from snapfs.commands.group_command import cut_group

        if name is not None:
            raise click.UsageError("--group takes a NAME alone: its members are where they are mounted.")
        return cut_group(group, mountpoint, not no_flush, as_json)
    if mountpoint is None:
        raise click.UsageError("Missing argument 'MOUNTPOINT'.")
    place = locate(mountpoint)
    line = control_line("snapshot", [name] if name else [], ["flush=no"] if no_flush else [])
    reply = watched(place, line, progress)
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


def watched(place: VolumeLocation, command: str, shown: bool | None) -> dict[str, Any]:
    """Send `command` and show what the daemon reports of its progress until the reply is there."""
    place.status()  # raises what is wrong, if something is, before a thread is started
    result: list[dict[str, Any] | Exception] = []

    def send() -> None:
        try:
            result.append(place.command(command))
        except Exception as error:
            result.append(error)

    sender = threading.Thread(target=send, name="command", daemon=True)
    sender.start()
    with output.progress(command.partition(" ")[0], shown) as advance:
        sender.join(_POLL_S)
        while sender.is_alive():
            facts = place.status()
            running = facts.get("busy") or facts.get("sealing") or {}
            advance(int(running.get("done_bytes", 0)), int(running.get("total_bytes", 0)))
            sender.join(_POLL_S)
    outcome = result[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _holds(repository: Repository) -> list[Hold]:
    """The holds on snapshots; none where they cannot be read."""
    if repository.lazy is not None:
        from snapfs.transfer.sources.remote_history import learn_holds

        learn_holds(repository)
    with contextlib.suppress(PermissionError):
        return Holds(repository.store_dir, repository.disk).all()
    return []


def _held(holds: list[Hold], record: SnapshotRecord) -> dict[str, Any]:
    found = [each for each in holds if record.number in each.snapshots and not record.branch]
    now_ns = time.time_ns()
    return {
        "held_by": [
            {"holder": each.holder, "why": each.why, "until_ns": named_holds.until(each, now_ns)} for each in found
        ]
    }


@click.command("list", short_help="List snapshots.")
@click.argument("place", shell_complete=folders)
@with_access
@json_option
def list_(place: str, given: Given, as_json: bool) -> None:
    """List the snapshots of PLACE (a mountpoint, a volume, or a target's URL), oldest first.

    GATES is what each has passed: sealed, verified (read back from the disk), replicated (on k of n targets), drilled
    (a check of the application passed on it). Branches at a target come after the history, named BRANCH/NUMBER; with
    --json they have a field `branch`.
    """
    with opened(place, given) as repository:
        if (fork := read_fork(os.path.dirname(repository.store_dir))) is not None:
            output.remark(f"a fork of {output.printable(fork.origin)}, snapshot {fork.snapshot}")
        holds, on_branches, gates = _holds(repository), repository.catalog.branches(), ShownGates(repository)

        def records() -> Iterator[SnapshotRecord]:
            return chain(repository.catalog.pages(), on_branches)

        if as_json:
            facts = (output.record_facts(each) | gates.facts(each) | _held(holds, each) for each in records())
            return output.emit_json_list(facts)
        heads = ["NUMBER", "TIME", "TRIGGER", "STORED", "STATE", "GATES", "NAME"]
        output.streamed_table(heads, lambda: (_row(each, holds, gates) for each in records()), right="NUMBER STORED")
    return None


def _row(record: SnapshotRecord, holds: list[Hold], gates: ShownGates) -> list[str]:
    return [
        output.printable(reference(record)),
        output.utc(record.cut_time_ns),
        output.printable(record.trigger),
        output.size(record.stats.stored_bytes),
        f"{record.state}, held" if _held(holds, record)["held_by"] else record.state,
        gates.words(record),
        output.printable(record.name or ""),
    ]


@click.command("show", short_help="Show all that is known of a snapshot.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshot")
@with_access
@json_option
def show(place: str, snapshot: str, given: Given, as_json: bool) -> None:
    """Show all that is known of SNAPSHOT, a number or a name. PLACE may be a target's URL.

    BRANCH/NUMBER is a snapshot of a branch there, BRANCH the newest of them.
    """
    with opened(place, given) as repository:
        record, holds, gates = repository.find_anywhere(snapshot), _holds(repository), ShownGates(repository)
        root = SnapshotTree(repository, record.root).root
    facts = output.record_facts(record) | {"inodes": root.inodes, "total_bytes": root.total_bytes}
    facts |= gates.facts(record) | _held(holds, record)
    if as_json:
        return output.emit_json(facts)
    stats = record.stats
    lines = [
        ("number", str(record.number)),
        ("name", output.printable(record.name or "-")),
        *([("branch", output.printable(record.branch))] if record.branch else []),
        ("state", record.state),
        ("gates", gates.words(record)),
        ("trigger", output.printable(record.trigger)),
        ("cut", output.utc(record.cut_time_ns)),
        ("sealed", f"{output.utc(record.seal_time_ns)} (took {output.seconds(stats.seal_seconds)})"),
        ("parent", "-" if record.parent is None else str(record.parent)),
        ("generation", str(record.generation)),
        ("holds", f"{root.inodes} inodes, {output.size(root.total_bytes)}"),
        ("changed", f"{stats.files} files, {stats.directories} directories, {stats.inodes} inodes"),
        ("read", output.size(stats.dirty_bytes)),
        ("stored", f"{output.size(stats.stored_bytes)} in {stats.new_objects} objects"),
        *_cut_lines(record),
        ("root", f"{record.root.number:016x} {record.root.content_hash.hex()}"),
        *(("held by", _held_by(each)) for each in facts["held_by"]),
    ]
    for key, value in lines:
        click.echo(f"{key:<12}{output.printable(value)}")
    return None


def _held_by(held: dict[str, Any]) -> str:
    until = f" until {output.utc(held['until_ns'])}" if held["until_ns"] else ""
    return f"{held['holder']}{until}: {output.printable(held['why'])}"


def _cut_lines(record: SnapshotRecord) -> list[tuple[str, str]]:
    """What is known of how the cut was made, if it was not as usual."""
    cut, lines = record.cut, list[tuple[str, str]]()
    if cut.held_s:
        why = f": {output.printable(cut.hook_error)}" if cut.hook_error else ""
        lines.append(("consistency", f"{cut.consistency}{why}"))
        lines.append(("held", f"the application, for {output.seconds(cut.held_s)}"))
    if cut.group is not None:
        names = ", ".join(output.printable(name) for name, _ in cut.group.members)
        lines.append(("group", f"{output.printable(cut.group.group)}, cut {cut.group.cut[:12]}, with {names}"))
        lines.append(("ordered", f"all {cut.group.promise} before, over all of them"))
    if cut.exclude:
        lines.append(("without", f"what is excluded: {output.printable(exclusion.words(cut.exclude))}"))
    return lines


@click.command("log", short_help="Print the audit trail.")
@click.argument("place", shell_complete=folders)
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


COMMANDS = (snapshot, list_, show, log)
