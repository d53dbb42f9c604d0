"""Groups of volumes: define them, cut them at one instant, and put such an instant back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import click

from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.volumes import group_file
from snapfs.base.volumes.group_file import MAX_MEMBERS, Group, GroupVolume
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.create_volume import OF_FROM
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.store.log.group_cuts import GroupInstant, chosen, instants, misplaced
from snapfs.store.log.snapshot_records import SnapshotRecord

_NOTHING: Given = dict.fromkeys(OF_FROM)
_from_option = click.option(
    "--from", "sources", multiple=True, metavar="MEMBER=PLACE",
    help="Read a member's history there: a mirror's or store's URL, or a folder. Once for each member.",
)  # fmt: skip


@click.group("group", short_help="Several volumes that are cut at one instant.")
def group() -> None:
    """Volumes of this host that belong together: `snapfs snapshot --group NAME` cuts them at one instant."""


@group.command("create", short_help="Define a group.")
@click.argument("name")
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True, shell_complete=folders)
def create(name: str, volumes: tuple[str, ...]) -> None:
    """Define the group NAME of these volumes (folders or mountpoints)."""
    if not 2 <= len(volumes) <= MAX_MEMBERS:
        raise UserError(f"a group has 2 to {MAX_MEMBERS} volumes")
    found = [locate(each).volume() for each in volumes]
    ids = [volume.volume_id for volume in found]
    if len(set(ids)) < len(ids):
        raise UserError("two of these are one volume: name each volume once")
    members = [
        GroupVolume(each, os.path.realpath(volume.path), volume.volume_id)
        for each, volume in zip(_names([volume.path for volume in found]), found, strict=True)
    ]
    group_file.create(Group(name, tuple(members)), Disk())
    click.echo(f"group {name}: {', '.join(member.name for member in members)}")


def _names(paths: Sequence[str]) -> list[str]:
    """A name for each volume: as many of its last folders as it takes to be unique."""
    parts = [os.path.realpath(path).strip("/").split("/") for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("two of these are one volume: name each volume once")


@group.command("list", short_help="List the groups of this host.")
@json_option
def list_(as_json: bool) -> None:
    """List the groups of this host and their members."""
    groups = [group_file.read(name) for name in group_file.names()]
    if as_json:
        return output.emit_json(groups)
    output.table(["GROUP", "MEMBERS"], [[each.name, ", ".join(m.volume for m in each.members)] for each in groups])
    return None


@group.command("show", short_help="Show a group's members and its cuts.")
@click.argument("name")
@_from_option
@with_access
@json_option
def show(name: str, sources: tuple[str, ...], given: Given, as_json: bool) -> None:
    """Show the cuts of the group NAME, here or at targets, oldest first, and whether each is whole there."""
    found, _ = _instants(name, _places(name, sources), given)
    if as_json:
        facts = [_facts(each) for each in found]
        return output.emit_json({"group": name, "cuts": facts})
    rows = [
        [
            each.group.cut[:12], output.utc(each.cut_time_ns), each.group.promise,
            "whole" if each.is_whole else f"not whole: {', '.join(each.missing)}",
            output.printable(each.name or ""), ", ".join(f"{m}:{n}" for m, n in each.snapshots.items()),
        ]
        for each in found
    ]  # fmt: skip
    output.table(["CUT", "TIME", "ORDERED", "STATE", "NAME", "SNAPSHOTS"], rows)
    return None


def _facts(instant: GroupInstant) -> dict[str, object]:
    return {
        "cut": instant.group.cut, "name": instant.name, "cut_time_ns": instant.cut_time_ns,
        "promise": instant.group.promise, "whole": instant.is_whole, "snapshots": dict(instant.snapshots),
        "missing": list(instant.missing), "members": dict(instant.group.members),
    }  # fmt: skip


@group.command("delete", short_help="Delete the definition of a group.")
@click.argument("name")
def delete(name: str) -> None:
    """Delete the definition of the group NAME. Its volumes and all snapshots stay."""
    group_file.delete(name, Disk())


def cut_group(name: str, snapshot_name: str | None, flush: bool, as_json: bool) -> None:
    """`snapfs snapshot --group`."""
    from snapfs.commands.groups.coordinator import Coordinator, Member

    members = group_file.read(name).members
    places = [locate(each.volume) for each in members]
    for member, place in zip(members, places, strict=True):
        if place.volume().volume_id != member.volume_id:
            raise UserError(f"{member.volume} is another volume now: delete group {name}, and create it again")
    ids = [(member.name, member.volume_id) for member in members]
    with Coordinator(
        name, [Member(each.name, place) for each, place in zip(members, places, strict=True)], ids
    ) as coordinator:
        made = coordinator.cut(snapshot_name, flush)
    records = {member: reply["snapshot"] for member, reply in made.replies.items()}
    if as_json:
        facts = {"cut": made.group.cut, "pause_s": made.pause_s, "attempts": made.attempts, "snapshots": records}
        return output.emit_json({"group": name, **facts})
    click.echo(made.group.cut)
    numbers = ", ".join(f"{member}:{record['number']}" for member, record in records.items())
    output.remark(f"group {name}: {numbers}; no gate was closed for more than {output.seconds(made.pause_s)}")
    return None


# -- an instant of the group, put back


def _places(name: str, sources: tuple[str, ...]) -> dict[str, str]:
    """Where the history of each member is. UserError."""
    if not sources:
        return {member.name: member.volume for member in group_file.read(name).members}
    pairs = [each.partition("=") for each in sources]
    if any(not place for _, _, place in pairs):
        raise click.UsageError("--from is MEMBER=PLACE.")
    if len({member for member, _, _ in pairs}) < len(pairs):
        raise click.UsageError("--from names a member twice.")
    return {member: place for member, _, place in pairs}


@contextlib.contextmanager
def _records(place: str, given: Given) -> Iterator[tuple[str, list[SnapshotRecord]]]:
    with opened(place, given) as repository:
        given_up = repository.catalog.given_up()
        records = [each for each in repository.catalog.pages() if each.cut.group is not None]
        yield repository.identity.volume_id, [each for each in records if each.number not in given_up]


def _instants(name: str, places: dict[str, str], given: Given) -> tuple[list[GroupInstant], dict[str, str]]:
    """The cuts there, and the id of the volume at each member's place."""
    records: dict[str, list[SnapshotRecord]] = {}
    ids: dict[str, str] = {}
    for member, place in places.items():
        with _records(place, given) as (volume_id, its):
            records[volume_id], ids[member] = its, volume_id
    return instants(name, records), ids


