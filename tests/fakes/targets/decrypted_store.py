"""What an encrypted store holds, opened with the keys and read as a store of its own."""

from __future__ import annotations

from snapfs.base.blocks import Number
from snapfs.store.crypto.encryption import Encryptor
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Row
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_reader import RowSource
from snapfs.store.protocol.object_stream import Item


class _Opened:
    """An object's place, after it was opened."""

    path = "an encrypted store"

    def __init__(self, item: Item) -> None:
        self._item = item

    def row(self, number: Number) -> Row | None:
        return self._item.row()

    def frame(self, row: Row) -> bytes:
        return self._item.framed


class OpenedPlaces:
    """`Places` in which everything is as in the volume's own store."""

    def __init__(self, index: SegmentIndex, encryptor: Encryptor) -> None:
        self._index, self._encryptor = index, encryptor

    def locate(self, number: Number) -> tuple[RowSource, Row]:
        source, row = self._index.locate(number)
        framed = source.frame(row)
        item = self._encryptor.decrypt(Item(row.content_hash, fmt.unpack_frame(framed), framed), "an encrypted store")
        return _Opened(item), item.row()

    def find(self, number: Number) -> SegmentInfo | None:
        return self._index.find(number)


def opened(index: SegmentIndex, encryptor: Encryptor, seed: int) -> Objects:
    return Objects(OpenedPlaces(index, encryptor), seed, 1 << 20)
