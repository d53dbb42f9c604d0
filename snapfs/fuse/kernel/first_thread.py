"""A worker thread that runs before all that computes: for what a closed gate waits for (cut_gate.py).

On a busy host a usual worker waits for a processor for milliseconds, and all applications of a group with it. This one
is begun before the gate is closed, and ends when it is opened.

Invariant: a job that is not waited for any more, since the gate's lease is over, is done all the same; its result is
lost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

import trio

from snapfs.base.run_first import run_first

T = TypeVar("T")
Job = Callable[[], None]


class FirstThread:
    """For the trio thread. Between `begin` and `end` jobs are done by that thread, else by a usual one."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] | None = None

    def begin(self) -> None:
        """Harmless a second time."""
        if self._jobs is None:
            self._jobs = SimpleQueue()
            threading.Thread(target=_serve, args=(self._jobs,), name="snapfs-gate", daemon=True).start()

    def end(self) -> None:
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Cancelled at once: what it does ends later."""
        if self._jobs is None:
            return await trio.to_thread.run_sync(work)
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        results: list[T] = []
        failures: list[BaseException] = []

        def job() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        self._jobs.put(job)
        await done.wait()
        if failures:
            raise failures[0]
        return results[0]


def _serve(jobs: SimpleQueue[Job | None]) -> None:
    run_first()
    while (job := jobs.get()) is not None:
        job()
