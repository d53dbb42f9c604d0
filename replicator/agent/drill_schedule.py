"""Runs the drills of one volume when they are due, each as `snapfs drill` in a process of its own.

The log of the volume says when the last drill was: one by hand counts as well, and no restart of the agent makes one
too many. The result is recorded by the drill itself, through the daemon where the volume is mounted.

Invariants:
1. Settings of another user are not followed: a check may be any command.
2. Nothing here fails or delays replication: what goes wrong is logged, and tried again later.
3. One drill of a volume at a time. It ends with the agent, in order: its mount and its folder go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import snapfs
from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_ATTENTION, EXIT_DRILL_FAILED, EXIT_OK, SnapfsError
from snapfs.base.schedule.drill_times import RETRY_S, due_in_s, retry_s
from snapfs.base.settings import calendar_times
from snapfs.base.settings.config import Config
from snapfs.base.settings.replication_settings import target_name
from snapfs.base.volumes.volume import Volume
from snapfs.store.gates.gates import DRILLED, drill_time_ns
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.repository.store_folders import LOG

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 30.0
"""A drill by hand, or a clock that was set, is noticed within so long."""
_END_SECONDS: Final = 20.0
_VERDICTS: Final = {EXIT_OK: "passed", EXIT_ATTENTION: "passed too late", EXIT_DRILL_FAILED: "FAILED"}


class DrillTimes:
    """When the last drill of a volume was, by its log. One thread at a time."""

    def __init__(self, volume: Volume) -> None:
        self._path = os.path.join(volume.store_dir, LOG)
        self._log: SnapshotLog | None = None
        self._last_s = 0.0

    def last_s(self) -> float:
        """Seconds since 1970, 0: there was none. Raises OSError, SnapfsError."""
        if self._log is None:
            self._log = SnapshotLog(self._path, Disk(), readonly=True)
        for line in self._log.follow_lines():
            if line.kind == DRILLED:
                self._last_s = drill_time_ns(line.time_ns, line.event.fields) / 1e9
        return self._last_s

    def close(self) -> None:
        """Close the log; the next call reads it from its beginning."""
        if self._log is not None:
            self._log.close()
            self._log = None


class DrillSchedule:
    """The drills of one volume, with one set of settings."""

    def __init__(
        self, volume: Volume, command: Sequence[str] = (sys.executable, "-P", "-m", "snapfs"),
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._volume, self._config, self._command, self._clock = volume, volume.config, command, clock
        self._begun_s = clock()
        self._not_before_s = -math.inf

    async def run(self) -> None:
        """Run what is due, for ever; at once back where no drill is wanted."""
        settings = self._config.drill
        if not (settings.every or settings.at):
            return
        owner = os.stat(self._volume.toml_path).st_uid
        if owner not in (0, os.geteuid()):  # a check may be any command, and would run as we do
            log.error("%s: no drills: its settings are user %d's, and this agent is not", self._volume.path, owner)
            return
        times = DrillTimes(self._volume)
        try:
            while True:
                await asyncio.sleep(await self._step(times))
        finally:
            times.close()

    async def _step(self, times: DrillTimes) -> float:
        """Run one drill if it is due; how long to wait then, in seconds."""
        try:
            last_s = await asyncio.to_thread(times.last_s)
            left_s = due_in_s(self._config.drill, last_s, self._begun_s, self._clock(), calendar_times.local_zone())
            left_s = max(left_s, self._not_before_s - self._clock())
            if left_s > 0:
                return min(left_s, LOOK_SECONDS)
            await self._drill()
            return 0.0
        except (OSError, SnapfsError) as error:
            times.close()
            log.error("%s: when the last drill was is not known: %s", self._volume.path, error)
            return LOOK_SECONDS
        except Exception:  # a bug: replication goes on
            log.exception("%s: the drill", self._volume.path)
            return RETRY_S

    async def _drill(self) -> None:
        # Whatever comes of it: one that cannot be run is no verdict, has no line, and is not tried without a pause.
        self._not_before_s = self._clock() + retry_s(self._config.drill)
        words = [*self._command, "drill", self._volume.path, *target_words(self._config)]
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
                start_new_session=True, env=_environment(),
            )
        )  # fmt: skip
        try:
            process = await asyncio.shield(starting)  # cancelled half way, it would kill the process
            output, _ = await process.communicate()
        except asyncio.CancelledError:
            await _end(await starting)
            raise
        self._report(process.returncode or 0, output.decode(errors="replace").splitlines())

    def _report(self, code: int, lines: list[str]) -> None:
        level = logging.INFO if code == EXIT_OK else logging.ERROR
        verdict = _VERDICTS.get(code, f"could not be run (exit code {code})")
        log.log(level, "%s: the drill %s: %s", self._volume.path, verdict, " | ".join(line.strip() for line in lines))


def target_words(config: Config) -> list[str]:
    """The options of the drill that say what is drilled: the target that the settings name, else the first."""
    names = [target_name(each) for each in config.replication.target]
    name = config.drill.target or next(iter(names), "")
    return ["--target", name] if name else []


async def _end(process: asyncio.subprocess.Process) -> None:
    """In order first: it has a mount to take down."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment() -> dict[str, str]:
    """The drill finds this package where we did. The service manager is ours alone: its daemon would report."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(snapfs.__file__)))
    path = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {name: value for name, value in os.environ.items() if name not in {"NOTIFY_SOCKET", "WATCHDOG_USEC"}}
    return {**ours, "PYTHONPATH": path}
