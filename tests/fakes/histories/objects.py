"""An in-memory object store with the methods of `Repository` and `Transaction` that the tables use.

It is strict where the real one is forgiving: what it is given as a base must exist and be of the same kind.
"""

from __future__ import annotations

import threading

import xxhash

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import NULL, ObjectKind, Pointer


class MemoryObjects:
    def __init__(self, seed: int = 7) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self.plain: dict[int, bytes] = {}
        self.kinds: dict[int, ObjectKind] = {}
        self.bases: dict[int, Pointer | None] = {}
        self.reads: list[int] = []
        """Numbers of the objects read, in order; a test clears it."""

    def read(self, pointer: Pointer, /) -> bytes:
        self.reads.append(pointer.number)
        plain = self.plain.get(pointer.number)
        if plain is None:
            raise CorruptionError(f"object {pointer.number:016x}", "memory", "there is no such object")
        if self._content_hash(plain) != pointer.content_hash:
            raise CorruptionError(f"object {pointer.number:016x}", "memory", "not what its content hash says")
        return plain

    def put_page(self, kind: ObjectKind, plain: bytes, base: Pointer | None, /) -> Pointer:
        if base is not None:
            assert self.kinds[base.number] == kind, (base, kind)
        return self.put(kind, plain, base)

    def put_chunk(self, plain: bytes, base: Pointer | None = None) -> Pointer:
        if not plain.strip(b"\0"):
            return NULL
        return self.put(ObjectKind.CHUNK, plain, base)

    def put(self, kind: ObjectKind, plain: bytes, base: Pointer | None) -> Pointer:
        assert plain
        with self._lock:
            number = Number(len(self.plain) + 1)
            self.plain[number], self.kinds[number], self.bases[number] = plain, kind, base
        return Pointer(number, self._content_hash(plain))

    def _content_hash(self, plain: bytes) -> bytes:
        return xxhash.xxh3_128_digest(plain, self._seed)
