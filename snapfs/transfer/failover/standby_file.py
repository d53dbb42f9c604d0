"""VOLUME/standby.json: the sources that a standby follows, and the access to them.

A folder is a standby exactly if it has this file. Its removal is the commit point of a takeover (takeover.py).
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from snapfs.base.json_file import JsonFile
from snapfs.base.volumes.volume_files import STANDBY_FILE
from snapfs.transfer.sources.source_access import Access

STANDING_BY: Final = "standing by"


class StandbyFile(msgspec.Struct, frozen=True):
    """VOLUME/standby.json."""

    sources: list[str]
    access: Access = Access()
    format: int = 1


STANDBY: Final = JsonFile("standby", StandbyFile, advice="remove it and name the sources again with --from")


def read_standby(path: str) -> StandbyFile | None:
    """The file; None if the folder is no standby. Raises CorruptionError, VersionError."""
    return STANDBY.read(os.path.join(path, STANDBY_FILE))
