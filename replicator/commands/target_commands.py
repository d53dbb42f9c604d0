"""Commands for the administrator of a target, of any kind: lock, drop, target init.

They act on the target's side, with the rights of who runs it, and not as the volume's writer. PLACE is a URL
(https://MIRROR:8700/VOLUME, s3://BUCKET/PREFIX, file:///FOLDER) or a folder that has a volume's history.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click
import msgspec

from replicator.commands.command_options import Span, json_option, kept_reason, name_and_value
from replicator.source.known_targets import Memory, pushed_to
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target_factory import make_target
from replicator.volumes.folder_lock import FolderLock
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import EXIT_BUSY, UserError
from snapfs.base.settings.replication_settings import TargetSettings, plain_url, target_name
from snapfs.base.settings.units import format_seconds
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.locks import Lock, LockedSnapshot
from snapfs.store.log.snapshot_records import SnapshotRecord

_OPTIONS = (
    click.option("--token-file", default="", help="The mirror's token, or the key id and secret of an object store."),
    click.option("--ca", default="", help="Certificates to trust instead of the system's."),
    click.option("--certificate", default="", help="Our own (PEM), if the mirror requires one."),
    click.option("--certificate-key", "key", default="", help="Its key. Default: in that file."),
    click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="As `options` of a target."),
)


def place_options(command: Callable[..., Any]) -> Any:
    """Give a command the argument PLACE, and the options to get there: the arguments of `settings_of`."""
    wrapped: Any = command
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return click.argument("place")(wrapped)


def settings_of(
    place: str, token_file: str, ca: str, certificate: str, key: str, options: tuple[str, ...]
) -> TargetSettings:
    """As if the volume's settings named it. Raises UserError."""
    url = place if "://" in place else f"file://{os.path.abspath(place)}"
    given = dict(map(name_and_value, options))
    return TargetSettings(url, token_file=token_file, ca=ca, certificate=certificate, key=key, options=given)


# -- lock


@click.command("lock", short_help="Show or set the lock of a target.")
@place_options
@click.argument("seconds", type=Span(), required=False, metavar="[TIME]")
@click.option("--shorten", is_flag=True, help="The lock may become shorter, or end (0s).")
@json_option
def lock(seconds: float | None, shorten: bool, as_json: bool, **place: Any) -> None:
    """Show the lock of the volume at PLACE, or set it: no request drops what came less than TIME ago.

    PLACE is a folder (of a target, or ROOT/VOLUME of a mirror, also while it serves) or an object store's URL. No push
    changes a lock; to make one shorter takes --shorten. A mirror's may also be set by `serve --lock`.
    """
    known = _lock_at(settings_of(**place), seconds, shorten)
    found = known.seconds if known is not None else 0.0
    if as_json:
        return click.echo(msgspec.json.encode({"seconds": found, "set_ns": known.set_ns if known else None}))
    if not found:
        return click.echo("no lock: every drop request is followed")
    return click.echo(f"locked: what came less than {format_seconds(found)} ago stays")


def _lock_at(settings: TargetSettings, seconds: float | None, shorten: bool) -> Lock | None:
    if settings.url.startswith("file://"):
        folder = settings.url.removeprefix("file://")
        if not Volume.exists(folder):
            raise UserError(
                f"{folder}: there is no volume's history: name a target's folder, or ROOT/VOLUME of a mirror"
            )
        there = FolderLock(folder, Disk())
        return there.read() if seconds is None else there.set(seconds, shorten=shorten)
    target = make_target(settings)
    if not isinstance(target, ObjectStoreTarget):
        why = "a mirror's lock is set on its side: `serve --lock`, or `snapfs-replicator lock ROOT/VOLUME TIME` there"
        raise UserError(f"{settings.url}: {why}")
    return asyncio.run(_lock_in(target, seconds, shorten))


async def _lock_in(target: ObjectStoreTarget, seconds: float | None, shorten: bool) -> Lock | None:
    await target.identify()
    return await target.lock(seconds, shorten=shorten)


# -- drop


