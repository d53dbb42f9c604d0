"""Folders in memory for tests that ask nothing of the host's filesystem but write and sync much.

Thousands of syncs would ask the disk for nothing: those tests make their own crashes and power cuts. A test among them
that needs a disk is marked `on_disk`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_MEMORY = (
    "replicator", "store", "transfer", "crash/test_crash_repair_writer.py", "crash/test_crash_seal.py",
    "crash/test_import_killed.py",
)  # fmt: skip
"""Rooms and files below tests/."""
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 << 30


@contextmanager
def memory_folder(otherwise: Path) -> Iterator[Path]:
    """A new folder; `otherwise` where memory has no room for it.

    It goes at the end, also after a failure: a seed or a step makes what was in it again.
    """
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _ROOM_BYTES:
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="snapfs-tests-", dir=_MEMORY, ignore_cleanup_errors=True) as base:
        folder = Path(base, otherwise.name)  # some put files beside theirs, or name a volume after it
        folder.mkdir()
        yield folder
