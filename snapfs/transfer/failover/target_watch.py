"""A mounted volume's targets: those that the settings name now, and the standing of each.

The targets are read from volume.toml again when that file changes, so that one that was named after the mount counts
at once, as it does for the agent. All other settings stay those of the mount.

Invariants:
1. A volume.toml that cannot be read or parsed changes nothing: the last good targets stay.
2. Nothing here waits: a look costs a few stat(2) and, after a change, the reading of one small file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.base.settings.replication_settings import TargetSettings, plain_url, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.store.log import replica_state
from snapfs.store.log.replica_state import ReplicaReader
from snapfs.store.log.target_standing import AgentReport, Standing, judge, worst
from snapfs.store.repository.repository import Repository


class Lookout:
    """The targets of one mounted volume. Any thread."""

    def __init__(self, volume: Volume, repository: Repository, reader: ReplicaReader) -> None:
        self._volume, self._repository, self._reader = volume, repository, reader
        self._seen = self._stamp()
        self._targets = volume.config.replication.target

    def targets(self) -> tuple[TargetSettings, ...]:
        """The targets that volume.toml names now."""
        seen = self._stamp()
        if seen != self._seen:
            try:
                self._targets = Volume.open(self._volume.path, Disk()).config.replication.target
            except (OSError, SnapfsError):
                return self._targets
            self._seen = seen
        return self._targets

    def standings(self) -> list[Standing]:
        """The standing of each target."""
        targets = self.targets()
        if not targets:
            return []
        named = [(target_name(each), plain_url(each.url)) for each in targets]
        now_ns = time.time_ns()
        report = self.report(now_ns)
        return judge(named, report, list(self._repository.catalog.pages(_all_have(named, report))), now_ns)

    def report(self, now_ns: int) -> AgentReport:
        """The agent's last record, with its age, and whether the agent lives."""
        found = self._reader.look()
        age_s = (now_ns - found.written_ns) / 1e9 if found is not None else None
        return AgentReport(found, replica_state.agent_lives(self._volume.path), age_s)

    def facts(self) -> Mapping[str, Any]:
        """For status: `state` is the worst of the targets', "none" where there are none."""
        standings = self.standings()
        return {
            "state": worst(standings),
            "agent": self.report(time.time_ns()).holds,
            "targets": [each.as_json() for each in standings],
        }

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self._volume.toml_path)
        except OSError:
            return 0, 0, 0
        return found.st_ino, found.st_size, found.st_mtime_ns


def _all_have(named: list[tuple[str, str]], report: AgentReport) -> int:
    """The newest snapshot that every target has; those up to it need not be looked at."""
    newest_at = (
        {(each.name, each.url): each.newest for each in report.found.targets} if report.found is not None else {}
    )
    return min((newest_at.get(target) or 0 for target in named), default=0)
