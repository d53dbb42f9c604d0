"""The control command `gate`: what another process found out about a snapshot goes into the log, which is the daemon's.

`snapfs verify` and `snapfs drill` read and try a history from outside. What a snapshot passed there, or failed, is a
line of snapshots.log (store/gates/gates.py); who reported it is in the line.

Invariant: nothing is recorded of a snapshot that does not exist, or that is another one than was tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from snapfs.control.control_commands import Command, UsageError, Verb
from snapfs.control.permissions import asked_by
from snapfs.control.service_parts import ServiceParts
from snapfs.store.repair.gate_lines import line_of


class GateCommands:
    """Runs it on one mounted volume."""

    def __init__(self, parts: ServiceParts) -> None:
        self._repository = parts.repository

    def verbs(self) -> dict[str, Verb]:
        return {"gate": Verb("gate verified|drilled JSON", self._gate, range(2, 3))}

    async def _gate(self, command: Command) -> Mapping[str, Any]:
        kind, text = command.arguments
        try:
            fields = line_of(self._repository, kind, text)
        except ValueError as error:
            raise UsageError(f"gate {kind}: {error}") from None
        by = {"by": asked_by(command.caller)}
        await trio.to_thread.run_sync(lambda: self._repository.record_event(kind, **fields, **by))
        return {"gate": kind}
