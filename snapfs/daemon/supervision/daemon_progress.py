"""What a daemon reports to its supervisor so that its death is not counted: that it made progress.

One word is enough: of each death the supervisor only needs to know whether there was progress before it. Counters that
exist anyway are read, at first often and then once a second, until the first of them has moved.

Progress is a request answered, a snapshot sealed, more of one sealed than by the daemon before, a command ended, bytes
hydrated. A waiting command reads `.snapfs/status` all the time, and a flush opens and closes files: a daemon that
achieves nothing answers such requests too, so they do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from snapfs.daemon.supervision.daemon_handle import PROGRESS
from snapfs.fuse.kernel.idleness import Pause

_FIRST_SECONDS, _MOST_SECONDS = 0.02, 1.0
_OF_FLUSHES = frozenset({"open", "release", "flush", "fsync", "forget", "statfs"})

Counter = Callable[[], int]


def answered(requests: Mapping[str, int], in_flight: int, virtual: int) -> int:
    """Requests that were answered for applications: at least so many. `virtual`: those to `.snapfs`. Pure."""
    return sum(count for name, count in requests.items() if name not in _OF_FLUSHES) - in_flight - virtual


async def watch(counters: Sequence[Counter], report: Callable[[str], None], pause: Pause = trio.sleep) -> None:
    """Report `progress` when one of the counters is above its first value; then return."""
    before = [counter() for counter in counters]
    wait_s = _FIRST_SECONDS
    while all(counter() <= least for counter, least in zip(counters, before, strict=True)):
        await pause(wait_s)
        wait_s = min(2 * wait_s, _MOST_SECONDS)
    report(PROGRESS)
