"""What a mounted volume says and does through `.snapfs`: status, metrics, and the work of each control command.

Invariants:
1. Status and metrics are put together from memory: reading them costs no I/O and waits for nothing.
2. A command that changes what snapshots exist, or the live tree as a whole, holds the snapshotter's turn.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from snapfs import __version__
from snapfs.blocks import ROOT_INO
from snapfs.config import encode as encode_config
from snapfs.config import parse_seconds
from snapfs.errors import UserError
from snapfs.fuse import status
from snapfs.fuse.commands import Command, Commands, UsageError, Verb
from snapfs.fuse.control import Reply
from snapfs.fuse.journal import Journal
from snapfs.live.tree import LiveTree
from snapfs.metrics import Metrics
from snapfs.store import check
from snapfs.store.records import DAMAGED
from snapfs.store.repository import Repository, SnapshotRecord
from snapfs.transfer import upkeep
from snapfs.transfer.fencing import Fence
from snapfs.transfer.hydration import Hydration
from snapfs.transfer.repair import repair
from snapfs.transfer.replication import Tether
from snapfs.transfer.snapshotter import Failure, Snapshotter
from snapfs.volume import Volume

log = logging.getLogger(__name__)

_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon is made of, as far as its service needs it."""

    volume: Volume
    mountpoint: str
    tree: LiveTree
    repository: Repository
    snapshotter: Snapshotter
    metrics: Metrics
    recovered: list[str]
    dropped: Callable[[SnapshotRecord], Awaitable[None]]  # to be told of what was dropped
    roll_back: Callable[[SnapshotRecord, bool, Callable[[int, int], None]], Awaitable[Mapping[str, Any]]]
    unique: Callable[[], int] = lambda: 0  # the number of the request that is being handled
    tether: Tether | None = None


