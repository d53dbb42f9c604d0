"""The hooks of a volume: `before` and `after` around a cut.

    note -> before -> (flush, cut) -> after -> group of `before` ended -> note removed

Invariants:
1. `after` is run once `before` was begun, whatever came between: a cut that failed, a request that was cancelled, the
   end of the daemon. If the daemon dies, the next one runs it first of all (`finish_left_over`), with
   SNAPFS_OUTCOME=died; if none follows, the next mount does.
2. What `before` left running in its process group lives until `after` has ended, and no longer: so a session that holds
   a lock needs no `after` of its own. What outlives a daemon is ended by the next one.
3. Only one pair is under way: a cut holds the snapshotter's lock.
4. A failing `before` is on record (`CutFacts.hook_error`), or fails the snapshot before anything is cut. A failing
   `after` is logged, and shown by the status: the snapshot exists by then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable
from typing import Any

import trio

from snapfs.base.boot import boot_id
from snapfs.base.errors import SnapshotError
from snapfs.base.settings.volume_settings import HookSettings
from snapfs.store.log.snapshot_records import APPLICATION, CRASH, MAX_ERROR
from snapfs.transfer.consistency.hook_note import Begun, HookNote, born
from snapfs.transfer.consistency.hook_process import Running, end_group

log = logging.getLogger(__name__)

MADE, FAILED, DIED = "made", "failed", "died"
"""SNAPFS_OUTCOME of `after`: a cut was made, none was, or the daemon died meanwhile."""
HURRIED = frozenset({"pressure", "rollback", "unmount"})
"""Triggers of cuts that do not wait for hooks."""


class HeldApplication:
    """An application that is held from the begin of `before` to the end of `after`."""

    def __init__(self, hooks: Hooks | None = None, trigger: str = "") -> None:
        self._hooks, self._trigger = hooks, trigger
        self._started_s = time.monotonic()
        self.running: Running | None = None
        self._ended = False
        self.error = ""
        self.held_s = 0.0
        """How long the application was held; 0 until `end`, and without hooks."""

    @property
    def consistency(self) -> str:
        return APPLICATION if self._hooks is not None and self._hooks.has_before and not self.error else CRASH

    def holds_by(self, running: Running) -> None:
        """`before` has begun: what it leaves running is ended after `after`."""
        self.running = running

    async def end(self, outcome: str) -> None:
        """Run `after`, and end what `before` left running. A second call does nothing. Is not cancelled."""
        hooks = self._hooks
        if hooks is None or self._ended:
            return
        self._ended = True
        with trio.CancelScope(shield=True):
            await hooks.run_after(self._trigger, outcome)
            if self.running is not None:
                await self.running.__aexit__(None, None, None)
            hooks.note.ended()
        self.held_s = max(time.monotonic() - self._started_s, 1e-6)
        hooks.held(self)


class Hooks:
    """Of one mounted volume. For the trio thread."""

    def __init__(
        self, settings: HookSettings, note: HookNote, environment: dict[str, str],
        held: Callable[[float], None] = lambda seconds: None,
    ) -> None:  # fmt: skip
        """`environment`: what the commands get beside PATH, HOME and LANG; `held` is called with each time that an
        application was held, in seconds."""
        self._settings, self.note, self._environment, self._on_held = settings, note, environment, held
        self.last: dict[str, Any] | None = None
        self.failures = 0

    @property
    def has_before(self) -> bool:
        return bool(self._settings.before)

    async def begin(self, trigger: str) -> HeldApplication:
        """Run `before`; what is to be ended after the cut. SnapshotError: it failed, and no cut may be made then."""
        if trigger in HURRIED or not (self._settings.before or self._settings.after):
            return HeldApplication()
        await self.finish_left_over()
        held = HeldApplication(self, trigger)
        self.note.begun(Begun(time.time_ns(), boot_id(), trigger))
        try:
            if self._settings.before:
                await self._run_before(held, trigger)
            if held.error and self._settings.on_failure == "fail":
                raise SnapshotError(f"no snapshot was made: the hook `before` failed: {held.error}", errno.EIO)
        except BaseException:
            await held.end(FAILED)
            raise
        return held

    async def _run_before(self, held: HeldApplication, trigger: str) -> None:
        try:
            running = await Running.start("before", self._settings.before, self._given("before", trigger))
        except OSError as error:
            held.error = f"{self._settings.before[0]}: {error.strerror}"
        else:
            held.holds_by(running)
            group = running.group
            with contextlib.suppress(OSError):  # then the next daemon cannot end the group, and runs `after` alone
                self.note.begun(Begun(time.time_ns(), boot_id(), trigger, group, born(group)))
            held.error = (await running.wait(float(self._settings.timeout)))[:MAX_ERROR]
        if held.error:
            self._failed("before", held.error)

    async def run_after(self, trigger: str, outcome: str) -> None:
        """Run `after`; a failure is logged."""
        if not self._settings.after:
            return
        try:
            environment = self._given("after", trigger) | {"SNAPFS_OUTCOME": outcome}
            async with await Running.start("after", self._settings.after, environment) as running:
                error = await running.wait(float(self._settings.timeout))
        except OSError as failure:
            error = f"{self._settings.after[0]}: {failure.strerror}"
        if error:
            self._failed("after", error)

    async def finish_left_over(self) -> None:
        """Run the `after` of a daemon that died, and end what its `before` left running."""
        left = self.note.left
        if left is None:
            return
        self.note.left = None
        log.warning("the daemon died between the hooks of a cut: `after` is run now")
        with trio.CancelScope(shield=True):
            await self.run_after(left.trigger, DIED)
            # The leader may be gone while others of its group live; a number that is used anew has another birth.
            if left.group and left.boot == boot_id() and born(left.group) in (0, left.born):
                await end_group(left.group)
            self.note.ended()

    def held(self, held: HeldApplication) -> None:
        """An application was let go."""
        self.last = {
            "held_s": round(held.held_s, 6), "consistency": held.consistency, "error": held.error or None,
            "time_ns": time.time_ns(),
        }  # fmt: skip
        self._on_held(held.held_s)

    def facts(self) -> dict[str, Any] | None:
        """For status; None where there are none."""
        if not (self._settings.before or self._settings.after):
            return None
        return {"failures": self.failures, "last": self.last}

    def _given(self, which: str, trigger: str) -> dict[str, str]:
        timeout = f"{float(self._settings.timeout):g}"
        return {
            **self._environment, "SNAPFS_HOOK": which, "SNAPFS_TRIGGER": trigger, "SNAPFS_HOOK_TIMEOUT": timeout,
        }  # fmt: skip

    def _failed(self, which: str, why: str) -> None:
        self.failures += 1
        log.error("the hook `%s` failed: %s", which, why)
