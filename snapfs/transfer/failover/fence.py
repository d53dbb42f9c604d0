"""What a mounted volume does when another host has become its writer.

The agent learns it from a target and records it in VOLUME/replication.json; a mount learns it from a mirror before it
begins (writer_claims.py). Then, by the volume's settings, the mount accepts no more changes, or goes on for this host
alone. What no target has is kept as a branch: a last snapshot named `tail-generation-N`, and a hold on all before it.

Invariants:
1. VOLUME/fenced.json is durable before the mount acts on it, if that is possible at all. It ends only by taking over
   (`snapfs mount --take-over`): no restart, and no agent that is silent, makes a fenced volume a writer again.
2. A refused change changes nothing: neither the live tree nor, for longer than a notification takes, what the kernel
   shows of it. Reading, snapshots and everything under `.snapfs` go on.
3. The tail has every fsync that was answered, and every write from before the fencing was noticed: the kernel's dirty
   pages are written out first, then the refusals begin, and the cut that ends the tail comes after that.
4. The snapshots of the tail are not dropped by any policy, nor by compaction.
5. A failure to write a file, or to keep the tail (a full disk), is reported and retried; it never delays the refusals.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import trio

from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.base.settings.replication_settings import ReplicationSettings
from snapfs.store.log.claims import ClaimWriter, is_fenced, taken_over_in
from snapfs.store.log.holds import Holds
from snapfs.store.log.replica_state import ReplicaReader, TargetFacts
from snapfs.store.repository.repository import Repository
from snapfs.transfer.failover.fence_file import Fenced, read_fenced, write_fenced
from snapfs.transfer.seal.snapshotter import Snapshotter

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25
RETRY_SECONDS: Final = 10.0
HOLD_SECONDS: Final = 100 * 365.0 * 86400
TRIGGER: Final = "fenced"


def least_there(targets: Iterable[TargetFacts]) -> int:
    """The newest snapshot of ours that every target is known to have, and so the winner, too; 0: none.

    For winners that do not report their base: what is kept needlessly only costs room.
    """
    return min((each.newest for each in targets if each.newest is not None), default=0)


@dataclass(slots=True)
class FenceContext:
    """What fencing works with.

    `flush`: write out the kernel's dirty pages; `changed`: whether anything changed since the newest snapshot;
    `refuse`: refuse changes from now on; `failed(what, why, errno)`: report to people.
    """

    path: str
    repository: Repository
    snapshotter: Snapshotter
    reader: ReplicaReader
    disk: Disk
    writer_id: str
    flush: Callable[[], Awaitable[None]]
    changed: Callable[[], bool]
    refuse: Callable[[], None]
    failed: Callable[[str, str, int], None]
    pause: Callable[[float], Awaitable[object]] = trio.sleep
    """Between two looks; it may wait longer while nothing is requested of the mount."""


class Fence:
    """Watches whether this host is still the writer. Lives in the trio thread."""

    def __init__(self, settings: ReplicationSettings, context: FenceContext) -> None:
        """Raises CorruptionError, VersionError if VOLUME/fenced.json cannot be read."""
        self._settings, self._context = settings, context
        self.fenced = read_fenced(context.path)
        self._noted = self.fenced is not None
        self._ours = ClaimWriter(Generation(0), context.writer_id, taken_over_in(context.repository.events()))

    @property
    def refuses(self) -> bool:
        """Whether changes are refused."""
        return self.fenced is not None and self._settings.fenced == "read-only"

    async def run(self) -> None:
        """Watch for ever. Never raises OSError, SnapfsError."""
        if self.fenced is not None:
            self._enforce(self.fenced)
        while True:
            if self.fenced is None:
                await self.look()
            if self.fenced is not None and not self._noted:
                await self._note(self.fenced)
            if self.fenced is not None and not self.fenced.kept:
                await self._keep_tail(self.fenced)
            elif self.fenced is not None:
                await self._keep_more(self.fenced)
            done = self.fenced is None or (self._noted and self.fenced.kept)
            await self._context.pause(LOOK_SECONDS if done else RETRY_SECONDS)

    async def look(self) -> None:
        """Read the agent's record. If no target was named when we were mounted, only a fresh one counts."""
        reader = self._context.reader
        found = reader.look() if self._settings.target else reader.fresh()
        generation = self._context.snapshotter.generation
        ours = replace(self._ours, generation=generation)
        targets = found.targets if found is not None else []
        for target in targets:
            by = target.fenced_by
            if by is not None and is_fenced(ours, Generation(by.generation), by.writer_id):
                base = by.snapshot or least_there(targets)
                fenced = Fenced(generation, by.generation, by.writer_id, target.name, time.time_ns(), base)
                await self._begin(msgspec.structs.replace(fenced, base_is_reported=bool(by.snapshot)))
                return

    async def _begin(self, fenced: Fenced) -> None:
        await self._note(fenced)
        self.fenced = fenced
        with contextlib.suppress(OSError, SnapfsError):
            await self._context.flush()
        self._enforce(fenced)

    async def _note(self, fenced: Fenced) -> None:
        """Record durably that we are fenced. Retried after a failure; until then a new mount learns it from a
        mirror."""
        try:
            await trio.to_thread.run_sync(self._write, fenced)
            self._noted = True
        except (OSError, SnapfsError) as error:
            what = f"that another host writes cannot be recorded yet: {error}"
            self._context.failed("fenced", what, getattr(error, "errno", 0) or 0)

    def _write(self, fenced: Fenced) -> None:
        """In a thread: each of the steps waits for the disk."""
        write_fenced(self._context.path, fenced, self._context.disk)
        self._context.repository.record_event(
            "fenced", generation=fenced.generation, by_generation=fenced.by_generation, by_holder=fenced.by_writer_id
        )

    def _enforce(self, fenced: Fenced) -> None:
        if self.refuses:
            self._context.refuse()
            what = "nothing can be changed here any more"
        else:
            what = "what is written from now on stays on this host alone (replication.fenced = local)"
        log.critical("%s; %s. What no target has is kept as %s. See snapfs-failover(7)", fenced, what, fenced.branch)
        self._context.failed("fenced", str(fenced), 0)

    async def _keep_tail(self, fenced: Fenced) -> None:
        """Name and hold what no target has. Retried after a failure."""
        repository, snapshotter = self._context.repository, self._context.snapshotter
        try:
            newest = repository.latest()
            known = [record for record in repository.snapshots() if record.name == fenced.branch]
            if known:
                last = known[-1]
            elif newest is None or (newest.number <= fenced.base and not self._context.changed()):
                await self._keep(msgspec.structs.replace(fenced, kept=True))
                return
            else:
                last = await snapshotter.snapshot(fenced.branch, TRIGGER, flush=False)
            tail = [record.number for record in repository.snapshots() if fenced.base <= record.number <= last.number]
            await trio.to_thread.run_sync(self._hold, fenced, tail)
            await self._keep(msgspec.structs.replace(fenced, tail=last.number, kept=True))
            log.warning("snapshots %d to %d, which no target has, are kept", fenced.base + 1, last.number)
        except (OSError, SnapfsError) as error:
            self._context.failed("fenced", f"the tail cannot be kept yet: {error}", getattr(error, "errno", 0) or 0)

    async def _keep_more(self, fenced: Fenced) -> None:
        """Extend the tail, if another target reports a winner that went on from an earlier snapshot."""
        found = self._context.reader.look()
        reported = [each.fenced_by.snapshot for each in (found.targets if found else []) if each.fenced_by is not None]
        base = min((each for each in reported if each), default=0)
        if base and (base < fenced.base or not fenced.base_is_reported):
            with contextlib.suppress(OSError, SnapfsError):
                await self._keep_tail(
                    msgspec.structs.replace(fenced, base=min(base, fenced.base), base_is_reported=True)
                )

    def _hold(self, fenced: Fenced, numbers: list[SnapshotNumber]) -> None:
        holds = Holds(self._context.repository.store_dir, self._context.disk)
        why = f"no other host has what was done here before generation {fenced.by_generation}"
        holds.take(fenced.branch, numbers, HOLD_SECONDS, why)

    async def _keep(self, fenced: Fenced) -> None:
        await trio.to_thread.run_sync(write_fenced, self._context.path, fenced, self._context.disk)
        self.fenced = fenced

    def facts(self) -> Mapping[str, Any] | None:
        """The fencing for status and the replies to commands; None while this host is the writer."""
        fenced = self.fenced
        if fenced is None:
            return None
        return {
            "generation": fenced.generation,
            "by_generation": fenced.by_generation,
            "by_writer_id": fenced.by_writer_id,
            "by_holder": fenced.by_writer_id,  # the name until 0.1; goes with 0.3
            "target": fenced.target,
            "since_ns": fenced.since_ns,
            "read_only": self.refuses,
            "last_replicated": fenced.base or None,
            "went_on_from": fenced.base if fenced.base_is_reported else None,
            "branch": fenced.branch if fenced.tail else None,
            "branch_kept": fenced.kept,
        }
