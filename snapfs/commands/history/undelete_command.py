"""The command `undelete`: what was deleted comes back into the mount, as the newest snapshot that had it has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from snapfs.base.errors import EXIT_ENVIRONMENT, UserError
from snapfs.commands.history.find_command import unreadable_lines
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.history_paths import kept, placed_paths
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option
from snapfs.commands.support.restore_output import needing_room, report_missed
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.store.history.path_patterns import PathPatterns, is_pattern, split_path
from snapfs.store.history.path_search import PathSearch
from snapfs.store.history.tree_lookup import Located, locate_path, newest_with
from snapfs.store.repository.repository import Repository
from snapfs.transfer.restore.restore_report import RestoreReport


@click.command("undelete", short_help="Bring back what was deleted from a mount.")
@click.argument("words", metavar="[MOUNTPOINT] PATH...", nargs=-1, shell_complete=folders)
@click.option("--overwrite", is_flag=True, help="Also what is there: as the newest snapshot has it.")
@click.option("--exact", is_flag=True, help="PATH is no pattern, whatever characters it has.")
@click.option("--from", "source", metavar="URL", help="From the history that this target has of the volume.")
@with_access
@json_option
def undelete(
    words: tuple[str, ...], overwrite: bool, exact: bool, source: str | None, given: Given, as_json: bool
) -> None:
    """Bring PATH back into the mount as the newest snapshot that had it has it: with owner, mode, times, attributes,
    holes and links, and with the folders above it that are gone, too.

    PATH is that of the file below the mount, or from the top of its tree after MOUNTPOINT. A pattern (as of `find`)
    brings back all that is gone of what it matches. What is there is not touched without --overwrite.
    """
    place, paths = placed_paths(words)
    if "://" in place:
        raise click.UsageError("Name the mount that it is to come back to, and the target with --from.")
    mountpoint = locate(place).mountpoint
    if mountpoint is None:
        raise UserError(f"{place} is not mounted: mount it first, or use `snapfs restore SNAPSHOT:PATH DEST`")
    refused = False
    with opened(source or place, given) as repository:
        for found in _wanted(repository, mountpoint, paths, exact, overwrite):
            if isinstance(found, str):
                output.remark(found)
                refused = True
                continue
            report = _bring_back(repository, found, mountpoint, overwrite)
            _report(found, report, as_json)
    if refused:
        raise click.exceptions.Exit(EXIT_ENVIRONMENT)


def _wanted(
    repository: Repository, mountpoint: str, paths: list[bytes], exact: bool, overwrite: bool
) -> Iterator[Located | str]:
    """What is to come back, each when it is its turn; a line where nothing can."""
    for path in paths:
        if is_pattern(path) and not exact:
            yield from _matching(repository, mountpoint, path, overwrite)
            continue
        whole = b"/".join(split_path(path))
        if _is_there(mountpoint, whole) and not overwrite:
            yield f"{output.printable(whole) or '.'} is there: --overwrite puts it back to the newest snapshot"
            continue
        found = newest_with(repository, repository.catalog.newest_first(), whole)
        yield found or f"no snapshot has {output.printable(whole)}"


def _matching(repository: Repository, mountpoint: str, pattern: bytes, overwrite: bool) -> Iterator[Located | str]:
    """A folder before what is in it, so that it comes back as a whole."""
    search = PathSearch(repository, PathPatterns.of([pattern]))
    search.run(repository.catalog.pages())
    yield from unreadable_lines(search.unreadable)
    if not search.found:
        yield f"no snapshot has {output.printable(pattern)}"
    whole: list[bytes] = []
    for each in search.in_order():
        is_below = any(each.path.startswith(folder + b"/") for folder in whole)
        if is_below if overwrite else _is_there(mountpoint, each.path):
            continue
        end = each.spans[-1].end
        snapshot = search.snapshots[(len(search.snapshots) if end is None else end) - 1]
        whole.append(each.path)
        yield locate_path(repository, snapshot, each.path)


def _is_there(mountpoint: str, path: bytes) -> bool:
    return os.path.lexists(os.path.join(mountpoint, os.fsdecode(path)))


def _bring_back(repository: Repository, found: Located, mountpoint: str, overwrite: bool) -> RestoreReport:
    from snapfs.transfer.restore.undelete import undelete as run

    with needing_room("bring it back to", mountpoint), kept(repository, found.snapshot, "undelete"):
        return run(repository, found, mountpoint, replace=overwrite)


def _report(found: Located, report: RestoreReport, as_json: bool) -> None:
    report_missed(report)
    if as_json:
        facts: dict[str, Any] = msgspec.to_builtins(report)
        return output.emit_line(
            output.encodable(output.path_facts(found.path) | {"snapshot": found.snapshot.number} | facts)
        )
    more = f": {report.files} files, {report.directories} directories" if report.directories else ""
    return click.echo(f"{output.printable(found.path)} is back as it was in snapshot {found.snapshot.number}{more}")


COMMANDS = (undelete,)
