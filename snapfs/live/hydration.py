"""Brings absent files in: regular files whose bytes are still only in the store.

A file is *absent* as a whole: an `absent` row and no backing file. It is *partly present*: a row, a backing file, and a
presence (presence.py). Else it is present, and a row that is left over counts for nothing.

A small file is fetched whole before its first change. A large one only gets a sparse backing file of its size and
times; what is read comes from the store, what is written half is fetched first, and the background brings the rest.

Invariants:
1. A backing file without a presence is complete and durable, with its name, before anything may write to it; so where
   there are both row and file, the file wins. A presence is durable before its backing file exists, and goes only when
   all of the file is durable.
2. One thread fills a chunk or a small file; others that need it wait for that one.
3. `FileState.absent` is None only for a complete file. Where it is a `Presence` the steps of a change are those of any
   file; that the chunks it touches are here is seen to before.

A crash leaves a staged file or a presence without its file, which are removed when the tree is opened, or a row.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from snapfs.blocks import CHUNK_SIZE, Ino, begin_writing, chunk_count
from snapfs.live.backing import Backing
from snapfs.live.presence import Presence
from snapfs.live.records import AbsentFile, LoadedEntry

SMALL_BYTES = 4 * CHUNK_SIZE
"""Up to here a file is fetched whole: a presence costs two flushes more, and pays where much need not be waited for."""
WHOLE_BYTES = 64 * CHUNK_SIZE
"""Up to here the background makes a file that nobody has begun whole, with others: a presence takes six flushes."""
PIECE_CHUNKS = 64


class ContentSource(Protocol):
    """The store's side of absent files. OSError if the store cannot deliver."""

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        """Up to `size` bytes from byte `offset`, fewer only at the end of the file."""

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        """Write the whole content to `fd`, an empty file; holes may be left out."""

    def chunks(self, ino: Ino, origin: bytes, first: int, count: int, urgent: bool) -> list[tuple[int, bytes]]:
        """So many chunks from `first` on, each with its number and whole content. `urgent`: an application waits."""

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        """All names of a directory. `wanted`: by an application, which may soon open some of its files."""


