"""The control commands about snapshots: make one, drop one, roll back to one, and lift the bound on replication.

Invariants:
1. A command that changes which snapshots exist, or the live tree as a whole, holds the snapshotter's lock.
2. A command that an earlier daemon began, and died over, is not done twice: what it made already is its result.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import trio

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.settings.units import parse_seconds
from snapfs.control import mount_status
from snapfs.control.command_state import BusyWork
from snapfs.control.control_commands import Command, UsageError, Verb
from snapfs.control.permissions import asker
from snapfs.control.service_parts import ServiceParts
from snapfs.fuse.virtual.caller import Caller
from snapfs.store.log.drops import PERSON, POLICY
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.restore.fork_target import fork_target
from snapfs.transfer.retention import named_holds, protection


class SnapshotCommands:
    """Runs them on one mounted volume."""

    def __init__(self, parts: ServiceParts, busy: BusyWork, permits: Callable[[str, Caller | None], bool]) -> None:
        """`permits`: whether a process may give a command."""
        self._parts, self._busy, self._permits = parts, busy, permits

    def verbs(self) -> dict[str, Verb]:
        options, force = frozenset({"flush", "wait", "timeout", "unchanged"}), frozenset({"force"})
        usage = "snapshot [NAME] [flush=yes|no] [wait=sealed|replicated] [timeout=TIME] [unchanged=new|newest]"
        return {
            "snapshot": Verb(usage, self._snapshot, range(0, 2), options=options),
            "bound": Verb("bound off", self._bound, range(1, 2)),
            "drop": Verb("drop REF [rule=TEXT]", self._drop, range(1, 2), options=frozenset({"rule"})),
            "hold": Verb("hold REF [for=TIME] [why=TEXT]", self._hold, range(1, 2), options=frozenset({"for", "why"})),
            "release": Verb("release REF", self._release, range(1, 2)),
            "rollback": Verb(
                "rollback REF [force] [fork=FOLDER]",
                self._rollback,
                range(1, 2),
                flags=force,
                options=frozenset({"fork"}),
            ),
        }

    async def _snapshot(self, command: Command) -> Mapping[str, Any]:
        name = command.arguments[0] if command.arguments else None
        snapshotter = self._parts.snapshotter
        record, pause_s = self._made_before(name, command.since), None
        wait, timeout_s = self._wait_of(command)
        if record is None and self._takes_newest(command):
            record = await snapshotter.unchanged(flush=command.yes("flush", True))
        if record is None:
            by = asker(command.caller)
            record = await snapshotter.snapshot(name, "control", flush=command.yes("flush", True), by=by)
            pause_s = snapshotter.pauses_s[-1]
        facts: dict[str, Any] = {"snapshot": mount_status.record_facts(record), "cut_pause_s": pause_s}
        if wait:
            facts["replicated"] = await self._parts.throttle.replicated(record.number, timeout_s)
        return facts

    @staticmethod
    def _takes_newest(command: Command) -> bool:
        """Whether the newest snapshot will do if nothing has changed since. Raises UsageError."""
        chosen = command.options.get("unchanged", "new")
        if chosen not in ("new", "newest") or (chosen == "newest" and command.arguments):
            raise UsageError(f"unchanged={chosen}: must be new, or newest and no NAME")
        return chosen == "newest"

    def _wait_of(self, command: Command) -> tuple[bool, float | None]:
        """Whether the command waits for replication, and how long. Raises UsageError."""
        usual = "replicated" if self._parts.volume.config.replication.mode == "sync" else "sealed"
        wait, timeout = command.options.get("wait", usual), command.options.get("timeout")
        if wait not in ("sealed", "replicated"):
            raise UsageError(f"wait={wait}: must be sealed or replicated")
        try:
            return wait == "replicated", None if timeout is None else float(parse_seconds(timeout))
        except ValueError as error:
            raise UsageError(f"timeout: {error}") from None

    def _made_before(self, name: str | None, since: int | None) -> SnapshotRecord | None:
        """The snapshot that an earlier daemon made for this very command. The kernel lets one run at a time."""
        for record in self._parts.repository.catalog.pages(since) if since is not None else ():
            if record.trigger == "control" and record.name == name:
                return record
        return None

    async def _bound(self, command: Command) -> Mapping[str, Any]:
        """Release an application that is held because replication fell behind its bound, until the next mount."""
        if command.arguments != ["off"]:
            raise UsageError("usage: bound off")
        self._parts.throttle.lift()
        return {"replication": self._parts.throttle.facts()}

    async def _drop(self, command: Command) -> Mapping[str, Any]:
        async with self._parts.snapshotter.turn():
            try:
                record = find(self._parts.repository, command.arguments[0])
            except FileNotFoundError:
                if command.since is None:
                    raise
                return {"dropped": None}  # by the daemon that began this
            rule = command.options.get("rule", "")
            by, reasons = (POLICY, self._parts.rule_reasons) if rule else (PERSON, self._parts.reasons)
            await trio.to_thread.run_sync(protection.drop, self._parts.repository, record, by, rule, reasons)
        await self._parts.dropped(record)
        return {"dropped": mount_status.record_facts(record)}

    async def _hold(self, command: Command) -> Mapping[str, Any]:
        length, why = command.options.get("for"), command.options.get("why", "")
        try:
            seconds = None if length is None else float(parse_seconds(length))
        except ValueError as error:
            raise UsageError(f"for: {error}") from None
        async with self._parts.snapshotter.turn():  # nothing is dropped meanwhile
            record = find(self._parts.repository, command.arguments[0])
            may_shorten = self._permits("release", command.caller)
            hold = partial(named_holds.hold, self._parts.repository, record, why, seconds, may_shorten=may_shorten)
            held = await trio.to_thread.run_sync(hold)
        until_ns = named_holds.until(held, self._parts.repository.clock())
        return {"held": {"number": record.number, "until_ns": until_ns, "why": held.why}}

    async def _release(self, command: Command) -> Mapping[str, Any]:
        async with self._parts.snapshotter.turn():
            number = held_number(self._parts.repository, command.arguments[0])
            try:
                await trio.to_thread.run_sync(named_holds.release, self._parts.repository, number)
            except UserError:
                if command.since is None:
                    raise  # else the daemon that began this has done it
        return {"released": number}

    async def _rollback(self, command: Command) -> Mapping[str, Any]:
        fence = self._parts.fence
        if fence.refuses:
            raise OSError(errno.EROFS, f"nothing can be changed here: {fence.fenced}")
        force, fork = "force" in command.flags, command.options.get("fork")
        if fork is not None and command.caller is not None and command.caller.uid not in (0, os.geteuid()):
            raise OSError(
                errno.EPERM, "fork=: the content of a fork is brought back for root and the mount's owner alone"
            )
        async with self._parts.snapshotter.turn():
            with contextlib.ExitStack() as stack:
                source, words = None, ""
                if fork is None:
                    target = find(self._parts.repository, command.arguments[0])
                else:
                    opening = fork_target(self._parts.volume, fork, command.arguments[0], self._parts.repository.disk)
                    source, target = await trio.to_thread.run_sync(stack.enter_context, opening)
                    words = f" of the fork {fork}"
                with self._busy.doing(f"rollback to snapshot {target.number}{words}"):
                    return await self._parts.roll_back(target, force, self._busy.progress, source)


def find(repository: Repository, reference: str) -> SnapshotRecord:
    """The snapshot with this number or name. FileNotFoundError if there is none."""
    try:
        return repository.find(reference)
    except UserError as error:
        raise OSError(errno.ENOENT, str(error)) from None


def held_number(repository: Repository, reference: str) -> SnapshotNumber:
    """As `find`, also of one that is held and only elsewhere."""
    try:
        return named_holds.held_number(repository, reference)
    except UserError as error:
        raise OSError(errno.ENOENT, str(error)) from None
