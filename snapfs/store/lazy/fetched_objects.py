"""Objects that were fetched from elsewhere, one at a time and in any order: what a lazy mount's store has of its past.

Owns store/fetched/: ``<n as 8 hex>.obj`` holds records one after the other. The place of each object is in
fetched_index.py.

RECORD: content hash (16 bytes), frame (32), payload; the frame as in a segment, so its checksum covers frame and
payload.

Invariants:
1. Every record was checked against its content hash before it was written; every read checks it again. A record that
   was torn by a power cut, or that rotted, is as good as none: it is fetched once more.
2. A difference is written after, or with, the full objects it needs.
3. The index may be behind the files: then an object is fetched again. It may be ahead of them: see 1.
4. When everything is here, `settle` makes parts of it, in the order of the numbers, that are published as segments
   (publisher.py), and the folder goes. A crash between leaves both; the segments are looked into first. A part that
   was not published by then means nothing, and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from snapfs.base.blocks import Disk, Number
from snapfs.store.lazy.fetched_index import FetchedIndex
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Row
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.objects.staging import SUFFIX, PartWriter, StagedPart

FOLDER: Final = "fetched"
FILE_BYTES: Final = 256 << 20
SEGMENT_BYTES: Final = 256 << 20
_CONTENT_HASH_BYTES: Final = 16


class FetchedObjects:
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
        self._index = FetchedIndex(self.path, disk, readonly=readonly)
        self._fds: dict[int, int] = {}
        self._file = max((int(name[:8], 16) for name in os.listdir(self.path) if name.endswith(".obj")), default=0)
        self._end = 0
        self._unsynced: set[int] = set()
        if not readonly:
            self._remove_empty()
            self._next_file()
        self.count, self.stored_bytes = self._index.totals()

    def _remove_empty(self) -> None:
        """The files of lives that fetched nothing, and what they did not finish."""
        for name in os.listdir(self.path):
            path = os.path.join(self.path, name)
            if name.endswith((SUFFIX, fmt.UNFINISHED_SUFFIX)) or (name.endswith(".obj") and not os.path.getsize(path)):
                self._disk.unlink("fetched:leftover", path)

    @staticmethod
    def exists(store_dir: str) -> bool:
        return os.path.isdir(os.path.join(store_dir, FOLDER))

    # -- reading

    def find(self, number: Number) -> Row | None:
        """The row of an object that is here, as far as the index knows."""
        with self._lock:
            found = self._index.find(number)
            if found is None:
                return None
            file, place = found
            head = os.pread(self._fd(file), _CONTENT_HASH_BYTES + FRAME_BYTES, place)
        if len(head) < _CONTENT_HASH_BYTES + FRAME_BYTES:
            self.forget(number)
            return None
        frame = fmt.unpack_frame(head, _CONTENT_HASH_BYTES)
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
        return os.pread(fd, FRAME_BYTES + row.stored, (row.offset & (1 << 40) - 1) + _CONTENT_HASH_BYTES)

    def has(self, number: Number) -> bool:
        with self._lock:
            return self._index.find(number) is not None

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
        """Keep (content hash, frame with payload) of checked objects; bases before what needs them. OSError."""
        with self._lock:
            data, rows = bytearray(), []
            for content_hash, framed in objects:
                frame = fmt.unpack_frame(framed)
                rows.append((frame.number, self._end + len(data), frame.stored))
                data += content_hash
                data += framed
            if not rows:
                return
            self._disk.pwrite("fetched:objects", self._fd(self._file), bytes(data), self._end)
            self._end += len(data)
            self._unsynced.add(self._file)
            self._index.put(self._file, rows)
            self.count += len(rows)
            self.stored_bytes += sum(stored for _, _, stored in rows)
            if self._end >= FILE_BYTES:
                self._next_file()

    def _next_file(self) -> None:
        self._file, self._end = self._file + 1, 0
        self._disk.truncate("fetched:next", self._fd(self._file), 0)

    def forget(self, number: Number) -> None:
        """The object is not what it must be: let it be fetched again."""
        if self._readonly:
            return
        with self._lock:
            self._index.forget(number)

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

    # What `Publisher` needs of a place with parts.

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
        with self._lock:
            return self._index.between(first, last)

    def _numbers(self) -> Iterator[Number]:
        """Ascending, a batch at a time."""
        after: Number | None = None
        while True:
            with self._lock:
                batch = self._index.batch_after(after)
            if not batch:
                return
            yield from batch
            after = batch[-1]

    def remove(self) -> None:
        """Everything here is in segments now."""
        self.close()
        for name in sorted(os.listdir(self.path)):
            self._disk.unlink("fetched:remove", os.path.join(self.path, name))
        self._disk.rmdir("fetched:remove", self.path)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._index.close()
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def check_invariants(self) -> None:
        for number in self._numbers():
            row = self.find(number)
            assert row is None or fmt.frame_is_good(self.frame(row)), number


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
