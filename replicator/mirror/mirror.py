"""The volumes of a mirror: the folders below one root, each opened once and served.

Invariants:
1. A volume is `root/<name>`, with a name that fully matches wire.VOLUME_NAME; nothing else below the root is touched.
2. A volume that cannot be opened does not keep the others from being served; requests for it get the reason.
3. One process serves a root: each volume is locked as by its daemon.
4. The administrator may remove the folder of a volume at any time: it is none from then on, and can be made anew.

All of it is synchronous, and called from threads.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from replicator.volumes.mirror_scrub import MirrorScrub
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError, UserError
from snapfs.base.volumes.volume import Volume
from snapfs.store.protocol import messages, wire
from snapfs.store.protocol.messages import Limits
from snapfs.store.protocol.refusals import Refusal, refuse

log = logging.getLogger(__name__)

DISK_FULL: Final = "the mirror's disk is full; what it has acknowledged stays: make room there"


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """Bounds of one mirror. Bytes and seconds; `keep` 0: what the source dropped is dropped, and nothing else.

    `lock_s`, and by volume `locks_s`: what came less than so long ago stays (snapfs/store/log/locks.py).
    """

    limits: Limits = field(default_factory=Limits)
    cache_bytes: int = 32 << 20
    max_volumes: int = 256
    reserve_bytes: int = 64 << 20
    keep: int = 0
    part_age_seconds: float = 7 * 86400.0
    lock_s: float = 0.0
    locks_s: Mapping[str, float] = field(default_factory=dict)
    verify_share: float = 0.0
    """Of each store, read back a day."""
    verify_rate: float = 8 << 20

    def lock_of(self, name: str) -> float:
        """The lock of a volume: its own in `locks_s`, or else `lock_s`."""
        return self.locks_s.get(name, self.lock_s)


class Mirror:
    """All volumes below a root. Thread-safe."""

    def __init__(self, root: str, disk: Disk, options: MirrorOptions) -> None:
        """Opens every volume there is. Raises UserError if the root cannot be used."""
        self.root, self.options, self._disk = os.path.abspath(root), options, disk
        self._lock = threading.Lock()
        self._volumes: dict[str, MirrorVolume] = {}
        self._scrubs: dict[str, tuple[MirrorVolume, MirrorScrub]] = {}
        self.failed: dict[str, str] = {}
        for name in names_below(self.root):
            try:
                self._volumes[name] = self._open(name)
            except (SnapfsError, OSError) as error:
                self.failed[name] = str(error)

    def volumes(self) -> list[MirrorVolume]:
        """The open ones, by name."""
        with self._lock:
            return [found for name in sorted(self._volumes) if (found := self._there(name)) is not None]

    def _there(self, name: str) -> MirrorVolume | None:
        """With the lock held. One whose folder was removed is forgotten; what still uses it fails."""
        found = self._volumes.get(name)
        if found is not None and not MirrorVolume.exists(found.volume.path):
            log.warning("%s is not there any more: its folder was removed", name)
            del self._volumes[name]
            return None
        return found

    def get(self, name: str) -> MirrorVolume:
        """Raises RefusedError: there is none, or it could not be opened."""
        with self._lock:
            found = self._there(wire.check_volume_name(name))
        if found is not None:
            return found
        if name in self.failed:
            raise refuse(Refusal.INTERNAL, f"volume {name} cannot be served: {self.failed[name]}")
        raise refuse(Refusal.NOT_FOUND, f"there is no volume {name} here, or none for this token")

    def create(self, name: str, wanted: messages.CreateVolume) -> MirrorVolume:
        """Make the volume, or find it made as wanted. Raises RefusedError, OSError."""
        wire.check_volume_name(name)
        with self._lock:
            found = self._there(name)
            if found is not None:
                found.check_identity(wanted)
                return found
            if name in self.failed:
                raise refuse(Refusal.INTERNAL, f"volume {name} cannot be served: {self.failed[name]}")
            if len(self._volumes) >= self.options.max_volumes:
                raise refuse(Refusal.TOO_LARGE, f"this mirror keeps at most {self.options.max_volumes} volumes")
            self.check_room()
            made = MirrorVolume.create(
                os.path.join(self.root, name), wanted, self._disk,
                cache_bytes=self.options.cache_bytes, limits=self.options.limits, lock_s=self.options.lock_of(name),
            )  # fmt: skip
            self._volumes[name] = made
            return made

    def check_room(self) -> None:
        """Raises RefusedError if what is left is needed for what was received already."""
        place = os.statvfs(self.root)
        if place.f_bavail * place.f_frsize < self.options.reserve_bytes:
            raise refuse(Refusal.DISK_FULL, DISK_FULL, retry_after=10.0)

    def upkeep(self, volume: MirrorVolume) -> None:
        """Retention, merging, collection. Raises OSError, SnapfsError."""
        if self.options.keep:
            volume.expire(self.options.keep)
        volume.upkeep(part_age_seconds=self.options.part_age_seconds)
        if self.options.verify_share:
            self._scrub_of(volume).work()

    def _scrub_of(self, volume: MirrorVolume) -> MirrorScrub:
        """For the thread of the upkeep alone."""
        known = self._scrubs.get(volume.name)
        if known is None or known[0] is not volume:
            made = MirrorScrub(volume, self._disk, self.options.verify_share, self.options.verify_rate)
            known = self._scrubs[volume.name] = volume, made
        return known[1]

    def close(self) -> None:
        for volume in self.volumes():
            volume.close()

    def _open(self, name: str) -> MirrorVolume:
        path = os.path.join(self.root, name)
        return MirrorVolume.open(
            path, self._disk, cache_bytes=self.options.cache_bytes, limits=self.options.limits,
            lock_s=self.options.lock_of(name),
        )  # fmt: skip


def names_below(root: str) -> Iterator[str]:
    """The volumes below a mirror's root, by name. Raises UserError if it cannot be read."""
    try:
        found = sorted(os.listdir(root))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise UserError(f"{root}: cannot keep volumes there ({why}): make that folder") from None
    if Volume.exists(root):
        raise UserError(f"{root} is a volume itself: name the folder that it lies in")
    for name in found:
        if wire.VOLUME_NAME.fullmatch(name) and MirrorVolume.exists(os.path.join(root, name)):
            yield name
