"""Objects that were fetched from elsewhere, one at a time and in any order: what a lazy mount's store has of its past.

Owns store/fetched/: ``<n as 8 hex>.obj`` holds records one after the other, ``index.db`` says where each object is.

RECORD: proof (16 bytes), frame (32), payload; the frame as in a segment, so its checksum covers frame and payload.

Invariants:
1. Every record was checked against its proof before it was written; every read checks it again. A record that was torn
   by a power cut, or that rotted, is as good as none: it is fetched once more.
2. A difference is written after, or with, the full objects it needs.
3. The index may be behind the files (then an object is fetched again) or ahead of them (see 1), never wrong in another
   way. It is thrown away where it is damaged.
4. When everything is here, `settle` makes parts of it, in the order of the numbers, that are published as segments
   (publishing.py), and the folder goes. A crash between leaves both; the segments are looked into first. A part that
   was not published by then means nothing, and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from urllib.parse import quote

from snapfs.blocks import Disk, Number
from snapfs.store import format as fmt
from snapfs.store.format import FRAME_BYTES, Row
from snapfs.store.segment import SegmentReader
from snapfs.store.staging import SUFFIX, PartWriter, StagedPart

FOLDER: Final = "fetched"
FILE_BYTES: Final = 256 << 20
SEGMENT_BYTES: Final = 256 << 20
_PROOF_BYTES: Final = 16
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS object (number INTEGER PRIMARY KEY, file INTEGER NOT NULL, place INTEGER NOT NULL,"
    " stored INTEGER NOT NULL)"
)


class Fetched:
    """Thread-safe. Also a `RowSource`: a row's offset is (number of the file, place in it) in one number."""

    def __init__(self, store_dir: str, disk: Disk, *, readonly: bool = False) -> None:
        """Opens or makes the folder. OSError."""
        self.path = os.path.join(store_dir, FOLDER)
        self._disk, self._readonly = disk, readonly
        self._lock = threading.RLock()
        self._closed = False
        if not os.path.isdir(self.path):
            disk.mkdir("fetched:folder", self.path)
            disk.sync_dir("fetched:folder", store_dir)
        self._db = self._open_index()
        self._fds: dict[int, int] = {}
        self._file = max((int(name[:8], 16) for name in os.listdir(self.path) if name.endswith(".obj")), default=0)
        self._end = 0
        self._unsynced: set[int] = set()
        if not readonly:
            self._remove_empty()
            self._next_file()
        (self.count, self.stored_bytes) = self._db.execute(
            "SELECT count(*), coalesce(sum(stored), 0) FROM object"
        ).fetchone()

    def _remove_empty(self) -> None:
        """The files of lives that fetched nothing, and what they did not finish."""
        for name in os.listdir(self.path):
            path = os.path.join(self.path, name)
            if name.endswith((SUFFIX, fmt.UNFINISHED_SUFFIX)) or (name.endswith(".obj") and not os.path.getsize(path)):
                os.unlink(path)

    @staticmethod
    def exists(store_dir: str) -> bool:
        return os.path.isdir(os.path.join(store_dir, FOLDER))

    def _open_index(self) -> sqlite3.Connection:
        path = os.path.join(self.path, "index.db")
        if self._readonly:
            return _connect_readonly(path)
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if _code(error) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                return _in_memory()  # a full disk, mostly: this life has to do without, and the next one finds it again
            for name in (path, f"{path}-wal", f"{path}-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
            return _connect(path)

    # -- reading

    def find(self, number: Number) -> Row | None:
        """The row of an object that is here, as far as the index knows."""
        with self._lock, _as_oserror(self.path):
            found = self._db.execute("SELECT file, place FROM object WHERE number = ?", (_signed(number),)).fetchone()
            if found is None:
                return None
            file, place = found
            head = os.pread(self._fd(file), _PROOF_BYTES + FRAME_BYTES, place)
        if len(head) < _PROOF_BYTES + FRAME_BYTES:
            self.forget(number)
            return None
        frame = fmt.unpack_frame(head, _PROOF_BYTES)
        if frame.number != number:
            self.forget(number)
            return None
        offset = file << 40 | place
        return Row(number, offset, frame.kind, frame.encoding, frame.ordinal, frame.stored, frame.base, head[:16])

    def frame(self, row: Row) -> bytes:
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the objects have become segments")
            fd = self._fd(row.offset >> 40)
        return os.pread(fd, FRAME_BYTES + row.stored, (row.offset & (1 << 40) - 1) + _PROOF_BYTES)

    def has(self, number: Number) -> bool:
        with self._lock, _as_oserror(self.path):
            return self._db.execute("SELECT 1 FROM object WHERE number = ?", (_signed(number),)).fetchone() is not None

    def _fd(self, file: int) -> int:
        fd = self._fds.get(file)
        if fd is None:
            flags = os.O_RDONLY if self._readonly else os.O_RDWR | os.O_CREAT
            fd = self._fds[file] = os.open(self._name(file), flags | os.O_CLOEXEC, 0o600)
        return fd

    def _name(self, file: int) -> str:
        return os.path.join(self.path, f"{file:08x}.obj")

    # -- writing

    def add(self, objects: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep (proof, frame with payload) of objects that were checked; bases before what needs them. OSError."""
        with self._lock:
            data, rows = bytearray(), []
            for proof, framed in objects:
                frame = fmt.unpack_frame(framed)
                rows.append((_signed(frame.number), self._file, self._end + len(data), frame.stored))
                data += proof
                data += framed
            if not rows:
                return
            self._disk.pwrite("fetched:objects", self._fd(self._file), bytes(data), self._end)
            self._end += len(data)
            self._unsynced.add(self._file)
            with _as_oserror(self.path), self._db:
                self._db.executemany("INSERT OR REPLACE INTO object VALUES (?,?,?,?)", rows)
            self.count += len(rows)
            self.stored_bytes += sum(row[3] for row in rows)
            if self._end >= FILE_BYTES:
                self._next_file()

    def _next_file(self) -> None:
        self._file, self._end = self._file + 1, 0
        os.ftruncate(self._fd(self._file), 0)

    def forget(self, number: Number) -> None:
        """The object is not what it must be: let it be fetched again."""
        if self._readonly:
            return
        with self._lock, _as_oserror(self.path), self._db:
            self._db.execute("DELETE FROM object WHERE number = ?", (_signed(number),))

    def sync(self) -> None:
        """Make what came so far durable. OSError."""
        with self._lock:
            files, self._unsynced = self._unsynced, set()
            fds = [(file, os.dup(self._fd(file))) for file in files]
        for file, fd in fds:
            try:
                self._disk.fdatasync("fetched:sync", fd)
            except OSError:
                self._unsynced.add(file)
                raise
            finally:
                os.close(fd)
        if files:
            self._disk.sync_dir("fetched:names", self.path)

    # -- the end of laziness

    def settle(
        self, volume_id: str, is_known: Callable[[Number], bool], pause: Callable[[], None] = lambda: None
    ) -> list[StagedPart]:
        """Write parts with all that is here, for who publishes them; `remove` when they are in use.

        Objects that `is_known` are passed over. `pause` is called between objects. OSError.
        """
        made: list[StagedPart] = []
        writer: PartWriter | None = None
        try:
            for number in self._numbers():
                pause()
                framed = None if is_known(number) else self.good(number)
                if framed is None:
                    continue
                if writer is not None and not has_room(writer, number):
                    made.append(finished(writer))
                    writer = None
                if writer is None:
                    generation = fmt.generation_of(number)
                    writer = PartWriter(self.path, self._disk, volume_id, generation, number)
                writer.append_framed(*framed)
            if writer is not None:
                made.append(finished(writer))
        except BaseException:
            if writer is not None:
                writer.abandon()
            raise
        return made

    def good(self, number: Number) -> tuple[Row, bytes] | None:
        """The row and frame of an object, None if it is not here or was torn: then it is forgotten."""
        row = self.find(number)
        framed = self.frame(row) if row is not None else b""
        if row is None or not fmt.frame_is_good(framed):
            self.forget(number)
            return None
        return row, framed

    # What `Publisher` asks of a place with parts.

    @property
    def folder(self) -> str:
        return self.path

    def rows(self, part: StagedPart) -> Iterator[tuple[SegmentReader, Row]]:
        reader = SegmentReader(part.path)
        for row in reader.rows():
            yield reader, row

    def discard(self, parts: Iterable[StagedPart], *, unlink: bool = True) -> None:
        for part in parts if unlink else ():
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink("fetched:part", part.path)

    def numbers(self, first: int, last: int) -> list[Number]:
        """Those of [first, last] that are here, ascending, as far as the index knows."""
        if first < 1 << 63 <= last:
            return [*self.numbers(first, (1 << 63) - 1), *self.numbers(1 << 63, last)]
        with self._lock, _as_oserror(self.path):
            rows = self._db.execute(
                "SELECT number FROM object WHERE number BETWEEN ? AND ? ORDER BY number",
                (_signed(first), _signed(last)),
            ).fetchall()
        return [Number(number & (1 << 64) - 1) for (number,) in rows]

    def _numbers(self) -> Iterator[Number]:
        """Ascending, a batch at a time."""
        after = -(1 << 63) - 1
        while True:
            with self._lock, _as_oserror(self.path):
                rows = self._db.execute(
                    "SELECT number FROM object WHERE number > ? ORDER BY number LIMIT 1000", (max(after, -(1 << 63)),)
                ).fetchall()
            if not rows:
                return
            for (number,) in rows:
                yield Number(number & (1 << 64) - 1)
            after = rows[-1][0]

    def remove(self) -> None:
        """Everything here is in segments now."""
        self.close()
        for name in sorted(os.listdir(self.path)):
            self._disk.unlink("fetched:remove", os.path.join(self.path, name))
        os.rmdir(self.path)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._db.close()
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def check_invariants(self) -> None:
        for number in self._numbers():
            row = self.find(number)
            assert row is None or fmt.frame_is_good(self.frame(row)), number


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(_SCHEMA)
        db.commit()
    except BaseException:
        db.close()
        raise
    return db


def _connect_readonly(path: str) -> sqlite3.Connection:
    """The index as it is, or an empty one where it cannot be read from here."""
    db = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=10.0, check_same_thread=False)
    try:
        db.execute("SELECT 1 FROM object LIMIT 1").fetchone()
    except sqlite3.Error:
        db.close()
        return _in_memory()
    return db


def _in_memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.execute(_SCHEMA)
    return db


@contextlib.contextmanager
def _as_oserror(path: str) -> Iterator[None]:
    """SQLite's failures as what the rest of the store knows: ENOSPC for a full disk, else EIO."""
    try:
        yield
    except sqlite3.Error as error:
        full = _code(error) == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), path) from None


def _code(error: sqlite3.Error) -> int:
    """The primary result code, 0 where Python has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def has_room(writer: PartWriter, number: Number) -> bool:
    """Whether the part may go on with this number."""
    same = fmt.generation_of(writer.first) == fmt.generation_of(number)
    return same and writer.size <= SEGMENT_BYTES and number > writer.last and number - writer.first <= fmt.MAX_DELTA


def finished(writer: PartWriter, *, close: bool = True) -> StagedPart:
    """The part, durable. OSError."""
    size = writer.finish()
    if close:
        writer.close()
    return StagedPart(writer.path, writer.first, writer.last, writer.count, size)


def _signed(number: int) -> int:
    """SQLite's integers have a sign; generations below 32,768 never need it."""
    return number - (1 << 64) if number >> 63 else number
