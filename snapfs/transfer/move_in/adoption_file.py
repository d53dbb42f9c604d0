"""VOLUME/adoption.json: a directory that became this volume, with the mount in its place and the original beside it.

States, each written before what it names is begun (adoption.py has the steps):

    prepared     the volume is whole; the path is the directory still, or the mount already
    adopted      the mount is in the directory's place; the original is kept
    undoing      the original goes back to its place
    forgetting   the original is being removed
"""

from __future__ import annotations

import os
from typing import Final, Literal

import msgspec

from snapfs.base.json_file import JsonFile

ADOPTION_FILE: Final = "adoption.json"
State = Literal["prepared", "adopted", "undoing", "forgetting"]


class AdoptionFile(msgspec.Struct, frozen=True):
    """VOLUME/adoption.json. `inode`: the number of the original directory, by which it is found."""

    state: State
    directory: str
    original: str
    inode: int
    format: int = 1

    def is_in_place(self) -> bool:
        """Whether the path still means the original, as far as can be seen: a mount may be over it."""
        return _inode(self.directory) == self.inode

    def is_beside(self) -> bool:
        """Whether the original is kept beside the path."""
        return _inode(self.original) == self.inode


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0


ADOPTION: Final = JsonFile("adoption", AdoptionFile, advice="compare the directory, its original and the mount by hand")


def read_adoption(volume: str) -> AdoptionFile | None:
    """The file; None if the volume was not adopted, or that is over. CorruptionError, VersionError."""
    return ADOPTION.read(os.path.join(volume, ADOPTION_FILE))
