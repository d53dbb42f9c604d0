"""The gates of snapshots for commands: how they are shown, and how one that was passed gets into the log."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError, UserError
from snapfs.base.volumes.volume import Volume
from snapfs.commands.support import output
from snapfs.commands.support.locate import VolumeLocation, control_line
from snapfs.store.gates.gates import NO_GATES, facts_of, words_of
from snapfs.store.log import replica_state
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.repository.store_folders import LOG


class ShownGates:
    """The gates of one store's snapshots, with what the agent reports now of the targets.

    Of a target that it reports, that alone counts: the log does not have what was dropped there since. Of a target that
    it does not report any more nothing is known. Without a report the log says what was known last.
    """

    def __init__(self, repository: Repository) -> None:
        self._catalog = repository.catalog
        path = replica_state.path_of(os.path.dirname(os.path.abspath(repository.store_dir)))
        found = replica_state.read(path, repository.identity.volume_id)
        self._generation = found.generation if found is not None else 0
        self._there = {each.name: each.known_there() for each in found.targets} if found is not None else None

    def words(self, record: SnapshotRecord) -> str:
        """The gates of a snapshot, for people."""
        if record.branch:
            return "sealed"
        copies = self._copies(record)
        return words_of(self._catalog.gates(record.number), len(copies), len(self._there or ()))

    def facts(self, record: SnapshotRecord) -> dict[str, Any]:
        """The same as JSON."""
        if record.branch:
            return {"gates": facts_of(NO_GATES, (), 0)}
        return {"gates": facts_of(self._catalog.gates(record.number), self._copies(record), len(self._there or ()))}

    def _copies(self, record: SnapshotRecord) -> frozenset[str]:
        if self._there is None:
            return self._catalog.copies(record.number)
        if record.generation > self._generation:
            return frozenset()  # the report is older than it: its number was another one's then
        return frozenset(name for name, numbers in self._there.items() if record.number in numbers)


def record_gate(where: VolumeLocation, kind: str, fields: dict[str, Any]) -> str:
    """Have a gate recorded in the log of the volume; "" if it is, else why not. Never raises for a place that fails."""
    fields = output.encodable(fields)
    try:
        if where.mountpoint is not None:
            where.command(control_line("gate", [kind, msgspec.json.encode(fields).decode()]))
        else:
            _append(where.volume(), kind, fields)
    except (OSError, SnapfsError) as error:
        return str(error)
    return ""


def _append(volume: Volume, kind: str, fields: dict[str, Any]) -> None:
    """Append to the log of a volume that no daemon has. Raises BusyError, OSError, CorruptionError."""
    if os.stat(volume.store_dir).st_uid != os.geteuid() != 0:
        raise UserError(f"{volume.path} is another user's")
    volume.lock(f"recording that a snapshot was {kind}")
    try:
        log = SnapshotLog(os.path.join(volume.store_dir, LOG), Disk(), readonly=False)
        try:
            for _ in log.follow_lines():
                pass
            log.cut_torn_tail()
            log.append(kind, fields | {"by": {"uid": os.geteuid(), "pid": os.getpid()}})
        finally:
            log.close()
    finally:
        volume.unlock()
