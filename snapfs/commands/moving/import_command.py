"""The command `import`: a plain directory, in use or not, becomes a volume."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_ATTENTION, BusyError, UserError, readable
from snapfs.base.volumes.volume import Volume
from snapfs.commands.mounting.mount_users import users_of
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.output import json_option, progress_option

if TYPE_CHECKING:
    from snapfs.transfer.move_in.directory_import import DirectoryImport, PassReport
    from snapfs.transfer.move_in.import_survey import Survey

THREADS = min(4, os.cpu_count() or 1)
PASSES = 5


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How an import is made. `shown`: progress on stderr, None: if it is a terminal."""

    threads: int = THREADS
    passes: int = PASSES
    verify: bool = True
    sharing: bool = True
    one_file_system: bool = False
    shown: bool | None = None


@click.command("import", short_help="Copy a state directory, in use or not, into a new volume.")
@click.argument("directory", metavar="DIR", shell_complete=folders)
@click.argument("volume", metavar="VOLUME", shell_complete=folders)
@click.option("--dry-run", is_flag=True, help="Only say how much there is, and how long it takes.")
@click.option("--prepare", is_flag=True, help="Copy, and leave the rest to a later import or adopt of the same two.")
@click.option("--force", is_flag=True, help="Make the volume although files kept changing; the exit code is 8.")
@click.option(
    "--passes", type=click.IntRange(2, 1000), default=PASSES, show_default=True,
    help="How often to look for what changed.",
)  # fmt: skip
@click.option("--one-file-system", is_flag=True, help="Leave out what is mounted below DIR.")
@click.option("--no-verify", is_flag=True, help="Do not read the copies back.")
@click.option("--no-reflink", is_flag=True, help="Copy, also where the filesystem could share the bytes.")
@click.option("--threads", type=click.IntRange(1, 64), default=THREADS, show_default=True)
@json_option
@progress_option
def import_(
    directory: str, volume: str, dry_run: bool, prepare: bool, force: bool, passes: int, one_file_system: bool,
    no_verify: bool, no_reflink: bool, threads: int, as_json: bool, progress: bool | None,
) -> None:  # fmt: skip
    """Copy the state directory DIR into VOLUME, a new one, with all attributes; DIR is left as it is.

    DIR is looked through until nothing in it has changed since it was copied: then VOLUME has what was there at one
    instant, as a kill of the application would have left it. If it does not come to rest, the exit code is 4, no
    volume is made, and the next import of the same two copies only what changed: stop the application, and run it
    again. An import that was killed goes on in the same way.
    """
    options = ImportOptions(threads, passes, not no_verify, not no_reflink, one_file_system, progress)
    check_places(directory, volume)
    from snapfs.transfer.move_in.directory_import import DirectoryImport

    with explained_failures(directory, volume):
        found = surveyed(directory, options)
        if dry_run:
            return _show_survey(directory, volume, found, options, as_json)
        started_s = time.monotonic()
        check_room(volume, found, options)
        making = DirectoryImport(directory, volume, Disk(), threads=threads, sharing=options.sharing)
        with contextlib.closing(making):
            announce(making, directory, volume, found, options)
            settled = copy(making, found, options)
            if prepare:
                return _end_prepared(directory, volume, making, settled, as_json)
            if settled.changes and not force:
                raise unsettled(directory, volume, settled)
            facts = finish(making, settled, options)
        facts["seconds"] = time.monotonic() - started_s
    _report(directory, volume, facts, as_json)
    if settled.changes:
        output.remark(f"{unsettled_words(settled)}; --force made the volume with what was read last")
        sys.exit(EXIT_ATTENTION)
    return None


# -- steps that `adopt` takes as well


