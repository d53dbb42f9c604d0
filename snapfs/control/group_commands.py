"""The control command `group`, by which a coordinator cuts several mounts at one instant (group_member.py)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
import trio

from snapfs.base.errors import BusyError
from snapfs.control import mount_status
from snapfs.control.control_commands import Command, UsageError, Verb
from snapfs.control.groups import group_line
from snapfs.control.groups.group_member import AGAIN
from snapfs.control.permissions import asker
from snapfs.control.service_parts import ServiceParts
from snapfs.store.log.catalog import GIVEN_UP
from snapfs.store.log.drops import POLICY
from snapfs.store.log.group_cuts import WAS_GIVEN_UP
from snapfs.store.log.snapshot_records import GroupCut, SnapshotRecord
from snapfs.transfer.retention import protection

STEPS = ("ready", "close", "settle", "cut", "seal", "abort")
FORGET = "forget"


class GroupCommands:
    """Runs them on one mounted volume."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts

    def verbs(self) -> dict[str, Verb]:
        usage = (
            "group prepare JSON [name=NAME] [flush=yes|no] [line=yes] | group close|settle|cut|seal|abort|forget CUT"
        )
        return {"group": Verb(usage, self._group, range(2, 3), options=frozenset({"name", "flush", "line"}))}

    async def _group(self, command: Command) -> Mapping[str, Any]:
        step, what = command.arguments
        if step == "prepare":
            return await self._prepare(command, what)
        if step == FORGET:
            return await self._forget(what)
        if step not in STEPS:
            raise UsageError(f"group {step}: must be prepare, {', '.join(STEPS[:-1])} or {STEPS[-1]}")
        answer = await self._parts.groups.session(what).ask(step)
        if answer == AGAIN:
            raise OSError(errno.EAGAIN, "truncations were in the way: settle again")
        return self._facts(answer) if isinstance(answer, SnapshotRecord) else answer

    async def _prepare(self, command: Command, what: str) -> Mapping[str, Any]:
        fence = self._parts.fence
        if fence.refuses:
            raise OSError(errno.EROFS, f"nothing can be changed here: {fence.fenced}")
        try:
            group = msgspec.json.decode(what, type=GroupCut)
        except msgspec.MsgspecError as error:
            raise UsageError(f"group prepare: {error}") from None
        name, flush, line = command.options.get("name"), command.yes("flush", True), None
        if command.yes("line", False):
            line = await group_line.connected(group.cut, self._parts.volume.volume_id)
        serve = partial(group_line.serve, line) if line is not None else None
        try:
            session = self._parts.groups.begin(group, name, flush, asker(command.caller), serve)
        except BaseException:
            if line is not None:
                line.socket.close()
            raise
        answer: Mapping[str, Any] = await session.ask("")
        return {**answer, "line": line is not None}

    async def _forget(self, cut: str) -> Mapping[str, Any]:
        """Drop what this member made of a cut that was given up. The newest snapshot cannot go, for the next one builds
        on it: it is marked, is offered as no part of a group from now on, does not keep its name, and goes later."""
        repository, gone = self._parts.repository, list[int]()
        async with self._parts.snapshotter.turn():
            made = [each for each in repository.catalog.pages() if _is_of(each, cut)]
            for record in made:
                try:
                    await trio.to_thread.run_sync(protection.drop, repository, record, POLICY, WAS_GIVEN_UP)
                    gone.append(record.number)
                except BusyError:
                    mark = partial(repository.record_event, GIVEN_UP, snapshot=record.number, cut=cut)
                    await trio.to_thread.run_sync(mark)
        for record in made:
            if record.number in gone:
                await self._parts.dropped(record)
        return {"forgotten": [record.number for record in made]}

    def _facts(self, record: SnapshotRecord) -> dict[str, Any]:
        return {"snapshot": mount_status.record_facts(record), "cut_pause_s": self._parts.snapshotter.pauses_s[-1]}


def _is_of(record: SnapshotRecord, cut: str) -> bool:
    return record.cut.group is not None and record.cut.group.cut == cut
