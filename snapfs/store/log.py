"""snapshots.log: every snapshot and all that happened to it. Its snapshot record is the commit point of a seal.

The file is JSON lines (UTF-8, one object a line, ended by a newline). Every line has "kind", "time_ns" (UTC, since
1970) and "prev": the SHA-256, in hex, of the line before it without its newline ("" in the first). The first line is of
kind "created" and has "format" (the version) and "volume" (its id). Kinds this module knows: "snapshot" and "cloned" (a
SnapshotRecord's fields), "dropped", "damaged" and "repaired" ("snapshot": its number). On a mirror also "aside" (a
snapshot that left the history for a branch: "snapshot", "branch", and its "record") and "claimed" ("generation" and
"holder"). Others are events for people.

Invariants:
1. A line counts if it ends in a newline and continues the chain. What follows the last newline is a torn tail: a
   writer cuts it off, a reader ignores it.
2. A whole line that does not continue the chain makes the log damaged; nothing is cut then, and nothing appended.
3. An append is durable when it returns. A failed one is taken back; if that fails as well, nothing more is appended
   until the log is opened again.

A crash in an append leaves a torn tail, or a whole line that was not yet answered: both are states that
the caller reckons with.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from snapfs.blocks import Disk
from snapfs.errors import CorruptionError, UserError, VersionError
from snapfs.store.format import VERSION

_READ_BYTES: Final = 1 << 20
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log. `fields` is everything but kind, time and chain."""

    kind: str
    time_ns: int
    fields: dict[str, Any]


class SnapshotLog:
    """The log of one store, followed from its beginning. Appends are serialised; one process appends."""

    def __init__(self, path: str, disk: Disk, *, readonly: bool, clock: Callable[[], int] = time.time_ns) -> None:
        """Open an existing log. Nothing is read until `follow`. Raises UserError if there is none."""
        self._path, self._disk, self._clock = path, disk, clock
        self._lock = threading.RLock()
        self._good = 0  # bytes of whole, chained lines
        self._lines = 0
        self._head = ""
        self.broken = False
        """A failed append could not be taken back: its line may exist or not."""
        flags = os.O_RDONLY if readonly else os.O_RDWR
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: this is no store, or it has lost its log") from None

    @staticmethod
    def create(
        path: str, disk: Disk, volume_id: str, clock: Callable[[], int] = time.time_ns, then: Iterable[Event] = ()
    ) -> None:
        """Write the first line and those of `then`, durably and all at once, in the place of what is at `path`."""
        first = Event("created", clock(), {"format": VERSION, "volume": volume_id})
        lines, head = bytearray(), ""
        for event in (first, *then):
            line = _encode({"kind": event.kind, "time_ns": event.time_ns, **event.fields, "prev": head})
            lines += line + b"\n"
            head = hashlib.sha256(line).hexdigest()
        disk.replace_file("create:log", path, bytes(lines))

    def follow(self) -> Iterator[Event]:
        """The events that came since the last call, from the first on. Raises CorruptionError, VersionError."""
        with self._lock:
            for line in self._new_lines():
                event = self._accept(line)
                yield event

    def rewind(self) -> None:
        """Let `follow` begin with the first line again."""
        with self._lock:
            self._good, self._lines, self._head = 0, 0, ""

    @property
    def lines(self) -> int:
        """How many there are: it only grows, and lasts."""
        return self._lines

    @property
    def is_empty(self) -> bool:
        """True if `follow` has found no line at all, which no log is."""
        return self._lines == 0

    def events(self) -> Iterator[Event]:
        """The whole log from its beginning, checked once more."""
        again = SnapshotLog(self._path, self._disk, readonly=True)
        try:
            yield from again.follow()
        finally:
            again.close()

    def cut_torn_tail(self) -> str | None:
        """Remove what follows the last whole line; says so in a line, None if there was nothing. After `follow`."""
        with self._lock:
            torn = os.fstat(self._fd).st_size - self._good
            if torn <= 0:
                return None
            self._cut()
            return f"snapshots.log: {torn} bytes of an unfinished line cut off"

    def append(self, kind: str, fields: dict[str, Any], time_ns: int | None = None) -> Event:
        """Add a line and make it durable. Raises OSError; the log is then as before."""
        with self._lock:
            if self.broken:
                raise OSError(5, f"{self._path} could not be repaired after a failed write; open the volume again")
            event = Event(kind, self._clock() if time_ns is None else time_ns, fields)
            line = _encode({"kind": kind, "time_ns": event.time_ns, **fields, "prev": self._head})
            try:
                self._disk.pwrite("log:append", self._fd, line + b"\n", self._good)
                self._disk.fdatasync("log:sync", self._fd)
            except OSError:
                self._take_back()
                raise
            self._advance(line)
            return event

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _take_back(self) -> None:
        try:
            self._cut()
        except OSError:
            self.broken = True

    def _cut(self) -> None:
        self._disk.truncate("log:cut", self._fd, self._good)
        self._disk.fsync("log:cut-sync", self._fd)

    def _new_lines(self) -> Iterator[bytes]:
        rest, offset = b"", self._good
        while data := os.pread(self._fd, _READ_BYTES, offset):
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines

    def _accept(self, line: bytes) -> Event:
        where = f"{self._path} line {self._lines + 1}"
        try:
            fields = msgspec.json.decode(line, type=dict[str, Any])
            kind, time_ns, previous = fields.pop("kind"), fields.pop("time_ns"), fields.pop("prev")
        except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
            raise CorruptionError("a record", where, "it is no record") from None
        if previous != self._head:
            raise CorruptionError("the chain of records", where, "it does not continue the line before it")
        if self._lines == 0:
            self._check_first(kind, fields)
        self._advance(line)
        return Event(kind, time_ns, fields)

    def _check_first(self, kind: str, fields: dict[str, Any]) -> None:
        if kind != "created":
            raise CorruptionError("the first record", self._path, "the beginning is missing")
        if fields.get("format", 0) > VERSION:
            raise VersionError(
                f"{self._path} has format version {fields['format']}; this snapfs reads up to "
                f"{VERSION}: use a newer snapfs"
            )

    def _advance(self, line: bytes) -> None:
        self._head = hashlib.sha256(line).hexdigest()
        self._good += len(line) + 1
        self._lines += 1
