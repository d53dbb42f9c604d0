"""The agent: feeds all targets of the volumes of a host, and reports how far they are.

One process for any number of volumes. For each volume it holds VOLUME/replication.lock, watches store/snapshots.log
and volume.toml, and runs a Feeder for each target; VOLUME/replication.json reports how far they are.

Invariants:
1. One agent a volume: the lock is a flock, which ends with the process.
2. New snapshots are noticed by looking at the log's size twenty times a second: one stat(2), which works on every
   filesystem, needs no cooperation of the daemon and cannot lose an event. So is it noticed that a target got its id.
3. A change of the replication settings takes effect at once: the volume's feeders are made anew.
4. What is wrong with one volume (not there, damaged, badly configured) is reported and tried again; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from replicator.agent.agent_status import Link, StatusFile, TargetStatus
from replicator.agent.drill_schedule import DrillSchedule
from replicator.agent.feeder import Feeder
from replicator.agent.link_report import Counters
from replicator.agent.target_session import TargetRole
from replicator.source.group_members import GroupTargets, members_beside
from replicator.source.known_targets import FILE as TARGETS_FILE
from replicator.source.known_targets import Memory, ids_of
from replicator.source.volume_keys import VolumeKeys
from replicator.source.volume_source import VolumeSource, as_it_is
from replicator.targets.encrypted_target import EncryptedTarget
from replicator.targets.target import Target
from replicator.targets.target_factory import make_target
from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, SnapfsError, UserError
from snapfs.base.file_lock import try_lock
from snapfs.base.logs import json_lines
from snapfs.base.settings.replication_settings import ReplicationSettings, TargetSettings, plain_url, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import KEYS_FILE, REPLICATION_LOCK
from snapfs.base.writer_id import writer_id_of
from snapfs.store.log.peers import Peers, peers_of
from snapfs.store.repository.store_folders import LOG

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 2.0
LOCK_TRIES: Final = 5
"""A process that tests whether an agent lives holds the lock for a moment."""

CountersOf = Callable[[str, str], Counters]


@contextlib.contextmanager
def locked(volume_path: str) -> Iterator[None]:
    """Be the only agent of this volume. Raises BusyError, UserError."""
    path = os.path.join(volume_path, REPLICATION_LOCK)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(f"{path}: {why}: is {volume_path} a volume that you may write to?") from None
    try:
        if not try_lock(fd, LOCK_TRIES):
            owner = os.pread(fd, 100, 0).decode(errors="replace").strip()
            raise BusyError(f"{volume_path} is being replicated already, by {owner or 'another process'}")
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
    groups: GroupTargets = field(default_factory=GroupTargets)
    """Of all volumes of the process."""
    targets: list[TargetStatus] = field(default_factory=list)
    error: str | None = None
    generation: int = 0
    started: bool = False
    """Whether it has come so far that its targets are being fed."""

    async def run(self) -> None:
        """Replicate, for ever."""
        json_lines.volume.set(self.path)
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
        json_lines.volume.set(self.path)
        with locked(self.path):
            async with self._feeders(Volume.open(self.path, self.disk)) as (feeders, file):
                failures = await _run_all_once(feeders)
                ready = [each for each in feeders if each not in failures]
                behind = [each for each in ready if not await each.session.peers_are_current()]
                failures |= await _run_all_once(behind)  # some targets got their ids after they had claimed
                file.write(urgent=True)
        for failure in failures.values():
            raise failure

    async def _run_with_settings(self) -> None:
        """Return when the settings have changed, or the volume is another one."""
        volume = await asyncio.to_thread(Volume.open, self.path, self.disk)
        async with self._feeders(volume) as (feeders, file):
            self.started, self.error = True, None
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(feeder.run(), name=feeder.status.name) for feeder in feeders]
                tasks.append(group.create_task(DrillSchedule(volume).run(), name="drills"))
                await self._watch(volume, feeders, file)
                for task in tasks:
                    task.cancel()

    @contextlib.asynccontextmanager
    async def _feeders(self, volume: Volume) -> AsyncIterator[tuple[list[Feeder], StatusFile]]:
        settings = volume.config.replication
        self.targets = [TargetStatus(target_name(each), plain_url(each.url)) for each in settings.target]
        self.generation = volume.generation
        file = StatusFile(self.path, volume.volume_id, self.targets, self.disk)
        file.generation = volume.generation
        feeders: list[Feeder] = []
        try:
            for each, status in zip(settings.target, self.targets, strict=True):
                feeders.append(await self._feeder(volume, each, status, settings, file))
                self.groups.register((volume.volume_id, status.name), feeders[-1].session.kept_cuts)
            yield feeders, file
        finally:
            for feeder in feeders:
                self.groups.forget((volume.volume_id, feeder.status.name))
                await feeder.close()

    async def _feeder(
        self, volume: Volume, each: TargetSettings, status: TargetStatus, settings: ReplicationSettings,
        file: StatusFile,
    ) -> Feeder:  # fmt: skip
        keys: VolumeKeys | None = None
        if settings.encryption.is_on:
            keys = VolumeKeys(self.path, settings.encryption, volume.volume_id, volume.seed, self.disk)
        source = await asyncio.to_thread(
            VolumeSource, self.path, self.disk, keys.stage if keys is not None else as_it_is
        )
        try:
            made = make_target(each)
            target: Target = made if keys is None else EncryptedTarget(made, keys, plain_url(each.url))
        except BaseException:
            source.close()
            raise
        memory = Memory(self.path, self.disk, status.name, status.url, pushed=status.newest_there > 0)
        peers = partial(_peers, self.path, settings, (status.name, status.url))
        return Feeder(
            source, target, status,
            TargetRole(
                settings, writer_id_of(self.path), memory, peers, each.retention, self.groups,
                partial(members_beside, volume.volume_id, each),
            ),
            changed=lambda urgent: file.write(urgent=urgent), limit_bytes_per_s=float(each.limit),
            counters=self.counters(self.path, status.name),
        )  # fmt: skip

    async def _watch(self, volume: Volume, feeders: list[Feeder], file: StatusFile) -> None:
        log_path, keys_path = os.path.join(volume.store_dir, LOG), os.path.join(self.path, KEYS_FILE)
        targets_path = os.path.join(self.path, TARGETS_FILE)
        seen = _stamp(log_path), _stamp(targets_path)
        settings_seen, keys_seen = _stamp(volume.toml_path), _stamp(keys_path)
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if (found := (_stamp(log_path), _stamp(targets_path))) != seen:
                seen = found
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
                if again.config.drill != volume.config.drill:
                    log.info("%s: the settings of its drills have changed", self.path)
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
        groups = GroupTargets()
        self.volumes = [VolumeAgent(os.path.abspath(path), counters, groups=groups) for path in paths]
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


async def _run_all_once(feeders: list[Feeder]) -> dict[Feeder, BaseException]:
    """Bring their targets up to date, at the same time; the failures, in the order of the feeders."""
    outcomes = await asyncio.gather(*(feeder.run_once() for feeder in feeders), return_exceptions=True)
    pairs = zip(feeders, outcomes, strict=True)
    return {feeder: outcome for feeder, outcome in pairs if isinstance(outcome, BaseException)}


def _peers(path: str, settings: ReplicationSettings, own: tuple[str, str]) -> Peers:
    """The other targets, as one target records them. Raises OSError."""
    targets = [(target_name(each), plain_url(each.url)) for each in settings.target]
    return peers_of(targets, ids_of(path), own, settings.copies, encrypted=settings.encryption.is_on)


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
