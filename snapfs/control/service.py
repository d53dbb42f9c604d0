"""What a mounted volume shows and does through `.snapfs`: status, metrics, and control commands.

The work is done elsewhere: status_report.py and present_metrics.py put together what is shown, each *_commands.py runs
commands of one kind. This is where `.snapfs` finds them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from snapfs.base.blocks import ROOT_INO
from snapfs.base.counting.metrics import MetricsPage
from snapfs.control.command_records import CommandRecords
from snapfs.control.command_state import BusyWork
from snapfs.control.control_commands import Commands
from snapfs.control.gate_commands import GateCommands
from snapfs.control.group_commands import GroupCommands
from snapfs.control.live_tree_commands import LiveTreeCommands
from snapfs.control.permissions import Permissions
from snapfs.control.present_metrics import present
from snapfs.control.service_parts import ServiceParts
from snapfs.control.snapshot_commands import SnapshotCommands
from snapfs.control.status_report import StatusReport
from snapfs.control.verify_commands import VerifyCommands
from snapfs.fuse.virtual.caller import Caller
from snapfs.fuse.virtual.command_log import CommandLog
from snapfs.fuse.virtual.control_nodes import Reply


class ControlService:
    """The daemon as its user sees it; the `ControlContext` of the control nodes."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts
        self._commands_ended = 0
        busy = BusyWork()
        report = self._report = StatusReport(parts, busy)
        self._page = MetricsPage(
            parts.metrics, present=lambda: present(parts, report), requests=parts.reader.counts,
            latencies=parts.reader.latencies, targets=parts.lookout.standings,
        )  # fmt: skip
        kinds = (
            SnapshotCommands(parts, busy, self._permits),
            VerifyCommands(parts, busy),
            LiveTreeCommands(parts),
            GroupCommands(parts),
            GateCommands(parts),
        )
        verbs = {name: verb for kind in kinds for name, verb in kind.verbs().items()}
        self._permissions = Permissions.of(parts.volume.config.control.allow, verbs, parts.volume.toml_path)
        self._commands = Commands(
            verbs, parts.last_error.record, self._count, report.fenced, CommandRecords(parts.repository).done
        )
        self._command_log = CommandLog(parts.tree.names.reply_cache, parts.unique, parts.newest)
        root = parts.tree.getattr(ROOT_INO)
        self._owner = root.uid, root.gid

    def owner(self) -> tuple[int, int]:
        """As it was, where the host is gone: the status must say so."""
        with contextlib.suppress(OSError):
            root = self._parts.tree.getattr(ROOT_INO)
            self._owner = root.uid, root.gid
        return self._owner

    def status(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self.facts()), indent=2) + b"\n"

    def facts(self) -> dict[str, Any]:
        """The fields of `.snapfs/status`; see mount_status.py."""
        return self._report.facts()

    def metrics(self) -> bytes:
        return self._page.render()

    async def command(self, line: str, since: int | None = None, caller: Caller | None = None) -> Reply:
        return await self._commands.run(line, since, caller)

    def refused(self, lines: list[str], caller: Caller | None) -> Reply | None:
        return self._commands.refused(lines, lambda verb: self._permits(verb, caller))

    def _permits(self, verb: str, caller: Caller | None) -> bool:
        owner, _ = self.owner()
        return self._permissions.permits(verb, caller, owner)

    @property
    def commands_mode(self) -> int:
        return 0o666 if self._permissions.open_to_others else 0o600

    @property
    def command_log(self) -> CommandLog:
        return self._command_log

    @property
    def commands_ended(self) -> int:
        """How many commands this daemon has carried out, whatever became of them."""
        return self._commands_ended

    def _count(self, command: str, result: str) -> None:
        self._commands_ended += 1
        self._parts.metrics.commands.inc(1, command, result)
