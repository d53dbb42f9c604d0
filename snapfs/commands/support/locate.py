"""Where a command works: the volume that a path means, mounted or not, and how to talk to its daemon.

A path is a mountpoint, anything below one, or a volume's own folder. What is mounted where is read from
/proc/self/mountinfo, so that a daemon that hangs is not queried.

Invariants:
1. Finding a place changes nothing and needs no daemon.
2. A mounted volume is changed by its daemon alone (`command`), an unmounted one by its lock holder (`exclusive`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, DaemonDiedError, SnapfsError, SnapshotError, UserError
from snapfs.base.mountinfo import FUSE_TYPE, mounts, resolved, user_of
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.support.bounded_look import look, statfs_errno
from snapfs.daemon.supervision.supervisor_status import last_words

if TYPE_CHECKING:
    from snapfs.store.repository.repository import Repository

_REPLY_BYTES = 1 << 20
_ANSWER_S = 3.0
_GONE = (errno.ENOTCONN, errno.ECONNABORTED)
_FLAGS = frozenset({"force", "repair", "off"})


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A mount of the type of snapfs. `volume` is as the daemon named it, absolute; `owner`: its user."""

    mountpoint: str
    volume: str
    owner: int | None = None

    def is_of(self, volume: str) -> bool:
        """Whether it shows this volume, and was mounted by root or by who owns the volume: the name of a volume can be
        given to a mount by anybody."""
        return _same(self.volume, volume) and self.owner in (None, 0, user_of(volume))


@dataclass(frozen=True, slots=True)
class VolumeLocation:
    """A volume, and where it is mounted (None: not in this mount namespace, or its daemon is gone)."""

    volume_path: str
    mountpoint: str | None

    @property
    def is_dead(self) -> bool:
        """Whether it has a mount that no daemon serves any more."""
        return self.mountpoint is None and any(entry.is_of(self.volume_path) for entry in mount_entries())

    def volume(self) -> Volume:
        return Volume.open(self.volume_path, Disk())

    def status(self) -> dict[str, Any]:
        """The daemon's report. The volume is mounted. DaemonDiedError if no daemon serves it any more."""
        with self._served(), open(self._node("status"), "rb") as file:
            facts: dict[str, Any] = msgspec.json.decode(file.read())
        return facts

    def command(self, text: str) -> dict[str, Any]:
        """Have the daemon do something and return its reply. SnapfsError of the kind that it reports, DaemonDiedError
        if it died over that and none follows it."""
        with self._served():
            return self._command(text)

    @contextlib.contextmanager
    def _served(self) -> Iterator[None]:
        """Raise why the daemon is gone, where the mount fails because it is."""
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            raise DaemonDiedError(last_words(self.volume_path)) from None

    def _command(self, text: str) -> dict[str, Any]:
        try:
            fd = os.open(self._node("control"), os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            raise UserError(
                f"{self.mountpoint}: only its owner, root and whom control.allow names may give it commands"
            ) from None
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            raise UserError(f"{self.mountpoint} is mounted read-only (-o ro): mount it for writing first") from None
        try:
            os.write(fd, text.encode(errors="surrogateescape"))
            return _decode(os.read(fd, _REPLY_BYTES))
        except OSError as error:
            if error.errno in _GONE:
                raise
            raise _failure(error, _decode(os.read(fd, _REPLY_BYTES))) from None
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def repository(self) -> Iterator[Repository]:
        """The store, for reading: of a mounted volume as of an unmounted one."""
        yield from self._open_repository(self.volume(), readonly=True)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[tuple[Volume, Repository]]:
        """The unmounted volume, locked, and its store for changing it. BusyError if another process has it."""
        volume = self.volume()
        volume.lock()
        try:
            for repository in self._open_repository(volume, readonly=False):
                yield volume, repository
        finally:
            volume.unlock()

    def _open_repository(self, volume: Volume, *, readonly: bool) -> Iterator[Repository]:
        if volume.holds_ciphertext:
            raise UserError(
                f"{volume.path} is what a target has of an encrypted volume: `list`, `show`, `diff`, `restore` and "
                "`mount --from` read it with --key-file; `snapfs-replicator list` and `verify` describe it"
            )
        if not os.listdir(volume.store_dir):
            raise UserError(f"{volume.path} has never been mounted: it has no snapshots yet: mount it first")
        from snapfs.store.repository.repository import Repository, StoreIdentity

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
            if self.is_dead:
                raise DaemonDiedError(last_words(self.volume_path))
            raise UserError(f"{self.volume_path} is not mounted: `snapfs mount {self.volume_path} MOUNTPOINT` first")
        return os.path.join(self.mountpoint, ".snapfs", name)


def control_line(verb: str, arguments: Iterable[str] = (), words: Iterable[str] = ()) -> str:
    """A line for `command`: `arguments` are names, whatever they look like; `words` are flags and options of the verb.

    The `--` that separates them is written only where it is needed: a daemon of an earlier version does not know it.
    UserError for what would be more than one line.
    """
    names, words = list(arguments), list(words)
    if broken := next((each for each in (*names, *words) if "\n" in each or "\0" in each), None):
        raise UserError(f"{broken!r}: a name or a reason is one line")
    apart = any("=" in name or name.startswith("-") or name in _FLAGS for name in names)
    # Without the mark the names go first: the first word of `rollback` is the snapshot, even if it is `force`.
    return shlex.join([verb, *words, "--", *names] if apart else [verb, *names, *words])


def locate(path: str) -> VolumeLocation:
    """The volume that `path` means. UserError if it means none."""
    entries = mount_entries()
    absolute = os.path.abspath(path)
    for entry in sorted(entries, key=lambda entry: len(entry.mountpoint), reverse=True):
        if f"{resolved(absolute)}/".startswith(f"{entry.mountpoint}/"):
            return VolumeLocation(entry.volume, entry.mountpoint if _answers(entry.mountpoint) else None)
    if not Volume.exists(absolute):
        if os.path.lexists(absolute):
            raise UserError(
                f"{path} is neither a volume nor inside a snapfs mount: `snapfs volumes` shows those there are"
            )
        raise UserError(f"{path} does not exist: name a mountpoint or a volume")
    own = [entry.mountpoint for entry in entries if entry.is_of(absolute)]
    return VolumeLocation(absolute, next((place for place in reversed(own) if _answers(place)), None))


def mount_entries() -> list[MountEntry]:
    """All snapfs mounts of this mount namespace, in the order they were made."""
    return [MountEntry(mount.mountpoint, mount.source, mount.owner) for mount in mounts() if mount.kind == FUSE_TYPE]


def daemon_pid(volume_path: str) -> int | None:
    """The process that holds the volume, by its lock file; None if it is free or we may not look."""
    with contextlib.suppress(OSError):
        return holder_pid(volume_path)
    return None


def holder_pid(volume_path: str) -> int | None:
    """The process that holds the volume, by its lock file; None if it is free. OSError if that cannot be read."""
    match = re.match(r"process (\d+)", lock_holder(volume_path) or "")
    return int(match[1]) if match else None


def _answers(mountpoint: str) -> bool:
    """Whether it has a daemon, if only one that hangs: who needs its answers waits for them then."""
    try:
        return look(functools.partial(statfs_errno, mountpoint), _ANSWER_S) not in _GONE
    except SnapfsError:
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
    return SnapfsError(words, exit_code=code)
