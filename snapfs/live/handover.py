"""A live tree that was filled from outside is left so that a mount finds everything in order, and need not look.

Without an intent log a tree may be anything: its opening compares all files with the namespace, makes the whole host
filesystem durable, and counts every file as changed. A log that was closed in order means that nothing is dirty.

The log is written last, when all else is durable: a crash before leaves a tree that is compared in full.
"""

from __future__ import annotations

import contextlib
import os
import threading

from snapfs.base.blocks import Disk
from snapfs.live.backing.backing import Backing
from snapfs.live.intents import intents_mark
from snapfs.live.intents.intents import Intents
from snapfs.live.namespace.namespace import Namespace


def leave_in_order(live_dir: str, names: Namespace, disk: Disk, boot_id: str) -> None:
    """Make what is missing of the folders, and the one log. What namespace and files have is durable. OSError."""
    backing = Backing(live_dir, disk, 1)
    backing.make_folders()
    backing.close()
    folder = os.path.join(live_dir, "intents")
    with contextlib.suppress(FileExistsError):
        disk.mkdir("handover:folder", folder)
        disk.sync_dir("handover:folder", live_dir)
    with contextlib.suppress(FileNotFoundError):
        disk.unlink("handover:leftover", intents_mark.path_of(folder))
    for name in os.listdir(folder):
        disk.unlink("handover:leftover", os.path.join(folder, name))
    intents = Intents(folder, disk, boot_id, threading.Lock())
    log = intents.new_log(names.epoch, names.first_new)
    intents.logs.append(log)
    try:
        intents.close(clean=True)
    except BaseException:
        log.close()
        raise
