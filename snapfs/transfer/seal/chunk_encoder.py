"""Reads the chunks of a batch as they were at the cut and encodes them: the part of a seal that runs in threads.

Invariants:
1. Nothing here lasts: it ends in `Encoded` objects, which the sealing thread numbers and appends in order.
2. What is still only in the store, a file or chunks of it, is taken over by its pointers: nothing of it is read.
"""

from __future__ import annotations

from snapfs.base.blocks import ChunkIndex
from snapfs.live.cut import FrozenFile
from snapfs.store.objects.codec import Similarity
from snapfs.store.objects.format import Pointer
from snapfs.store.repository.repository import Encoded, Transaction
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.seal.seal_plan import Batch, File

UNPAID_LIMIT = 3
"""After so many chunks in a row of which a difference was not smaller, no difference is tried for the batch's other
chunks that were written as a whole."""


class ChunkEncoder:
    """Encodes the chunks of one seal. Thread-safe."""

    def __init__(self, transaction: Transaction, parent: SnapshotTree | None) -> None:
        self._transaction, self._parent = transaction, parent

    def encode(self, batch: Batch) -> list[Encoded]:
        """Of each chunk of the batch. Raises OSError."""
        bases, moved, unpaid = self._bases(batch), batch.file.parent is None, 0
        similarity = self._similarity(batch)
        result = []
        for chunk in batch.chunks:
            encoded = self._taken_over(batch.file, chunk) or self._encode_chunk(
                batch.file.frozen, chunk, bases, moved,
                try_difference=unpaid < UNPAID_LIMIT or chunk in batch.partly,
                similar=similarity if chunk in batch.whole else None,
            )  # fmt: skip
            unpaid = 0 if encoded.pointer or encoded.is_next_version else unpaid + 1
            result.append(encoded)
        return result

    def _taken_over(self, file: File, chunk: ChunkIndex) -> Encoded | None:
        """The origin's own chunk, where that is all there is of it (invariant 2)."""
        if file.origin is None or not file.frozen.is_absent(chunk):
            return None
        return Encoded(file.chunk_of(file.origin, chunk))

    def _similarity(self, batch: Batch) -> Similarity | None:
        if not (batch.whole and batch.similar.number):
            return None
        return self._transaction.similarity(batch.similar, careful=batch.careful)

    def _bases(self, batch: Batch) -> dict[int, Pointer]:
        """What is known of the batch's chunks and their neighbours in the file they are versions of."""
        model, first, last = batch.file.model, batch.chunks[0], batch.chunks[-1]
        if model is None or self._parent is None:
            return {}
        if last - first > 4 * len(batch.chunks):
            return {chunk: self._parent.chunk(model, chunk) for chunk in batch.chunks}
        return dict(self._parent.chunks(model, max(first - 1, 0), last + 2))

    def _encode_chunk(
        self, frozen: FrozenFile, chunk: int, bases: dict[int, Pointer], moved: bool, *, try_difference: bool,
        similar: Similarity | None,
    ) -> Encoded:  # fmt: skip
        plain = frozen.read_chunk(ChunkIndex(chunk))
        before, after = (bases.get(chunk - 1), bases.get(chunk + 1)) if moved else (None, None)
        return self._transaction.encode_chunk(
            plain, bases.get(chunk), before, after, try_difference=try_difference, similar=similar
        )
