"""The warm process: it has imported what a daemon imports, and forks one for each request of its own user.

Invariants:
1. It touches no volume and no mount, and holds nothing that a mount needs: if it is killed, the daemons go on.
2. One a key (warm_key.py): it holds a flock beside its socket, and binds only with that.
3. It has one thread, so that a fork of it is whole. A forked process lets go of all that is the warm one's, and goes on
   as one that was started by its command line.
4. After IDLE_S without a request it ends. So does one whose socket is not its own any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Final

from snapfs.commands.mounting import daemon_process
from snapfs.commands.mounting.daemon_arguments import DaemonArguments
from snapfs.commands.warm import warm_key, warm_messages

IDLE_S: Final = 300.0
_REQUEST_S: Final = 1.0
_LOOK_S: Final = 5.0


class WarmServer:
    """Waits and forks. `run` returns in each forked process what it is to do, and in the warm one None, at its end."""

    def __init__(self, path: str, idle_s: float = IDLE_S) -> None:
        """Bind to `path`. Raises OSError if another one has it."""
        self._path, self._idle_s = path, idle_s
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        new = f"{path}.{os.getpid()}"
        self._listener.bind(new)
        self._listener.listen(64)
        os.rename(new, path)  # who finds it can connect
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """By pidfd: the process, and the connection of who asked for it."""

    def run(self) -> DaemonArguments | None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        last_s = time.monotonic()
        while time.monotonic() - last_s < self._idle_s:
            for fd, _ in poll.poll(_LOOK_S * 1000):
                if fd != self._listener.fileno():
                    poll.unregister(fd)
                    self._reap(fd)
                    continue
                last_s = time.monotonic()
                forked = self._answer(poll)
                if forked is not None:
                    return forked
            if not os.path.exists(self._path):
                break
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        return None

    def _answer(self, poll: select.poll) -> DaemonArguments | None:
        """Take one request; what is to be done, in the process that was forked for it."""
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_S)
        facts, descriptors = dict[str, Any](), list[int]()
        with contextlib.suppress(OSError):
            if warm_messages.is_ours(connection):
                facts, descriptors = warm_messages.receive(connection, 2)
        arguments = DaemonArguments.parse(facts.get("words", []))
        pid = -1 if arguments is None or len(descriptors) != 2 else os.fork()
        if pid == 0:
            assert arguments is not None
            connection.close()
            self.close()
            return _as_started(arguments, facts["environment"], descriptors)
        for each in descriptors:
            os.close(each)
        if pid < 0:
            connection.close()
            return None
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid, connection
        poll.register(pidfd, select.POLLIN)
        with contextlib.suppress(OSError):
            warm_messages.send(connection, {"pid": pid}, [pidfd])
        return None

    def _reap(self, pidfd: int) -> None:
        pid, connection = self._children.pop(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
        with contextlib.suppress(OSError):
            warm_messages.send(connection, {"code": code})
        connection.close()

    def close(self) -> None:
        """Close what is the warm process's: at its end, and in each one that was forked."""
        self._listener.close()
        os.close(self._lock)
        for pidfd, (_, connection) in self._children.items():
            os.close(pidfd)
            connection.close()
        self._children.clear()


def _as_started(arguments: DaemonArguments, environment: dict[str, str], descriptors: list[int]) -> DaemonArguments:
    """Make this process what a start by the command line would have made; its arguments, with our descriptors."""
    os.setsid()
    given = DaemonArguments(
        descriptors[0], descriptors[1], arguments.options, arguments.refuse_changes, arguments.volume,
        arguments.mountpoint,
    )  # fmt: skip
    for each in descriptors:
        os.set_inheritable(each, True)  # as those of a process that is started
    os.environ.clear()
    os.environ.update(environment)
    words = given.words()
    sys.argv[1:] = words
    sys.orig_argv[:] = [sys.executable, "-P", "-m", "snapfs", *words]
    with contextlib.suppress(OSError, ValueError):
        _show(sys.orig_argv)
    return given


def _show(words: list[str]) -> None:
    """Write a command line over that of the warm process, as ps(1) shows it; as much of it as there is room for."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    with open("/proc/self/cmdline", "rb") as file:
        if len(file.read()) != end - start:
            return
    text = b"\0".join(map(os.fsencode, words))[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _import_all() -> None:
    """What a daemon imports when it begins, and what most do soon."""
    import snapfs.daemon.daemon
    import snapfs.fuse.session.session  # noqa: F401


def main(path: str) -> None:
    """Be the warm process, or the daemon's that was forked of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.path.basename(path) != f"{warm_key.key()}.sock" or not warm_key.is_private(os.path.dirname(path)):
        return
    _import_all()
    gc.collect()
    gc.freeze()
    try:
        server = WarmServer(path)
    except OSError:
        return
    arguments = server.run()
    del server
    if arguments is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        daemon_process.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1])
