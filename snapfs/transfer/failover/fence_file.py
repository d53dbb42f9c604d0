"""VOLUME/fenced.json: another host has become the writer of this volume."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.json_file import JsonFile

FENCE_FILE: Final = "fenced.json"


class Fenced(msgspec.Struct, frozen=True):
    """VOLUME/fenced.json: the writer in our place, since when we know, and what no other host has of ours.

    `base`: the newest snapshot of ours that the winner has in its past (0: none). What is above it is our tail, also
    where another target has it. `base_is_reported`: by the winner; else it is what the reporting target had of ours.
    `tail`: the branch's last snapshot (0: not kept yet, or nothing to keep).
    """

    generation: int
    by_generation: int
    by_writer_id: str = msgspec.field(name="by_holder")
    target: str
    since_ns: int
    base: int = 0
    tail: int = 0
    kept: bool = False
    format: int = 1
    base_is_reported: bool = msgspec.field(name="told", default=False)

    @property
    def branch(self) -> str:
        """The name of the tail's branch."""
        return f"tail-generation-{self.generation}"

    def __str__(self) -> str:
        who = f"{self.by_writer_id} is the writer of generation {self.by_generation}, as {self.target} reports"
        base = f", and went on from snapshot {self.base}" if self.base_is_reported else ""
        return f"this host (generation {self.generation}) is fenced off: {who}{base}"


FENCE_JSON: Final = JsonFile(
    "fence", Fenced, advice="see which host writes this volume, then `snapfs mount --take-over`"
)


def read_fenced(volume_path: str) -> Fenced | None:
    """The file; None if the volume is not fenced. Raises CorruptionError, VersionError: better no writer than two."""
    return FENCE_JSON.read(os.path.join(volume_path, FENCE_FILE))


def write_fenced(volume_path: str, fenced: Fenced, disk: Disk) -> None:
    """Write the file; it is durable on return. Raises OSError."""
    FENCE_JSON.write("fence:file", os.path.join(volume_path, FENCE_FILE), fenced, disk)
