"""What a mounted volume does when another host has become its writer.

The agent learns it from a target and says so in VOLUME/replication.json; a mount learns it from a mirror before it
begins (claiming.py). Then the mount takes no more changes, or goes on for this host alone, as the volume's settings
say. What no target has is kept as a branch: a last snapshot named `tail-generation-N`, and a hold on all before it.

Invariants:
1. VOLUME/fenced.json is durable before the mount acts on it, if that is possible at all. It ends only by taking over
   (`snapfs mount --take-over`): no restart, and no agent that is silent, makes a fenced volume a writer again.
2. When nothing may change, what is refused changes nothing: neither the live tree nor what the kernel shows of it for
   longer than it takes to tell it. Reading, snapshots and everything under `.snapfs` go on.
3. The tail has every fsync that was answered, and every write that was before it was noticed: the kernel's dirty pages
   are written out first, then the refusing begins, and the cut that ends the tail comes after that.
4. The snapshots of the tail are not dropped by any policy, nor by compaction.
5. A failure to write anything down, or to keep the tail (a full disk), is told and tried again; it never keeps the
   refusing from beginning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import trio

from snapfs.blocks import Disk, Generation, SnapshotNumber
from snapfs.config import ReplicationSettings
from snapfs.errors import SnapfsError, UserError
from snapfs.store.claims import Writer, is_fenced, taken_over_in
from snapfs.store.holds import Holds
from snapfs.store.replicas import ReplicaReader
from snapfs.store.repository import Repository
from snapfs.transfer.snapshotter import Snapshotter

log = logging.getLogger(__name__)

FILE: Final = "fenced.json"
LOOK_SECONDS: Final = 0.25
RETRY_SECONDS: Final = 10.0
HOLD_SECONDS: Final = 100 * 365.0 * 86400
TRIGGER: Final = "fenced"


class Fenced(msgspec.Struct, frozen=True):
    """VOLUME/fenced.json: who writes in our place, since when we know, and what nobody else has of ours.

    `base`: the newest snapshot of ours that a target had (0: none). `tail`: the branch's last snapshot (0: not kept
    yet, or nothing to keep).
    """

    generation: int
    by_generation: int
    by_holder: str
    target: str
    since_ns: int
    base: int = 0
    tail: int = 0
    kept: bool = False
    format: int = 1

    @property
    def branch(self) -> str:
        return f"tail-generation-{self.generation}"

    def __str__(self) -> str:
        who = f"{self.by_holder} is the writer of generation {self.by_generation}, as {self.target} says"
        return f"this host (generation {self.generation}) is fenced off: {who}"


def read_fenced(volume_path: str) -> Fenced | None:
    """None if the volume is not fenced. UserError if the file cannot be understood: better no writer than two."""
    path = os.path.join(volume_path, FILE)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Fenced)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        what = "see which host writes this volume, then `snapfs mount --take-over`"
        raise UserError(f"{path}: {error}: {what}") from None


def write_fenced(volume_path: str, fenced: Fenced, disk: Disk) -> None:
    """Durable on return. OSError."""
    disk.replace_file("fence:file", os.path.join(volume_path, FILE), msgspec.json.encode(fenced) + b"\n")


@dataclass(slots=True)
class Surroundings:
    """What fencing works with. `flush`: get the kernel's dirty pages; `changed`: whether anything changed since the
    newest snapshot; `refuse`: let nothing change from now on; `failed(what, why, errno)`: tell people."""

    path: str
    repository: Repository
    snapshotter: Snapshotter
    reader: ReplicaReader
    disk: Disk
    holder: str
    flush: Callable[[], Awaitable[None]]
    changed: Callable[[], bool]
    refuse: Callable[[], None]
    failed: Callable[[str, str, int], None]


class Fence:
    """Watches whether this host is still the writer. Lives in the trio thread."""

    def __init__(self, settings: ReplicationSettings, around: Surroundings) -> None:
        """UserError if VOLUME/fenced.json cannot be understood."""
        self._settings, self._around = settings, around
        self.fenced = read_fenced(around.path)
        self._noted = self.fenced is not None
        self._ours = Writer(Generation(0), around.holder, taken_over_in(around.repository.events()))

    @property
    def refuses(self) -> bool:
        """Whether nothing may change."""
        return self.fenced is not None and self._settings.fenced == "read-only"

    async def run(self) -> None:
        """Watch, for ever."""
        if self.fenced is not None:
            self._enforce(self.fenced)
        while True:
            if self.fenced is None:
                await self.look()
            if self.fenced is not None and not self._noted:
                await self._note(self.fenced)
            if self.fenced is not None and not self.fenced.kept:
                await self._keep_tail(self.fenced)
            done = self.fenced is None or (self._noted and self.fenced.kept)
            await trio.sleep(LOOK_SECONDS if done else RETRY_SECONDS)

    async def look(self) -> None:
        """Take in what the agent says; of a target that was named after we were mounted, while it is at work."""
        reader = self._around.reader
        found = reader.look() if self._settings.target else reader.fresh()
        generation = self._around.snapshotter.generation
        ours = replace(self._ours, generation=generation)
        for target in found.targets if found is not None else ():
            by = target.fenced_by
            if by is not None and is_fenced(ours, Generation(by.generation), by.holder):
                base = max((each.newest or 0 for each in found.targets), default=0) if found is not None else 0
                await self._begin(
                    Fenced(generation, by.generation, by.holder, target.name, time.time_ns(), base)
                )
                return

    async def _begin(self, fenced: Fenced) -> None:
        await self._note(fenced)
        self.fenced = fenced
        with contextlib.suppress(OSError, SnapfsError):
            await self._around.flush()
        self._enforce(fenced)

    async def _note(self, fenced: Fenced) -> None:
        """Write down that we are fenced. Tried again after a failure; who mounts anew until then asks the mirrors."""
        try:
            await trio.to_thread.run_sync(write_fenced, self._around.path, fenced, self._around.disk)
            self._around.repository.record_event(
                "fenced", generation=fenced.generation, by_generation=fenced.by_generation, by_holder=fenced.by_holder
            )
            self._noted = True
        except (OSError, SnapfsError) as error:
            what = f"that another host writes cannot be written down yet: {error}"
            self._around.failed("fenced", what, getattr(error, "errno", 0) or 0)

    def _enforce(self, fenced: Fenced) -> None:
        if self.refuses:
            self._around.refuse()
            what = "nothing can be changed here any more"
        else:
            what = "what is written from now on stays on this host alone (replication.fenced = local)"
        log.critical("%s; %s. What no target has is kept as %s. See snapfs-failover(7)", fenced, what, fenced.branch)
        self._around.failed("fenced", str(fenced), 0)

    async def _keep_tail(self, fenced: Fenced) -> None:
        """Name and hold what no target has. Tried again after a failure."""
        repository, snapshotter = self._around.repository, self._around.snapshotter
        try:
            newest = repository.latest()
            known = [record for record in repository.snapshots() if record.name == fenced.branch]
            if known:
                last = known[-1]
            elif newest is None or (newest.number <= fenced.base and not self._around.changed()):
                self._keep(msgspec.structs.replace(fenced, kept=True))
                return
            else:
                last = await snapshotter.snapshot(fenced.branch, TRIGGER, flush=False)
            tail = [record.number for record in repository.snapshots() if fenced.base <= record.number <= last.number]
            self._hold(fenced, tail)
            self._keep(msgspec.structs.replace(fenced, tail=last.number, kept=True))
            log.warning("snapshots %d to %d, which no target has, are kept", fenced.base + 1, last.number)
        except (OSError, SnapfsError) as error:
            self._around.failed("fenced", f"the tail cannot be kept yet: {error}", getattr(error, "errno", 0) or 0)

    def _hold(self, fenced: Fenced, numbers: list[SnapshotNumber]) -> None:
        holds = Holds(self._around.repository.store_dir, self._around.disk)
        why = f"no other host has what was done here before generation {fenced.by_generation}"
        holds.take(fenced.branch, numbers, HOLD_SECONDS, why)

    def _keep(self, fenced: Fenced) -> None:
        write_fenced(self._around.path, fenced, self._around.disk)
        self.fenced = fenced

    def facts(self) -> Mapping[str, Any] | None:
        """For status and the replies to commands: None while this host is the writer."""
        fenced = self.fenced
        if fenced is None:
            return None
        return {
            "generation": fenced.generation,
            "by_generation": fenced.by_generation,
            "by_holder": fenced.by_holder,
            "target": fenced.target,
            "since_ns": fenced.since_ns,
            "read_only": self.refuses,
            "last_replicated": fenced.base or None,
            "branch": fenced.branch if fenced.tail else None,
            "branch_kept": fenced.kept,
        }
