"""Where the volumes of forks are: in VOLUME.forks beside the volume that was forked, or where --volume put them.

A fork of a fork lies beside that one, in the same folder. Only those in such folders are found again without their
path; one that is mounted is found by its mount as any volume is.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Final

from snapfs.base.errors import SnapfsError
from snapfs.base.mountinfo import resolved
from snapfs.base.volumes.fork_file import FORK_FILE, ForkFile, read_fork

FOLDER_SUFFIX: Final = ".forks"
DISCARDED_SUFFIX: Final = ".discarded"
PARTIAL_SUFFIX: Final = ".partial"


def folder_of(volume_path: str) -> str:
    """The folder in which forks of this volume are made. CorruptionError, VersionError."""
    path = os.path.abspath(volume_path)
    beside = os.path.dirname(path)
    is_fork = os.path.lexists(os.path.join(path, FORK_FILE))
    return beside if is_fork and beside.endswith(FOLDER_SUFFIX) else f"{path}{FOLDER_SUFFIX}"


def new_place(volume_path: str, mountpoint: str) -> str:
    """Where the volume of a new fork goes: named after its mountpoint, as no other one is."""
    name = os.path.basename(os.path.abspath(mountpoint)) or "fork"
    return os.path.join(folder_of(volume_path), f"{name[:100]}-{secrets.token_hex(4)}")


def forks_beside(volume_path: str) -> Iterator[tuple[str, ForkFile]]:
    """The forks in the folder of this volume, by path. What cannot be read is passed over."""
    folder = folder_of(volume_path)
    for name in _listed(folder):
        path = os.path.join(folder, name)
        if not name.endswith((PARTIAL_SUFFIX, DISCARDED_SUFFIX)):
            with contextlib.suppress(SnapfsError, OSError):
                if (fork := read_fork(path)) is not None:
                    yield path, fork


def leftovers_beside(volume_path: str) -> list[str]:
    """What interrupted forks and discards left in the folder of this volume."""
    folder = folder_of(volume_path)
    return [os.path.join(folder, name) for name in _listed(folder) if name.endswith((PARTIAL_SUFFIX, DISCARDED_SUFFIX))]


def made_for(mountpoint: str, volumes: Iterable[str]) -> list[str]:
    """The forks beside these volumes that were made for this mountpoint."""
    place = resolved(mountpoint)
    found = {path for volume in volumes for path, fork in forks_beside(volume) if fork.mountpoint == place}
    return sorted(found)


def _listed(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(folder))
    return []
