"""One run of a hook: a command in a process group of its own, with a timeout, its output in the log.

Invariants:
1. The trio thread waits for nothing here but by `await`: a hook may read and write the mount whose daemon runs it.
2. When `end_group` returns, no process of the group is left that reacts to SIGKILL.
3. What a hook leaves running has the pipe of its output as long as the hook's `Running` is open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType

import trio

log = logging.getLogger(__name__)

_LINE_BYTES = 1000
_MOST_LINES = 200
_READ_BYTES = 1 << 16
_DRAIN_BYTES = 1 << 20
_FLOOD_S = 0.01
"""Between two reads of a hook that has written more than _MOST_LINES: the pipe slows it down, not the mount."""
_INHERITED = ("PATH", "HOME", "LANG")
_TERM_S = 1.0
_LOOK_S = 0.005


class Running:
    """A hook that was started, and what it left running. For the trio thread; `async with` ends its group."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name, self.last_line = name, ""
        self._process = process
        self._rest, self._lines = b"", 0

    @staticmethod
    async def start(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Running:
        """Raises OSError if there is no such command. `snapfs` is the one that runs here, whatever the PATH."""
        own = [sys.executable, "-m", "snapfs"] if command[0] == "snapfs" else [command[0]]
        process = await trio.lowlevel.open_process(
            [*own, *command[1:]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
            env=given(environment), start_new_session=True, restore_signals=True,
        )  # fmt: skip
        return Running(name, process)

    @property
    def group(self) -> int:
        return self._process.pid

    async def wait(self, timeout_s: float) -> str:
        """Return when the command has ended: "" if well, else why not. One that takes too long is killed with its
        group."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._log_output)
            with trio.move_on_after(timeout_s) as limit:
                await self._process.wait()
            if limit.cancelled_caught:
                await end_group(self.group)
            nursery.cancel_scope.cancel()
        self._log_rest()
        code = self._process.returncode
        if limit.cancelled_caught:
            return f"it took more than {timeout_s:g} s"
        if code:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return f"{how}{f': {self.last_line}' if self.last_line else ''}"
        return ""

    async def _log_output(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            async for data in self._process.stdout:
                self._take(bytes(data))
                if self._lines > _MOST_LINES:
                    await trio.sleep(_FLOOD_S)

    def _log_rest(self) -> None:
        """What the hook wrote last is in the pipe; what it left running may keep that open, so nothing is waited
        for."""
        stdout, left_bytes = self._process.stdout, _DRAIN_BYTES
        assert isinstance(stdout, trio.lowlevel.FdStream)
        with contextlib.suppress(OSError, trio.ClosedResourceError):  # BlockingIOError, mostly
            while left_bytes > 0 and (data := os.read(stdout.fileno(), _READ_BYTES)):
                left_bytes -= len(data)
                self._take(data)
        *_, last = self._rest.rstrip(b"\n").split(b"\n")
        self._log_line(last)
        self._rest = b""

    def _take(self, data: bytes) -> None:
        """Log its lines, up to _MOST_LINES; after that only its end is kept, for the reason of a failure."""
        if self._lines > _MOST_LINES:
            self._rest = (self._rest + data)[-2 * _LINE_BYTES :]
            return
        *lines, self._rest = (self._rest + data[-_READ_BYTES:]).split(b"\n")
        self._rest = self._rest[-_LINE_BYTES:]
        for at, line in enumerate(lines):
            self._log_line(line)
            if self._lines > _MOST_LINES:
                self._rest = b"\n".join([*lines[at + 1 :], self._rest])[-2 * _LINE_BYTES :]
                return

    def _log_line(self, line: bytes) -> None:
        text = "".join(char if char.isprintable() else "?" for char in line[:_LINE_BYTES].decode(errors="replace"))
        if text.strip():
            self.last_line = text.strip()
            self._lines += 1
            if self._lines <= _MOST_LINES:
                log.info("hook %s: %s", self.name, self.last_line)

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await end_group(self.group)
            await self._process.wait()
            if self._process.stdout is not None:
                await self._process.stdout.aclose()


def given(environment: Mapping[str, str]) -> dict[str, str]:
    """What a hook gets: a few variables of the daemon, which may have secrets among the others, and its own. Pure but
    for the former."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | dict(environment)


async def end_group(group: int) -> None:
    """End all processes of the group, by SIGTERM and after a second by SIGKILL."""
    for number, patience_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _TERM_S)):
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):  # none left, or none but zombies of another user
            return
        with trio.move_on_after(patience_s):
            while _has_living(group):
                await trio.sleep(_LOOK_S)
            return


def _has_living(group: int) -> bool:
    """Whether a process of the group lives; one that is dead and not waited for does not."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            if int(fields[2]) == group and fields[0] not in (b"Z", b"X"):
                return True
    return False
