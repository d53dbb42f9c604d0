"""Where a command works: the volume that a path means, mounted or not, and how to talk to its daemon.

A path is a mountpoint, anything below one, or a volume's own folder. What is mounted where is read from
/proc/self/mountinfo, so that a daemon that hangs is not asked where it is.

Invariants:
1. Finding a place changes nothing and needs no daemon.
2. A mounted volume is changed by its daemon alone (`command`), an unmounted one by whoever has its lock (`exclusive`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from snapfs.blocks import Disk
from snapfs.errors import BusyError, SnapfsError, SnapshotError, UserError
from snapfs.fuse.mounting import FUSE_TYPE
from snapfs.volume import Volume, lock_holder

if TYPE_CHECKING:
    from snapfs.store.repository import Repository

_REPLY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of mountinfo that is ours. `volume` is as the daemon named it: absolute."""

    mountpoint: str
    volume: str


@dataclass(frozen=True, slots=True)
class Place:
    """A volume, and where it is mounted (None: not in this mount namespace, or its daemon is gone)."""

    volume_path: str
    mountpoint: str | None

    def volume(self) -> Volume:
        return Volume.open(self.volume_path, Disk())

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself. The volume is mounted."""
        with open(self._node("status"), "rb") as file:
            facts: dict[str, Any] = msgspec.json.decode(file.read())
        return facts

    def command(self, text: str) -> dict[str, Any]:
        """Have the daemon do something and return its reply. SnapfsError of the kind that it reports."""
        try:
            fd = os.open(self._node("control"), os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            raise UserError(f"{self.mountpoint}: only its owner and root may give it commands") from None
        try:
            os.write(fd, text.encode(errors="surrogateescape"))
            return _decode(os.read(fd, _REPLY_BYTES))
        except OSError as error:
            raise _failure(error, _decode(os.read(fd, _REPLY_BYTES))) from None
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def repository(self) -> Iterator[Repository]:
        """The store, for reading: of a mounted volume as of an unmounted one."""
        yield from self._open_repository(self.volume(), readonly=True)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[tuple[Volume, Repository]]:
        """The unmounted volume, locked, and its store for changing it. BusyError if somebody has it."""
        volume = self.volume()
        volume.lock()
        try:
            for repository in self._open_repository(volume, readonly=False):
                yield volume, repository
        finally:
            volume.unlock()

    def _open_repository(self, volume: Volume, *, readonly: bool) -> Iterator[Repository]:
        if volume.opaque:
            raise UserError(
                f"{volume.path} is what a target has of an encrypted volume: `snapfs mount --from {volume.path} "
                "--key-file KEY VOLUME MOUNTPOINT` reads it, `snapfs-replicator list` and `verify` tell of it"
            )
        if not os.listdir(volume.store_dir):
            raise UserError(f"{volume.path} has never been mounted: it has no snapshots yet")
        from snapfs.store.repository import Repository, StoreIdentity

        identity = StoreIdentity(volume.volume_id, volume.seed)
        repository = Repository.open(
            volume.store_dir, identity, Disk(), readonly=readonly, cache_bytes=int(volume.config.seal.cache)
        )
        try:
            yield repository
        finally:
            repository.close()

    def _node(self, name: str) -> str:
        if self.mountpoint is None:
            holder = lock_holder(self.volume_path)
            if holder is not None:
                raise BusyError(f"{self.volume_path} is in use by {holder}, and not mounted where we can see it")
            raise UserError(f"{self.volume_path} is not mounted: `snapfs mount {self.volume_path} MOUNTPOINT` first")
        return os.path.join(self.mountpoint, ".snapfs", name)


def locate(path: str) -> Place:
    """The volume that `path` means. UserError if it means none."""
    entries = mount_entries()
    absolute = os.path.abspath(path)
    for entry in sorted(entries, key=lambda entry: len(entry.mountpoint), reverse=True):
        if f"{_resolved(absolute)}/".startswith(f"{entry.mountpoint}/"):
            return Place(entry.volume, entry.mountpoint if _answers(entry.mountpoint) else None)
    if not Volume.exists(absolute):
        if os.path.lexists(absolute):
            raise UserError(f"{path} is neither a volume nor inside a snapfs mount")
        raise UserError(f"{path} does not exist: name a mountpoint or a volume")
    own = [entry.mountpoint for entry in entries if _same(entry.volume, absolute)]
    return Place(absolute, next((place for place in reversed(own) if _answers(place)), None))


def mount_entries() -> list[MountEntry]:
    """All snapfs mounts of this mount namespace, in the order they were made."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            front, back = (part.split(" ") for part in line.rstrip("\n").split(" - ", 1))
            if back[0] == FUSE_TYPE:
                found.append(MountEntry(_unescape(front[4]), _unescape(back[1])))
    return found


def daemon_pid(volume_path: str) -> int | None:
    """The process that holds the volume, by its lock file; None if nobody does or we may not look."""
    try:
        match = re.match(r"process (\d+)", lock_holder(volume_path) or "")
    except OSError:
        return None
    return int(match[1]) if match else None


def _unescape(field: str) -> str:
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(field))
    return os.fsdecode(plain)


def _resolved(absolute: str) -> str:
    """`absolute` with the symlinks of the folders above it resolved: the last part may be a mount that hangs."""
    folder, name = os.path.split(absolute)
    return os.path.join(os.path.realpath(folder), name)


def _answers(mountpoint: str) -> bool:
    try:
        os.statvfs(mountpoint)  # unlike a stat, never answered from the kernel's cache
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def _same(one: str, other: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return False


def _decode(reply: bytes) -> dict[str, Any]:
    lines = [line for line in reply.splitlines() if line]
    return msgspec.json.decode(lines[-1]) if lines else {}


def _failure(error: OSError, reply: dict[str, Any]) -> SnapfsError:
    """The daemon's own words as the kind of failure that its exit code stands for."""
    words = str(reply.get("error") or error.strerror)
    code = reply.get("exit_code") or (BusyError.exit_code if error.errno == errno.EBUSY else UserError.exit_code)
    if code == SnapshotError.exit_code:
        return SnapshotError(words, error.errno or errno.EIO)
    failure = SnapfsError(words)
    failure.exit_code = code
    return failure
