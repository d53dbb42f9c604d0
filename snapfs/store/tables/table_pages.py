"""What all pages of a snapshot's tables have in common: how they are read, checked, kept decoded and written.

A snapshot is a root page and, below it, Merkle tables whose pages point to pages (and at the bottom to chunks) by
number and content hash. Each page is an object of its own; the layouts stand in the modules that own them:

    radix.py      MAP        pointers by index: block maps, and the inner pages of the inode table
    inode_table.py     INODES     the records of up to 32 neighbouring inodes
    directory_table.py  ENTRIES, BRANCHES   a directory's sorted names, and the pages above them
    snapshot.py   ROOT       where everything begins

PAGE HEADER (8 bytes, little-endian; first in every page)
    0  type      1  PageType
    1  version   1  of the page's layout, 1 today
    2  level     1  height above the bottom of its table; 0 where a type has only one
    3  reserved  1  zero
    4  count     4  of the rows that follow

Invariants:
1. A page is never changed. A table is changed by writing new pages from the bottom up, and each is given the page
   that it takes the place of as its base, so that the store can keep the difference only.
2. A page whose bytes come out as before keeps its old pointer: two snapshots share every page that did not change.
3. Every page is bounded: a few KiB, some tens of KiB in the worst case (inodes full of symlink targets and xattrs).
4. Decoding trusts nothing: whatever is not exactly a page raises CorruptionError, and allocates no more than a small
   multiple of the bytes that are there. A later version raises VersionError.

No step here is durable by itself: pages of a transaction that never commits belong to no snapshot.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.objects.format import ObjectKind, Pointer

HEADER: Final = struct.Struct("<BBBxI")
PAGE_VERSION: Final = 1
CACHE_BYTES: Final = 2 << 20
"""Plain bytes of the pages that one tree keeps decoded: all of the block map of a file of 5 GB, or the upper pages of
far more. Decoded they take about six times as much."""

Page = TypeVar("Page")


class PageType(IntEnum):
    MAP = 1
    INODES = 2
    ENTRIES = 3
    BRANCHES = 4
    ROOT = 5


class ObjectReader(Protocol):
    """Where objects come from: a repository, or a transaction that also knows its own."""

    def read(self, pointer: Pointer, /) -> bytes:
        """The plain content, checked against the pointer's content hash. Raises CorruptionError. Thread-safe."""


@runtime_checkable
class PartReader(Protocol):
    """An object reader that reads a part of a chunk at the cost of that part."""

    def read_part(self, pointer: Pointer, start: int, size: int, /) -> bytes:
        """`read(pointer)[start : start + size]`. Thread-safe."""


class ObjectWriter(ObjectReader, Protocol):
    """Where new pages go."""

    def put_page(self, kind: ObjectKind, plain: bytes, base: Pointer | None, /) -> Pointer:
        """Store a page, or find it stored; `base` is an earlier version of it."""


def damaged(pointer: Pointer, why: str) -> CorruptionError:
    """The error for a page that was read in full and still is no page."""
    return CorruptionError(f"object {pointer.number:016x}", "the store", why)


def page_header(page_type: PageType, level: int, count: int) -> bytes:
    return HEADER.pack(page_type, PAGE_VERSION, level, count)


def open_page(pointer: Pointer, plain: bytes, page_type: PageType) -> tuple[int, int]:
    """Check a page's header and give (level, count). Raises CorruptionError or VersionError."""
    if len(plain) < HEADER.size:
        raise damaged(pointer, f"{len(plain)} bytes are no page")
    found, version, level, count = HEADER.unpack_from(plain)
    if found != page_type:
        raise damaged(pointer, f"a page of type {found} where one of type {page_type} belongs")
    if version > PAGE_VERSION:
        raise VersionError(
            f"object {pointer.number:016x} has layout version {version}; this snapfs reads up to {PAGE_VERSION}: "
            "use a newer snapfs"
        )
    return level, count


class Pages:
    """Reads pages and keeps the recently used ones decoded, up to `cache_bytes` of plain content. Thread-safe."""

    def __init__(self, reader: ObjectReader, cache_bytes: int = CACHE_BYTES) -> None:
        self._reader = reader
        self._limit = cache_bytes
        self._used = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Pointer, Callable[..., Any]], tuple[Any, int]] = OrderedDict()

    def get(self, pointer: Pointer, decode: Callable[[Pointer, bytes], Page]) -> Page:
        """The page behind `pointer`, as `decode` understands it. Raises CorruptionError and VersionError."""
        key = (pointer, decode)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                page: Page = kept[0]
                return page
        plain = self._reader.read(pointer)
        page = decode(pointer, plain)
        self._keep(key, page, len(plain))
        return page

    def read(self, pointer: Pointer) -> bytes:
        """The plain content of an object that is not worth keeping here, such as a chunk."""
        return self._reader.read(pointer)

    def read_part(self, pointer: Pointer, start: int, size: int) -> bytes:
        """`read(pointer)[start : start + size]`, cheaper where the reader can."""
        if isinstance(self._reader, PartReader):
            return self._reader.read_part(pointer, start, size)
        return self._reader.read(pointer)[start : start + size]

    def check_invariants(self) -> None:
        with self._lock:
            assert self._used == sum(size for _, size in self._kept.values())
            assert self._used <= self._limit or len(self._kept) == 1

    def _keep(self, key: tuple[Pointer, Callable[..., Any]], page: object, size: int) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = (page, size)
            self._used += size
            while self._used > self._limit and len(self._kept) > 1:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._used -= dropped
