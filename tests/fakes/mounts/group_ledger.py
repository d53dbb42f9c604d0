"""A ledger over several mounts: entry n is written after entry n - 1 was, to the next member. What has n has all
before it.

`synced`: each entry is fsynced before the next; else it is a plain write(2), which mostly ends in the kernel's cache.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

_ENTRY = 8


class GroupLedger(threading.Thread):
    """Writes until stopped; `written` entries were. Each truncates and renames now and then as well, if `busy`."""

    def __init__(self, mounts: Sequence[Path], name: str, *, synced: bool = False, busy: bool = False) -> None:
        super().__init__(name=name)
        self.written = 0
        self.error: OSError | None = None
        self._synced, self._busy, self._stop_requested = synced, busy, threading.Event()
        self._mounts, self._name = mounts, name
        self._fds = [os.open(mount / name, os.O_RDWR | os.O_CREAT) for mount in mounts]

    def run(self) -> None:
        try:
            while not self._stop_requested.is_set():
                self._write(self.written)
                self.written += 1
        except OSError as error:
            self.error = error

    def _write(self, number: int) -> None:
        member = number % len(self._fds)
        os.pwrite(self._fds[member], (number + 1).to_bytes(_ENTRY, "little"), number // len(self._fds) * _ENTRY)
        if self._synced:
            os.fdatasync(self._fds[member])
        if self._busy and number % 7 == 0:
            beside = self._mounts[member] / f"{self._name}.beside"
            beside.write_bytes(b"x" * 5000)  # truncates
            beside.replace(self._mounts[member] / f"{self._name}.moved")

    def stop(self) -> None:
        self._stop_requested.set()
        self.join()
        for fd in self._fds:
            os.close(fd)


def missing(folders: Sequence[Path], name: str) -> tuple[int, list[int]]:
    """The newest entry that any of the folders has, and those before it that are in none."""
    has: set[int] = set()
    for member, folder in enumerate(folders):
        path = folder / name
        data = path.read_bytes() if path.exists() else b""
        for slot in range(len(data) // _ENTRY):
            if int.from_bytes(data[slot * _ENTRY : (slot + 1) * _ENTRY], "little"):
                has.add(slot * len(folders) + member + 1)
    newest = max(has, default=0)
    return newest, sorted(set(range(1, newest + 1)) - has)
