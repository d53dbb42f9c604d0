"""The store side of what is absent: files whose bytes, and directories whose names, are still only in the store.

A clone's files begin like this, and everything but the root of a volume that was mounted from elsewhere. The live tree
reads bytes (`read`, `fill`) and names from here.

Invariants:
1. An `origin` locates a file's content without any other table: size, height and pointer of its block map; a `listing`
   locates a directory's names. Since segments are never changed, both stay valid as long as their snapshot is held.
2. Every byte returned was checked against its content hash.
3. Objects that may have to be fetched are requested together: a level of a table at a time, never one by one.

ORIGIN (34 bytes, little-endian): version 1 (1), height (1), size (8), object number (8), content hash (16).
LISTING (25 bytes): version 1 (1), object number (8), content hash (16).
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from snapfs.base.blocks import CHUNK_SIZE, Ino, Number, chunk_count
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.base.limits import clamp_time
from snapfs.live.database.namespace_rows import AbsentFile, LoadedEntry
from snapfs.store.objects.format import NULL, Pointer
from snapfs.store.tables import inode_table, radix
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.store.tables.table_pages import ObjectReader, Pages
from snapfs.transfer.common.inode_records import row_of
from snapfs.transfer.common.sparse_copy import write_chunks

ORIGIN_VERSION = 1
_ORIGIN = struct.Struct("<BBQQ16s")
_LISTING = struct.Struct("<BQ16s")
FIRST_AHEAD, MOST_AHEAD = 4, 64
"""Chunks that are fetched ahead of a sequential reader: the window is doubled each time it was right."""
_READERS_KNOWN = 256
BEGINNINGS, BEGINNINGS_BYTES = 512, 8 << 20
"""Limits of fetching the beginnings of a directory's files ahead: files, and their size together."""
GROUP = 8
"""Chunks that one thread decodes at a time."""
_ZERO = bytes(CHUNK_SIZE)

Pointers = Sequence[Pointer]


def origin_of(record: InodeRecord) -> bytes:
    """The origin of a regular file's content."""
    return _ORIGIN.pack(ORIGIN_VERSION, record.height, record.size, *record.content)


def absent_of(record: InodeRecord) -> AbsentFile:
    """A regular file of a snapshot, none of whose bytes are in the live tree."""
    return AbsentFile(record.size, clamp_time(record.mtime_ns), clamp_time(record.ctime_ns), origin_of(record))


def sized(plain: bytes, size: int, index: int) -> bytes:
    """The content of a chunk in its full length, which ends with the file."""
    length = min(size - index * CHUNK_SIZE, CHUNK_SIZE)
    return plain if len(plain) == length else (plain + _ZERO)[:length]


def listing_of(record: InodeRecord) -> bytes:
    """The listing of a directory of a snapshot."""
    return _LISTING.pack(ORIGIN_VERSION, *record.content)


def record_of(ino: Ino, origin: bytes) -> InodeRecord:
    """A record with that content and no other attributes. Raises CorruptionError, VersionError."""
    if origin[:1] > bytes([ORIGIN_VERSION]):
        raise VersionError(f"the origin of inode {ino} is of a later format; use a newer snapfs")
    if len(origin) != _ORIGIN.size:
        raise CorruptionError(f"the origin of inode {ino}", "the namespace", f"it has {len(origin)} bytes")
    _, height, size, number, content_hash = _ORIGIN.unpack(origin)
    return _record_with(ino, stat.S_IFREG, size, Pointer(Number(number), content_hash), height)


def _directory_of(listing: bytes) -> InodeRecord:
    if len(listing) != _LISTING.size or listing[0] != ORIGIN_VERSION:
        raise CorruptionError("the place of a directory's names", "the namespace", f"it has {len(listing)} bytes")
    _, number, content_hash = _LISTING.unpack(listing)
    return _record_with(Ino(1), stat.S_IFDIR, 0, Pointer(Number(number), content_hash), 0)


def _record_with(ino: Ino, kind: int, size: int, content: Pointer, height: int) -> InodeRecord:
    return InodeRecord(
        ino=ino,
        mode=kind | 0o600,
        uid=0,
        gid=0,
        nlink=1,
        rdev=0,
        size=size,
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
        content=content,
        height=height,
    )


def pointers_at(
    pages: Pages, root: Pointer, height: int, indices: Iterable[int], ready: Callable[[Pointers], None]
) -> list[Pointer]:
    """The pointers of a radix table at these indices, ascending, without holes. Each level's pages are requested
    together.
    """
    nodes = {0: root}  # by index >> BITS * level
    wanted = sorted(index for index in set(indices) if not index >> radix.BITS * height)
    for level in range(height, 0, -1):
        ready([pointer for pointer in nodes.values() if pointer.number])
        below: dict[int, Pointer] = {}
        for index in {each >> radix.BITS * (level - 1) for each in wanted}:
            above = nodes.get(index >> radix.BITS, NULL)
            rows = radix.load_rows(pages, above, level) if above.number else []
            slot = index & radix.FANOUT - 1
            below[index] = rows[slot] if slot < len(rows) else NULL
        nodes = below
    return [nodes[index] for index in wanted if nodes.get(index, NULL).number]


def _beginnings(entries: Iterable[LoadedEntry]) -> list[Pointer]:
    """The beginnings of the small regular files among them: the one chunk, or the one page of the block map."""
    found: list[Pointer] = []
    room = BEGINNINGS_BYTES
    for entry in entries:
        record = record_of(entry.inode.ino, entry.absent.origin) if entry.absent is not None else None
        if record is None or not record.content.number or record.height > 1:
            continue
        room -= record.size if record.height == 0 else 0
        if room < 0 or len(found) == BEGINNINGS:
            break
        found.append(record.content)
    return found


