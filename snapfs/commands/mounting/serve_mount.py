"""The daemon's process from its first statement to the end of the mount.

Invariants:
1. With `go_fd`, it touches nothing before a byte comes from there; end of file ends it.
2. The command that waits at the report pipe gets exactly one line of JSON: that the mount answers, or why it never
   will.
3. Of a supervised mount the supervisor closes its copy, so that the death of the daemon ends the command's wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_BUG, SnapfsError, UserError, explained
from snapfs.base.logs import json_lines, log_output
from snapfs.base.mountinfo import resolved
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import DAEMON_LOG
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.mounting.mount_options import RequestedOptions
from snapfs.commands.mounting.mount_preparation import check_extensions, prepare
from snapfs.commands.mounting.report_pipe import ReportPipe
from snapfs.commands.support.create_volume import NewVolume
from snapfs.commands.support.locate import mount_entries
from snapfs.daemon import supervisor_origin
from snapfs.daemon.supervision.daemon_handle import UNFIT, DaemonHandle
from snapfs.daemon.supervision.supervisor_status import STATUS_NAME
from snapfs.daemon.supervisor import Supervisor
from snapfs.fuse.kernel import router

if TYPE_CHECKING:
    from snapfs.daemon.mount_request import MountRequest

_LOG_BYTES = 1 << 20
_ENDING_PATIENCE_S, _ENDING_POLL_S = 30.0, 0.05


def serve(
    new: NewVolume, mountpoint: str, wanted: RequestedOptions, ready_fd: int, go_fd: int, refuse_changes: bool,
    first_at: str = "",
) -> None:  # fmt: skip
    """Be the daemon, until the mount is gone. With `go_fd` not before a byte comes from there.

    `first_at`: where the mount is made, if it is to become that of `mountpoint` later.
    """
    volume, pipe = new.path, ReportPipe(ready_fd)
    log_output.pass_on(wanted.log_format)
    log_output.set_up_mount(os.path.abspath(volume))
    try:
        from snapfs.daemon import daemon

        if go_fd >= 0 and not supervisor_origin.goes_on():
            _wait_for_release(go_fd, volume)
        check_extensions(volume, wanted)  # both are imported here, and the daemons that are forked have them
        place, status_path = resolved(mountpoint), os.path.join(os.path.abspath(volume), STATUS_NAME)
        holder = supervisor_origin.resumed(status_path) or supervisor_origin.kept(place, status_path)
        if holder is not None:
            pipe = ReportPipe(-1)  # the number is that of another descriptor since the supervisor's `exec`
            opened = _reopened(volume, wanted, holder, f"mounted at {place}")
        else:
            opened = prepare(new, first_at or mountpoint, wanted)
            _wait_until_free(opened.path)
            if router.why_not() is None:
                opened.lock(f"mounted at {place}")
                holder = supervisor_origin.first(
                    place, status_path, opened.lock_fd, after_start=pipe.close, after_ready=new.stays
                )
        handle = None if holder is None else holder.run()
        if handle is not None and handle.number:
            pipe = ReportPipe(-1)  # the supervisor closed it before this daemon was forked

        def ready(recovered: list[str]) -> None:
            new.stays()
            pipe.report({"recovered": recovered})

        daemon.run(_request(opened, place, wanted, refuse_changes, first_at), ready, handle)
    except SnapfsError as error:
        pipe.report({"error": str(error), "exit_code": error.exit_code})
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            pipe.report({"error": f"internal error: {error!r}", "exit_code": EXIT_BUG})
            raise
        full = UserError(f"{volume}: no space is left on its disk: make room there first")
        pipe.report({"error": str(full), "exit_code": full.exit_code})
        raise full from None
    except Exception as error:
        pipe.report({"error": f"internal error: {error!r}", "exit_code": EXIT_BUG})
        raise


def serve_again(
    volume: str, mountpoint: str, wanted: RequestedOptions, supervisor: Supervisor, handle: DaemonHandle,
    refuse_changes: bool,
) -> None:  # fmt: skip
    """Be a daemon of a supervisor that has slept: the volume is opened in this process, whose failure is not its."""
    json_lines.set_process_volume(os.path.abspath(volume))
    try:
        from snapfs.daemon import daemon

        check_extensions(volume, wanted)
    except (ImportError, SyntaxError, UserError) as failure:
        handle.report(f"{UNFIT} {failure}")
        raise
    opened = _reopened(volume, wanted, supervisor, None)
    daemon.run(_request(opened, resolved(mountpoint), wanted, refuse_changes), lambda recovered: None, handle)


def _reopened(volume: str, wanted: RequestedOptions, holder: Supervisor, purpose: str | None) -> Volume:
    """The volume of a mount that is there, with the lock of its supervisor."""
    opened = Volume.open(volume, Disk())
    opened.configure(wanted.settings)
    opened.take_lock(holder.lock, purpose)
    return opened


def _request(
    opened: Volume, place: str, wanted: RequestedOptions, refuse_changes: bool, first_at: str = ""
) -> MountRequest:
    from snapfs.daemon.mount_request import MountRequest

    return MountRequest(
        opened, place, nonempty=wanted.nonempty, restrictions=frozenset(wanted.restrictions),
        refuse_changes=refuse_changes, first_at=first_at,
    )  # fmt: skip


def _wait_until_free(volume: str) -> None:
    """Return when the daemon of a mount that is gone has ended, as after umount(8), which does not wait for it.

    Also when another process holds the volume, or it takes too long: the next lock of it fails then.
    """
    deadline = time.monotonic() + _ENDING_PATIENCE_S
    while time.monotonic() < deadline and _is_ending(volume):
        time.sleep(_ENDING_POLL_S)


def _is_ending(volume: str) -> bool:
    holder = lock_holder(volume)
    return holder is not None and ", mounted at " in holder and not any(e.is_of(volume) for e in mount_entries())


def _redirect_output(log: int) -> None:
    for fd in (1, 2):
        os.dup2(log, fd)


def _wait_for_release(go_fd: int, volume: str) -> None:
    """Return when the volume may be touched, with stdout and stderr in VOLUME/daemon.log; end if it never may."""
    if not os.read(go_fd, 1):
        os._exit(0)
    os.close(go_fd)
    with open(os.devnull, "wb") as nowhere:  # where there can be no log, the waiting command reports why
        _redirect_output(nowhere.fileno())
    with _log(volume) as log:
        _redirect_output(log)


@contextlib.contextmanager
def _log(volume: str) -> Iterator[int]:
    """VOLUME/daemon.log for appending; a long one is renamed first."""
    disk, path = Disk(), os.path.join(volume, DAEMON_LOG)
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(path) > _LOG_BYTES:
            disk.rename("log:rotate", path, f"{path}.old")
    with explained(volume, "write its daemon.log"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
