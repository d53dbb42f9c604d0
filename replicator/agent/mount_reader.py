"""Reads `.snapfs/metrics` of every mount of this host, in a process of its own (`python -m` and the name of this).

For each line on its standard input it answers one line of JSON: of each mount its volume, mountpoint, and text, or null
if there was none in WAIT_S. At the end of its input it ends.

A read of a mount whose daemon hangs cannot be interrupted, not even by SIGKILL. In the agent it would keep the process,
and with it the locks that the next agent needs. So this process does it, which holds nothing.

Invariants:
1. Of each mount at most one read is under way, however often is asked.
2. An answer comes in about WAIT_S, whatever a daemon does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Final

import msgspec

from snapfs.base.volumes.volume_mounts import VolumeMount, volume_mounts

WAIT_S: Final = 3.0


class MountMetrics(msgspec.Struct, frozen=True):
    """What was read at one mount; `text`: None if it did not answer."""

    volume: str
    mountpoint: str
    text: str | None


class _Read(threading.Thread):
    """One read of one mount."""

    def __init__(self, mount: VolumeMount) -> None:
        super().__init__(daemon=True)
        self._mount = mount
        self.text: str | None = None

    def run(self) -> None:
        try:
            with open(os.path.join(self._mount.mountpoint, ".snapfs", "metrics"), encoding="utf-8") as file:
                self.text = file.read()
        except (OSError, UnicodeDecodeError):
            return


class MountReader:
    """Remembers the reads that have not ended. One thread may call."""

    def __init__(self, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._stuck: dict[VolumeMount, _Read] = {}

    def read(self) -> list[MountMetrics]:
        """Of all mounts, in their order. OSError if mountinfo cannot be read."""
        mounts = volume_mounts()
        stuck = {mount: read for mount, read in self._stuck.items() if read.is_alive()}
        reads = {mount: _Read(mount) for mount in mounts if mount not in stuck}
        for read in reads.values():
            read.start()
        end = time.monotonic() + self._wait_s
        for read in reads.values():
            read.join(max(end - time.monotonic(), 0))
        self._stuck = stuck | {mount: read for mount, read in reads.items() if read.is_alive()}
        done = {mount: read.text for mount, read in reads.items() if not read.is_alive()}
        return [MountMetrics(_shown(mount.volume), _shown(mount.mountpoint), done.get(mount)) for mount in mounts]


def _shown(name: str) -> str:
    """A name as UTF-8, which labels have to be."""
    return os.fsencode(name).decode(errors="replace")


def main() -> None:
    """Answer each line of the standard input until it ends."""
    reader = MountReader()
    for _ in sys.stdin:
        sys.stdout.buffer.write(msgspec.json.encode(reader.read()) + b"\n")
        sys.stdout.buffer.flush()
    os._exit(0)  # without the threads that are stuck


if __name__ == "__main__":
    main()
