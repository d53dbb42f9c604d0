"""The command `find`: every version of a path or of what a pattern matches."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import Any

import click

from snapfs.base.errors import EXIT_CORRUPT, CorruptionError, UserError
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.history_paths import placed_paths
from snapfs.commands.support.output import json_option
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.store.history.path_patterns import PathPatterns
from snapfs.store.history.path_search import PathSearch
from snapfs.store.history.path_versions import PathVersions, VersionSpan
from snapfs.store.log.branches import reference
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.tables.snapshot import InodeRecord

_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}  # fmt: skip


@click.command("find", short_help="Show every version of a path.")
@click.argument("words", metavar="[PLACE] PATH...", nargs=-1, shell_complete=folders)
@click.option("--exact", is_flag=True, help="PATH is no pattern, whatever characters it has.")
@click.option("--attributes", is_flag=True, help="Another mode, owner, xattr or mtime is another version, too.")
@click.option("--gone", is_flag=True, help="Only what the newest snapshot does not have.")
@with_access
@json_option
def find(words: tuple[str, ...], exact: bool, attributes: bool, gone: bool, given: Given, as_json: bool) -> None:
    """Show every version of PATH: the snapshots that have it, its size and time. A version is a distinct content.

    PATH may be a pattern: `*`, `?`, `[...]` within a name, `**` for any folders. With PLACE, which may be a target's
    URL, it is from the top of the tree; without, it is a path below a mount, there or gone. Only what changed from one
    snapshot to the next is read. With --json, one version a line.
    """
    place, paths = placed_paths(words)
    patterns = PathPatterns.of(paths, exact=exact)
    with opened(place, given) as repository:
        search = PathSearch(repository, patterns, attributes=attributes)
        search.run(chain(repository.catalog.pages(), repository.catalog.branches()))
    for line in unreadable_lines(search.unreadable):
        output.remark(line)
    found = [each for each in search.in_order() if not (gone and each.is_there)]
    if as_json:
        for each in found:
            for facts in _facts(search, each):
                output.emit_line(facts)
    elif found:
        _print(search, found)
    if search.unreadable:
        raise click.exceptions.Exit(EXIT_CORRUPT)
    missing = [path for at, path in enumerate(paths) if at not in search.matched]
    if missing:
        raise UserError(f"no snapshot of {place} has {', '.join(output.printable(path) for path in missing)}")


def unreadable_lines(unreadable: list[tuple[SnapshotRecord, CorruptionError]]) -> Iterator[str]:
    """A line for each damage, with the snapshots that it keeps from being read."""
    for why, group in groupby(unreadable, key=lambda each: str(each[1])):
        names = [reference(snapshot) for snapshot, _ in group]
        which = f"snapshot {names[0]}" if len(names) == 1 else f"{len(names)} snapshots, {names[0]} to {names[-1]},"
        yield f"{which} cannot be read: {why}"


def _print(search: PathSearch, found: list[PathVersions]) -> None:
    heads = ["SNAPSHOTS", "SIZE", "MODIFIED", "PATH"]
    output.streamed_table(heads, lambda: (row for each in found for row in _rows(search, each)), right="SIZE")


def _rows(search: PathSearch, found: PathVersions) -> Iterator[list[str]]:
    for version, record in enumerate(found.records):
        runs = ", ".join(_run_words(search, found.spans_of(version)))
        size = output.size(record.size) if stat.S_ISREG(record.mode) else "-"
        yield [runs, size, output.utc(record.mtime_ns), _shown(found.path, record)]


def _shown(path: bytes, record: InodeRecord) -> str:
    shown = output.printable(path)
    if stat.S_ISLNK(record.mode):
        return f"{shown} -> {output.printable(record.target)}"
    return f"{shown}/" if stat.S_ISDIR(record.mode) else shown


def _runs(search: PathSearch, spans: Iterable[VersionSpan]) -> Iterator[tuple[SnapshotRecord, SnapshotRecord, int]]:
    """(first, last, how many) of each run of snapshots; branches apart from the history."""
    for span in spans:
        snapshots = search.snapshots[span.first : span.end]
        for _, group in groupby(snapshots, key=lambda each: each.branch):
            run = list(group)
            yield run[0], run[-1], len(run)


def _run_words(search: PathSearch, spans: Iterable[VersionSpan]) -> Iterator[str]:
    for first, last, count in _runs(search, spans):
        shown = output.printable(reference(first))
        yield shown if count == 1 else f"{shown}-{last.number}"


def _facts(search: PathSearch, found: PathVersions) -> Iterator[dict[str, Any]]:
    for version, record in enumerate(found.records):
        runs = list(_runs(search, found.spans_of(version)))
        target = {f"target{key.removeprefix('path')}": value for key, value in output.path_facts(record.target).items()}
        yield {
            **output.path_facts(found.path),
            "type": _KINDS.get(stat.S_IFMT(record.mode), "other"),
            "size": record.size,
            "mtime": output.utc(record.mtime_ns),
            "mtime_ns": record.mtime_ns,
            "mode": record.mode,
            "uid": record.uid,
            "gid": record.gid,
            "links": record.nlink,
            "inode": record.ino,
            **(target if stat.S_ISLNK(record.mode) else {}),
            "snapshots": [_run_facts(*run) for run in runs],
            "gone": not found.is_there,
        }


def _run_facts(first: SnapshotRecord, last: SnapshotRecord, count: int) -> dict[str, Any]:
    return {
        "first": output.encodable(reference(first)),
        "last": output.encodable(reference(last)),
        "count": count,
        "first_cut_time_ns": first.cut_time_ns,
        "last_cut_time_ns": last.cut_time_ns,
    }


COMMANDS = (find,)