@click.command("drop", short_help="Drop snapshots of a target.")
@place_options
@click.argument("snapshots", nargs=-1, required=True, metavar="SNAPSHOT...")
@click.option("--dry-run", "-n", is_flag=True, help="Show what would be dropped, and drop nothing.")
@json_option
def drop(snapshots: tuple[str, ...], dry_run: bool, as_json: bool, **place: Any) -> None:
    """Drop SNAPSHOTs (numbers or names) at PLACE, and there only: such as those that the volume's host never had.

    By URL it takes a token with the right to prune; a folder must not be in use. What is locked stays: the exit code is
    4 then, as for the newest and for what is held.
    """
    records, kept = asyncio.run(_drop_at(settings_of(**place), snapshots, dry_run))
    staying = {each.number: each for each in kept}
    gone = [record for record in records if record.number not in staying]
    if as_json:
        facts = {"dropped": [record.number for record in gone], "kept": [*map(asdict, kept)], "dry_run": dry_run}
        click.echo(msgspec.json.encode(facts))
    else:
        for record in gone:
            click.echo(f"{'would drop' if dry_run else 'dropped'} {record.number}")
    for each in kept:
        click.echo(
            f"snapfs-replicator: snapshot {each.number} stays: {kept_reason(each.reason, each.until_ns)}", err=True
        )
    if kept:
        raise click.exceptions.Exit(EXIT_BUSY)


Dropped = tuple[list[SnapshotRecord], Sequence[LockedSnapshot]]


async def _drop_at(settings: TargetSettings, snapshots: Sequence[str], dry_run: bool) -> Dropped:
    if settings.url.startswith("file://"):
        return await asyncio.to_thread(_drop_in_folder, settings.url.removeprefix("file://"), snapshots, dry_run)
    target = make_target(settings)
    try:
        if isinstance(target, HttpTarget):
            records = _found(await target.snapshots(), snapshots)
            return records, [] if dry_run else await target.prune([record.number for record in records])
        assert isinstance(target, ObjectStoreTarget)
        state = await target.open(await target.identify())
        records = _found(state.snapshots, snapshots)
        if dry_run or not records:
            return records, []
        await target.claim(state.generation, state.writer_id)  # as it is: its writer goes on
        return records, await target.drop([record.number for record in records])
    finally:
        await target.close()


def _drop_in_folder(folder: str, snapshots: Sequence[str], dry_run: bool) -> Dropped:
    volume = MirrorVolume.open(folder, Disk())
    try:
        records = _found(volume.repository.snapshots(), snapshots)
        numbers = [int(record.number) for record in records]
        return records, [] if dry_run else volume.prune(numbers, "snapfs-replicator drop")
    finally:
        volume.close()


def _found(there: Sequence[SnapshotRecord], wanted: Sequence[str]) -> list[SnapshotRecord]:
    """Raises UserError if one is not there."""
    chosen: dict[SnapshotNumber, SnapshotRecord] = {}
    for text in wanted:
        matching = [record for record in there if text in (str(record.number), record.name)]
        if not matching:
            raise UserError(f"there is no snapshot {text!r} there: `snapfs list` shows those there are")
        chosen[matching[-1].number] = matching[-1]
    return [chosen[number] for number in sorted(chosen)]


# -- target


@click.group("target", short_help="Targets of a volume: which are new.")
def target() -> None:
    """Targets of a volume, as its settings name them."""


@target.command("init", short_help="Mark a target as new.")
@click.argument("volume", type=click.Path(file_okay=False))
@click.argument("names", metavar="[TARGET]...", nargs=-1)
def target_init(volume: str, names: tuple[str, ...]) -> None:
    """Mark TARGETs as new (their names; default: all that VOLUME was never pushed to): they may be made.

    Without that a folder that is not there is an error, since its disk may not be mounted; and so is any target that
    was pushed to before and is gone, or empty. VOLUME is the volume's folder; its agent takes it up by itself.
    """
    for name, was_known in mark_new(os.path.abspath(volume), names):
        if was_known:
            click.echo(f"{name} was pushed to before: what is there is kept, and if nothing is, it is made anew")
        else:
            click.echo(f"{name} is new: it is made with the next snapshot that is pushed")


def mark_new(volume_path: str, names: Sequence[str]) -> list[tuple[str, bool]]:
    """Mark these targets, or all unknown ones, as new; which, and whether each was known.

    Raises UserError, OSError.
    """
    volume, disk = Volume.open(volume_path, Disk()), Disk()
    targets = {target_name(each): plain_url(each.url) for each in volume.config.replication.target}
    wrong = [name for name in names if name not in targets]
    if wrong or not targets:
        known_names = ", ".join(targets) or "none"
        raise UserError(f"{volume.toml_path} names no target {wrong[0] if wrong else ''} (it names: {known_names})")
    pushed = pushed_to(volume.path, volume.volume_id)
    found = []
    for name in names or targets:
        memory = Memory(volume.path, disk, name, targets[name], pushed=(name, targets[name]) in pushed)
        if names or memory.known is None:
            found.append((name, memory.known is not None and not memory.known.new))
            memory.mark_new()
    return found


COMMANDS = (lock, drop, target)
