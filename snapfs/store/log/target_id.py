"""VOLUME/target.json of a folder that snapshots are pushed to: the id that this target is recognised by.

A mirror's volume and a folder have it; a bucket has its id in the head. A copy of the folder has the same id.
"""

from __future__ import annotations

import os
import secrets
from typing import Annotated, Final

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.json_file import JsonFile

FILE: Final = "target.json"


class TargetFile(msgspec.Struct, frozen=True):
    """The file."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    format: int = 1


TARGET: Final = JsonFile("target's id", TargetFile, advice="remove the file: another id is made")


def read_target_id(path: str) -> str:
    """Of the volume in the folder `path`, "" if it has none. CorruptionError, VersionError, OSError."""
    found = TARGET.read(os.path.join(path, FILE))
    return found.id if found is not None else ""


def target_id_of(path: str, disk: Disk) -> str:
    """Of a volume that is locked; made if it has none yet. Raises CorruptionError, VersionError, OSError."""
    found = read_target_id(path)
    if not found:
        found = secrets.token_hex(16)
        TARGET.write("target:id", os.path.join(path, FILE), TargetFile(found), disk)
    return found
