"""VOLUME/lock: one process at a time changes a volume."""

from __future__ import annotations

import os

from snapfs.base import file_lock
from snapfs.base.volumes.volume_files import VOLUME_LOCK

LOCK_TRIES = 30
"""A supervisor ends a moment after its daemon."""


def lock_holder(path: str) -> str | None:
    """The holder of the lock of the volume at `path`, as the lock file names it; None if it is free."""
    try:
        return file_lock.lock_owner(os.path.join(path, VOLUME_LOCK))
    except FileNotFoundError:
        return None
