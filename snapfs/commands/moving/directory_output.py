"""A snapshot as a plain directory, for the commands that write one, and how they report it."""

from __future__ import annotations

import os
import stat

import click
import msgspec

from snapfs.base.settings import exclusion
from snapfs.commands.support import output
from snapfs.commands.support.history_paths import found_snapshot, kept
from snapfs.commands.support.restore_output import needing_room, report_missed
from snapfs.commands.support.target_options import Given, opened
from snapfs.store.history.tree_lookup import locate_path
from snapfs.store.log.snapshot_records import SnapshotRecord


def write_directory(
    place: str, snapshot: str, dest: str, verify: bool, threads: int, given: Given, as_json: bool,
    progress: bool | None, act: str = "restore",
) -> None:  # fmt: skip
    """Write a snapshot, or a path of it (SNAPSHOT:PATH), to the plain directory `dest`, and report it.

    Raises UserError, OSError, CorruptionError.
    """
    from snapfs.transfer.restore.restore import restore as run

    with opened(place, given) as repository, output.progress(act, progress) as advance:
        record, path = found_snapshot(repository, snapshot)
        top = locate_path(repository, record, path).record if path is not None else None
        if path is not None and top is not None and not stat.S_ISDIR(top.mode) and os.path.isdir(dest):
            dest = os.path.join(dest, os.path.basename(os.fsdecode(path.rstrip(b"/"))))
        with needing_room(f"{act} to", dest), kept(repository, record, act):
            report = run(repository, record, dest, top=top, verify=verify, threads=threads, progress=advance)
    report_missed(report)
    remark_excluded(record)
    if as_json:
        facts = {"snapshot": record.number, "destination": os.path.abspath(dest), "excluded": record.cut.exclude}
        return output.emit_json(facts | msgspec.to_builtins(report))
    rate = report.written_bytes / max(report.seconds, 1e-9)
    what = f"snapshot {record.number}" if path is None else f"{output.printable(path)} of snapshot {record.number}"
    did = "exported" if act == "export" else "restored"
    click.echo(
        f"{did} {what} to {output.printable(dest)}: {report.files} files, {report.directories} directories, "
        f"{output.size(report.written_bytes)} in {output.seconds(report.seconds)} ({output.size(rate)}/s)"
        f"{', verified' if report.verified else ''}"
    )
    return None


def remark_excluded(record: SnapshotRecord) -> None:
    """Name what the snapshot was made without, if it was."""
    for line in exclusion.remarks(record.cut.exclude, record.number):
        output.remark(output.printable(line))
