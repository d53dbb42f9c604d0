"""snapshots.log: every snapshot and all that happened to it. Its snapshot record is the commit point of a seal.

The file is JSON lines (UTF-8, one object a line, ended by a newline). Every line has "kind", "time_ns" (UTC, since
1970) and at its end "prev": the SHA-256, in hex, of the line before it without its newline ("" in the first), and
"sum": the XXH3-64, in hex, of the line up to `,"sum":`. Lines of the time before have no sum; both may follow each
other. The first line is of kind "created" and has "format" (the version) and "volume" (its id). Kinds this module
knows: "snapshot" and "cloned" (a SnapshotRecord's fields), "dropped", "damaged" and "repaired" ("snapshot": its number;
of a drop also "by", the kind of rule or person, and "why": drops.py). On a mirror also "aside" (a snapshot that left
the history for a branch: "snapshot", "branch", and its "record") and "claimed" ("generation" and "holder"). Others are
events for people.

How far the log went is witnessed beside it, in `snapshots.end` (log_end.py): written after each append, not synced. So
it may lag behind, and is never ahead.

Invariants:
1. A line counts if it checks out (sum, chain, the fields of its kind) and ends in a newline, or lacks nothing but that.
   What else follows the last newline is a torn tail: a reader passes it over, a writer cuts it off.
2. A whole line that does not check out makes the log damaged; nothing is cut then, and nothing appended.
3. An append is durable when it returns. A failed one is taken back; if that fails as well, nothing more is appended
   until the log is opened again.
4. A log that is shorter than its witness has lost lines that were answered (`lost_lines`). The opening recovers
   the snapshots among them from their segments (repository.py), or calls the log damaged; before that nothing is cut.

A crash in an append leaves a torn tail, or a whole line that was not yet answered: both are states that
the caller reckons with.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError, VersionError
from snapfs.store.log import log_end
from snapfs.store.log.log_end import LogEnd
from snapfs.store.log.log_lines import Event, Line, encode_line, parse_line
from snapfs.store.objects.format import VERSION

_READ_BYTES: Final = 1 << 16


class SnapshotLog:
    """The log of one store, followed from its beginning. Appends are serialised; one process appends."""

    def __init__(self, path: str, disk: Disk, *, readonly: bool, clock: Callable[[], int] = time.time_ns) -> None:
        """Open an existing log. Nothing is read until `follow`. Raises UserError if there is none."""
        self._path, self._disk, self._clock, self._readonly = path, disk, clock, readonly
        self._lock = threading.RLock()
        self._lacks_newline = False
        self._end: LogEnd | None = None
        self._first = b""  # the SHA-256 of the first line
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
            line = encode_line(event, head)
            lines += line + b"\n"
            head = hashlib.sha256(line).hexdigest()
        log_end.remove(path, disk)  # it is of another log
        disk.replace_file("create:log", path, bytes(lines))

    def follow(self) -> Iterator[Event]:
        """The events that came since the last call, from the first on. Raises CorruptionError, VersionError."""
        return (line.event for line in self.follow_lines())

    def follow_lines(self) -> Iterator[Line]:
        """`follow`, for who wants the fields of few of them: all are checked in the same way."""
        with self._lock:
            self._end = log_end.read(self._path)  # first: the log only grows
            for line in self._new_lines():
                accepted = self._accept(line)
                self._check_end()
                yield accepted

    @property
    def lost_lines(self) -> int:
        """How many lines the log lacks at its end that it once had, as far as that is known. After `follow`."""
        end = self._end
        if end is None or not self._lines or end.first != self._first:
            return 0
        return max(end.lines - self._lines, 0) if end.size > self._good else 0

    @property
    def is_witnessed(self) -> bool:
        """Whether it is known how far the log went. After `follow`."""
        return self._end is not None and self._end.first == self._first

    def accept_loss(self) -> None:
        """What was lost has been found again, and is about to be appended."""
        self._end = None

    def damage_of_loss(self) -> CorruptionError:
        """What to raise for `lost_lines`."""
        why = f"it has lost its end: {self.lost_lines} lines behind line {self._lines} are missing"
        return CorruptionError(os.path.basename(self._path), os.path.dirname(self._path), why)

    def rewind(self) -> None:
        """Let `follow` begin with the first line again."""
        with self._lock:
            self._good, self._lines, self._head, self._first = 0, 0, "", b""
            self._lacks_newline = False

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
        """Remove what follows the last whole line; returns a line for people, None if there was nothing. After
        `follow`.

        A line that lacks only its newline gets it. Raises OSError, and CorruptionError for a log that has lost lines.
        """
        with self._lock:
            if self.lost_lines:
                raise self.damage_of_loss()
            if self._lacks_newline:
                self._disk.pwrite("log:newline", self._fd, b"\n", self._good - 1)
                self._disk.fdatasync("log:newline", self._fd)
                self._lacks_newline = False
                return "snapshots.log: the newline at its end was missing"
            torn = os.fstat(self._fd).st_size - self._good
            if torn <= 0:
                return None
            self._cut()
            return f"snapshots.log: {torn} bytes of an unfinished line cut off"

    def witness(self) -> None:
        """Note how far the log goes, where that is not known yet. Never raises. After `cut_torn_tail`."""
        with self._lock:
            if not self.lost_lines and self._end != self._end_now():
                self._write_end()

    def append(
        self, kind: str, fields: dict[str, Any], time_ns: int | None = None, *,
        with_head: Callable[[int, str], dict[str, Any]] | None = None,
    ) -> Event:  # fmt: skip
        """Add a line and make it durable. Raises OSError; the log is then as before. CorruptionError: it lost lines.

        `with_head(lines, head)`: more fields, which depend on how many lines there are and the SHA-256 of the last.
        """
        with self._lock:
            if self.lost_lines:
                raise self.damage_of_loss()
            if self.broken:
                raise OSError(5, f"{self._path} could not be repaired after a failed write; open the volume again")
            if with_head is not None:
                fields = fields | with_head(self._lines, self._head)
            event = Event(kind, self._clock() if time_ns is None else time_ns, fields)
            line = encode_line(event, self._head)
            try:
                self._disk.pwrite("log:append", self._fd, line + b"\n", self._good)
                self._disk.fdatasync("log:sync", self._fd)
            except OSError:
                self._take_back()
                raise
            self._advance(line)
            self._write_end()
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
        if rest and self._is_whole(rest):
            self._lacks_newline = True
            yield rest

    def _is_whole(self, line: bytes) -> bool:
        """Whether what has no newline behind it is the next line all the same."""
        try:
            return parse_line(line, "").prev == self._head
        except CorruptionError:
            return False

    def _accept(self, line: bytes) -> Line:
        where = f"{self._path} line {self._lines + 1}"
        if self._lines == 0:
            self._check_version(line)
        parsed = parse_line(line, where)
        if parsed.prev != self._head:
            raise CorruptionError("the chain of records", where, "it does not continue the line before it")
        if self._lines == 0:
            if parsed.kind != "created":
                raise CorruptionError("the first record", self._path, "the beginning is missing")
            self._first = hashlib.sha256(line).digest()
        self._advance(line)
        return parsed

    def _check_end(self) -> None:
        end = self._end
        if end is not None and end.size == self._good and end.first == self._first and end.head != self._head_bytes():
            raise CorruptionError("the chain of records", self._path, f"line {self._lines} is not what it was")

    def _end_now(self) -> LogEnd:
        return LogEnd(self._good, self._lines, self._first, self._head_bytes())

    def _head_bytes(self) -> bytes:
        return bytes.fromhex(self._head)[: log_end.HEAD_BYTES]

    def _write_end(self) -> None:
        if not self._readonly and self._lines:
            self._end = self._end_now()
            log_end.write(self._path, self._end, self._disk)

    def _check_version(self, line: bytes) -> None:
        """Before anything else of the first line, which a later version may end in another way."""
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found = msgspec.json.decode(line, type=_Format).format
            if found > VERSION:
                raise VersionError(
                    f"{self._path} has format version {found}; this snapfs reads up to {VERSION}: use a newer snapfs"
                )

    def _advance(self, line: bytes) -> None:
        self._head = hashlib.sha256(line).hexdigest()
        self._good += len(line) + 1
        self._lines += 1


class _Format(msgspec.Struct):
    format: int
