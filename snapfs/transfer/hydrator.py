"""The store side of absent files: regular files whose bytes are still only in the store.

A clone's files begin like this. The live tree asks here for bytes (`read`) and, before the first write to a file,
for all of them (`fill`); what it does with them, and in which order, is its own business.

Invariants:
1. An `origin` says where a file's content is without any other table: size, height and pointer of its block map.
   Since segments are never changed, it stays true as long as the snapshot it came from is held.
2. Every byte handed out was checked against its proof.

ORIGIN (34 bytes, little-endian): version 1 (1), height (1), size (8), object number (8), proof (16).
"""

from __future__ import annotations

import os
import struct

from snapfs.blocks import Ino, Number
from snapfs.errors import CorruptionError, VersionError
from snapfs.store.format import Pointer
from snapfs.store.snapshot import InodeRecord, SnapshotTree
from snapfs.store.tables import ObjectReader
from snapfs.transfer.sparse import write_chunks

ORIGIN_VERSION = 1
_ORIGIN = struct.Struct("<BBQQ16s")


def origin_of(record: InodeRecord) -> bytes:
    """The origin of a regular file's content."""
    return _ORIGIN.pack(ORIGIN_VERSION, record.height, record.size, *record.content)


def record_of(ino: Ino, origin: bytes) -> InodeRecord:
    """A record with that content and no other attributes. Raises CorruptionError, VersionError."""
    if origin[:1] > bytes([ORIGIN_VERSION]):
        raise VersionError(f"the origin of inode {ino} is of a later format; use a newer snapfs")
    if len(origin) != _ORIGIN.size:
        raise CorruptionError(f"the origin of inode {ino}", "the namespace", f"it has {len(origin)} bytes")
    _, height, size, number, proof = _ORIGIN.unpack(origin)
    return InodeRecord(
        ino=ino,
        mode=0o100600,
        uid=0,
        gid=0,
        nlink=1,
        rdev=0,
        size=size,
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
        content=Pointer(Number(number), proof),
        height=height,
    )


class StoreSource:
    """A `ContentSource` on a store. Thread-safe as the reader is."""

    def __init__(self, reader: ObjectReader, tree: SnapshotTree) -> None:
        """`tree` is any snapshot of the same store: block maps are read through its page cache."""
        self._reader = reader
        self._tree = tree

    def read(self, ino: Ino, origin: bytes, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`, clipped at the end. Raises CorruptionError, OSError."""
        return self._tree.read(record_of(ino, origin), offset, size)

    def fill(self, ino: Ino, origin: bytes, fd: int) -> None:
        """Write all of the content into the empty file `fd`, holes as holes. Nothing is synced."""
        record = record_of(ino, origin)
        os.ftruncate(fd, record.size)
        write_chunks(self._reader, fd, self._tree.chunks(record), record.size)
