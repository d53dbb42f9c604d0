"""A drill in a process of its own: it ends in time, whatever its source, its mount or its check does.

A read of a mount whose source is silent can be interrupted by nothing, and keeps the process that reads. So a child
drills, and reports how far it is; who waits for it touches neither the mount nor the source.

Invariants:
1. Nobody waits for the child longer than until the given time. After that, and after what it reported last, it has
   ORDERED_S to end in order, and is ended by force then: the connection of its mount is aborted, and every process of
   the drill is killed.
2. Every process of a drill has its folder in its environment (FOLDER_VARIABLE), and is found by that: also by the next
   drill, for one that was killed. What clears its environment is beyond that; it is in the group of its check, still.
3. The child dies with the process that waits for it, and what a check started dies with the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from snapfs.base.errors import EXIT_BUG, EXIT_ENVIRONMENT, SnapfsError
from snapfs.commands.support.bounded_look import ChildDiedError, NoAnswerError
from snapfs.daemon.supervision.fuse_connection import abort_mount

FOLDER_VARIABLE: Final = "SNAPFS_DRILL_FOLDER"
ORDERED_S: Final = 10.0
_KILLED_S: Final = 5.0
_LOOK_S: Final = 0.02
_HEAD: Final = struct.Struct("<I")
_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)

Report = Callable[[object], None]


class DrillProcess:
    """`work(report)` in a child, from the construction on. Use in a ``with``, in a process without threads.

    What is reported can be pickled. `mount`: where the child mounts.
    """

    def __init__(self, work: Callable[[Report], None], folder: Path, mount: Path) -> None:
        self._folder, self._mount, self._data = folder, mount, b""
        self._heard, reported = os.pipe()
        parent = os.getpid()
        self._child = os.fork()
        if not self._child:
            os.close(self._heard)
            os.environ[FOLDER_VARIABLE] = str(folder)
            _work_and_exit(work, reported, parent)
        os.close(reported)

    def __enter__(self) -> DrillProcess:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """In order if it ends; by force else."""
        os.close(self._heard)
        if kind is not None:
            self._signal(signal.SIGTERM)
        if not self._ended(ORDERED_S):
            abort_mount(str(self._mount))
            self._signal(signal.SIGKILL)
            end_processes(self._folder)
            self._ended(_KILLED_S)

    def reports(self, end_s: float) -> Iterator[Any]:
        """What the child reports, until it has no more to say. `end_s`: on time.monotonic().

        NoAnswerError when that has come; ChildDiedError; SnapfsError as the work raised.
        """
        while True:
            kind, content = self._next(end_s)
            if kind == "failed":
                words, code = content
                raise SnapfsError(words, exit_code=code)
            if kind == "done":
                return
            yield content

    def _next(self, end_s: float) -> tuple[str, Any]:
        while len(self._data) < _HEAD.size or len(self._data) < _HEAD.size + _HEAD.unpack_from(self._data)[0]:
            if not select.select([self._heard], [], [], max(end_s - time.monotonic(), 0))[0]:
                self._signal(signal.SIGTERM)
                raise NoAnswerError("no answer in time")
            part = os.read(self._heard, 1 << 20)
            if not part:
                raise ChildDiedError("the process of the drill died")
            self._data += part
        end = _HEAD.size + _HEAD.unpack_from(self._data)[0]
        message, self._data = self._data[_HEAD.size : end], self._data[end:]
        found: tuple[str, Any] = pickle.loads(message)
        return found

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _ended(self, seconds: float) -> bool:
        end_s = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self._child, os.WNOHANG) == (0, 0):
                    if time.monotonic() >= end_s:
                        return False
                    time.sleep(_LOOK_S)
                    continue
            return True


def die_with(parent: int) -> None:
    """End this process when that one ends, which is its parent. For the first moment of a child."""
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # before there was somebody to notice it
        os._exit(1)


def end_processes(folder: Path) -> None:
    """Kill the processes of the drill in this folder, but for ourselves; return when they are gone, or soon after."""
    end_s = time.monotonic() + _KILLED_S
    while found := list(_processes_of(folder)):
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select(found, [], [], max(end_s - time.monotonic(), 0))
        for process in found:
            os.close(process)
        if time.monotonic() > end_s:
            return


def _processes_of(folder: Path) -> Iterator[int]:
    """A descriptor of each process that has the folder in its environment."""
    wanted = f"{FOLDER_VARIABLE}={folder}".encode(errors="surrogateescape")
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            process = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            environment = Path("/proc", name, "environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            environment = b""
        if wanted in environment.split(b"\0"):
            yield process
        else:
            os.close(process)


def _work_and_exit(work: Callable[[Report], None], answer_fd: int, parent: int) -> None:
    def report(content: object) -> None:
        _send(answer_fd, ("reported", content))

    try:
        die_with(parent)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        work(report)
        _send(answer_fd, ("done", None))
    except (SystemExit, KeyboardInterrupt):
        pass
    except SnapfsError as error:
        _send(answer_fd, ("failed", (str(error), error.exit_code)))
    except OSError as error:
        _send(answer_fd, ("failed", (str(error), EXIT_ENVIRONMENT)))
    except BaseException as error:
        traceback.print_exc()
        _send(answer_fd, ("failed", (f"it failed: {error!r}", EXIT_BUG)))
    finally:
        os._exit(0)


def _end(number: int, _frame: FrameType | None) -> None:
    """In order: the mount and the hold at the source go."""
    signal.signal(number, signal.SIG_IGN)  # once: what ends in order is not to be interrupted in that
    raise SystemExit(128 + number)


def _send(fd: int, message: tuple[str, object]) -> None:
    data = pickle.dumps(message)
    rest = memoryview(_HEAD.pack(len(data)) + data)
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more
        while rest:
            rest = rest[os.write(fd, rest) :]
