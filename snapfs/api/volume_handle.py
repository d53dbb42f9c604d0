"""`snapfs.Volume` (`VolumeHandle` here): what the command line does, for Python programs, without starting it.

Every name here that does not begin with an underscore is kept by the rules of semantic versioning; nothing else of the
package is. A call blocks until it is done, and any thread may make it; `async_volume.py` has the same for event loops.
What goes wrong is a SnapfsError (errors.py), with one line for people and the exit code of the command line.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, UserError
from snapfs.base.mountinfo import mount_at
from snapfs.base.volumes.fork_file import read_fork
from snapfs.commands.support.locate import VolumeLocation, control_line, daemon_pid, locate

_MOMENT_S = 2.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class MadeSnapshot:
    """A snapshot as its record has it. `time_ns`: when it was cut, UTC since 1970; `state`: "good" or "damaged"."""

    number: int
    name: str | None
    time_ns: int
    state: str
    trigger: str
    parent: int | None


@dataclass(frozen=True, slots=True)
class ChangedPath:
    """A path that differs, relative to the mount. `changed_bytes`: of the blocks that differ."""

    path: bytes
    kind: Literal["added", "removed", "changed", "renamed"]
    changed_bytes: int
    old_path: bytes | None = None


class VolumeHandle:
    """A volume of this host, mounted or not."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        """`place`: its mountpoint, a path below that, or its folder. SnapfsError if it is none."""
        self._where = locate(os.fspath(place))

    def __repr__(self) -> str:
        return f"{type(self).__name__.removesuffix('Handle')}({str(self.mountpoint or self.path)!r})"

    @property
    def path(self) -> Path:
        """The folder of the volume."""
        return Path(self._where.volume_path)

    @property
    def mountpoint(self) -> Path | None:
        """Where it is mounted; None if it was not when this object was made."""
        return Path(self._where.mountpoint) if self._where.mountpoint else None

    @property
    def id(self) -> str:
        """32 hex digits, of this volume alone."""
        return self._where.volume().volume_id

    @property
    def is_fork(self) -> bool:
        """Whether `fork` made it."""
        return read_fork(self._where.volume_path) is not None

    def status(self) -> dict[str, Any]:
        """What `.snapfs/status` has (snapfs-control(7)). The volume is mounted."""
        return self._where.status()

    def list(self) -> list[MadeSnapshot]:
        """The snapshots, oldest first."""
        with self._where.repository() as repository:
            return [
                MadeSnapshot(each.number, each.name, each.cut_time_ns, each.state, each.trigger, each.parent)
                for each in repository.catalog.pages()
            ]

    def snapshot(self, name: str | None = None, *, flush: bool = True) -> MadeSnapshot:
        """Make a snapshot of the mounted volume; it is durable on return.

        `flush`: with every write that returned before; without it only what was fsynced is certain to be in it.
        """
        line = control_line("snapshot", [name] if name else [], [] if flush else ["flush=no"])
        made = self._where.command(line)["snapshot"]
        return MadeSnapshot(
            made["number"], made["name"], made["cut_time_ns"], made["state"], made["trigger"], made["parent"]
        )

    def fork(
        self, mountpoint: str | os.PathLike[str], *, at: int | str | None = None,
        volume: str | os.PathLike[str] | None = None, options: Sequence[str] = (),
    ) -> Fork:  # fmt: skip
        """A writable fork of what is there now, or `at` a snapshot, mounted at `mountpoint` (made if missing).

        `volume`: the folder for it; `options`: as those of `snapfs mount -o`. It does not depend on the size of the
        state. The first fork of a user starts a warm process, of which the daemons of the next ones are forked.
        """
        from snapfs.commands.forks.fork_making import make_fork

        made = make_fork(
            self._place, os.fspath(mountpoint), at=None if at is None else str(at),
            volume=None if volume is None else os.fspath(volume), options=tuple(options),
        )  # fmt: skip
        return Fork(made.mountpoint)

    def diff(self, older: int | str, newer: int | str, *, other: VolumeHandle | None = None) -> Iterator[ChangedPath]:
        """What changed from one snapshot to another. `newer` is one of `other`, if given: a fork, or the origin."""
        from snapfs.commands.support.two_places import paths_between

        with contextlib.closing(
            paths_between(self._where, str(older), str(newer), other._where if other else None)
        ) as changes:
            for each in changes:
                yield ChangedPath(each.path, each.kind, each.changed_bytes, each.old_path)

    def restore(self, snapshot: int | str, destination: str | os.PathLike[str], *, verify: bool = False) -> None:
        """Write a snapshot to a plain directory, which is empty or does not exist. It appears when it is complete."""
        from snapfs.transfer.lazy.snapshot_hold import held_while
        from snapfs.transfer.restore.restore import restore

        with self._where.repository() as repository:
            record = repository.find(str(snapshot))
            with held_while(repository, record, "restore"):
                restore(repository, record, os.fspath(destination), verify=verify, threads=min(4, os.cpu_count() or 1))

    def rollback(self, snapshot: int | str, *, force: bool = False) -> None:
        """Put the mounted volume back to a snapshot. What is left is kept as a snapshot of its own.

        `force`: even while files are open for writing.
        """
        self._where.command(control_line("rollback", [str(snapshot)], ["force"] if force else []))

    def umount(self, *, timeout_s: float | None = None) -> None:
        """Unmount it, and wait until its daemon has ended. BusyError while it is in use, or after `timeout_s`."""
        from snapfs.commands.mounting.unmounting import end_of_process
        from snapfs.fuse.kernel import fuse_mount

        mount = mount_at(self._place)
        if mount is None:
            raise UserError(f"{self._place} is not mounted")
        with end_of_process(daemon_pid(mount.source)) as ended:
            _when_free(lambda: fuse_mount.unmount(self._place, lazy=False))
            if not ended(timeout_s):
                raise BusyError(f"{self._place} is unmounted, but its daemon has not ended within {timeout_s:g} s")
        self._where = VolumeLocation(self._where.volume_path, None)

    @property
    def _place(self) -> str:
        return self._where.mountpoint or self._where.volume_path


class Fork(VolumeHandle):
    """A fork. As a context it is discarded at the end of the block."""

    def discard(self) -> None:
        """Unmount it, and remove its volume with all that was written to it. UserError if it is no fork."""
        from snapfs.commands.forks.discarding import remove_fork

        if not self.is_fork:
            raise UserError(f"{self._place} is no fork")
        if self._where.mountpoint is not None:
            self.umount()
        remove_fork(self._where.volume_path, Disk())

    def __enter__(self) -> Fork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def _when_free(act: Any) -> None:
    """A file that was just closed is the kernel's for a moment."""
    until_s = time.monotonic() + _MOMENT_S
    while True:
        try:
            return act()  # type: ignore[no-any-return]
        except BusyError:
            if time.monotonic() > until_s:
                raise
        time.sleep(_LOOK_S)
