"""VOLUME/supervisor.json: how the supervisor of a volume is doing, for commands that find the mount or its end.

The keys are `state` (starting, serving, restarting, left, failed), `supervisor` and `daemon` (processes), `mountpoint`,
`lives` (daemons started), `restarts`, `upgrades`, `gap_s` (how long no daemon answered, the last time), `words`,
`time_ns`, `memory_limit_bytes` and `state_format` (of the state that it hands to the next one).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.base.json_file import JsonFile
from snapfs.base.volumes.volume_files import SUPERVISOR_FILE
from snapfs.transfer.seal.seal_attempts import memory_words

STATUS_NAME = SUPERVISOR_FILE
_REQUIRED: Final = ("state", "supervisor", "daemon", "lives", "restarts", "upgrades", "gap_s", "words")
STATUS: Final = JsonFile("supervisor status", dict[str, Any], check=lambda facts: [facts[name] for name in _REQUIRED])


def write_status(path: str, facts: dict[str, Any], disk: Disk) -> None:
    """Replace the status file. A failure is ignored: the mount does not depend on its status."""
    with contextlib.suppress(OSError):
        disk.replace_unsynced("supervisor:status", path, STATUS.encode(facts))


def remove_status(path: str, disk: Disk) -> None:
    """The mount is gone, or never was. A failure is ignored: a status of a process that has ended is not believed."""
    with contextlib.suppress(OSError):
        disk.unlink("supervisor:end", path)


def read_status(volume: str) -> dict[str, Any] | None:
    """The last status of this volume's supervisor; None if there is none.

    CorruptionError, VersionError for a file that cannot be understood: no process is signalled because of it.
    """
    with contextlib.suppress(PermissionError, NotADirectoryError):
        return STATUS.read(os.path.join(volume, STATUS_NAME))
    return None


def last_words(volume: str) -> str:
    """Why no daemon serves this volume any more, as one line with what to do."""
    facts = None
    with contextlib.suppress(SnapfsError, OSError):
        facts = read_status(volume)
    if facts is not None and facts["state"] == "failed":
        return str(facts["words"])
    limit = memory_words(facts.get("memory_limit_bytes")) if facts is not None else ""
    why = f"if it was killed for its memory, {limit}; " if limit else ""
    return (
        f"the daemon of {volume} died, and none follows it: {why}daemon.log and the kernel's log show how it ended; "
        "unmount it, and mount it again"
    )
