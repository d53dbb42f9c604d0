"""Seals that ended with their process: how often in a row, and when it is no use to try once more.

A seal goes on where the last life left it (store/repository/resume_segment.py). A daemon that is killed for its memory,
or dies at the same place each time, would try for ever, and a command that waits for the snapshot would never be
answered. So each attempt is noted before it begins, and the note is removed when it ends, well or not: a note that is
found is of an attempt whose process died.

Invariants:
1. Only deaths without progress between them count: an attempt that found more of the segment than the one before begins
   the count anew, and so does a seal that ended.
2. After MOST deaths the next attempt raises a SnapshotError with that reason, and the count begins anew: later commands
   and the policy try again.
3. A note that is damaged, or of another boot, is none. It is not synced: it has to outlive the process only. One of a
   later format is refused (seal_notes.py), before the volume is opened and before any other note is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from snapfs.base.blocks import CHUNK_SIZE, Disk
from snapfs.base.errors import SnapshotError
from snapfs.base.json_file import JsonFile
from snapfs.transfer.seal.seal_notes import read_note

MOST = 4
NAME = "seal-attempt.json"
_CGROUP = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 50
ENOUGH_BYTES = 128 << 20
"""Of memory, for supervisor, helper and daemon, whatever the state."""


class Note(msgspec.Struct, frozen=True):
    """`deaths` of processes in a row, with `reached` bytes of the segment found ready at the last attempt."""

    boot: str
    deaths: int
    reached: int
    format: int = 1


NOTE: JsonFile[Note] = JsonFile("seal attempt", Note)


class Attempts:
    """The attempts of one volume. One thread at a time."""

    def __init__(self, folder: str, boot_id: str, disk: Disk, memory: Callable[[], str] | None = None) -> None:
        """`memory` returns in words how much memory this process may have, "" for any amount."""
        self._path, self._boot, self._memory = os.path.join(folder, NAME), boot_id, memory or memory_limit
        self._disk = disk
        self.further = 0
        """How many attempts found more of their segment than the one before, which its process had not outlived."""

    @contextmanager
    def attempt(self, ready_bytes: int) -> Iterator[None]:
        """Around a seal that finds so many bytes ready. Before it begins raises SnapshotError (invariant 2), and
        VersionError for a note of a later format."""
        before = self._read()
        progress = before is None or ready_bytes > before.reached
        deaths = 0 if before is None or progress else before.deaths
        self.further += before is not None and progress
        if deaths >= MOST:
            self._take_back()
            raise SnapshotError(self._why(deaths), errno.ENOMEM if self._memory() else errno.EIO)
        self._write(Note(self._boot, deaths + 1, max(ready_bytes, before.reached if before else 0)))
        try:
            yield
        finally:
            self._take_back()

    def begun_ns(self) -> int | None:
        """When the seal began that its process did not live to end (since 1970); None if there is none."""
        with contextlib.suppress(OSError):
            return os.stat(self._path).st_mtime_ns
        return None

    def _why(self, deaths: int) -> str:
        limit = self._memory()
        memory = f"; it may have {limit} of memory: {ENOUGH_BYTES >> 20} MiB are enough for any state" if limit else ""
        return (
            f"no snapshot was made: {deaths} daemons in a row were killed or died while they made it, and none got "
            f"further than the one before{memory}. daemon.log and the kernel's log show how they ended"
        )

    def _read(self) -> Note | None:
        note = read_note(NOTE, self._path)
        return note if note is not None and note.boot == self._boot else None

    def _write(self, note: Note) -> None:
        with contextlib.suppress(OSError):  # else the disk is full
            self._disk.replace_unsynced("attempt:begin", self._path, NOTE.encode(note))

    def _take_back(self) -> None:
        with contextlib.suppress(OSError):
            self._disk.unlink("attempt:end", self._path)


def memory_limit() -> str:
    """The least limit of the control groups that this process is in, in words; "" if there is none."""
    least = memory_limit_bytes()
    return f"{least >> 20} MiB" if least is not None else ""


def memory_words(limit_bytes: int | None) -> str:
    """Message about a killed process that had this limit, with advice; "" without a limit. Pure."""
    if limit_bytes is None:
        return ""
    more = f": {ENOUGH_BYTES >> 20} MiB are enough for any state" if limit_bytes < ENOUGH_BYTES else ""
    return f"the memory limit of its control group is {limit_bytes >> 20} MiB{more}"


def memory_limit_bytes() -> int | None:
    """The same in bytes; None if there is none."""
    least = min(_limits(), default=_NO_LIMIT)
    return least if least < _NO_LIMIT else None


def fitting_cache(cache_bytes: int, limit_bytes: int | None) -> int:
    """How much of objects is kept in memory: what is set, and an eighth of what the process may have at most. Pure."""
    return cache_bytes if limit_bytes is None else min(cache_bytes, limit_bytes // 8)


def fitting_window(window_bytes: int, limit_bytes: int | None) -> int:
    """How much a seal may hold under way: what is set, and a sixteenth of what the process may have at most. Pure."""
    return window_bytes if limit_bytes is None else max(min(window_bytes, limit_bytes // 16), CHUNK_SIZE)


def _limits() -> Iterator[int]:
    """In bytes, of this process's group and those above it, in a hierarchy of version 2 or of version 1."""
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        groups = [line.rstrip("\n").split(":", 2) for line in file]
        for number, controllers, path in groups:
            if number == "0" or "memory" in controllers.split(","):
                root, name = ("", "memory.max") if number == "0" else ("/memory", "memory.limit_in_bytes")
                for level in (path, *map(str, Path(path).parents)):
                    with contextlib.suppress(OSError, ValueError):
                        yield int(Path(f"{_CGROUP}{root}{level}/{name}").read_text())
