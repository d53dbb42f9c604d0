"""A snapshot as a tar archive, written to a stream: nothing is kept on this host, and nothing of it is held in memory.

Directories come before what is in them; a file of several names is a file once and a link to that name afterwards.
Files with holes are sparse members. Threads decode the chunks that come next while the stream takes the last ones.

Invariants:
1. At most AHEAD_PARTS parts of PART_CHUNKS chunks are decoded and not written.
2. The archive ends with its two blocks only when everything is in it: one that was cut short is no whole archive.
3. What a tar archive cannot hold (sockets) is counted and named, and the rest goes on.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, ChunkIndex, Ino
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import Pointer
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.transfer.move_out import pax_members
from snapfs.transfer.move_out.pax_members import Range

PART_CHUNKS = 16
AHEAD_PARTS = 8
EXAMPLES = 3

Progress = Callable[[int, int], None]
Part = list[tuple[ChunkIndex, Pointer]]


class Output(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(slots=True)
class TarReport:
    """What is in the archive, and what is not (`left_out`, the first few of them by path)."""

    files: int = 0
    directories: int = 0
    others: int = 0
    content_bytes: int = 0
    archive_bytes: int = 0
    left_out: int = 0
    examples: list[bytes] = field(default_factory=list)


class TarStream:
    """One archive. One thread."""

    def __init__(
        self, repository: Repository, tree: SnapshotTree, output: Output, *, threads: int, progress: Progress
    ) -> None:
        self._repository, self._tree, self._output = repository, tree, output
        self._threads, self._progress = threads, progress
        self._report = TarReport()
        self._linked: dict[Ino, bytes] = {}

    def write(self) -> TarReport:
        """Write all of the archive. OSError of the output, CorruptionError of the store."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="export") as pool:
            self._pool = pool
            for path, record in self._walk():
                self._member(path, record)
        self._put(pax_members.END)
        return self._report

    def _put(self, data: bytes) -> None:
        self._output.write(data)
        self._report.archive_bytes += len(data)

    def _walk(self) -> Iterator[tuple[bytes, InodeRecord]]:
        """(path, inode), the root as `.`; depth first."""
        waiting = [(b".", self._record(ROOT_INO))]
        while waiting:
            path, record = waiting.pop()
            yield path, record
            if stat.S_ISDIR(record.mode):
                below = [(path + b"/" + each.name, self._record(each.ino)) for each in self._tree.entries(record)]
                waiting += reversed(below)

    def _record(self, ino: Ino) -> InodeRecord:
        record = self._tree.inode(ino)
        if record is None:
            raise CorruptionError(f"inode {ino}", "the snapshot", "an entry leads to it and it is not there")
        return record

    def _member(self, path: bytes, record: InodeRecord) -> None:
        report = self._report
        if not pax_members.can_hold(record):
            report.left_out += 1
            report.examples += [path] if len(report.examples) < EXAMPLES else []
        elif stat.S_ISDIR(record.mode):
            report.directories += 1
            self._put(pax_members.member(path, record))
        elif record.ino in self._linked:
            self._put(pax_members.member(path, record, link=self._linked[record.ino]))
        else:
            if record.nlink > 1:
                self._linked[record.ino] = path
            if stat.S_ISREG(record.mode):
                self._file(path, record)
            else:
                report.others += 1
                self._put(pax_members.member(path, record))

    # -- files

    def _file(self, path: bytes, record: InodeRecord) -> None:
        self._report.files += 1
        ranges = self._ranges(record)
        is_sparse = sum(length for _, length in ranges) < record.size
        if is_sparse and (not ranges or sum(ranges[-1]) < record.size):
            ranges.append((record.size, 0))  # else a reader would end the file with its last data
        self._put(pax_members.member(path, record, ranges=ranges if is_sparse else None))
        size = 0
        for data in self._data(record):
            self._put(data)
            size += len(data)
            self._report.content_bytes += len(data)
            self._progress(min(self._report.content_bytes, self._tree.root.total_bytes), self._tree.root.total_bytes)
        self._put(pax_members.padding(size))

    def _ranges(self, record: InodeRecord) -> list[Range]:
        """The ranges of chunks that are not holes."""
        found: list[Range] = []
        for index, _ in self._tree.chunks(record):
            start = index * CHUNK_SIZE
            length = min(CHUNK_SIZE, record.size - start)
            if found and sum(found[-1]) == start:
                found[-1] = found[-1][0], found[-1][1] + length
            elif length > 0:
                found.append((start, length))
        return found

    def _data(self, record: InodeRecord) -> Iterator[bytes]:
        """The bytes of all chunks, in order."""
        ahead: deque[Future[bytes]] = deque()
        try:
            for part in self._parts(record):
                ahead.append(self._pool.submit(self._decode, record, part))
                if len(ahead) == AHEAD_PARTS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for each in ahead:
                each.cancel()

    def _parts(self, record: InodeRecord) -> Iterator[Part]:
        part: Part = []
        for each in self._tree.chunks(record):
            part.append(each)
            if len(part) == PART_CHUNKS:
                yield part
                part = []
        if part:
            yield part

    def _decode(self, record: InodeRecord, part: Part) -> bytes:
        self._repository.lazy_history.fetch_missing([pointer for _, pointer in part])
        found = []
        for index, pointer in part:
            length = min(CHUNK_SIZE, record.size - index * CHUNK_SIZE)
            found.append(self._repository.read(pointer)[:length].ljust(length, b"\0"))
        return b"".join(found)
