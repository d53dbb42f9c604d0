"""The notes that lie beside the live tree about its snapshots: how they are read.

Invariants:
1. A note that is damaged, or cannot be read, is none: nothing depends on it but a count and a message.
2. A note of a later format is a VersionError, as every file of a later format is. `refuse_later_notes` raises it before
   anything of the volume is opened, so that no note is overwritten or removed.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, TypeVar

from snapfs.base.errors import CorruptionError
from snapfs.base.json_file import JsonFile

T = TypeVar("T")


def read_note(kind: JsonFile[T], path: str) -> T | None:
    """The note, None if there is none that can be read. Raises VersionError for a later format."""
    with contextlib.suppress(CorruptionError, OSError):
        return kind.read(path)
    return None


def refuse_later_notes(live_dir: str, notes: dict[str, JsonFile[Any]]) -> None:
    """VersionError if one of the notes, by their names, is of a later format. Changes nothing."""
    for name, kind in notes.items():
        read_note(kind, os.path.join(live_dir, name))
