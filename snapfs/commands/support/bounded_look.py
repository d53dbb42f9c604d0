"""A look at a volume or a mount that ends in time, whatever a daemon or a disk does.

A read of a mount whose daemon hangs cannot be interrupted, not even by SIGKILL, and keeps the whole process of the
thread that reads. So a child process looks. One that is stuck in the kernel is left to init.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from snapfs.base.errors import EXIT_BUG, EXIT_ENVIRONMENT, SnapfsError

WAIT_S: Final = 10.0


class NoAnswerError(SnapfsError):
    """The look did not end in time."""


class ChildDiedError(SnapfsError):
    """The process that looked died before it had answered."""

    exit_code = EXIT_BUG


class BoundedLook:
    """One look, under way from the construction on. To be made in a process without threads; `answer` is called once.

    `work` returns what can be pickled: names need not be UTF-8. It changes nothing and takes no lock.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._heard, answer = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(self._heard)
            _answer_and_exit(work, answer)
        os.close(answer)

    def answer(self, end: float | None) -> Any:
        """What the look found. `end`: on time.monotonic(); None: as long as it takes. NoAnswerError if it is not done
        by then, ChildDiedError, or SnapfsError as the look raised."""
        data, done = b"", False
        while not done and select.select([self._heard], [], [], end and max(end - time.monotonic(), 0))[0]:
            part = os.read(self._heard, 1 << 20)
            data, done = data + part, not part
        os.close(self._heard)
        if not done:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0 if done else os.WNOHANG)
        if not done:
            raise NoAnswerError("no answer in time")
        try:
            words, code, found = pickle.loads(data)
        except (EOFError, pickle.UnpicklingError):
            raise ChildDiedError("the process that looked died") from None
        if code:
            raise SnapfsError(words, exit_code=code)
        return found


def look(work: Callable[[], object], wait_s: float = WAIT_S) -> Any:
    """What one look finds. Raises as `BoundedLook.answer`."""
    return BoundedLook(work).answer(time.monotonic() + wait_s)


def statfs_errno(mountpoint: str) -> int:
    """Of a statfs, which unlike a stat is never answered from the kernel's cache; 0: somebody answers. For a look."""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _answer_and_exit(work: Callable[[], object], answer_fd: int) -> None:
    answer: tuple[str, int, object] = "", 0, None
    try:
        answer = "", 0, work()
    except SnapfsError as error:
        answer = str(error), error.exit_code, None
    except OSError as error:
        answer = str(error), EXIT_ENVIRONMENT, None
    except KeyboardInterrupt:  # it is ours as well, and ends us
        answer = "interrupted", EXIT_BUG, None
    except BaseException as error:
        traceback.print_exc()
        answer = f"it failed: {error!r}", EXIT_BUG, None
    finally:
        with contextlib.suppress(BaseException):
            data = memoryview(pickle.dumps(answer))
            while data:
                data = data[os.write(answer_fd, data) :]
        os._exit(0)