def check_places(directory: str, volume: str) -> None:
    """UserError unless the one can become the other."""
    if not os.path.isdir(directory):
        raise UserError(f"{directory} is not a directory" if os.path.lexists(directory) else f"there is no {directory}")
    if Volume.exists(volume):
        raise UserError(f"{volume} is a volume already: an import makes a new one, so name another place")
    if os.path.lexists(volume) and (not os.path.isdir(volume) or os.listdir(volume)):
        raise UserError(f"{volume} exists and is not an empty directory: name one that does not exist")
    inside, outside = os.path.realpath(volume), os.path.realpath(directory)
    if f"{inside}/".startswith(f"{outside}/") or f"{outside}/".startswith(f"{inside}/"):
        raise UserError(f"{directory} and {volume} must not lie within each other: name places apart")


@contextlib.contextmanager
def explained_failures(directory: str, volume: str) -> Iterator[None]:
    """What the host refuses, in a line with what to do."""
    try:
        yield
    except PermissionError as failure:
        place = os.path.join(directory, str(failure.filename or ""))
        raise readable(output.printable(place), "read it", failure) from None
    except OSError as failure:
        if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space is left for {volume}: what was copied stays in {volume}.importing; make room, and run this "
            "again: it goes on there"
        ) from None


def surveyed(directory: str, options: ImportOptions) -> Survey:
    """What there is. UserError for what is mounted below it, unless that is to be left out."""
    from snapfs.transfer.move_in.import_survey import survey

    with _opened(directory) as root:
        found = survey(root)
    if found.elsewhere and not options.one_file_system:
        raise UserError(
            f"{_names(found.elsewhere)} in {directory} is on another filesystem: import it for itself, and leave it "
            "out here with --one-file-system"
        )
    return found


def announce(making: DirectoryImport, directory: str, volume: str, found: Survey, options: ImportOptions) -> None:
    """Say how much there is, how long it takes, and what is in the way. UserError if it does not fit."""
    if making.was_begun:
        output.remark(f"{volume}.importing is there: going on with it")
    output.remark(f"{directory}: {_amount(found)}, about {_estimate(making.volume.path, directory, found, options)}")
    if users := users_of(directory, besides=os.getpid()):
        output.remark(
            f"in use by {', '.join(users)}: what changes is copied again, and unless it comes to rest, the copy is no "
            "consistent one; stop it, or import from a snapshot of the filesystem"
        )
    if found.elsewhere:
        output.remark(f"left out, as on another filesystem: {_names(found.elsewhere)}")


def copy(making: DirectoryImport, found: Survey, options: ImportOptions) -> PassReport:
    """Copy until nothing changes, or as often as allowed."""
    with output.progress("import", options.shown) as advance:
        done = 0

        def add(size: int) -> None:
            nonlocal done
            done += size
            advance(min(done, found.total_bytes), found.total_bytes)

        return making.copy(options.passes, add)


