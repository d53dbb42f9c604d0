"""Objects that are expected from a source, and the check that what arrives is what is expected.

Invariant: content is accepted only if it decodes, with its bases, to its own content hash, and if that is the content
hash of the pointer that it was requested by.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import xxhash

from snapfs.base.blocks import Number
from snapfs.base.errors import SnapfsError
from snapfs.store.lazy.lazy_objects import LazyObjects
from snapfs.store.objects import payload_types
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.payload_types import Bases
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.sources.source_pool import SourceState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class FetchedBatch:
    """Objects that were fetched in bulk. Those without a plain content are not checked yet, since their bases are not
    here: `Fetcher.check` when they are."""

    items: dict[Number, Item] = field(default_factory=dict)
    plains: dict[Number, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class PendingObjects:
    """Objects that one thread requests. `left`: those that have not arrived."""

    left: dict[Number, Pointer]
    batch: FetchedBatch | None = None
    """Where they go, if the caller keeps them; else they are kept by the fetcher."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left but objects that may be missing at all sources."""
        return not self.left or (self.batch is not None and not any(each.content_hash for each in self.left.values()))


class ObjectCheck:
    """Decodes and checks objects against the store of one repository. Any thread."""

    def __init__(self, objects: LazyObjects) -> None:
        self._objects, self._seed = objects, objects.seed

    def content(self, item: Item) -> bytes:
        """The content of an object whose bases are all here. Raises OSError (EIO) if it is damaged."""
        try:
            bases = Bases(*map(self._objects.full_plain, item.bases_in_order()))
            plain = item.decode(bases)
        except (payload_types.DecodeError, SnapfsError) as error:
            raise OSError(errno.EIO, f"object {item.frame.number:#x} cannot be decoded: {error}") from None
        if not self._has_its_hash(item, plain):
            raise OSError(errno.EIO, f"object {item.frame.number:#x} is damaged at its source")
        return plain

    def accepted(self, item: Item, pending: PendingObjects, plains: dict[Number, bytes]) -> bytes | None:
        """The content of an object that arrived, if it is what was requested or a base of that; else None.

        `plains`: contents that arrived before, for bases. Raises codec.DecodeError, SnapfsError, OSError.
        """
        if not self._is_expected(item, pending):
            return None
        numbers = item.bases_in_order()
        bases = None if not numbers[0] else Bases(*(self._base(each, plains) for each in numbers))
        plain = item.decode(bases)
        if not self._has_its_hash(item, plain):
            log.error("object %#x is damaged at its source; it is not taken", item.frame.number)
            return None
        return plain

    def collect(self, items: Iterable[Item], pending: PendingObjects, batch: FetchedBatch, state: SourceState) -> None:
        """Put the requested ones of the items into `batch`. Raises codec.DecodeError, SnapfsError, OSError."""
        for item in items:
            number = item.frame.number
            if item.is_absent or number not in pending.left or not self._is_expected(item, pending):
                continue
            plain = self._decoded(item, batch)
            if plain is not None:
                if not self._has_its_hash(item, plain):
                    log.error("object %#x is damaged at its source; it is not taken", number)
                    continue
                batch.plains[number] = plain
            batch.items[number] = item
            del pending.left[number]
            state.count(item)

    def _is_expected(self, item: Item, pending: PendingObjects) -> bool:
        wanted = pending.left.get(item.frame.number)
        if wanted is None or wanted.content_hash in (b"", item.content_hash):
            return True
        log.error("object %#x has another content hash than it must have; it is not taken", item.frame.number)
        return False

    def _has_its_hash(self, item: Item, plain: bytes) -> bool:
        return xxhash.xxh3_128_digest(plain, self._seed) == item.content_hash

    def _decoded(self, item: Item, batch: FetchedBatch) -> bytes | None:
        """The content; None if a base is not here."""
        if not item.frame.base:
            return item.decode(None)
        bases = []
        for number in item.bases_in_order():
            known = batch.plains.get(number)
            if known is not None:
                bases.append(known)
            elif not number or self._objects.places.has(number):
                bases.append(self._objects.full_plain(number))
            else:
                return None
        return item.decode(Bases(*bases))

    def _base(self, number: Number, plains: dict[Number, bytes]) -> bytes:
        found = plains.get(number)
        return found if found is not None else self._objects.full_plain(number)
