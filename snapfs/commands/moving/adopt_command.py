"""The command `adopt`: a directory becomes a volume, which is mounted in its place."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from typing import Any

import click

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_CORRUPT, UserError
from snapfs.base.mountinfo import FUSE_TYPE, mount_at
from snapfs.base.volumes.volume import Volume
from snapfs.commands.moving import import_command
from snapfs.commands.moving.adoption import ORIGINAL, Adoption
from snapfs.commands.moving.import_command import PASSES, THREADS, ImportOptions
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.output import json_option, progress_option
from snapfs.live.recovery.stray_files import DAMAGED

BESIDE = ".snapfs"


@click.command("adopt", short_help="Make a directory a volume, mounted in its place.")
@click.argument("directory", metavar="DIR", shell_complete=folders)
@click.argument("volume", metavar="[VOLUME]", required=False, shell_complete=folders)
@click.option("options", "-o", "--options", multiple=True, help="Mount options and settings, as of `mount`.")
@click.option("--undo", is_flag=True, help="Put the original back in its place; VOLUME stays, unmounted.")
@click.option("--forget-original", is_flag=True, help="Remove the original, which is kept until then.")
@click.option("--force", is_flag=True, help="With --undo: also if the mount has what the original has not.")
@click.option("--no-verify", is_flag=True, help="Do not read the copies back.")
@click.option("--no-reflink", is_flag=True, help="Copy, also where the filesystem could share the bytes.")
@click.option("--threads", type=click.IntRange(1, 64), default=THREADS, show_default=True)
@json_option
@progress_option
def adopt(
    directory: str, volume: str | None, options: tuple[str, ...], undo: bool, forget_original: bool, force: bool,
    no_verify: bool, no_reflink: bool, threads: int, as_json: bool, progress: bool | None,
) -> None:  # fmt: skip
    """Import DIR into VOLUME (default: DIR.snapfs) and mount it where DIR is, in one step for all who look.

    Stop the application first. The original is kept as DIR.original until --forget-original, and --undo puts it back.
    What was interrupted goes on when it is run again; `snapfs doctor VOLUME` says where it is.
    """
    if force and not undo:
        raise click.UsageError("--force belongs to --undo.")
    if undo and forget_original:
        raise click.UsageError("--undo and --forget-original exclude each other.")
    directory = directory.rstrip("/") or "/"
    adoption = Adoption(directory, volume or _volume_of(directory), Disk(), options)
    if undo:
        adoption.undo(first_difference, force=force)
        return _emit(adoption, "undone", f"{directory} is the original again; {adoption.volume} is unmounted", as_json)
    if forget_original:
        adoption.forget()
        return _emit(adoption, "forgotten", f"the original of {directory} is removed", as_json)
    started_s = time.monotonic()
    how = ImportOptions(threads, PASSES, not no_verify, not no_reflink, False, progress)
    with import_command.explained_failures(directory, adoption.volume):
        facts, recovered = run(adoption, how)
    facts["seconds"] = time.monotonic() - started_s
    _report(adoption, facts, as_json)
    for line in recovered:
        output.remark(f"recovered: {line}")
    if any(line.startswith(DAMAGED) for line in recovered):
        sys.exit(EXIT_CORRUPT)
    return None


def _volume_of(directory: str) -> str:
    """The volume that is mounted there; else the one beside it."""
    mount = mount_at(directory)
    return mount.source if mount is not None and mount.kind == FUSE_TYPE else f"{directory}{BESIDE}"


def run(adoption: Adoption, how: ImportOptions) -> tuple[dict[str, Any], list[str]]:
    """All that is left of the adoption: facts of the import, if one was made, and what the mount recovered."""
    found = adoption.facts() if Volume.exists(adoption.volume) else None
    if found is not None and found.state != "prepared":
        raise UserError(f"{adoption.directory} is {found.state} already: see `snapfs doctor {adoption.volume}`")
    facts: dict[str, Any] = {}
    recovered: list[str] = []
    if found is None or not adoption.is_exchanged(found):
        adoption.check()
        if found is not None and adoption.changes().changes:
            adoption.take_back(f"{adoption.volume}{_STAGING}")
            found = None
        if found is None:
            facts = _import(adoption, how)
        recovered = adoption.exchange()
    return facts, recovered + adoption.finish()


_STAGING = ".importing"


def _import(adoption: Adoption, how: ImportOptions) -> dict[str, Any]:
    from snapfs.transfer.move_in.directory_import import DirectoryImport

    directory, volume = adoption.directory, adoption.volume
    import_command.check_places(directory, volume)
    found = import_command.surveyed(directory, how)
    import_command.check_room(volume, found, how)
    making = DirectoryImport(directory, volume, adoption.disk, threads=how.threads, sharing=how.sharing)
    with contextlib.closing(making):
        import_command.announce(making, directory, volume, found, how)
        settled = import_command.copy(making, found, how)
        if settled.changes:
            raise import_command.unsettled(directory, volume, settled)
        return import_command.finish(making, settled, how, lambda: adoption.prepare(making.staging))


def first_difference(mount: str, original: str) -> str | None:
    """A path that is not the same in both, by type, owner, mode, size and times; None if all are."""
    from snapfs.transfer.move_in.source_walk import SourceWalk

    seen: list[dict[bytes, tuple[object, ...]]] = []
    for place in (mount, original):
        root = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found: dict[bytes, tuple[object, ...]] = {}
            for directory in SourceWalk(root).directories():
                for name, facts in directory.entries:
                    if not stat.S_ISSOCK(facts.st_mode):
                        found[os.path.join(directory.path, name)] = _shape(facts)
            seen.append(found)
        finally:
            os.close(root)
    paths = (path for path in sorted({*seen[0], *seen[1]}) if seen[0].get(path) != seen[1].get(path))
    first = next(paths, None)
    return None if first is None else os.path.join(mount, os.fsdecode(first))


def _shape(facts: os.stat_result) -> tuple[object, ...]:
    size = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return facts.st_mode, facts.st_uid, facts.st_gid, facts.st_rdev, size, facts.st_mtime_ns, facts.st_ctime_ns


def _emit(adoption: Adoption, state: str, words: str, as_json: bool) -> None:
    if as_json:
        return output.emit_json({"directory": adoption.directory, "volume": adoption.volume, "state": state})
    click.echo(words)
    return None


def _report(adoption: Adoption, facts: dict[str, Any], as_json: bool) -> None:
    directory, volume = adoption.directory, adoption.volume
    if as_json:
        more = {"directory": directory, "volume": volume, "original": adoption.original, "state": "adopted"}
        return output.emit_json(facts | more)
    click.echo(f"adopted {directory}: it is the mount of {volume}, and the original is {directory}{ORIGINAL}")
    output.remark(f"for a mount at boot, in /etc/fstab: {volume} {directory} fuse.snapfs defaults,nofail 0 0")
    output.remark(
        f"when all is well: snapfs adopt --forget-original {directory}; else: snapfs adopt --undo {directory}"
    )
    return None


COMMANDS = (adopt,)
