"""Records of snapshots, packed, in the order of their numbers: what a long history costs in memory.

A record takes about 200 bytes here, against a kilobyte as objects. Of what is needed all the time, number, root
and name, nothing has to be decoded; of the rest the last RECENT records that were read are kept decoded.

Invariants:
1. `_numbers` ascends; `_roots`, `_content_hashes` and `_packed` are parallel to it.
2. `_named` has exactly the names of the records here, each with the ascending numbers of those that have it.
3. Taking in a record above all others, and `get`, cost the same however many there are, but for a binary search.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from snapfs.base.blocks import Number, SnapshotNumber
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import CONTENT_HASH_BYTES, SnapshotRecord
from snapfs.store.objects.format import Pointer

RECENT: Final = 64


class RecordTable:
    """Not thread-safe. All records in here are in the state "good": who keeps states does so by number."""

    def __init__(self) -> None:
        self._numbers, self._roots = array("Q"), array("Q")
        self._content_hashes = bytearray()
        self._packed: list[bytes] = []
        self._named: dict[str, list[SnapshotNumber]] = {}
        self._recent: OrderedDict[SnapshotNumber, SnapshotRecord] = OrderedDict()
        self.decoded = 0
        """How many records have been decoded: the work that has to stay bounded."""

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[SnapshotNumber]:
        return iter(self.numbers())

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._position(number) is not None

    def put(self, record: SnapshotRecord) -> None:
        """Take in a record, in the place of another one of its number. Raises ValueError for what is none."""
        self._put(record.number, record.name, record.root, snapshot_records.pack(record))

    def put_fields(self, fields: snapshot_records.Fields) -> None:
        """The same, without a SnapshotRecord in between."""
        self._put(
            SnapshotNumber(fields.number),
            fields.name,
            snapshot_records.root_of(fields),
            snapshot_records.pack_fields(fields),
        )

    def remove(self, number: SnapshotNumber) -> None:
        """There may be none."""
        at = self._position(number)
        if at is None:
            return
        self._forget_name(number, self._decoded(at).name)
        self._recent.pop(number, None)
        del self._numbers[at], self._roots[at], self._packed[at]
        del self._content_hashes[at * CONTENT_HASH_BYTES : (at + 1) * CONTENT_HASH_BYTES]

    def clear(self) -> None:
        del self._numbers[:], self._roots[:], self._content_hashes[:], self._packed[:]
        self._named.clear()
        self._recent.clear()

    def get(self, number: int) -> SnapshotRecord | None:
        found = self._recent.get(SnapshotNumber(number))
        if found is not None:
            self._recent.move_to_end(found.number)
            return found
        at = self._position(number)
        if at is None:
            return None
        record = self._recent[SnapshotNumber(number)] = self._decoded(at)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return record

    def root(self, number: int) -> Pointer | None:
        """Nothing is decoded for it."""
        at = self._position(number)
        return None if at is None else self._root(at)

    def newest(self, below: int | None = None) -> SnapshotNumber | None:
        """The highest number, or the highest below one."""
        at = len(self._numbers) if below is None else bisect_left(self._numbers, below)
        return SnapshotNumber(self._numbers[at - 1]) if at else None

    def newest_named(self, name: str) -> SnapshotNumber | None:
        found = self._named.get(name)
        return found[-1] if found else None

    def numbers(self, after: int = 0) -> list[SnapshotNumber]:
        """Ascending."""
        return [SnapshotNumber(each) for each in self._numbers[bisect_right(self._numbers, after) :]]

    def numbers_between(self, first: int, last: int) -> list[SnapshotNumber]:
        """Ascending, both included."""
        start, end = bisect_left(self._numbers, max(first, 0)), bisect_right(self._numbers, max(last, 0))
        return [SnapshotNumber(each) for each in self._numbers[start:end]]

    def roots(self, after: int = 0) -> list[tuple[SnapshotNumber, Number]]:
        """Number of snapshot and root object of each."""
        at = bisect_right(self._numbers, after)
        pairs = zip(self._numbers[at:], self._roots[at:], strict=True)
        return [(SnapshotNumber(number), Number(root)) for number, root in pairs]

    def page(self, after: int = 0, most: int | None = None) -> list[SnapshotRecord]:
        """The next records in order, decoded and not kept."""
        start = bisect_right(self._numbers, after)
        end = len(self._numbers) if most is None else min(start + most, len(self._numbers))
        return [self._decoded(at) for at in range(start, end)]

    def check_invariants(self) -> None:
        count = len(self._numbers)
        assert (len(self._roots), len(self._packed), len(self._content_hashes)) == (
            count,
            count,
            count * CONTENT_HASH_BYTES,
        )
        assert all(left < right for left, right in zip(self._numbers, self._numbers[1:], strict=False))
        named: dict[str, list[SnapshotNumber]] = {}
        for at, record in enumerate(self.page()):
            assert record.root == self._root(at)
            if record.name is not None:
                named.setdefault(record.name, []).append(record.number)
        assert named == self._named
        assert len(self._recent) <= RECENT
        assert all(self.root(number) == record.root for number, record in self._recent.items())

    def _put(self, number: SnapshotNumber, name: str | None, root: Pointer, packed: bytes) -> None:
        self.remove(number)
        at = bisect_left(self._numbers, number)
        self._numbers.insert(at, number)
        self._roots.insert(at, root.number)
        self._content_hashes[at * CONTENT_HASH_BYTES : at * CONTENT_HASH_BYTES] = root.content_hash
        self._packed.insert(at, packed)
        if name is not None:
            insort(self._named.setdefault(name, []), number)

    def _forget_name(self, number: SnapshotNumber, name: str | None) -> None:
        if name is not None:
            self._named[name].remove(number)
            if not self._named[name]:
                del self._named[name]

    def _position(self, number: int) -> int | None:
        at = bisect_left(self._numbers, number)
        return at if at < len(self._numbers) and self._numbers[at] == number else None

    def _root(self, at: int) -> Pointer:
        return Pointer(
            Number(self._roots[at]),
            bytes(self._content_hashes[at * CONTENT_HASH_BYTES : (at + 1) * CONTENT_HASH_BYTES]),
        )

    def _decoded(self, at: int) -> SnapshotRecord:
        self.decoded += 1
        return snapshot_records.unpack(self._packed[at], self._numbers[at], self._root(at))