class Service:
    """The daemon as its user sees it. The surroundings of the control nodes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._start_time_ns = time.time_ns()
        self.data_path: Mapping[str, Any] = {}  # see status.py
        self.supervisor: int | None = None  # its process; None: the mount ends with this daemon
        self.daemons_before = 0  # how many served this mount
        self._busy: str | None = None
        self._busy_bytes = (0, 0)
        self._last_error: Failure | None = None
        self._commands = Commands(self._failed, self._count)
        self._journal = Journal(parts.tree.names.answers, parts.unique, self._newest)
        self.hydration: Hydration | None = None
        self.fence: Fence | None = None
        self._commands.fenced = self._fenced
        self._add_commands()
        parts.metrics.present = self._present

    # -- the surroundings of the control nodes

    def owner(self) -> tuple[int, int]:
        root = self._parts.tree.getattr(ROOT_INO)
        return root.uid, root.gid

    def status(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self.facts()), indent=2) + b"\n"

    def metrics(self) -> bytes:
        return self._parts.metrics.render()

    async def command(self, line: str, since: int | None = None) -> Reply:
        return await self._commands.run(line, since)

    @property
    def journal(self) -> Journal:
        return self._journal

    # -- what is told

    def facts(self) -> dict[str, Any]:
        """The fields of `.snapfs/status`; see status.py."""
        parts, now_ns = self._parts, time.time_ns()
        tree, snapshotter = parts.tree, parts.snapshotter
        return {
            "version": __version__,
            "pid": os.getpid(),
            "supervisor": self.supervisor,
            "daemons_before": self.daemons_before,
            "start_time_ns": self._start_time_ns,
            "volume": parts.volume.path,
            "volume_id": parts.volume.volume_id,
            "mountpoint": parts.mountpoint,
            "data_path": self.data_path,
            "generation": parts.snapshotter.generation,
            "epoch": tree.names.epoch,
            "dirty": {"files": tree.dirty_files, "bytes": tree.dirty_bytes},
            "snapshots": len(parts.repository.snapshots()),
            "last_snapshot": status.last_snapshot(parts.repository.latest(), now_ns),
            "sealing": status.sealing(snapshotter.running, time.monotonic()),
            "busy": status.busy(self._busy, self._busy_bytes),
            "cut_pause_s": status.pauses(snapshotter.pauses_s),
            "last_error": status.failure(self._newest_error()),
            "recovered": parts.recovered,
            "hydration": self._hydration_facts(),
            "replication": parts.tether.facts() if parts.tether is not None else None,
            "fenced": self._fenced(),
            "settings": encode_config(parts.volume.config),
        }

    def _fenced(self) -> Mapping[str, Any] | None:
        return self.fence.facts() if self.fence is not None else None

    def failed(self, what: str, message: str, number: int) -> None:
        """To be told of what went wrong outside of commands and snapshots."""
        self._failed(what, message, number)

    def _hydration_facts(self) -> dict[str, Any]:
        more = self.hydration.facts() if self.hydration is not None else {}
        return {"absent_files": self._parts.tree.names.absent_count()} | more

    def _newest_error(self) -> Failure | None:
        known = [error for error in (self._last_error, self._parts.snapshotter.last_error) if error is not None]
        return max(known, key=lambda error: error.time_ns, default=None)

    def _present(self) -> Mapping[str, float]:
        tree, latest = self._parts.tree, self._parts.repository.latest()
        values: dict[str, float] = {
            "snapfs_generation": self._parts.snapshotter.generation,
            "snapfs_epoch": tree.names.epoch,
            "snapfs_dirty_files": tree.dirty_files,
            "snapfs_dirty_bytes": tree.dirty_bytes,
            "snapfs_absent_files": tree.names.absent_count(),
            "snapfs_hydrated_bytes_total": tree.hydrated_bytes,
            "snapfs_wal_bytes": tree.names.wal_bytes(),
            "snapfs_preserved_bytes": tree.preserved_bytes,
            "snapfs_copied_aside_bytes": tree.copied_bytes,
            "snapfs_open_files": tree.open_backing_files,
            "snapfs_hydrated_files": tree.hydrated_files,
            "snapfs_hydrated_bytes": tree.hydrated_bytes,
            "snapfs_snapshots": len(self._parts.repository.snapshots()),
            "snapfs_last_snapshot_timestamp_seconds": latest.cut_time_ns / 1e9 if latest else 0,
            "snapfs_seal_running": self._parts.snapshotter.running is not None,
            "snapfs_resident_memory_bytes": resident_bytes(),
            "snapfs_fenced": self._fenced() is not None,
        }
        if self._parts.tether is not None and self._parts.volume.config.replication.target:
            values["snapfs_replication_exposed_seconds"] = self._parts.tether.exposed_s()
            values["snapfs_replication_held_fsyncs"] = self._parts.tether.held
        if latest is not None:
            values["snapfs_last_snapshot_age_seconds"] = (time.time_ns() - latest.cut_time_ns) / 1e9
        return values

    def _failed(self, line: str, message: str, number: int) -> None:
        self._last_error = Failure(line, message, number, time.time_ns())

    def _count(self, command: str, result: str) -> None:
        self._parts.metrics.commands.labels(command, result).inc()

    # -- what is done

    def _add_commands(self) -> None:
        add = self._commands.add
        flush, force = frozenset({"flush"}), frozenset({"force"})
        waiting = frozenset({"wait", "timeout"})
        usage = "snapshot [NAME] [flush=yes|no] [wait=sealed|replicated] [timeout=SECONDS]"
        add("snapshot", Verb(usage, self._snapshot, range(0, 2), options=flush | waiting))
        add("bound", Verb("bound off", self._bound, range(1, 2)))
        add("drop", Verb("drop REF", self._drop, range(1, 2)))
        add("rollback", Verb("rollback REF [force]", self._rollback, range(1, 2), flags=force))
        add("verify", Verb("verify [REF...] [repair]", self._verify, range(0, 1000), flags=frozenset({"repair"})))
        add("pause", Verb("pause", self._pause, range(0, 1)))
        add("resume", Verb("resume", self._resume, range(0, 1)))
        add("sync", Verb("sync", self._sync, range(0, 1)))

    async def _snapshot(self, command: Command) -> Mapping[str, Any]:
        name = command.arguments[0] if command.arguments else None
        snapshotter = self._parts.snapshotter
        made = self._made_before(name, command.since)
        if made is not None:
            wait, timeout_s = self._wait_of(command)
            earlier: dict[str, Any] = {"snapshot": status.record_facts(made), "cut_pause_s": None}
            return {**earlier, "replicated": await self._replicated(made, timeout_s)} if wait else earlier
        wait, timeout_s = self._wait_of(command)
        record = await snapshotter.snapshot(name, "control", flush=command.yes("flush", True))
        told: dict[str, Any] = {"snapshot": status.record_facts(record), "cut_pause_s": snapshotter.pauses_s[-1]}
        return {**told, "replicated": await self._replicated(record, timeout_s)} if wait else told

    async def _replicated(self, record: SnapshotRecord, timeout_s: float | None) -> Mapping[str, Any]:
        assert self._parts.tether is not None
        return await self._parts.tether.replicated(record.number, timeout_s)

    def _wait_of(self, command: Command) -> tuple[bool, float | None]:
        """Whether the command waits for replication, and how long. Raises UsageError."""
        usual = "replicated" if self._parts.volume.config.replication.mode == "sync" else "sealed"
        wait, timeout = command.options.get("wait", usual), command.options.get("timeout")
        if wait not in ("sealed", "replicated"):
            raise UsageError(f"wait={wait}: say sealed or replicated")
        try:
            return wait == "replicated", None if timeout is None else float(parse_seconds(timeout))
        except ValueError as error:
            raise UsageError(f"timeout: {error}") from None

    async def _bound(self, command: Command) -> Mapping[str, Any]:
        """Let go of an application that is held because replication fell behind its bound, until the next mount."""
        if command.arguments != ["off"]:
            raise UsageError("usage: bound off")
        assert self._parts.tether is not None
        self._parts.tether.lift()
        return {"replication": self._parts.tether.facts()}

    def _newest(self) -> int:
        latest = self._parts.repository.latest()
        return latest.number if latest is not None else 0

    def _made_before(self, name: str | None, since: int | None) -> SnapshotRecord | None:
        """The snapshot that an earlier daemon made for this very command. The kernel lets one run at a time."""
        for record in self._parts.repository.snapshots() if since is not None else ():
            if record.number > (since or 0) and record.trigger == "control" and record.name == name:
                return record
        return None

    def _find(self, reference: str) -> SnapshotRecord:
        try:
            return self._parts.repository.find(reference)
        except UserError as error:
            raise OSError(errno.ENOENT, str(error)) from None

    async def _drop(self, command: Command) -> Mapping[str, Any]:
        async with self._parts.snapshotter.turn():
            try:
                record = self._find(command.arguments[0])
            except FileNotFoundError:
                if command.since is None:
                    raise
                return {"dropped": None}  # by the daemon that began this
            await trio.to_thread.run_sync(upkeep.drop, self._parts.repository, record)
        await self._parts.dropped(record)
        return {"dropped": status.record_facts(record)}

    async def _rollback(self, command: Command) -> Mapping[str, Any]:
        if self.fence is not None and self.fence.refuses:
            raise OSError(errno.EROFS, f"nothing can be changed here: {self.fence.fenced}")
        snapshotter = self._parts.snapshotter
        async with snapshotter.turn():
            target = self._find(command.arguments[0])
            self._busy = f"rollback to snapshot {target.number}"
            try:
                told = await self._parts.roll_back(target, "force" in command.flags, self._progress)
            finally:
                self._busy, self._busy_bytes = None, (0, 0)
        return told

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        self._busy_bytes = done_bytes, total_bytes

    async def _verify(self, command: Command) -> Mapping[str, Any]:
        """Read back what the snapshots need; those that turn out damaged are marked so. With `repair`, mend first."""
        repository = self._parts.repository
        records = [self._find(reference) for reference in command.arguments] or repository.snapshots()
        if "repair" in command.flags:
            return await self._repair(records)
        report = await trio.to_thread.run_sync(lambda: check.verify(repository, records, threads=1))
        for number in report.damaged_snapshots:
            await trio.to_thread.run_sync(repository.mark, number, DAMAGED, report.why(number))
        await self._trust_no_more(report)
        return report.facts()

    async def _trust_no_more(self, report: check.Report) -> None:
        """Build nothing more on a damaged snapshot: the next one would inherit what cannot be read."""
        snapshotter = self._parts.snapshotter
        async with snapshotter.turn():
            if snapshotter.parent is not None and snapshotter.parent.number in report.damaged_snapshots:
                snapshotter.start_over()

    async def _repair(self, records: list[SnapshotRecord]) -> Mapping[str, Any]:
        from snapfs.transfer.targets import Targets

        parts, self._busy = self._parts, "repair"
        said: list[str] = []
        targets = Targets(parts.volume, said.append)
        try:
            result = await trio.to_thread.run_sync(
                lambda: repair(
                    parts.repository, records, tree=parts.tree, fetch=targets.fetch, progress=self._progress
                )
            )
            result.done[:0] = said
        finally:
            targets.close()
            self._busy, self._busy_bytes = None, (0, 0)
        for line in result.done:
            log.warning("repair: %s", line)
        await self._trust_no_more(result.after)
        return {**result.after.facts(), "mended": result.mended, "repaired": result.done}

    async def _pause(self, command: Command) -> Mapping[str, Any]:
        """Bring in only what is asked for, until `resume`."""
        hydration = self._hydrating()
        hydration.pause()
        return {"hydration": hydration.facts()}

    async def _resume(self, command: Command) -> Mapping[str, Any]:
        hydration = self._hydrating()
        hydration.resume()
        return {"hydration": hydration.facts()}

    def _hydrating(self) -> Hydration:
        if self.hydration is None:
            raise UserError("all of this volume is here: there is no hydration")
        return self.hydration

    async def _sync(self, command: Command) -> Mapping[str, Any]:
        """Make everything that was answered durable."""
        self._parts.tree.tidy()
        await trio.to_thread.run_sync(self._parts.tree.sync_soon)
        return {}


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