@dataclass(slots=True)
class _Turn:
    """Whose turn it is to fill a file; there until nobody waits for it any more."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Hydrator:
    """All methods from any thread. `arrived` collects the files whose rows are left over."""

    def __init__(self, backing: Backing, source: ContentSource | None, boot_id: str = "") -> None:
        self.backing = backing
        self.source = source
        self.arrived: deque[Ino] = deque()
        self.partial: dict[Ino, Presence] = {}
        self.written_bytes = 0
        self._boot_id = boot_id
        self._filling: dict[Ino, _Turn] = {}
        self._lock = threading.Lock()

    @property
    def folder(self) -> str:
        return os.path.join(self.backing.live_dir, "presence")

    def path(self, ino: Ino) -> str:
        """Of the presence of a file."""
        return os.path.join(self.folder, f"{ino:x}")

    def open(self, find_absent: Callable[[Ino], AbsentFile | None]) -> None:
        """Take up what the last life left, and remove what means nothing. Before anything else of the tree is used."""
        disk = self.backing.disk
        with contextlib.suppress(FileExistsError):
            disk.mkdir("presence:make", self.folder)
            disk.sync_dir("presence:make", self.backing.live_dir)
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            ino = Ino(int(name, 16)) if name.isalnum() else Ino(0)
            absent = find_absent(ino) if ino else None
            if absent is None or not os.path.exists(self.backing.path(ino)):
                disk.unlink("presence:leftover", path)
                continue
            presence = Presence.load(path, absent, disk, self._boot_id)
            if presence.interrupted_times is not None:
                os.utime(self.backing.path(ino), ns=presence.interrupted_times)
                presence.note_times(None)
            presence.cut_off(os.stat(self.backing.path(ino)).st_size)
            self.partial[ino] = presence

    # -- reading

    def read(self, ino: Ino, absent: AbsentFile | Presence, offset: int, size: int, file_size: int) -> bytes:
        """Bytes of a file that is not complete, of `file_size` bytes now. EIO without a source."""
        size = min(size, file_size - offset)
        if size <= 0:
            return b""
        if isinstance(absent, AbsentFile):
            return self._source().read(ino, absent.origin, offset, size)
        return b"".join(self._pieces(ino, absent, offset, offset + size))

    def _pieces(self, ino: Ino, presence: Presence, start: int, end: int) -> list[bytes]:
        """The range, as runs of chunks that are here and of others that are not."""
        found = []
        while start < end:
            here = not presence.is_absent(start // CHUNK_SIZE)
            stop = (start // CHUNK_SIZE + 1) * CHUNK_SIZE
            while stop < end and presence.is_absent(stop // CHUNK_SIZE) is not here:
                stop += CHUNK_SIZE
            stop = min(stop, end)
            piece = self._present(ino, start, stop) if here else self._origin(ino, presence, start, stop)
            found.append(piece.ljust(stop - start, b"\0"))
            start = stop
        return found

    def _present(self, ino: Ino, start: int, stop: int) -> bytes:
        with self.backing.descriptors.borrow(ino) as fd:
            return os.pread(fd, stop - start, start)

    def _origin(self, ino: Ino, presence: Presence, start: int, stop: int) -> bytes:
        return self._source().read(ino, presence.origin, start, min(stop, presence.size) - start)

    # -- bringing in

    def fetch(self, ino: Ino, absent: AbsentFile, empty: bool = False, whole: bool = False) -> Presence | None:
        """Let the file be changed. None: it is present now; or, of a large one, what is known of it.

        `empty`: just size and times, its bytes being dropped anyhow. `whole`: all of it, however large.
        """
        with self._turn(ino):
            if not os.path.exists(self.backing.path(ino)):
                if not empty and not whole and absent.size > SMALL_BYTES:
                    self._source()
                    self.partial[ino] = self._begin(ino, absent)
                else:
                    self._make(ino, absent, None if empty else self._source())
                    self.arrived.append(ino)
            return self.partial.get(ino)

    @contextlib.contextmanager
    def _turn(self, ino: Ino) -> Iterator[None]:
        with self._lock:
            turn = self._filling.setdefault(ino, _Turn())
            turn.users += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:
                    del self._filling[ino]

    def _begin(self, ino: Ino, absent: AbsentFile) -> Presence:
        presence = Presence.create(self.path(ino), absent, self.backing.disk, self._boot_id)
        self._make(ino, absent, None)
        return presence

    def _make(self, ino: Ino, absent: AbsentFile, source: ContentSource | None) -> None:
        """Make the backing file, durably, with its content if `source` is given."""
        disk, path = self.backing.disk, os.path.join(self.backing.staging, f"fill-{ino:x}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._write_all(ino, absent, source, fd)
            disk.fsync("hydrate:bytes", fd)
        finally:
            os.close(fd)
        self.backing.replace(ino, path, "hydrate:rename")
        self.backing.sync_name(ino)

    def make_many(self, files: Iterable[tuple[Ino, AbsentFile]]) -> None:
        """Make the backing files of absent files, with two flushes for all; what others make is left to them."""
        with contextlib.ExitStack() as turns:
            mine = [(ino, absent) for ino, absent in files if self._take_turn(turns, ino)]
            staged = {ino: os.path.join(self.backing.staging, f"fill-{ino:x}") for ino, _ in mine}
            try:
                for ino, absent in mine:
                    fd = os.open(staged[ino], os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                    try:
                        self.fill(ino, absent, fd)
                    finally:
                        os.close(fd)
                if mine:
                    self.backing.sync_all("hydrate:bytes")
                for ino, _ in mine:
                    self.backing.replace(ino, staged[ino], "hydrate:rename")
            except OSError:
                for path in staged.values():
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                raise
            if mine:
                self.backing.sync_all("hydrate:names")

    def _take_turn(self, turns: contextlib.ExitStack, ino: Ino) -> bool:
        """Whether it is ours now to make this file, until the end of `turns`."""
        with self._lock:
            turn = self._filling.setdefault(ino, _Turn())
            if not turn.lock.acquire(blocking=False):
                return False
            turn.users += 1
        turns.callback(self._end_turn, ino, turn)
        return not os.path.exists(self.backing.path(ino))

    def _end_turn(self, ino: Ino, turn: _Turn) -> None:
        turn.lock.release()
        with self._lock:
            turn.users -= 1
            if not turn.users:
                del self._filling[ino]

    def fill(self, ino: Ino, absent: AbsentFile, fd: int) -> None:
        """Write all of an absent file to `fd`, an empty file, with its size and times. Nothing is synced."""
        self._write_all(ino, absent, self._source(), fd)

    def _write_all(self, ino: Ino, absent: AbsentFile, source: ContentSource | None, fd: int) -> None:
        if source is not None:
            source.fill(ino, absent.origin, fd)
            self.written_bytes += absent.size
        os.ftruncate(fd, absent.size)
        os.utime(fd, ns=(absent.ctime_ns, absent.mtime_ns))

    def bring(self, ino: Ino, presence: Presence, chunks: list[int], urgent: bool = True) -> None:
        """Put these chunks into the backing file, those that are absent. OSError, CorruptionError."""
        source = self._source()
        for low in range(0, len(chunks), PIECE_CHUNKS):
            wanted = [chunk for chunk in chunks[low : low + PIECE_CHUNKS] if presence.is_absent(chunk)]
            runs = [source.chunks(ino, presence.origin, *run, urgent) for run in _runs(wanted)]
            pieces = [piece for run in runs for piece in run]
            self.supply(ino, presence, pieces)

    def supply(self, ino: Ino, presence: Presence, pieces: list[tuple[int, bytes]]) -> None:
        """Put chunks of the origin into the backing file, those that are absent. OSError."""
        with self.backing.descriptors.borrow(ino) as fd:
            self.written_bytes += presence.arrive(fd, pieces, os.fstat(fd).st_size)
            if pieces:
                begin_writing(fd, pieces[0][0] * CHUNK_SIZE, (pieces[-1][0] + 1 - pieces[0][0]) * CHUNK_SIZE)

    def finish(self, ino: Ino, presence: Presence) -> bool:
        """Whether all chunks are here; durably, then. The caller makes the state one of a whole file."""
        if presence.missing:
            return False
        noted = presence.noted()
        with self.backing.descriptors.borrow(ino) as fd:
            self.backing.disk.fsync("hydrate:whole", fd)
        presence.make_sure(noted)
        return True

    def drop(self, ino: Ino) -> None:
        """The file is complete, or gone: nothing is to be known of it any more."""
        presence = self.partial.pop(ino, None)
        if presence is not None:
            self.remove(presence)

    def remove(self, presence: Presence) -> None:
        """The file on disk. Left behind by a crash it says that all is here, or is of no file."""
        with contextlib.suppress(FileNotFoundError):
            self.backing.disk.unlink("presence:drop", presence.path)

    def settle(self, inos: set[Ino], settle: Callable[[], None]) -> None:
        """Run `settle`, which makes the bytes of these files durable, and make sure of what is in them."""
        noted = [(self.partial[ino], self.partial[ino].noted()) for ino in inos & self.partial.keys()]
        settle()
        for presence, bits in noted:
            presence.make_sure(bits)

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        """The names of an unloaded directory."""
        return self._source().names(listing, wanted)

    def _source(self) -> ContentSource:
        if self.source is None:
            raise OSError(5, "the bytes of this file are in a store that is not at hand")
        return self.source

    def check_invariants(self) -> None:
        for ino, presence in list(self.partial.items()):
            presence.check_invariants()
            assert os.path.exists(self.backing.path(ino)), ino
            size = os.stat(self.backing.path(ino)).st_size
            assert not presence.absent_chunks(chunk_count(size), limit=1), ino


def _runs(chunks: list[int]) -> list[tuple[int, int]]:
    """(first, count) of each run of neighbours."""
    runs: list[tuple[int, int]] = []
    for chunk in chunks:
        if runs and chunk == sum(runs[-1]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((chunk, 1))
    return runs
