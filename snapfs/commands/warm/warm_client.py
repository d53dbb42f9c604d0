"""The command's side of a warm start. Whatever goes wrong here, the daemon is started as ever.

Invariant: a warm process that hangs, dies or is not there costs a bounded time (ANSWER_S), and no mount.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Final

from snapfs.base.errors import EXIT_BUG
from snapfs.commands.warm import warm_key, warm_messages

ANSWER_S: Final = 3.0
_BEGIN_S: Final = 30.0
_LOOK_S: Final = 0.01
PADDING: Final = "." * 4000
"""The last word of a warm process, over which a forked daemon writes its own command line."""


class WarmProcess:
    """A daemon's process that a warm one forked. As subprocess.Popen, as far as DaemonStart needs it. One thread."""

    def __init__(self, connection: socket.socket, pid: int, pidfd: int) -> None:
        self._connection, self.pid, self._pidfd = connection, pid, pidfd
        self.returncode: int | None = None

    def terminate(self) -> None:
        """SIGTERM, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; its exit code, or minus the signal; EXIT_BUG where the warm process cannot say it."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()
        code = EXIT_BUG
        with contextlib.suppress(OSError):
            code = int(warm_messages.receive(self._connection)[0].get("code", EXIT_BUG))
        self.returncode = code
        self.release()
        return code

    def release(self) -> None:
        """It is on its own from now on."""
        if self.returncode is None:
            self.returncode = 0
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
            self._connection.close()


def start(words: list[str], environment: dict[str, str], report: int, go: int) -> WarmProcess | None:
    """Have the warm process that fits fork a daemon. None: there is none, or it does not answer.

    `words`: its command line; `report`, `go`: the ends of pipes for it (DaemonArguments).
    """
    with contextlib.suppress(OSError, KeyError, ValueError):
        path = warm_key.socket_path()
        return None if path is None else _start(path, words, environment, report, go)
    return None


def _start(path: str, words: list[str], environment: dict[str, str], report: int, go: int) -> WarmProcess | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(ANSWER_S)
        connection.connect(path)
        if warm_messages.is_ours(connection):
            warm_messages.send(connection, {"words": words, "environment": environment}, (report, go))
            facts, descriptors = warm_messages.receive(connection, 1)
            if len(descriptors) == 1:
                return WarmProcess(connection, int(facts["pid"]), descriptors[0])
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


class WarmBeginning:
    """A warm process that is being started. `wait` returns when it can be used, or never will."""

    def __init__(self) -> None:
        """Start one, unless there is one, or there are to be none."""
        self._path = warm_key.socket_path() if warm_key.make_folder() else None
        self._process: subprocess.Popen[bytes] | None = None
        if self._path is not None and not os.path.exists(self._path):
            environment = {**os.environ, "PYTHONPATH": warm_key.python_path()}
            command = [sys.executable, "-P", "-m", "snapfs.commands.mounting.warm_server", self._path, PADDING]
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                    start_new_session=True, env=environment,
                )  # fmt: skip

    def wait(self) -> None:
        until_s = time.monotonic() + _BEGIN_S
        while self._process is not None and self._path is not None and time.monotonic() < until_s:
            if os.path.exists(self._path) or self._process.poll() is not None:
                break
            time.sleep(_LOOK_S)
        self.close()

    def close(self) -> None:
        """It is on its own from now on."""
        if self._process is not None and self._process.returncode is None:
            self._process.returncode = 0  # it is on its own; without this, Popen warns of it