class StoreSource:
    """A `ContentSource` on a store. As thread-safe as its reader."""

    def __init__(
        self,
        reader: ObjectReader,
        tree: SnapshotTree,
        *,
        ready: Callable[[Pointers], None] = lambda pointers: None,
        ahead: Callable[[Pointers], None] | None = None,
        ready_later: Callable[[Pointers], None] | None = None,
        pool: Executor | None = None,
    ) -> None:
        """`tree` is any snapshot of the same store: block maps are read through its page cache. For `names` it is one
        in which the unloaded directories are as they were.

        `ready` returns when these objects can be read without waiting, and `ready_later` the same where no application
        waits; `ahead` begins to fetch them. Where many chunks are wanted they are decoded by the threads of `pool`.
        """
        self._reader, self._tree = reader, tree
        self._ready, self._ahead = ready, ahead
        self._ready_later = ready_later or ready
        self._pool = pool
        self._next: OrderedDict[Ino, tuple[int, int]] = OrderedDict()  # where a reader will be, and its window
        self._lock = threading.Lock()

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`, clipped at the end. Raises CorruptionError, OSError."""
        record = record_of(ino, origin)
        end = min(offset + size, record.size)
        if offset < end:
            self._ready(self._chunks(record, offset // CHUNK_SIZE, chunk_count(end)))
            self._look_ahead(record, offset, end)
        return self._tree.read(record, offset, size)

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        """Write all of the content into the empty file `fd`, holes as holes. Nothing is synced."""
        record = record_of(ino, origin)
        os.ftruncate(fd, record.size)
        count = chunk_count(record.size)
        for first in range(0, count, MOST_AHEAD):
            stop = min(first + MOST_AHEAD, count)
            self._ready(self._chunks(record, first, stop))
            write_chunks(self._reader, fd, self._tree.chunks(record, first, stop), record.size)

    def chunks(self, ino: Ino, origin: bytes, first: int, count: int, urgent: bool) -> list[tuple[int, bytes]]:
        """These chunks, whole but for the last one of the file, holes as zeros. Raises CorruptionError, OSError."""
        record = record_of(ino, origin)
        ready, stop = self._ready if urgent else self._ready_later, min(first + count, chunk_count(record.size))
        ready(pointers_at(self._tree.pages, record.content, record.height, range(first, stop), ready))
        found = dict(self._tree.chunks(record, first, stop))
        pointers = list(found.values())
        groups = [pointers[at : at + GROUP] for at in range(0, len(pointers), GROUP)]
        plains = (plain for group in self._read_groups(groups) for plain in group)
        contents: dict[int, bytes] = dict(zip(found, plains, strict=True))
        return [(index, sized(contents.get(index, b""), record.size, index)) for index in range(first, stop)]

    def _read_groups(self, groups: list[list[Pointer]]) -> Iterable[list[bytes]]:
        if self._pool is not None and len(groups) > 1:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                return list(self._pool.map(self._read_group, groups))
        return map(self._read_group, groups)

    def _read_group(self, pointers: list[Pointer]) -> list[bytes]:
        return [self._reader.read(pointer) for pointer in pointers]

    def names(self, listing: bytes, wanted: bool = False) -> list[LoadedEntry]:
        """All names of a directory, with all that is known of their inodes. Raises CorruptionError, OSError.

        `wanted`: begin to fetch the beginnings of its small files. An application that lists a directory opens some of
        them next, one after the other, and would wait a round trip for each.
        """
        directory, root = _directory_of(listing), self._tree.root
        entries = list(self._tree.entries(directory))
        pages = pointers_at(
            self._tree.pages, root.table, root.height, (entry.ino >> inode_table.BITS for entry in entries), self._ready
        )
        self._ready(pages)
        found = [self._entry(entry.name, entry.ino) for entry in entries]
        if wanted and self._ahead is not None:
            self._ahead(_beginnings(found))
        return found

    def _entry(self, name: bytes, ino: Ino) -> LoadedEntry:
        record = self._tree.inode(ino)
        if record is None:
            raise CorruptionError(f"inode {ino}", "the snapshot", "it has a name and no record")
        return LoadedEntry(
            name,
            row_of(record),
            record.xattrs,
            absent_of(record) if stat.S_ISREG(record.mode) else None,
            listing_of(record) if stat.S_ISDIR(record.mode) else None,
        )

    def _chunks(self, record: InodeRecord, first: int, stop: int) -> list[Pointer]:
        return pointers_at(self._tree.pages, record.content, record.height, range(first, stop), self._ready)

    def _look_ahead(self, record: InodeRecord, offset: int, end: int) -> None:
        """Begin to fetch what a sequential reader reads next."""
        if self._ahead is None:
            return
        with self._lock:
            expected, window = self._next.pop(record.ino, (-1, FIRST_AHEAD // 2))
            in_order = expected == offset
            window = min(window * 2, MOST_AHEAD) if in_order else FIRST_AHEAD // 2
            self._next[record.ino] = end, window
            if len(self._next) > _READERS_KNOWN:
                self._next.popitem(last=False)
        if in_order:
            first = chunk_count(end)
            self._ahead(self._chunks(record, first, min(first + window, chunk_count(record.size))))
