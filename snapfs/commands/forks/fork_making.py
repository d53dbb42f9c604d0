"""A fork from one call: a snapshot of the origin, a volume that begins with it, and that volume mounted.

The steps, and what a crash after each leaves:

1. *Snapshot* of the origin, by its daemon; where nothing has changed since the newest one, that one.
   (A snapshot more, which retention drops as any other.)
2. *Mountpoint*, if there is none. (An empty folder.)
3. *Build* in PATH.partial. (That folder, which `snapfs umount --discard` of any fork beside it removes, and `doctor`
   names.)
4. *Publish*, a rename. THE COMMIT POINT. (A fork that is not mounted: `snapfs mount` mounts it, `--discard` removes
   it.)
5. *Mount*. If that fails, the volume is removed again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_USAGE, SnapfsError, UserError, explained
from snapfs.base.mountinfo import resolved
from snapfs.commands.forks.discarding import remove_fork
from snapfs.commands.mounting.daemon_start import DaemonStart
from snapfs.commands.mounting.mount_options import parse_options
from snapfs.commands.mounting.mount_preparation import check_extensions, prepare
from snapfs.commands.overview.known_forks import new_place
from snapfs.commands.support.create_volume import NewVolume
from snapfs.commands.support.locate import VolumeLocation, control_line, locate
from snapfs.transfer.lazy.snapshot_hold import held_while
from snapfs.transfer.restore.fork import ForkReport, fork

_SNAPSHOT = ("flush=yes", "wait=sealed", "unchanged=newest")


@dataclass(frozen=True, slots=True)
class ForkMade:
    """A fork that is mounted. The `_s` are the parts of the time it took, in seconds."""

    origin: str
    snapshot: int
    volume: str
    mountpoint: str
    linked: int
    copied: int
    snapshot_s: float
    volume_s: float
    mount_s: float
    recovered: tuple[str, ...] = ()


def make_fork(
    place: str, mountpoint: str, *, at: str | None = None, volume: str | None = None, options: tuple[str, ...] = ()
) -> ForkMade:
    """Fork the volume of `place`, and mount the fork at `mountpoint`, which is made if it does not exist.

    `at`: the snapshot, by number or name, instead of one that is made now; `volume`: the folder of the fork's volume;
    `options`: as those of `mount -o`. Returns when the mount answers. Raises SnapfsError, OSError: nothing is left then
    but the snapshot.
    """
    where = locate(place)
    origin = where.volume()
    wanted = parse_options(options)
    path = os.path.realpath(volume or new_place(origin.path, mountpoint))
    if at is None and where.mountpoint is None:
        where.status()  # raises why it cannot make a snapshot
    with (
        _folders(path, mountpoint, is_usual=volume is None) as made_mountpoint,
        NewVolume(path, existing=True) as new,
        DaemonStart(path, resolved(mountpoint), options, refuse_changes=False, begin_warm=True) as starting,
    ):
        check_extensions(where.volume_path, wanted)
        started_s = time.monotonic()
        reference = at if at is not None else snapshot_now(where)
        sealed_s = time.monotonic()
        report = _build(where, reference, path, mountpoint, made_mountpoint)
        built_s = time.monotonic()
        try:
            prepare(new, mountpoint, wanted)
            recovered = starting.go()
        except BaseException:
            starting.end()
            remove_fork(path, Disk())
            raise
        new.stays()
    return ForkMade(
        origin.path, report.snapshot, path, resolved(mountpoint), report.linked, report.copied,
        sealed_s - started_s, built_s - sealed_s, time.monotonic() - built_s, tuple(recovered),
    )  # fmt: skip


def snapshot_now(where: VolumeLocation) -> str:
    """The number of a snapshot of what is there now, which is mounted."""
    try:
        reply = where.command(control_line("snapshot", [], _SNAPSHOT))
    except SnapfsError as error:
        if error.exit_code != EXIT_USAGE:
            raise
        reply = where.command(control_line("snapshot"))  # a daemon of 0.1
    return str(reply["snapshot"]["number"])


def _build(where: VolumeLocation, reference: str, path: str, mountpoint: str, made_mountpoint: bool) -> ForkReport:
    with where.repository() as repository:
        record = repository.find(reference)
        with held_while(repository, record, "fork"):
            return fork(
                where.volume(), repository, record, path, Disk(),
                mountpoint=resolved(mountpoint), made_mountpoint=made_mountpoint,
            )  # fmt: skip


@contextlib.contextmanager
def _folders(path: str, mountpoint: str, *, is_usual: bool) -> Iterator[bool]:
    """Make the mountpoint, and the folder of the volumes of forks, if they are missing; whether the former was.

    What was made goes again if the block fails.
    """
    disk, made = Disk(), list[str]()
    parent = os.path.dirname(path)
    try:
        if is_usual and not os.path.isdir(parent):
            with explained(parent, "create it"), contextlib.suppress(FileExistsError):
                disk.mkdir("fork:folder", parent)
                made.append(parent)
        made_mountpoint = not os.path.lexists(mountpoint)
        if made_mountpoint:
            with explained(mountpoint, "create it"):
                os.mkdir(mountpoint)
            made.append(mountpoint)
        elif not os.path.isdir(mountpoint):
            raise UserError(f"{mountpoint} is not a folder: name one, or a path that does not exist")
        yield made_mountpoint
    except BaseException:
        for each in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(each)
        raise
