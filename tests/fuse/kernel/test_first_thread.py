"""The worker of a closed gate: what it does is answered, and its end loses nothing that is waited for."""

from __future__ import annotations

import threading

import pytest
import trio

from snapfs.fuse.kernel.first_thread import FirstThread
from tests.fakes.patience import PATIENCE_S, eventually


def test_jobs_are_done_by_one_thread_between_its_begin_and_end() -> None:
    thread, held = FirstThread(), threading.Event()
    names: list[str] = []

    def named() -> int:
        names.append(threading.current_thread().name)
        return len(names)

    def fails() -> int:
        raise OSError(5, "for a test")

    async def story() -> None:
        with trio.fail_after(PATIENCE_S):
            assert await thread.run(named) == 1
            thread.begin()
            thread.begin()
            assert await thread.run(named) == 2
            with pytest.raises(OSError, match="for a test"):
                await thread.run(fails)
            with trio.move_on_after(0.01) as lease:  # its end is not waited for
                await thread.run(lambda: held.wait(PATIENCE_S))
            assert lease.cancelled_caught
            held.set()
            assert await thread.run(named) == 3
            thread.end()
            thread.end()
            assert await thread.run(named) == 4

    trio.run(story)
    assert [name == "snapfs-gate" for name in names] == [False, True, True, False]
    eventually(lambda: "snapfs-gate" not in [each.name for each in threading.enumerate()], "the end of the thread")
