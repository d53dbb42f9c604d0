"""Unlinked files that are held open: written anywhere, truncated, and compared with a model after each change.

A difference is described so that its cause can be found by the words alone: what stands where (zeros, bytes of an
earlier state), what a second look shows, and which steps came before, with the time of day that daemon.log has, too.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

STATES_KEPT = 12
STEPS_KEPT = 12
RUNS_SHOWN = 6
_ALL = 1 << 20


Timed = Callable[[Callable[[], Any]], Any]
"""Runs an operation, and notes how long it took."""


@dataclass(eq=False)
class HeldFile:
    """One unlinked file. `states`: (number of the operation, content after it), the newest last."""

    fd: int
    timed: Timed
    model: bytearray = field(default_factory=bytearray)
    states: deque[tuple[int, bytes]] = field(default_factory=lambda: deque([(0, b"")], STATES_KEPT))
    steps: deque[str] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))

    def note(self, number: int, step: str) -> None:
        """A step has been made; the model has its outcome."""
        moment = time.time()
        clock = time.strftime("%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03}"
        self.steps.append(f"{clock} operation {number}: {step}")
        if bytes(self.model) != self.states[-1][1]:
            self.states.append((number, bytes(self.model)))

    def truncate(self, number: int, size: int) -> None:
        self.timed(lambda: os.ftruncate(self.fd, size))
        del self.model[size:]
        self.note(number, f"ftruncate to {size}")

    def write(self, number: int, offset: int, data: bytes) -> None:
        written = self.timed(lambda: os.pwrite(self.fd, data, offset))
        assert written == len(data), f"operation {number}: pwrite at {offset} took {written} of {len(data)} bytes"
        self.model[offset : offset + len(data)] = data
        self.note(number, f"pwrite of {len(data)} at {offset}")

    def sync(self, number: int) -> None:
        self.timed(lambda: os.fsync(self.fd))
        self.note(number, "fsync")

    def drop_pages(self, number: int) -> None:
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.note(number, "fadvise DONTNEED")

    def check(self, number: int) -> None:
        """Read all of it. AssertionError, with all that can be seen of a difference."""
        found = self.timed(lambda: os.pread(self.fd, _ALL, 0))
        assert found == self.model, f"operation {number}: " + self.difference(found)

    def difference(self, found: bytes) -> str:
        """In words, a line for each fact. Looks at the file again."""
        model, status = bytes(self.model), os.fstat(self.fd)
        second = os.pread(self.fd, _ALL, 0)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        third = os.pread(self.fd, _ALL, 0)
        runs = list(differing_runs(found, model))
        first, last = (runs[0][0], runs[-1][1] - 1) if runs else (min(len(found), len(model)),) * 2
        lines = [
            f"{len(found)} bytes were read of {len(model)}; inode {status.st_ino} has {status.st_size}",
            f"{len(runs)} ranges differ, the first byte at {first}, the last at {last}",
            *(self._what_stands(found, start, end) for start, end in runs[:RUNS_SHOWN]),
            f"a second read: {_verdict(second, found, model)}; after DONTNEED: {_verdict(third, found, model)}",
            *self.steps,
        ]
        return "\n  ".join(lines)

    def _what_stands(self, found: bytes, start: int, end: int) -> str:
        piece = found[start:end]
        if not piece.strip(b"\0"):
            what = "zeros"
        else:
            older = (number for number, state in reversed(self.states) if state[start:end] == piece)
            number = next(older, None)
            what = f"as after operation {number}" if number is not None else f"unknown, begins {piece[:16].hex()}"
        return f"[{start}, {end}): {what}"


def differing_runs(found: bytes, model: bytes, apart: int = 64) -> Iterator[tuple[int, int]]:
    """Ranges that differ, as far as both go; less than `apart` equal bytes do not divide one."""
    start = end = -1
    for offset, (one, other) in enumerate(zip(found, model, strict=False)):
        if one == other:
            continue
        if start >= 0 and offset - end >= apart:
            yield start, end
            start = -1
        start, end = offset if start < 0 else start, offset + 1
    if start >= 0:
        yield start, end


def _verdict(read: bytes, found: bytes, model: bytes) -> str:
    return "right" if read == model else "the same" if read == found else f"otherwise wrong, {len(read)} bytes"


def new_file(path: str, timed: Timed) -> HeldFile:
    """A file that has no name any more."""
    fd = timed(lambda: os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    timed(lambda: os.unlink(path))
    return HeldFile(fd, timed)


def change(file: HeldFile, number: int, chance: random.Random) -> None:
    """What comes before a look at a file: sometimes a truncate, mostly a write, at times an fsync and no pages."""
    if chance.random() < 0.05:
        file.truncate(number, chance.randrange(len(file.model) + 1))
    offset, data = chance.randrange(len(file.model) + 1), chance.randbytes(chance.randrange(1, 20_000))
    if len(file.model) < 300_000:
        file.write(number, offset, data)
    if chance.random() < 0.2:
        file.sync(number)
        file.drop_pages(number)
