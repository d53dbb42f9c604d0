"""The definition of a group: its name, and which volumes of this host are its members.

A file for each, `NAME.json` in the folder of this user's groups: /var/lib/snapfs/groups for root, else
$XDG_STATE_HOME/snapfs/groups (~/.local/state by default); $SNAPFS_GROUPS is a folder in their place. A definition is
for this host alone: what a snapshot needs of it is in its record.
"""

from __future__ import annotations

import os
import re
from typing import Final

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.json_file import JsonFile

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
MAX_MEMBERS: Final = 64


class GroupVolume(msgspec.Struct, frozen=True):
    """A member: its name in the group, its folder, and the id of the volume."""

    name: str
    volume: str
    volume_id: str


class Group(msgspec.Struct, frozen=True):
    """A group of this host."""

    name: str
    members: tuple[GroupVolume, ...]
    format: int = 1


GROUP: JsonFile[Group] = JsonFile("group", Group)


def folder() -> str:
    """Where the groups of this user are."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    usual = "/var/lib/snapfs/groups" if os.getuid() == 0 else os.path.join(state, "snapfs/groups")
    return os.environ.get("SNAPFS_GROUPS") or usual


def read(name: str) -> Group:
    """UserError if there is none of this name; CorruptionError, VersionError as JsonFile."""
    found = GROUP.read(_path(name))
    if found is None:
        raise UserError(f"there is no group {name}: `snapfs group list` has those of {folder()}")
    return found


def names() -> list[str]:
    """Of all groups, sorted."""
    try:
        found = os.listdir(folder())
    except FileNotFoundError:
        return []
    return sorted(each.removesuffix(".json") for each in found if each.endswith(".json"))


def others_with(volume_id: str) -> list[GroupVolume]:
    """The other members of all groups that this volume is in; one that shares several of them, as often. Raises
    CorruptionError, VersionError, OSError where it is not known what groups there are."""
    found: list[GroupVolume] = []
    for name in names():
        try:
            members = read(name).members
        except UserError:  # deleted a moment ago
            continue
        if any(each.volume_id == volume_id for each in members):
            found += [each for each in members if each.volume_id != volume_id]
    return found


def create(group: Group, disk: Disk) -> None:
    """Durable on return. UserError if there is one of this name, or the name cannot be one."""
    path = _path(group.name)
    if os.path.exists(path):
        raise UserError(f"there is a group {group.name} already: `snapfs group delete {group.name}` first")
    missing, parent = [], folder()
    while not os.path.isdir(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    for each in reversed(missing):
        disk.mkdir("group:folder", each)
    GROUP.write("group:create", path, group, disk)


def delete(name: str, disk: Disk) -> None:
    """Its snapshots stay. UserError if there is none."""
    read(name)
    disk.unlink("group:delete", _path(name))


def _path(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be a group's name: at most 64 of letters, digits, and . _ - behind the first")
    return os.path.join(folder(), f"{name}.json")
