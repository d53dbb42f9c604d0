"""A snapshot in a scratch place: mounted lazily as a volume of its own, and all of it gone afterwards.

Invariants:
1. Nobody is fenced off and nothing is claimed: the volume is one apart (transfer/lazy/remount.py). Nothing changes at
   the source but a hold on the snapshot, for the time of the drill.
2. What a drill that was killed leaves (processes, a mount, a folder) is removed by the next one: its lock is free then.
   A folder is a drill's from the moment that it has its lock, as long as the lock file is still the one in there.
3. Only folders are removed that are our own: a link to another place is not followed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_BUSY, EXIT_CORRUPT, EXIT_DAEMON_DIED, EXIT_VERSION, SnapfsError
from snapfs.base.file_lock import try_lock
from snapfs.base.mountinfo import mount_at
from snapfs.commands.drills.drill_process import end_processes
from snapfs.commands.mounting.command_under_mount import unmount_when_idle
from snapfs.commands.mounting.daemon_start import DaemonStart
from snapfs.commands.mounting.mount_options import RequestedOptions
from snapfs.commands.mounting.mount_preparation import prepare
from snapfs.commands.support.create_volume import NewVolume
from snapfs.daemon.supervision.fuse_connection import abort_mount
from snapfs.fuse.kernel import fuse_mount
from snapfs.store.log import branches
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.transfer.lazy.attachment import hold_name
from snapfs.transfer.lazy.origin_file import read_origin
from snapfs.transfer.lazy.remount import remount
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import late_source

MOUNT: Final = "mnt"
"""In a drill's folder."""
_PREFIX = "snapfs-drill-"
_SETTINGS: dict[str, dict[str, Any]] = {"mount": {"priority": "usual"}}
_LOOK_S = 0.05
_REMOVING_S = 10.0


class NotMountableError(SnapfsError):
    """The snapshot cannot be mounted from where it is: a verdict on it."""


@dataclass(frozen=True, slots=True)
class ScratchMount:
    """The mounted snapshot."""

    volume: Path
    mount: Path
    scratch: Path

    def status(self) -> dict[str, Any]:
        """Of its daemon. OSError."""
        facts: dict[str, Any] = json.loads((self.mount / ".snapfs" / "status").read_bytes())
        return facts

    def fetched_bytes(self) -> int:
        """So far."""
        return int(self.status()["hydration"].get("fetched_bytes", 0))

    def wait_whole(self, until_s: float) -> bool:
        """Return when all of the state is here; False if that takes longer than until then, by time.monotonic."""
        while time.monotonic() < until_s:
            if self.status()["hydration"].get("phase", "done") == "done":
                return True
            time.sleep(_LOOK_S)
        return False


@contextlib.contextmanager
def scratch_folder(parent: str | None) -> Iterator[Path]:
    """A folder in `parent`, or where temporary files go, that all users can enter; it is gone in the end."""
    where = parent or tempfile.gettempdir()
    _clear_stale(where)
    folder, lock = _locked_folder(where)
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


@contextlib.contextmanager
def mounted_scratch(folder: Path, place: str, access: Access, record: SnapshotRecord) -> Iterator[ScratchMount]:
    """Mount the snapshot in the folder. NotMountableError if the snapshot is to blame; else what mount raises."""
    volume, mount, scratch = folder / "volume", folder / MOUNT, folder / "check"
    for each in (mount, scratch):
        os.mkdir(each)
        each.chmod(0o711)
    try:
        _mount(volume, mount, place, access, record)
        yield ScratchMount(volume, mount, scratch)
    finally:
        if os.path.ismount(mount):
            unmount_when_idle(str(mount))
        _release(volume, place, access)


def _mount(volume: Path, mount: Path, place: str, access: Access, record: SnapshotRecord) -> None:
    new, wanted = NewVolume(str(volume), existing=True), RequestedOptions()
    with new, DaemonStart(str(volume), str(mount), (), refuse_changes=False) as starting:
        reference = branches.reference(record)
        with _blamed(volume):
            remount(str(volume), [place], Disk(), access=access, snapshot=reference, apart=True, settings=_SETTINGS)
        prepare(new, str(mount), wanted)
        with _blamed(volume, only=(EXIT_CORRUPT, EXIT_DAEMON_DIED)):
            starting.go()
        new.stays()


@contextlib.contextmanager
def _blamed(volume: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    """What fails in here fails for the snapshot, or for where it comes from; but not if this host's own files fail, or
    this version cannot read it. `only`: these exit codes."""
    try:
        yield
    except OSError as error:
        if only or str(error.filename or "").startswith(str(volume)):
            raise
        raise NotMountableError(f"it cannot be mounted: {error}") from None
    except SnapfsError as error:
        if error.exit_code not in only if only else error.exit_code in (EXIT_BUSY, EXIT_VERSION):
            raise
        raise NotMountableError(f"it cannot be mounted: {error}") from None


def _release(volume: Path, place: str, access: Access) -> None:
    """End the hold at the source. One that cannot be ended expires."""
    with contextlib.suppress(OSError, SnapfsError):
        origin = read_origin(str(volume))
        if origin is None:
            return
        with contextlib.closing(late_source(place, access)) as source:
            source.hold(origin.record, hold_name(origin), 0)


def _clear_stale(parent: str) -> None:
    """Remove what drills left that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            folder = Path(parent, name)
            if name.startswith(_PREFIX):
                with contextlib.suppress(OSError):
                    _clear_if_stale(folder)


def _clear_if_stale(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    lock = _open_lock(folder)  # made where it is missing: who is about to make it is locked out, and takes another one
    try:
        if try_lock(lock, 1):
            _remove(folder)
    finally:
        os.close(lock)


def _locked_folder(where: str) -> tuple[Path, int]:
    """A new folder, and its lock, which is held. OSError."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
        try:
            lock = _open_lock(folder)
        except FileNotFoundError:  # another drill took it for a dead one's
            continue
        if try_lock(lock, 1) and _is_still(folder / "lock", lock):
            return folder, lock
        os.close(lock)


def _open_lock(folder: Path) -> int:
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_still(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(fd))
    return False


def _remove(folder: Path) -> None:
    """Whatever is left of a drill. By force: nobody needs it, and its daemon may wait for a source that is silent."""
    end_s = time.monotonic() + _REMOVING_S
    while os.path.lexists(folder) and time.monotonic() < end_s:
        mount = str(folder / MOUNT)
        abort_mount(mount)
        end_processes(folder)
        if mount_at(mount) is not None:
            _detach(mount)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if os.path.lexists(folder):
            time.sleep(_LOOK_S)


def _detach(mount: str) -> None:
    with contextlib.suppress(OSError, SnapfsError):
        fuse_mount.unmount(mount, lazy=True)
    if mount_at(mount) is not None:
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
