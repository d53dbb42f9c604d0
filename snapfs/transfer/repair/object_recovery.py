"""Recovers lost objects: the live tree and the neighbouring snapshots often still have what a damaged object held.

Every result is a guess that is compared with the content hash of the lost object. A guess that does not match is
discarded, so the live tree may be changed meanwhile.

- `LiveChunks` (live_chunks.py): a chunk is read from the live file, at the place that points to it.
- `SiblingPages` (sibling_pages.py): a page of a radix table or of inodes is put together from the pages of other
  snapshots at the same place: each of its slots is mostly that of the snapshot before or after.
- `LivePages` (live_pages.py): the tables of the whole live tree are made anew by the code that seals, with
  `ObjectRecovery` as a writer that stores nothing: pages whose content hash is that of a stored object get its number,
  and those whose content hash is that of a lost object are found. It reads the files that differ from every readable
  snapshot, or whose map is lost.

Invariants:
1. Nothing is changed, neither in the store nor in the live tree.
2. Memory: the content hashes of stored objects (`MAX_KNOWN` at most, the newest), the pages of what changed, what was
   found.
"""

from __future__ import annotations

import contextlib
from typing import Final

from snapfs.base.blocks import Number
from snapfs.base.errors import SnapfsError
from snapfs.store.objects import codec
from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.repair.repair_candidates import RepairCandidates
from snapfs.store.repository.repair_writer import RepairContent
from snapfs.store.repository.repository import Repository

MAX_KNOWN: Final = 2_000_000
_FIRST_GUESS: Final = 1 << 63  # numbers for objects that are not stored

LostObjects = dict[Number, RepairCandidates]


class ObjectRecovery:
    """An `ObjectWriter` that stores nothing. `found`: contents of lost objects, by number. One thread."""

    def __init__(self, repository: Repository, lost: LostObjects) -> None:
        self._repository = repository
        self._content_hash_of = repository.objects.content_hash_of
        self._wanted: dict[bytes, list[RepairCandidates]] = {}
        for each in lost.values():
            self._wanted.setdefault(each.pointer.content_hash, []).append(each)
        self._numbers = self._known_numbers()
        self._made: dict[Number, bytes] = {}
        self._next = _FIRST_GUESS
        self.found: dict[Number, RepairContent] = {}

    def _known_numbers(self) -> dict[bytes, Number]:
        known: dict[bytes, Number] = {}
        for info in reversed(self._repository.index.segments()):
            with contextlib.suppress(SnapfsError, OSError):
                reader = self._repository.index.reader(info.first)
                for row in reader.rows() if reader is not None and len(known) < MAX_KNOWN else ():
                    known.setdefault(row.content_hash, row.number)
        return known

    def read(self, pointer: Pointer, /) -> bytes:
        """The content of a stored object, or of a page that was put here."""
        made = self._made.get(pointer.number)
        return made if made is not None else self._repository.read(pointer)

    def put_page(self, kind: ObjectKind, plain: bytes, base: Pointer | None, /) -> Pointer:
        """The pointer of a page with this content."""
        content_hash = self._content_hash_of(plain)
        pointer = self._recover(kind, plain, content_hash)
        if pointer.number >= _FIRST_GUESS or pointer.number in self.found:
            self._made[pointer.number] = plain
        return pointer

    def chunk(self, plain: bytes) -> Pointer:
        """The pointer of a chunk with this content."""
        return NULL if codec.is_zero(plain) else self._recover(ObjectKind.CHUNK, plain, self._content_hash_of(plain))

    def lost_with(self, content_hash: bytes) -> list[RepairCandidates]:
        """The lost objects with this content hash."""
        return self._wanted.get(content_hash, [])

    def _recover(self, kind: ObjectKind, plain: bytes, content_hash: bytes) -> Pointer:
        for lost in self.lost_with(content_hash):
            self.found[lost.pointer.number] = RepairContent(lost.kind, plain)
        wanted = self.lost_with(content_hash)
        number = wanted[0].pointer.number if wanted else self._numbers.get(content_hash)
        if number is None:
            number, self._next = Number(self._next), self._next + 1
        return Pointer(number, content_hash)
