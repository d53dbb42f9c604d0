"""VOLUME/origin.json: the sources of a volume whose content is not all on this host yet.

The file exists from the remount until hydration is complete; its removal makes the volume an ordinary one. While it
exists, each mount attaches the volume to the sources that it names (attachment.py).
"""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.json_file import JsonFile
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.transfer.sources.source_access import Access

ORIGIN_FILE = "origin.json"


class OriginFile(msgspec.Struct, frozen=True):
    """VOLUME/origin.json."""

    sources: list[str]
    snapshot: dict[str, Any]
    writer_id: str = msgspec.field(name="holder")
    """Who claimed the generation at the sources; the same name holds the snapshot there (attachment.py)."""
    access: Access = Access()
    format: int = 1
    branch: str = ""
    """The branch at the sources that the snapshot is of; "" where it is one of their history."""

    @property
    def record(self) -> SnapshotRecord:
        return snapshot_records.from_fields(self.snapshot).on_branch(self.branch)


ORIGIN: Final = JsonFile(
    "origin", OriginFile, check=lambda found: found.record,
    advice="put the file back from a copy, or begin anew with `snapfs mount --from`",
)  # fmt: skip


def read_origin(volume_path: str) -> OriginFile | None:
    """Where a volume fetches from; None if it is complete. Raises CorruptionError, VersionError."""
    return ORIGIN.read(os.path.join(volume_path, ORIGIN_FILE))


def write_origin(volume_path: str, origin: OriginFile, disk: Disk) -> None:
    """Write the file; it is durable on return. Raises OSError."""
    ORIGIN.write("remount:origin", os.path.join(volume_path, ORIGIN_FILE), origin, disk)
