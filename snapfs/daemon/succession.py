"""The daemon's side of being replaced: it reports to its supervisor, and hands the mount over when it is to leave.

A daemon that leaves finishes a snapshot on its way and the requests in flight, within limits. What is still unanswered
when it exits is sent again, to the next daemon.

Invariants:
1. Each wait has its limit. After the last of them the process exits, whatever its threads wait for.
2. It does not leave between a rollback and the end of invalidating the kernel's caches, for nobody could go on: it
   serves on then, and reports why. Nothing begins meanwhile that takes the snapshotter's turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time

import trio

from snapfs.daemon.supervision.daemon_handle import LEAVE, LEFT, STAYS, DaemonHandle
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.live.tree import LiveTree
from snapfs.transfer.seal.snapshotter import Snapshotter

log = logging.getLogger(__name__)

FINISH_SECONDS = 30.0
"""What a snapshot on its way gets; one that takes longer is made again by the next daemon."""
LEAVE_SECONDS = 0.5
"""What the requests in flight get after that."""
EXIT_SECONDS = 5.0
"""What `LiveTree.hand_over` gets after that: no more is lost without it than by a kill."""
_LEAVE_POLL_SECONDS = 0.002


async def obey(handle: DaemonHandle, reader: RequestReader, snapshotter: Snapshotter, tree: LiveTree) -> None:
    """Leave when the supervisor requests it: the process exits. Return if the supervisor is gone."""
    while True:
        await trio.lowlevel.wait_readable(handle.channel)
        word = handle.receive()
        if word == LEAVE:
            await _leave(handle, reader, snapshotter, tree)
        elif not word:
            break
    log.warning("the supervisor is gone: from here on the mount ends with this daemon")
    handle.supervisor_is_gone()


async def _leave(handle: DaemonHandle, reader: RequestReader, snapshotter: Snapshotter, tree: LiveTree) -> None:
    """Exit; return if that cannot be now."""
    log.info("handing the mount over to another daemon")
    async with contextlib.AsyncExitStack() as stack:
        with trio.move_on_after(FINISH_SECONDS):
            await stack.enter_async_context(snapshotter.turn())
        await _finish_requests(reader)
        if tree.names.reply_cache.is_kernel_stale:
            reader.resume()
            handle.report(f"{STAYS} a rollback has not ended within {FINISH_SECONDS:.0f} s")
            return
        _exit(handle, tree)


def _exit(handle: DaemonHandle, tree: LiveTree) -> None:
    threading.Thread(target=_exit_anyway, args=(handle,), daemon=True).start()
    with contextlib.suppress(OSError):
        tree.hand_over()
    handle.report(LEFT)
    os._exit(0)


def _exit_anyway(handle: DaemonHandle) -> None:
    time.sleep(EXIT_SECONDS)
    handle.report(LEFT)
    os._exit(0)


async def _finish_requests(reader: RequestReader) -> None:
    reader.hold()
    with trio.move_on_after(LEAVE_SECONDS):
        while reader.in_flight:
            await trio.sleep(_LEAVE_POLL_SECONDS)
