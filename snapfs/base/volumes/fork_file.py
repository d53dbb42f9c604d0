"""VOLUME/fork.json: what a fork is a fork of. The file exists for the whole life of a fork's volume, and in no other.

It is what `snapfs umount --discard` asks before it removes a volume: one without it is never removed.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.json_file import JsonFile

FORK_FILE: Final = "fork.json"


class ForkFile(msgspec.Struct, frozen=True):
    """`origin`: the folder of the volume that was forked, as it was then; `snapshot`: which of its snapshots.

    `mountpoint`: where the fork was mounted first; `made_mountpoint`: whether the fork made that folder.
    """

    origin: str
    origin_id: str
    snapshot: int
    made_ns: int
    name: str | None = None
    mountpoint: str = ""
    made_mountpoint: bool = False
    format: int = 1


FORK: Final = JsonFile("fork", ForkFile, advice="put it back from a copy; without it the volume is no fork any more")


def read_fork(volume_path: str) -> ForkFile | None:
    """What the volume is a fork of; None if it is no fork. Raises CorruptionError, VersionError."""
    return FORK.read(os.path.join(volume_path, FORK_FILE))


def write_fork(volume_path: str, fork: ForkFile, disk: Disk) -> None:
    """Write the file; it is durable on return. Raises OSError."""
    FORK.write("fork:note", os.path.join(volume_path, FORK_FILE), fork, disk)
