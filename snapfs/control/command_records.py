"""Who asked for it: a line of kind "command" in snapshots.log for each control command that was carried out, but for
those that make a snapshot: its record says it.

`command`, its `arguments`, `flags` and `options`, the `snapshot` that it was about or made, and `by`: uid, gid and pid
of the process that opened the control file ({} if that was while an earlier daemon served).

Invariants:
1. What only reads, or only changes the pace of background work, leaves no line (QUIET), nor does `gate`, which is one.
   Nor does what makes a snapshot: one act is one line. The end of a log that a disk has lost is recovered from the
   segments where it is a snapshot's record, and is damage where a line followed that was answered, too. (At most
   steps of a group's cut gates are closed: a flush of the log would hold the applications.)
2. The line is durable before the command is answered. One that cannot be written is logged, and the command, which is
   done, is not called failed for that.
3. A command whose daemon died over it may have two lines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import trio

from snapfs.base.errors import SnapfsError
from snapfs.control.control_commands import Command
from snapfs.control.permissions import asked_by
from snapfs.store.repository.repository import Repository

log = logging.getLogger(__name__)
QUIET: Final = frozenset({"sync", "pause", "resume", "gate", "snapshot", "group"})
KIND: Final = "command"


class CommandRecords:
    """Writes them for one mounted volume."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def done(self, command: Command, facts: Mapping[str, Any]) -> None:
        """Record a command that was carried out. The trio thread."""
        if command.verb in QUIET:
            return
        fields = record_of(command, facts)
        try:
            await trio.to_thread.run_sync(lambda: self._repository.record_event(KIND, **fields))
        except (OSError, SnapfsError) as error:
            log.warning("who gave the command %r could not be recorded: %s", command.verb, error)


def record_of(command: Command, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of its line. Pure."""
    about: Mapping[str, Any] = next(
        (facts[name] for name in ("snapshot", "dropped") if isinstance(facts.get(name), Mapping)), {}
    )
    shown = {
        "arguments": command.arguments, "flags": sorted(command.flags), "options": dict(command.options),
        "snapshot": about.get("number"),
    }  # fmt: skip
    given = {name: value for name, value in shown.items() if value}
    return {"command": command.verb, **given, "by": asked_by(command.caller)}
