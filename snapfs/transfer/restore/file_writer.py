"""Writes the bytes of restored files, part by part, with several threads.

Invariants:
1. At most `threads * PARTS_PER_THREAD` parts are under way: memory and descriptors are bounded.
2. A file's parts may end in any order. The last one sets its attributes and closes it.
3. The first failure is kept; `raise_failure` raises it in the walk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex
from snapfs.store.objects.format import Pointer
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.transfer.common.sparse_copy import write_chunks
from snapfs.transfer.restore.restore_report import ReportTally
from snapfs.transfer.restore.restored_attributes import set_attributes

PART_CHUNKS = 64
PARTS_PER_THREAD = 4

Progress = Callable[[int, int], None]
Part = list[tuple[ChunkIndex, Pointer]]


@dataclass(slots=True)
class _Output:
    """A file that is being written."""

    record: InodeRecord
    name: bytes
    fd: int
    parts: int = 1  # under way; one is held by the walk until all are submitted


class FileWriter:
    """The threads of one restore. `write` is called by the walk's thread. `close` it."""

    def __init__(
        self, repository: Repository, tree: SnapshotTree, tally: ReportTally, threads: int, progress: Progress | None,
        total_bytes: int, sync: bool = False,
    ) -> None:  # fmt: skip
        """`total_bytes` is for the progress; 0: not known. `sync` makes each file durable before it is closed."""
        self._repository, self._tree, self._tally = repository, tree, tally
        self._progress = progress or (lambda done, total: None)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="restore")
        self._slots = threading.BoundedSemaphore(threads * PARTS_PER_THREAD)
        self._lock = threading.Lock()  # guards the counts of parts, the progress and the first failure
        self._failure: BaseException | None = None
        self._done_bytes = 0
        self._total_bytes, self._sync = total_bytes, sync

    def write(self, fd: int, name: bytes, record: InodeRecord) -> None:
        """Write all of the file to `fd`, an empty file of its size, which is closed at the end. Waits for a slot."""
        output = _Output(record, name, fd)
        try:
            for part in self._parts(record):
                with self._lock:
                    output.parts += 1
                self._slots.acquire()
                self._pool.submit(self._write_part, output, part).add_done_callback(partial(self._part_done, output))
        finally:
            self._finish_part(output)

    def _parts(self, record: InodeRecord) -> Iterator[Part]:
        part: Part = []
        for item in self._tree.chunks(record):
            part.append(item)
            if len(part) == PART_CHUNKS:
                yield part
                part = []
        if part:
            yield part

    def _write_part(self, output: _Output, part: Part) -> None:
        self._repository.lazy_history.fetch_missing([pointer for _, pointer in part])
        written = write_chunks(self._repository, output.fd, part, output.record.size)
        self._tally.made(written_bytes=written)
        with self._lock:
            self._done_bytes += len(part) * CHUNK_SIZE
            self._progress(min(self._done_bytes, self._total_bytes or self._done_bytes), self._total_bytes)

    def _part_done(self, output: _Output, future: Future[None]) -> None:
        """Runs when a part was written, failed or was cancelled."""
        self._slots.release()
        failure = None if future.cancelled() else future.exception()
        if failure is not None:
            self._failed(failure)
        try:
            self._finish_part(output)
        except OSError as failure:
            self._failed(failure)

    def _failed(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or failure

    def _finish_part(self, output: _Output) -> None:
        with self._lock:
            output.parts -= 1
            if output.parts:
                return
        try:
            set_attributes(output.fd, output.name, output.record, output.fd, self._tally.missed)
            if self._sync:
                self._repository.disk.fsync("restore:file", output.fd)
        finally:
            os.close(output.fd)
        self._tally.made(files=1)

    def raise_failure(self) -> None:
        """Raise the first failure of a thread, if there was one."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Wait for the parts that are under way; after a failure the others are cancelled."""
        self._pool.shutdown(wait=True, cancel_futures=self._failure is not None)
