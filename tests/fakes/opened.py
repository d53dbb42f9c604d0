"""What an opaque store holds, opened with the keys and read as a store of its own."""

from __future__ import annotations

from snapfs.blocks import Number
from snapfs.store import format as fmt
from snapfs.store.format import Row
from snapfs.store.index import SegmentIndex, SegmentInfo
from snapfs.store.objects import Objects
from snapfs.store.sealing import Sealer
from snapfs.store.segment import RowSource
from snapfs.store.stream import Item


class _Opened:
    """An object's place, after it was opened."""

    path = "an opaque store"

    def __init__(self, item: Item) -> None:
        self._item = item

    def row(self, number: Number) -> Row | None:
        return self._item.row()

    def frame(self, row: Row) -> bytes:
        return self._item.framed


class OpenedPlaces:
    """`Places` in which everything is as in the volume's own store."""

    def __init__(self, index: SegmentIndex, sealer: Sealer) -> None:
        self._index, self._sealer = index, sealer

    def locate(self, number: Number) -> tuple[RowSource, Row]:
        source, row = self._index.locate(number)
        framed = source.frame(row)
        item = self._sealer.open(Item(row.proof, fmt.unpack_frame(framed), framed), "an opaque store")
        return _Opened(item), item.row()

    def find(self, number: Number) -> SegmentInfo | None:
        return self._index.find(number)


def opened(index: SegmentIndex, sealer: Sealer, seed: int) -> Objects:
    return Objects(OpenedPlaces(index, sealer), seed, 1 << 20)