def _each(
    name: str, reference: str | None, sources: tuple[str, ...], given: Given
) -> tuple[GroupInstant, list[tuple[str, str, str]]]:
    """The cut that is meant, and of each member its name, place and snapshot. UserError if it is not whole there."""
    places = _places(name, sources)
    found, ids = _instants(name, places, given)
    instant = chosen(found, reference)
    lacking = [member for member in instant.snapshots if member not in places]
    if lacking:
        raise UserError(f"where is {', '.join(lacking)}? Name a place for each member: --from MEMBER=PLACE")
    for member in misplaced(instant, ids):
        raise UserError(f"{places[member]} has another volume than {member} of this cut")
    return instant, [(member, places[member], str(number)) for member, number in instant.snapshots.items()]


def _run(what: str, *arguments: str) -> None:
    """One member's part, by the command for one volume; its output is ours. Exits as it does if it fails."""
    done = subprocess.run([sys.executable, "-m", "snapfs", *arguments], check=False)
    if done.returncode:
        output.remark(f"{what} failed: what was done to the members before it stays")
        sys.exit(done.returncode)


@group.command("restore", short_help="Restore a cut of a group into folders.")
@click.argument("name")
@click.argument("cut")
@click.argument("folder")
@_from_option
@with_access
def restore(name: str, cut: str, folder: str, sources: tuple[str, ...], given: Given) -> None:
    """Restore every member of the group NAME as of CUT (its id, or its name) to FOLDER/MEMBER."""
    _, parts = _each(name, cut, sources, given)
    _make(folder)
    for member, place, number in parts:
        _run(member, "restore", "--verify", *_access(given), place, number, os.path.join(folder, member))


@group.command("clone", short_help="Make a cut of a group volumes of their own.")
@click.argument("name")
@click.argument("cut")
@click.argument("folder")
def clone(name: str, cut: str, folder: str) -> None:
    """Make every member of the group NAME as of CUT a volume of its own, FOLDER/MEMBER."""
    _, parts = _each(name, cut, (), _NOTHING)
    _make(folder)
    for member, place, number in parts:
        _run(member, "clone", place, number, os.path.join(folder, member))


@group.command("rollback", short_help="Put all members of a group back to a cut.")
@click.argument("name")
@click.argument("cut")
@click.option("--force", is_flag=True, help="Even while files are open for writing.")
def rollback(name: str, cut: str, force: bool) -> None:
    """Put every member of the group NAME back to CUT, in place. Stop the applications first."""
    _, parts = _each(name, cut, (), _NOTHING)
    for member, place, number in parts:
        _run(member, "rollback", *(["--force"] if force else []), place, number)


@group.command("mount", short_help="Mount a cut of a group from targets or volumes.")
@click.argument("name")
@click.argument("folder")
@_from_option
@click.option("--at", "cut", metavar="CUT", help="This cut. Default: the newest that is whole there.")
@click.option("--writable", is_flag=True, help="Begin new, writable volumes with it.")
@with_access
def mount(name: str, folder: str, sources: tuple[str, ...], cut: str | None, writable: bool, given: Given) -> None:
    """Mount every member of the group NAME as of one cut at FOLDER/MEMBER; the volumes are FOLDER/MEMBER.volume.

    As `mount --from PLACE --at SNAPSHOT` for each: nobody is fenced off.
    """
    instant, parts = _each(name, cut, sources, given)
    _make(folder)
    for member, place, number in parts:
        where, volume = os.path.join(folder, member), os.path.join(folder, f"{member}.volume")
        _make(where)
        how = [*_access(given), *(["--writable"] if writable else [])]
        _run(member, "mount", "--from", place, "--at", number, *how, volume, where)
    click.echo(instant.group.cut)


def _make(folder: str) -> None:
    if not os.path.isdir(folder):
        disk = Disk()
        disk.mkdir("group:place", folder)


def _access(given: Given) -> list[str]:
    """The options of how places are reached, as they were given."""
    options = [f"--store-option={name}={value}" for name, value in (given["store_options"] or {}).items()]
    plain = {name: value for name, value in given.items() if value and name != "store_options"}
    return [*options, *(f"--{name.replace('_', '-')}={value}" for name, value in plain.items())]


COMMANDS = (group,)
