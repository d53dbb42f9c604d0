"""What precedes the start of a daemon: the volume is taken over, claimed or created, and everything checked.

Each function raises SnapfsError with the one line for the user; a volume that fails a check is not changed.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from snapfs.base import native_build, process_limits
from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError, printable
from snapfs.base.mountinfo import FUSE_TYPE, resolved
from snapfs.base.settings.config import Config, override
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import STANDBY_FILE
from snapfs.commands.mounting.mount_options import RequestedOptions
from snapfs.commands.support.create_volume import NewVolume
from snapfs.commands.support.remarks import remark
from snapfs.fuse.kernel import fuse_mount
from snapfs.live.content import datapath

if TYPE_CHECKING:
    from snapfs.store.gates.gates import Requirement
    from snapfs.transfer.failover.takeover import TakeoverReport
    from snapfs.transfer.lazy.remount import RemountReport


def check_extensions(volume: str, wanted: RequestedOptions) -> None:
    """UserError if the C extensions do not fit this package: before anything is claimed, created or mounted."""
    if native_build.refusal("auto"):
        native_build.check(_data_path(volume, wanted))


def _data_path(volume: str, wanted: RequestedOptions) -> str:
    chosen = wanted.settings.get("live.data_path", "auto")
    if chosen == "auto" and Volume.exists(volume):
        chosen = Volume.open(volume, Disk()).config.live.data_path
    return datapath.DEFAULT if chosen == "auto" else chosen


def take_over_volume(
    volume: str, mountpoint: str, wanted: RequestedOptions, places: list[str], access: dict[str, Any], force: bool,
    at: str | None, view: bool, requirement: Requirement | None = None,
) -> None:  # fmt: skip
    """Make the volume of what these places have, or of a standby, unless that was done before."""
    fuse_mount.check_fuse()
    fuse_mount.check_mountpoint(mountpoint, nonempty=wanted.nonempty)
    report: RemountReport | TakeoverReport | None
    if os.path.exists(os.path.join(volume, STANDBY_FILE)):
        from snapfs.transfer.failover import takeover

        report = takeover.take_over(volume, Disk(), force=force)
    else:
        from snapfs.transfer.lazy.remount import remount
        from snapfs.transfer.sources.source_access import Access

        settings: dict[str, dict[str, Any]] = {"hydration": {"background": False}} if view else {}
        report = remount(
            volume, places, Disk(), access=Access(**access), force=force, snapshot=at, apart=at is not None,
            settings=settings, requirement=requirement,
        )  # fmt: skip
    for line in report.lines() if report is not None else ():
        remark(printable(line))


def claim_again(volume: str) -> None:
    """Make this host the writer of its own volume again."""
    from snapfs.transfer.failover import writer_claims

    for line in writer_claims.take_over(Volume.open(volume, Disk()), Disk()).lines():
        remark(printable(line))


def prepare(new: NewVolume, mountpoint: str, wanted: RequestedOptions) -> Volume:
    """Everything that can be found wrong before a daemon is started; creates the volume if there is none."""
    volume = new.path
    process_limits.check()
    fuse_mount.check_fuse()
    if (
        fuse_mount.mounted_type(mountpoint) == FUSE_TYPE
        and fuse_mount.state_of(mountpoint) is fuse_mount.MountState.DEAD
    ):
        remark(f"{mountpoint}: the daemon of the last mount died; clearing its mountpoint")
    fuse_mount.check_mountpoint(mountpoint, nonempty=wanted.nonempty)
    for path in (os.path.abspath(volume), resolved(mountpoint)):
        if not _is_utf8(path):  # it is written into the lock, the status and the log
            raise UserError(f"{printable(path)} cannot be used, as it is not UTF-8: choose another path")
    inside, outside = os.path.realpath(volume), os.path.realpath(mountpoint)
    if f"{outside}/".startswith(f"{inside}/") or f"{inside}/".startswith(f"{outside}/"):
        raise UserError(f"{volume} and {mountpoint} must not lie within each other: name places apart")
    if not Volume.exists(volume):
        override(Config(), wanted.settings)  # nothing is created for a wish that cannot be
        if new.create():
            remark(f"created a new volume at {volume}")
    opened = new.open()
    if opened.holds_ciphertext:
        raise UserError(f"{volume} is what a target has of an encrypted volume: name it with --from, and its key")
    opened.configure(wanted.settings)
    return opened


def _is_utf8(path: str) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        return bool(path.encode())
    return False
