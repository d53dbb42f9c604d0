"""The command `export`: a snapshot as a directory, or as a tar archive on stdout."""

from __future__ import annotations

import os
import sys

import click

from snapfs.commands.moving.directory_output import write_directory
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.output import json_option, progress_option
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.store.tables.snapshot import SnapshotTree

_THREADS = min(4, os.cpu_count() or 1)


@click.command("export", short_help="Write a snapshot to a directory, or as a tar archive to stdout.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshot")
@click.argument("dest", metavar="DIR|-", shell_complete=folders)
@click.option("--verify", is_flag=True, help="Of DIR: read everything back and compare it with the snapshot.")
@click.option("--threads", type=click.IntRange(1, 64), default=_THREADS, show_default=True)
@with_access
@json_option
@progress_option
def export(
    place: str, snapshot: str, dest: str, verify: bool, threads: int, given: Given, as_json: bool, progress: bool | None
) -> None:
    """Write SNAPSHOT of PLACE (a mountpoint, a volume, or a target's URL) to the directory DIR, or to stdout as a tar
    archive.

    DIR is made as `restore` makes it. The archive is in pax format, with extended attributes, ACLs, times to the
    nanosecond, hard links and holes: `tar -x --xattrs --xattrs-include='*' --acls --numeric-owner` takes all of it. An
    export that fails ends with an exit code, and an archive without its end.
    """
    if dest != "-":
        return write_directory(place, snapshot, dest, verify, threads, given, as_json, progress, "export")
    if verify:
        raise click.UsageError("--verify belongs to a DIR: what goes to stdout cannot be read back.")
    if as_json:
        raise click.UsageError("--json and an archive on stdout exclude each other.")
    if sys.stdout.isatty():
        raise click.UsageError("stdout is a terminal: send the archive to a file or a program.")
    return _write_archive(place, snapshot, threads, given, progress)


def _write_archive(place: str, snapshot: str, threads: int, given: Given, progress: bool | None) -> None:
    from snapfs.transfer.lazy.snapshot_hold import held_while
    from snapfs.transfer.move_out.tar_stream import TarStream
    from snapfs.transfer.sources.remote_history import held_there

    with opened(place, given) as repository, output.progress("export", progress) as advance:
        record = repository.find_anywhere(snapshot)
        with held_while(repository, record, "export"), held_there(repository, record):
            tree = SnapshotTree(repository, record.root)
            stream = TarStream(repository, tree, sys.stdout.buffer, threads=threads, progress=advance)
            report = stream.write()
            sys.stdout.buffer.flush()
    if report.left_out:
        examples = ", ".join(output.printable(os.fsdecode(path)) for path in report.examples)
        output.remark(f"not in the archive: {report.left_out} sockets ({examples}): tar has no form for them")
    output.remark(
        f"exported snapshot {record.number}: {report.files} files, {report.directories} directories, "
        f"{output.size(report.content_bytes)} in an archive of {output.size(report.archive_bytes)}"
    )


COMMANDS = (export,)
