"""The control commands about the live tree: `pause` and `resume` its hydration, `sync` it to the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from snapfs.base.errors import UserError
from snapfs.control.control_commands import Command, Verb
from snapfs.control.service_parts import ServiceParts

if TYPE_CHECKING:
    from snapfs.transfer.lazy.background_hydration import Hydration


class LiveTreeCommands:
    """Runs them on one mounted volume."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts

    def verbs(self) -> dict[str, Verb]:
        return {
            "pause": Verb("pause", self._pause, range(0, 1)),
            "resume": Verb("resume", self._resume, range(0, 1)),
            "sync": Verb("sync", self._sync, range(0, 1)),
        }

    async def _pause(self, command: Command) -> Mapping[str, Any]:
        """Fetch only what is requested, until `resume`."""
        hydration = self._hydrating()
        hydration.pause()
        return {"hydration": hydration.facts()}

    async def _resume(self, command: Command) -> Mapping[str, Any]:
        hydration = self._hydrating()
        hydration.resume()
        return {"hydration": hydration.facts()}

    def _hydrating(self) -> Hydration:
        if self._parts.hydration is None:
            raise UserError("all of this volume is here: there is no hydration")
        return self._parts.hydration

    async def _sync(self, command: Command) -> Mapping[str, Any]:
        """Make everything that was answered durable."""
        self._parts.tree.tidy()
        await trio.to_thread.run_sync(self._parts.tree.sync_soon)
        return {}
