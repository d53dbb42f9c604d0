"""A new volume that is built beside its place, in `PLACE.partial`, and renamed when it is whole.

Invariants:
1. One process builds: it holds a flock on the folder `PLACE.partial` itself, which ends with the process. What an
   earlier one left there is removed under that lock, and never what another is building.
2. Whatever fails, no folder is left: `PLACE` is whole, or was not made.

A crash leaves `PLACE.partial`, which the next attempt empties: nothing in it is anybody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, explained

_TRIES = 5


@contextlib.contextmanager
def building_folder(path: str, disk: Disk) -> Iterator[str]:
    """An empty folder beside `path`, locked, for the block to fill and to rename to `path`.

    BusyError if another process builds there. What the block leaves there when it fails, is removed. OSError.
    """
    building = f"{path}.partial"
    with explained(path, "create a volume there"):
        fd = _locked_folder(building, disk)
    try:
        _empty(building, disk)
        yield building
    except BaseException:
        disk.remove_tree("staged:undo", building, ignore_errors=True)
        raise
    finally:
        os.close(fd)


def _locked_folder(building: str, disk: Disk) -> int:
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            disk.mkdir("staged:folder", building)
        try:
            fd = os.open(building, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # the process that built there has finished, or failed
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            break
        if is_at(fd, building):
            return fd
        os.close(fd)
    raise BusyError(f"another process is making {building.removesuffix('.partial')}: wait until it has ended")


def is_at(fd: int, path: str) -> bool:
    """Whether what is open as `fd` still has the name `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _empty(folder: str, disk: Disk) -> None:
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            disk.remove_tree("staged:empty", entry.path)
        else:
            disk.unlink("staged:empty", entry.path)
