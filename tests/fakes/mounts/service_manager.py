"""A service manager of a few lines: sd_notify(3) with the descriptor store, and starts under LISTEN_FDS, like systemd.

It is a real peer: the protocol goes over a real socket, descriptors are passed and kept by this process, and what it
starts runs in a process of its own.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.fakes.patience import PATIENCE_S


class ServiceManager:
    """Starts one service again and again. `store` is what it keeps for it; `received` every line it was sent."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._command, self._environment = command, environment
        self._address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._address)
        self._log = folder / "service.log"
        self.store: list[tuple[str, int]] = []
        self.received: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service with what is in the store, and return when it reports that it is ready."""
        self.received.clear()
        fds = [fd for _, fd in self.store]
        names = ":".join(name for name, _ in self.store)
        script = 'export LISTEN_PID=$$; exec "$@"'
        environment = {**self._environment, "NOTIFY_SOCKET": self._address}
        if fds:
            script = f'export LISTEN_PID=$$ LISTEN_FDS={len(fds)} LISTEN_FDNAMES={names}; exec "$@"'
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", script, "sh", *self._command], env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd="/", start_new_session=True, close_fds=False,
                preexec_fn=lambda: self._arrange(fds),  # noqa: PLW1509 - as the manager's child between fork and exec
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while "READY=1" not in self.received:
            assert time.monotonic() < deadline, self._log.read_text()
            assert self.process.poll() is None, self._log.read_text()
            self.hear(0.02)

    def _arrange(self, fds: list[int]) -> None:
        """Put the descriptors at 3, 4, 5..., and close all others."""
        spare = [os.dup2(fd, 100 + number, inheritable=False) for number, fd in enumerate(fds)]
        for number, fd in enumerate(spare):
            os.dup2(fd, 3 + number, inheritable=True)
        os.closerange(3 + len(fds), 100)
        os.closerange(100, 400)

    def hear(self, seconds: float = 0.0) -> None:
        """Take in what was sent."""
        select.select([self._socket], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while True:
                size = array.array("i").itemsize
                message, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(16 * size))
                fds = array.array("i")
                for _, _, data in ancillary:
                    fds.frombytes(data[: len(data) - len(data) % size])
                self._take(message.decode().splitlines(), list(fds))

    def _take(self, lines: list[str], fds: list[int]) -> None:
        self.received += lines
        name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            self.store += [(name, fd) for fd in fds]
        elif "FDSTOREREMOVE=1" in lines:
            for each in [each for each in self.store if each[0] == name]:
                self.store.remove(each)
                os.close(each[1])

    def hear_during(self, command: list[str], environment: dict[str, str] | None = None) -> int:
        """Run a command, and take in what is sent meanwhile: few words wait for a manager that is deaf, and then they
        are lost. Its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        with subprocess.Popen(command, env=environment) as process:
            while process.poll() is None:
                assert time.monotonic() < deadline
                self.hear(0.02)
        self.hear()
        return process.returncode

    def kill(self, others: list[int]) -> None:
        """SIGKILL the main process and, as systemd does, what is left of its group."""
        assert self.process is not None
        for pid in (self.process.pid, *others):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def wait(self) -> int:
        """The exit code of the main process."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self.hear(0.02)
        self.hear()
        return self.process.returncode

    def close(self) -> None:
        self._socket.close()
        for _, fd in self.store:
            os.close(fd)
