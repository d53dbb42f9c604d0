"""The agent: feeds all targets of the volumes of a host, and tells how that goes.

One process for any number of volumes. For each volume it holds VOLUME/replication.lock, watches store/snapshots.log
and volume.toml, and runs a Feeder for each target; VOLUME/replication.json says how far they are.

Invariants:
1. One agent a volume: the lock is a flock, which ends with the process.
2. New snapshots are noticed by looking at the log's size twenty times a second: one stat(2), which works on every
   filesystem, needs no cooperation of the daemon and cannot lose an event.
3. A change of the replication settings takes effect at once: the volume's feeders are made anew.
4. What is wrong with one volume (not there, damaged, badly configured) is told and tried again; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from replicator.feeder import Counters, Feeder
from replicator.source import Source, as_it_is
from replicator.status import Link, StatusFile, TargetStatus
from replicator.targets.base import Target
from replicator.targets.choose import make_target
from replicator.targets.sealed import SealedTarget
from replicator.volume_keys import VolumeKeys
from snapfs.blocks import Disk
from snapfs.config import ReplicationSettings, TargetSettings, target_name
from snapfs.errors import BusyError, SnapfsError, UserError
from snapfs.store.keys import KEYS_FILE
from snapfs.store.repository import LOG
from snapfs.volume import Volume

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 2.0
LOCK: Final = "replication.lock"

CountersOf = Callable[[str, str], Counters]


def holder_of(volume_path: str) -> str:
    """Who writes here, as targets are told: this machine and folder, and no other that has a copy of the volume."""
    machine = ""
    with contextlib.suppress(OSError), open("/etc/machine-id", encoding="ascii") as file:
        machine = file.read().strip()
    host = socket.gethostname().partition(".")[0] or "host"
    tell = hashlib.sha256(f"{machine} {host} {os.path.realpath(volume_path)}".encode()).hexdigest()[:8]
    return f"{''.join(letter for letter in host if letter.isalnum() and letter.isascii())[:40] or 'host'}-{tell}"


@contextlib.contextmanager
def locked(volume_path: str) -> Iterator[None]:
    """Be the only agent of this volume. Raises BusyError, UserError."""
    path = os.path.join(volume_path, LOCK)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(f"{path}: {why}: is {volume_path} a volume that you may write to?") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 100, 0).decode(errors="replace").strip()
            raise BusyError(f"{volume_path} is being replicated already, by {holder or 'another process'}") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@dataclass(slots=True)
class VolumeAgent:
    """The replication of one volume."""

    path: str
    counters: CountersOf = field(default=lambda volume, target: Counters())
    disk: Disk = field(default_factory=Disk)
    targets: list[TargetStatus] = field(default_factory=list)
    error: str | None = None
    generation: int = 0
    started: bool = False
    """Whether it has come so far that its targets are being fed."""

    async def run(self) -> None:
        """Replicate, for ever."""
        while True:
            try:
                with locked(self.path):
                    await self._run_with_settings()
            except* (SnapfsError, OSError) as group:
                self.started = False
                error = str(group.exceptions[0])
                if error != self.error:
                    log.error("%s: %s", self.path, error)
                self.error = error
            except* Exception as group:
                self.started, self.error = False, f"a bug: {group.exceptions[0]!r}"
                log.error("%s: a bug; it is tried again", self.path, exc_info=group)
            await asyncio.sleep(RETRY_SECONDS)

    async def run_once(self) -> None:
        """Bring every target up to date. Raises the first failure, after all have been tried."""
        with locked(self.path):
            async with self._feeders(Volume.open(self.path, self.disk)) as (feeders, file):
                outcomes = await asyncio.gather(*(feeder.run_once() for feeder in feeders), return_exceptions=True)
                file.write(urgent=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _run_with_settings(self) -> None:
        """Return when the settings have changed, or the volume is another one."""
        volume = await asyncio.to_thread(Volume.open, self.path, self.disk)
        async with self._feeders(volume) as (feeders, file):
            self.started, self.error = True, None
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(feeder.run(), name=feeder.status.name) for feeder in feeders]
                await self._watch(volume, feeders, file)
                for task in tasks:
                    task.cancel()

    @contextlib.asynccontextmanager
    async def _feeders(self, volume: Volume) -> AsyncIterator[tuple[list[Feeder], StatusFile]]:
        settings = volume.config.replication
        self.targets = [TargetStatus(target_name(each), _plain_url(each.url)) for each in settings.target]
        self.generation = volume.generation
        file = StatusFile(self.path, volume.volume_id, self.targets)
        file.generation = volume.generation
        feeders: list[Feeder] = []
        try:
            for each, status in zip(settings.target, self.targets, strict=True):
                feeders.append(await self._feeder(volume, each, status, settings, file))
            yield feeders, file
        finally:
            for feeder in feeders:
                await feeder.close()

    async def _feeder(
        self, volume: Volume, each: TargetSettings, status: TargetStatus, settings: ReplicationSettings,
        file: StatusFile,
    ) -> Feeder:  # fmt: skip
        keys: VolumeKeys | None = None
        if settings.encryption.is_on:
            keys = VolumeKeys(self.path, settings.encryption, volume.volume_id, volume.seed, self.disk)
        source = await asyncio.to_thread(Source, self.path, self.disk, keys.stage if keys is not None else as_it_is)
        try:
            made = make_target(each)
            target: Target = made if keys is None else SealedTarget(made, keys, _plain_url(each.url))
        except BaseException:
            source.close()
            raise
        return Feeder(
            source, target, status, settings, holder_of(self.path),
            changed=lambda urgent: file.write(urgent=urgent), limit_bytes_per_s=float(each.limit),
            counters=self.counters(self.path, status.name),
        )  # fmt: skip

    async def _watch(self, volume: Volume, feeders: list[Feeder], file: StatusFile) -> None:
        log_path, keys_path = os.path.join(volume.store_dir, LOG), os.path.join(self.path, KEYS_FILE)
        seen, settings_seen, keys_seen = _stamp(log_path), _stamp(volume.toml_path), _stamp(keys_path)
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if (now := _stamp(log_path)) != seen:
                seen = now
                for feeder in feeders:
                    feeder.wake()
            if (now := _stamp(volume.toml_path)) != settings_seen:
                settings_seen = now
                again = await asyncio.to_thread(Volume.open, self.path, self.disk)
                self.generation = file.generation = again.generation
                for feeder in feeders:
                    feeder.wake()
                if again.volume_id != volume.volume_id:
                    log.warning("%s is another volume now", self.path)
                    return
                if again.config.replication != volume.config.replication:
                    log.info("%s: the settings of its replication have changed", self.path)
                    return
            if (now := _stamp(keys_path)) != keys_seen:
                was, keys_seen = keys_seen, now
                if any(was):  # else a feeder has just made them
                    log.info("%s: its keys have changed", self.path)
                    return
            if file.is_due():
                file.write(urgent=True)


class Agent:
    """All volumes of a host."""

    def __init__(self, paths: list[str], counters: CountersOf = lambda volume, target: Counters()) -> None:
        self.volumes = [VolumeAgent(os.path.abspath(path), counters) for path in paths]
        self.started_s = time.time()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for volume in self.volumes:
                group.create_task(volume.run(), name=volume.path)

    def why_not_ready(self) -> str:
        """Empty if every volume is being replicated and no target has stopped for good."""
        for volume in self.volumes:
            if not volume.started:
                return f"{volume.path}: {volume.error or 'starting'}"
            for target in volume.targets:
                if target.link in (Link.FENCED, Link.REFUSED):
                    return f"{volume.path}: {target.name}: {target.last_error}"
        return ""


def _plain_url(url: str) -> str:
    """The URL without anything that could be a secret: a password, a query."""
    head, at, rest = url.partition("@")
    scheme, _, _ = head.partition("://")
    return (f"{scheme}://{rest}" if at else url).partition("?")[0]


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
