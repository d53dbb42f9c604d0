"""The folders and files that make a store: how they are made, and how a store without its log is recognised."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError
from snapfs.base.volumes.volume_files import SNAPSHOTS_LOG
from snapfs.store.log import log_end
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.objects import format as fmt

SEGMENTS: Final = "segments"
LOG: Final = SNAPSHOTS_LOG


def open_log(store_dir: str, disk: Disk, readonly: bool, clock: Callable[[], int]) -> SnapshotLog:
    """Raises UserError if this is no store, CorruptionError if it is one and has lost its log."""
    try:
        return SnapshotLog(os.path.join(store_dir, LOG), disk, readonly=readonly, clock=clock)
    except UserError:
        if is_store(store_dir):
            raise CorruptionError(LOG, store_dir, "it is missing") from None
        raise


def is_store(store_dir: str) -> bool:
    """Whether a store was made here: it has its log, or what is there only after a log was, which is lost then."""
    log_path = os.path.join(store_dir, LOG)
    if os.path.exists(log_path) or os.path.exists(log_end.path_of(log_path)):
        return True
    with contextlib.suppress(FileNotFoundError):
        return any(name.endswith(fmt.SEGMENT_SUFFIX) for name in os.listdir(os.path.join(store_dir, SEGMENTS)))
    return False


def make_folders(store_dir: str, disk: Disk) -> None:
    """Make the folders of a store, durably.

    Raises FileExistsError if there is a store already, CorruptionError if there is one that has lost its log.
    """
    if os.path.exists(os.path.join(store_dir, LOG)):
        raise FileExistsError(errno.EEXIST, "there is a store already", store_dir)
    if is_store(store_dir):
        raise CorruptionError(LOG, store_dir, "it is missing")
    for path in (store_dir, os.path.join(store_dir, SEGMENTS)):
        with contextlib.suppress(FileExistsError):
            disk.mkdir("create:folder", path)
    disk.sync_dir("create:parent", os.path.dirname(os.path.abspath(store_dir)))
