"""The start of a daemon, from the command's side: a process, the pipe that releases it, and the one that reports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any, Protocol

import msgspec

from snapfs.base.errors import EXIT_BUG, EXIT_CORRUPT, DaemonDiedError, SnapfsError
from snapfs.commands.mounting.daemon_arguments import DaemonArguments
from snapfs.commands.warm import warm_client, warm_key
from snapfs.commands.warm.warm_client import WarmBeginning, WarmProcess
from snapfs.daemon.supervision.supervisor_status import last_words
from snapfs.fuse.kernel import fuse_mount
from snapfs.transfer.seal.seal_attempts import memory_limit_bytes, memory_words


class _Started(Protocol):
    """A process, as subprocess.Popen and WarmProcess have it."""

    returncode: Any

    def terminate(self) -> None: ...
    def wait(self) -> int: ...


class DaemonStart:
    """The daemon's process, from the first moment. Use in a ``with``: what is not released ends with it.

    It is forked of a warm process (commands/warm/) where one runs that fits, and else started.
    """

    def __init__(
        self, volume: str, mountpoint: str, options: tuple[str, ...], refuse_changes: bool, *,
        begin_warm: bool = False, first_at: str = "",
    ) -> None:  # fmt: skip
        """`begin_warm`: if there is no warm process start one, of which the daemon is forked in `go`. `first_at`: where
        the mount is made, if it is to become that of `mountpoint` later."""
        self._volume, self._mountpoint, self._place = volume, mountpoint, first_at or mountpoint
        self._arguments = partial(DaemonArguments, options=options, refuse_changes=refuse_changes, first_at=first_at)
        self._process: _Started | None = None
        self._heard = self._go = -1
        self._beginning: WarmBeginning | None = None
        if not self._begin_warm():
            if begin_warm:
                self._beginning = WarmBeginning()
            else:
                self._begin()

    def _begin_warm(self) -> bool:
        """Have a warm process fork the daemon; False if there is none that does."""
        heard, report_end = os.pipe()
        go, release = os.pipe()
        arguments = self._arguments(report_end, go, volume=self._volume, mountpoint=self._mountpoint)
        environment = {**os.environ, "PYTHONPATH": warm_key.python_path()}
        try:
            self._process = warm_client.start(arguments.words(), environment, report_end, go)
        finally:
            os.close(report_end)
            os.close(go)
        if self._process is None:  # a request that is taken late finds the end of its pipe
            os.close(heard)
            os.close(release)
            return False
        self._heard, self._go = heard, release
        return True

    def _begin(self) -> None:
        self._heard, report_end = os.pipe()
        go, self._go = os.pipe()
        arguments = self._arguments(report_end, go, volume=self._volume, mountpoint=self._mountpoint)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "snapfs", *arguments.words()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", pass_fds=[report_end, go],
                start_new_session=True, env={**os.environ, "PYTHONPATH": warm_key.python_path()},
            )  # fmt: skip
        finally:
            os.close(report_end)
            os.close(go)

    def __enter__(self) -> DaemonStart:
        return self

    def go(self) -> list[str]:
        """Wait until the mount answers; what the daemon had to recover. SnapfsError with its own line and exit code."""
        if self._beginning is not None:
            self._beginning.wait()
            if not self._begin_warm():
                self._begin()
        assert self._process is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; its report is still in the pipe
            os.write(self._go, b"g")
        with open(self._heard, "rb", closefd=False) as pipe:
            answer = pipe.readline()
        facts: dict[str, Any] = (
            msgspec.json.decode(answer) if answer.strip() else {"error": "it died", "exit_code": EXIT_BUG}
        )
        if "error" in facts:
            number = ended_by(self._process.wait())
            if number and not answer.strip():
                raise _killed(number, self._volume)
            raise _failure(facts["error"], facts["exit_code"], self._volume)
        self._check_answer()
        if isinstance(self._process, WarmProcess):
            self._process.release()
        else:
            self._process.returncode = 0  # it is on its own now; without this, Popen warns of it
        recovered: list[str] = facts.get("recovered", [])
        return recovered

    def _check_answer(self) -> None:
        """DaemonDiedError if each daemon dies over the first request; the dead mount is removed then."""
        try:
            os.stat(os.path.join(self._place, ".snapfs"))
        except OSError as error:
            self.end()
            if fuse_mount.state_of(self._place) is fuse_mount.MountState.DEAD:
                fuse_mount.clear_dead(self._place)
            raise DaemonDiedError(f"{last_words(self._volume)} ({error.strerror})") from None

    def end(self) -> None:
        """End the process, unless its mount answers; it has ended on return."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            self._process.wait()

    def __exit__(self, *_: object) -> None:
        self.end()
        if self._beginning is not None:
            self._beginning.close()
        for fd in (self._heard, self._go):
            if fd >= 0:
                os.close(fd)


def ended_by(code: int) -> int:
    """The signal that ended a process with this exit code, or the daemon whose code its supervisor passed on; or 0."""
    number = -code if code < 0 else code - 128
    return number if number in set(signal.Signals) else 0


def _killed(number: int, volume: str) -> DaemonDiedError:
    """The daemon was ended by a signal before its mount answered."""
    limit = memory_words(memory_limit_bytes()) if number == signal.SIGKILL else ""
    why = f"if it was for memory, {limit}" if limit else "see the kernel's log"
    return DaemonDiedError(f"{volume}: the daemon was ended by {signal.Signals(number).name} before it served: {why}")


def _failure(words: str, exit_code: int, volume: str) -> SnapfsError:
    """Why there is no mount, and where to look next."""
    if exit_code == EXIT_CORRUPT:
        words += f"; `snapfs doctor {volume}` states what can be done"
    elif exit_code == EXIT_BUG:
        words = f"the daemon failed: {words}; see {volume}/daemon.log"
    return SnapfsError(words, exit_code=exit_code)