def finish(
    making: DirectoryImport, settled: PassReport, options: ImportOptions, before: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Read the copies back, and make the volume; the facts. `before`: what precedes its appearance at its place."""
    checked = 0
    if options.verify:
        with output.progress("verify", options.shown) as advance:
            checked = making.check(advance)
    else:
        making.settle()
    if before is not None:
        before()
    clamped = making.publish(keep_plan=before is not None)
    for words, paths in (("sockets are not copied", settled.sockets), ("left out", settled.elsewhere)):
        if paths:
            output.remark(f"{words}: {len(paths)} ({_names(paths)})")
    if settled.linked_outside:
        output.remark(f"{settled.linked_outside} files have names outside of the directory, too: they are separate now")
    if clamped:
        output.remark(f"the times of {clamped} are beyond what the filesystem of the volume holds: the nearest is kept")
    return {
        "volume": making.path, "files": settled.files, "directories": settled.directories, "others": settled.others,
        "total_bytes": settled.total_bytes, "copied_bytes": making.copied_bytes, "shared_files": making.shared_files,
        "verified_files": checked, "passes": making.passes, "sockets": len(settled.sockets),
        "unsettled": settled.changes, "clamped_times": clamped,
    }  # fmt: skip


def unsettled(directory: str, volume: str, settled: PassReport) -> BusyError:
    """The error for a directory that does not come to rest."""
    return BusyError(
        f"{directory}: {unsettled_words(settled)}; no volume is made. What was copied is in {volume}.importing: stop "
        "the application (or take a snapshot of that filesystem, and import from it), and run this again: only what "
        "changed is copied then"
    )


def unsettled_words(settled: PassReport) -> str:
    return f"{settled.changes} files or directories changed in the last pass, too ({_names(settled.examples)})"


# -- words


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _names(paths: list[bytes]) -> str:
    shown = ", ".join(output.printable(os.fsdecode(path)) for path in paths[:3])
    return f"{shown}, ..." if len(paths) > 3 else shown


def _amount(found: Survey) -> str:
    sparse = f" ({output.size(found.allocated_bytes)} on its disk)"
    return (
        f"{found.files} files, {found.directories} directories, {output.size(found.total_bytes)}"
        f"{sparse if found.allocated_bytes < found.total_bytes else ''}"
    )


def _estimate(folder: str, directory: str, found: Survey, options: ImportOptions) -> str:
    from snapfs.transfer.move_in.import_survey import estimate

    with _opened(directory) as root:
        return output.seconds(max(estimate(root, found, folder, Disk(), verify=options.verify), 0.1))


def check_room(volume: str, found: Survey, options: ImportOptions) -> None:
    """UserError if it cannot fit: before anything is made. Where some is copied already, or bytes can be shared, the
    copying finds out."""
    if Volume.exists(f"{volume}.importing"):
        return
    room = os.statvfs(os.path.dirname(os.path.abspath(volume)))
    free = room.f_bavail * room.f_frsize
    may_share = options.sharing and os.stat(os.path.dirname(os.path.abspath(volume))).st_dev == found.device
    if found.allocated_bytes > free and not may_share:
        raise UserError(
            f"{volume}: {output.size(found.allocated_bytes)} are to be copied, and {output.size(free)} are free there: "
            "make room, or name a place on another disk"
        )


def _show_survey(directory: str, volume: str, found: Survey, options: ImportOptions, as_json: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix=".snapfs-trial-", dir=os.path.dirname(os.path.abspath(volume))) as folder:
        takes = _estimate(folder, directory, found, options)
    if as_json:
        return output.emit_json({
            "files": found.files, "directories": found.directories, "others": found.others,
            "sockets": len(found.sockets), "total_bytes": found.total_bytes, "allocated_bytes": found.allocated_bytes,
            "estimate": takes, "users": users_of(directory, besides=os.getpid()),
        })  # fmt: skip
    click.echo(f"{directory}: {_amount(found)}, about {takes}")
    if users := users_of(directory, besides=os.getpid()):
        click.echo(f"in use by {', '.join(users)}")
    return None


def _end_prepared(directory: str, volume: str, making: DirectoryImport, settled: PassReport, as_json: bool) -> None:
    making.settle()
    if as_json:
        return output.emit_json({"prepared": True, "unsettled": settled.changes, "copied_bytes": making.copied_bytes})
    rest = f"; {unsettled_words(settled)}" if settled.changes else ""
    copied = output.size(making.copied_bytes)
    click.echo(f"prepared {volume}: {copied} copied{rest}; `snapfs import {directory} {volume}` makes the volume")
    return None


def _report(directory: str, volume: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return output.emit_json(facts)
    shared = f", {facts['shared_files']} shared with the original" if facts["shared_files"] else ""
    checked = f", {facts['verified_files']} read back" if facts["verified_files"] else ""
    click.echo(
        f"imported {directory} to {volume}: {facts['files']} files, {facts['directories']} directories, "
        f"{output.size(facts['total_bytes'])} in {output.seconds(facts['seconds'])}{checked}{shared}"
    )
    return None


COMMANDS = (import_,)
