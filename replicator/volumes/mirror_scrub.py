"""The verification in the background of a mirror's volume: a share of its store a day (`serve --verify`).

What is found bad becomes a suspect, as with `snapfs-replicator verify`: the next commit that needs it is only taken
together with it, so that its writer sends it again. A pass that ends is a line `verified` of the volume's own log.

Invariants:
1. It runs with the upkeep, in its thread, and reads no faster than `rate_bytes` a second.
2. Nothing is dropped or marked here. Of an encrypted volume it is not known which snapshots need what is bad: none of
   them counts as verified then.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk
from snapfs.store.gates.gates import PAST_THE_CACHE, VERIFIED
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.number_runs import runs_of
from snapfs.store.repair.missing_objects import lacking
from snapfs.store.repair.scrub import Scrub, ScrubStep, damaged_by, table_findings
from snapfs.store.repair.suspects import read_suspects, write_suspects

log = logging.getLogger(__name__)

DAY_S: Final = 86400.0
LEAST_BYTES: Final = 1 << 20
"""A step is worth it from so much on, or from a tenth of the store, if that is less."""


class MirrorScrub:
    """Of one volume. One thread at a time."""

    def __init__(self, volume: MirrorVolume, disk: Disk, share_a_day: float, rate_bytes: float) -> None:
        self._volume, self._disk, self._share, self._rate = volume, disk, share_a_day, rate_bytes
        self._scrub: Scrub | None = None
        self._bad = 0

    def work(self) -> None:
        """Read what the time since the last call is worth. Raises OSError, SnapfsError."""
        repository = self._volume.repository
        if self._scrub is None:
            self._scrub = Scrub(repository, self._disk)
        size = repository.index.size_bytes()
        since_s = min(max((time.time_ns() - self._scrub.state.worked_ns) / 1e9, 0.0), DAY_S)
        earned = int(self._share * size * since_s / DAY_S)
        if earned <= 0 or earned < min(LEAST_BYTES, size // 10):
            return
        step = self._scrub.step(earned, self._pause)
        self._suspect(step)
        if step.ended:
            self._finish(self._scrub)

    def _pause(self, read_bytes: int) -> None:
        if self._rate:
            time.sleep(read_bytes / self._rate)

    def _suspect(self, step: ScrubStep) -> None:
        for name in step.segments:
            log.error("%s: %s cannot be read: `snapfs-replicator verify` finds out more", self._volume.name, name)
        self._bad += len(step.bad.numbers) + len(step.segments)
        if not step.bad.numbers:
            return
        store_dir = self._volume.volume.store_dir
        needed_by = sorted(damaged_by(self._volume.repository, self._records(), step.bad))
        log.error(
            "%s: %d objects are damaged, %#x the first of them: they are requested from the writer again%s",
            self._volume.name, len(step.bad.numbers), next(iter(step.bad.numbers)),
            f"; snapshots {needed_by} need them" if needed_by else "",
        )  # fmt: skip
        with self._volume.receiver.turn:
            write_suspects(store_dir, sorted({*read_suspects(store_dir), *step.bad.numbers}), self._disk)

    def _records(self) -> list[SnapshotRecord]:
        return [] if self._volume.encrypted is not None else self._volume.repository.snapshots()

    def _finish(self, scrub: Scrub) -> None:
        repository, state, bad = self._volume.repository, scrub.state, self._bad
        new = [each for each in scrub.records() if not repository.catalog.gates(each.number).verified_ns]
        is_encrypted = self._volume.encrypted is not None
        found = lacking(repository, new) if is_encrypted else table_findings(repository, new, lambda: None)
        good = [] if bad else [record for record in new if record.number not in found]
        fields = {"snapshots": [list(run) for run in runs_of(record.number for record in good)], "how": PAST_THE_CACHE}
        with self._volume.receiver.lock:
            repository.record_event(
                VERIFIED, **fields, whole=True, bad=bad, objects=state.objects, stored_bytes=state.stored_bytes
            )
        self._bad = 0
        scrub.begin()
