"""The folder of a new volume: claimed by one process, and removed again if no volume comes of it.

Invariants:
1. A folder is claimed only if it holds nothing but our own empty names, which a crash of an earlier `create` left.
2. Of several processes that create a volume in one folder at the same time one does: it holds VOLUME/lock meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, UserError, readable
from snapfs.base.file_lock import try_lock
from snapfs.base.staged_folder import is_at
from snapfs.base.volumes.volume_files import VOLUME_LOCK, VOLUME_TOML

_CREATE_TRIES = 1000
"""10 ms apart: another process that creates the volume syncs a few times."""
_OWN_NAMES = {"live", "store", VOLUME_LOCK, f"{VOLUME_TOML}.new"}


def is_volume(path: str) -> bool:
    """Whether `path` is a volume. Raises UserError if the folder may not be read."""
    try:
        os.lstat(os.path.join(path, VOLUME_TOML))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise readable(path, "look into it", error) from None
    return True


@contextlib.contextmanager
def claimed_folder(path: str, disk: Disk) -> Iterator[None]:
    """Make `path` a folder with empty live/ and store/, and hold its lock for the block that makes it a volume.

    UserError if it cannot be used, BusyError if another process is making a volume of it and does not end; it is left
    as it is then. What was made here goes again if the host fails.
    """
    made = False
    try:
        with contextlib.suppress(FileExistsError):
            disk.mkdir("volume:create", path)
            made = True
        _check_claimable(path)
        fd = os.open(os.path.join(path, VOLUME_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not try_lock(fd, _CREATE_TRIES) or not is_at(fd, os.path.join(path, VOLUME_LOCK)):
                raise BusyError(f"another process is making a volume of {path}: try again")
            _check_claimable(path)
            for name in ("live", "store"):
                with contextlib.suppress(FileExistsError):
                    disk.mkdir("volume:create", os.path.join(path, name))
            yield
        finally:
            os.close(fd)
    except OSError:
        if made:
            _remove_own_names(path, disk)
        raise


def _check_claimable(path: str) -> None:
    if is_volume(path):
        raise UserError(f"{path} is a volume already: name another folder")
    foreign = set(os.listdir(path)) - _OWN_NAMES
    leftovers = [name for name in ("live", "store") if os.path.isdir(os.path.join(path, name))]
    if foreign or any(os.listdir(os.path.join(path, name)) for name in leftovers):
        if is_volume(path):  # another process made it between the two checks
            raise UserError(f"{path} is a volume already: name another folder")
        raise UserError(f"{path} is not empty and not a volume: name an empty folder, or one that does not exist yet")


def _remove_own_names(path: str, disk: Disk) -> None:
    """Undo what did not become a volume, as far as it is empty."""
    for name in (f"{VOLUME_TOML}.new", VOLUME_LOCK):
        with contextlib.suppress(OSError):
            disk.unlink("volume:undo", os.path.join(path, name))
    for folder in (os.path.join(path, "live"), os.path.join(path, "store"), path):
        with contextlib.suppress(OSError):
            disk.rmdir("volume:undo", folder)


def no_volume(path: str) -> str:
    """The error for a path that was expected to be a volume: why it is none."""
    if not os.path.lexists(path):
        return f"there is no volume at {path}: `snapfs mount {path} MOUNTPOINT` makes one"
    if not os.path.isdir(path):
        return f"{path} is not a volume, and not even a folder"
    return f"{path} is not a volume: it has no volume.toml"
