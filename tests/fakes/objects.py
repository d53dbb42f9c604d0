"""An in-memory object store with the methods of `Repository` and `Transaction` that the tables use.

It is strict where the real one is forgiving: what it is given as a base must exist and be of the same kind.
"""

from __future__ import annotations

import threading

import xxhash

from snapfs.blocks import Number
from snapfs.errors import CorruptionError
from snapfs.store.format import NULL, Kind, Pointer


class MemoryObjects:
    def __init__(self, seed: int = 7) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self.plain: dict[int, bytes] = {}
        self.kinds: dict[int, Kind] = {}
        self.bases: dict[int, Pointer | None] = {}
        self.reads: list[int] = []
        """Numbers of the objects read, in order; a test clears it."""

    def read(self, pointer: Pointer, /) -> bytes:
        self.reads.append(pointer.number)
        plain = self.plain.get(pointer.number)
        if plain is None:
            raise CorruptionError(f"object {pointer.number:016x}", "memory", "there is no such object")
        if self._proof(plain) != pointer.proof:
            raise CorruptionError(f"object {pointer.number:016x}", "memory", "not what its proof says")
        return plain

    def put_page(self, kind: Kind, plain: bytes, base: Pointer | None, /) -> Pointer:
        if base is not None:
            assert self.kinds[base.number] == kind, (base, kind)
        return self.put(kind, plain, base)

    def put_chunk(self, plain: bytes, base: Pointer | None = None) -> Pointer:
        if not plain.strip(b"\0"):
            return NULL
        return self.put(Kind.CHUNK, plain, base)

    def put(self, kind: Kind, plain: bytes, base: Pointer | None) -> Pointer:
        assert plain
        with self._lock:
            number = Number(len(self.plain) + 1)
            self.plain[number], self.kinds[number], self.bases[number] = plain, kind, base
        return Pointer(number, self._proof(plain))

    def _proof(self, plain: bytes) -> bytes:
        return xxhash.xxh3_128_digest(plain, self._seed)
